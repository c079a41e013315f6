//! The texts that end an answer, looked for in text that comes piece by piece: by the worker that writes it, and by the
//! gateway behind which a server does not.

/// Looks for stop texts in one answer, and holds back what could be the beginning of one.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    texts: Vec<String>,
    held: String,
}

impl Stops {
    /// For an answer that the first of these texts ends; none of them may be empty.
    pub fn new(texts: Vec<String>) -> Self {
        let held = String::new();
        Self { texts, held }
    }

    /// Takes the next piece: what may be shown of the text now, and whether a stop text has ended it there.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        // The one that is complete first ends the answer, however the text is cut into pieces.
        let end = |stop: &String| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at));
        if let Some((_, at)) = self.texts.iter().filter_map(end).min() {
            self.held.truncate(at);
            return (self.rest(), true);
        }
        let suspect = self.texts.iter().map(|stop| ends_like(&self.held, stop)).max();
        let held = self.held.split_off(self.held.len() - suspect.unwrap_or(0));
        (std::mem::replace(&mut self.held, held), false)
    }

    /// What was held back, now that nothing more comes or it cannot be the beginning of one.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Whether something is held back.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }
}

/// Length of the longest end of `text` that `mark` begins with.
pub fn ends_like(text: &str, mark: &str) -> usize {
    let starts = text.char_indices().map(|(at, _)| &text[at..]);
    starts
        .filter(|end| end.len() < mark.len() && mark.starts_with(end))
        .map(str::len)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_stop_text_is_shown_however_the_text_is_cut() {
        let said = |stops: &[&str], pieces: &[&str]| {
            let mut stops = Stops::new(stops.iter().map(ToString::to_string).collect());
            let mut shown = String::new();
            for piece in pieces {
                let (text, over) = stops.push(piece);
                shown += &text;
                if over {
                    assert!(!stops.holds());
                    return (shown, true);
                }
            }
            (shown + &stops.rest(), false)
        };
        assert_eq!(said(&["END"], &["a E", "N", "D b"]), ("a ".to_owned(), true));
        assert_eq!(said(&["END"], &["a E", "NE", "NDE"]), ("a EN".to_owned(), true));
        assert_eq!(said(&["END"], &["a E", "N"]), ("a EN".to_owned(), false));
        assert_eq!(said(&["cd", "abc"], &["xabcd"]), ("x".to_owned(), true));
        assert_eq!(said(&["🐝"], &["é", "🐝"]), ("é".to_owned(), true));
        assert_eq!(said(&[], &["a", "b"]), ("ab".to_owned(), false));
    }

    #[test]
    fn only_an_end_that_the_mark_begins_with_is_suspect() {
        assert_eq!(ends_like("aab", "aabc"), 3);
        assert_eq!(ends_like("abc", "abc"), 0, "that would be all of it");
        assert_eq!(ends_like("xyz", "abc"), 0);
    }
}
