//! Tells what a model thinks aloud from what it answers, while it comes: `<think>` … `</think>`, before all else.
//!
//! What could still become a mark is held back, and so are the gaps around a thought, which are no text of their own.
//! Once the answer has begun it never looks for thoughts again.

use wire::openai::ends_like;

/// What begins and ends a thought.
pub const MARKS: [&str; 2] = ["<think>", "</think>"];

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// In a thought: the prompt has begun it.
    Inside,
    /// Before one, if the model thinks at all.
    Before,
}

/// Reads one answer.
#[derive(Debug)]
pub struct Thinker {
    /// What has come and is not told yet.
    held: String,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first word.
    Start,
    /// Behind the opening mark, before the first word.
    Opened,
    Thought,
    /// Behind the closing mark, before the first word.
    Closed,
    Answer,
}

/// What is certain of some text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What was thought, before the answer.
    pub thought: String,
    /// What is answered.
    pub answer: String,
}

impl Thinker {
    /// For an answer that begins there.
    pub fn new(start: Start) -> Self {
        let place = match start {
            Start::Inside => Place::Opened,
            Start::Before => Place::Start,
        };
        let held = String::new();
        Self { held, place }
    }

    /// Whether what comes next is thought.
    pub fn is_inside(&self) -> bool {
        matches!(self.place, Place::Opened | Place::Thought)
    }

    /// More text came.
    pub fn push(&mut self, text: &str) -> Told {
        self.held.push_str(text);
        let mut told = Told::default();
        while self.step(&mut told) {}
        told
    }

    /// Nothing more comes: what was held back is no mark.
    pub fn finish(&mut self) -> Told {
        let mut told = Told::default();
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Start | Place::Answer => told.answer = held,
            Place::Thought => held.trim_end().clone_into(&mut told.thought),
            Place::Opened | Place::Closed => {}
        }
        told
    }

    /// Reads one part of what is held; false: more must come first.
    fn step(&mut self, told: &mut Told) -> bool {
        let [open, close] = MARKS;
        let word = self.held.trim_start();
        match self.place {
            Place::Start => {
                if let Some(rest) = word.strip_prefix(open) {
                    (self.held, self.place) = (rest.to_owned(), Place::Opened);
                } else if open.starts_with(word) {
                    return false;
                } else {
                    self.place = Place::Answer;
                }
            }
            Place::Opened | Place::Closed if word.is_empty() => return false,
            Place::Opened => (self.held, self.place) = (word.to_owned(), Place::Thought),
            Place::Closed => (self.held, self.place) = (word.to_owned(), Place::Answer),
            Place::Thought => {
                let (end, behind) = match self.held.find(close) {
                    Some(at) => (at, Some(at + close.len())),
                    None => (self.held.len() - ends_like(&self.held, close), None),
                };
                let certain = self.held[..end].trim_end();
                told.thought.push_str(certain);
                match behind {
                    None => {
                        self.held.drain(..certain.len());
                        return false;
                    }
                    Some(behind) => {
                        self.held.drain(..behind);
                        self.place = Place::Closed;
                    }
                }
            }
            Place::Answer => {
                told.answer.push_str(&std::mem::take(&mut self.held));
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<'a>(start: Start, parts: impl IntoIterator<Item = &'a str>) -> (String, String) {
        let mut thinker = Thinker::new(start);
        let mut all = Told::default();
        let mut add = |told: Told| {
            assert!(told.thought.is_empty() || all.answer.is_empty(), "thoughts come first");
            all.thought.push_str(&told.thought);
            all.answer.push_str(&told.answer);
        };
        parts.into_iter().for_each(|part| add(thinker.push(part)));
        add(thinker.finish());
        (all.thought, all.answer)
    }

    #[test]
    fn a_thought_comes_before_the_answer_and_only_there() {
        use Start::{Before, Inside};
        for (start, text, thought, answer) in [
            (Before, "<think>\nhm, so\n</think>\n\n42 ", "hm, so", "42 "),
            (Before, " <think></think>42", "", "42"),
            (Before, "plain <think>x</think>", "", "plain <think>x</think>"),
            (Before, " <thin", "", " <thin"),
            (Before, "<think>cut off </thi", "cut off </thi", ""),
            (Before, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
            (Inside, "hm\n</think>42", "hm", "42"),
            (Inside, "</think>\n42", "", "42"),
            (Inside, "for ever ", "for ever", ""),
        ] {
            assert_eq!(read(start, [text]), (thought.to_owned(), answer.to_owned()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_thought_is_the_same_however_its_text_is_cut(
            words in prop::collection::vec(prop::sample::select(vec!["<think>", "</think>", "<", "think", ">", "</", " ", "\n", "é", "x"]), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            inside: bool,
        ) {
            let start = if inside { Start::Inside } else { Start::Before };
            let text = words.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).filter(|&at| text.is_char_boundary(at)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let parts = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
            prop_assert_eq!(read(start, parts), read(start, [text.as_str()]));
        }
    }
}
