//! From tokens to text that may be shown: whole code points, and nothing of a stop text.
//!
//! Both engines go through here, so that both count, stop and end alike. It knows neither model nor wire.

use super::{Delta, Event, FinishReason, TokenLogprob, Usage};

/// Turns token after token into text, holding back what is not a whole code point yet.
///
/// Tokenizers decode a token differently at the start of a text than in its middle (spaces), so it always
/// decodes a little window and takes what the new token added to it.
#[derive(Debug, Default)]
pub struct Detokenizer {
    tokens: Vec<u32>,
    window: usize,
    shown: usize,
}

impl Detokenizer {
    /// The text that `token` completes; empty while a code point is incomplete.
    pub fn push(&mut self, token: u32, decode: impl Fn(&[u32]) -> String) -> String {
        self.tokens.push(token);
        let before = decode(&self.tokens[self.window..self.shown]);
        let now = decode(&self.tokens[self.window..]);
        if now.ends_with(char::REPLACEMENT_CHARACTER) {
            return String::new();
        }
        let Some(text) = now.get(before.len()..) else {
            return String::new();
        };
        self.window = self.shown;
        self.shown = self.tokens.len();
        text.to_owned()
    }

    /// What is still held back, now that nothing more comes.
    pub fn finish(&self, decode: impl Fn(&[u32]) -> String) -> String {
        let before = decode(&self.tokens[self.window..self.shown]);
        let now = decode(&self.tokens[self.window..]);
        now.get(before.len()..).unwrap_or_default().to_owned()
    }
}

/// Gathers an answer: finds stop texts, counts tokens, and says what may be shown and when it is over.
#[derive(Debug)]
pub struct Answer {
    stop: Vec<String>,
    /// Text that could be the beginning of a stop text.
    held: String,
    logprobs: Vec<TokenLogprob>,
    usage: Usage,
    budget: u32,
}

impl Answer {
    /// For an answer of at most `budget` tokens to a prompt of `prompt` tokens.
    pub fn new(prompt: u32, budget: u32, stop: Vec<String>) -> Self {
        let usage = Usage { prompt, completion: 0 };
        Self {
            stop,
            held: String::new(),
            logprobs: Vec::new(),
            usage,
            budget,
        }
    }

    /// Whether the next token is the last one allowed.
    pub fn is_last(&self) -> bool {
        self.usage.completion + 1 >= self.budget
    }

    /// Takes one token's text into `events`. True: the answer is over.
    pub fn push(&mut self, text: &str, logprob: Option<TokenLogprob>, events: &mut impl Extend<Event>) -> bool {
        let is_last = self.is_last();
        self.usage.completion += 1;
        self.held.push_str(text);
        self.logprobs.extend(logprob);
        let first = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            self.end("", FinishReason::Stop, events);
            return true;
        }
        if is_last {
            self.end("", FinishReason::Length, events);
            return true;
        }
        let safe = self.held.len() - self.suspect();
        if safe > 0 {
            let rest = self.held.split_off(safe);
            let text = std::mem::replace(&mut self.held, rest);
            events.extend([Event::Delta(Delta {
                text,
                logprobs: std::mem::take(&mut self.logprobs),
            })]);
        }
        false
    }

    /// Ends the answer: shows what was held back and the `rest`, and says why it ended.
    pub fn end(&mut self, rest: &str, reason: FinishReason, events: &mut impl Extend<Event>) {
        let text = std::mem::take(&mut self.held) + rest;
        let logprobs = std::mem::take(&mut self.logprobs);
        let delta = (!text.is_empty()).then_some(Event::Delta(Delta { text, logprobs }));
        events.extend(delta.into_iter().chain([Event::Finish {
            reason,
            usage: self.usage,
        }]));
    }

    /// Length of the longest end of `held` that a stop text begins with.
    fn suspect(&self) -> usize {
        let longest = |stop: &String| {
            let starts = self.held.char_indices().map(|(at, _)| &self.held[at..]);
            starts
                .filter(|end| end.len() < stop.len() && stop.starts_with(end))
                .map(str::len)
                .max()
        };
        self.stop.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every "token" is a byte.
    fn decode(bytes: &[u32]) -> String {
        let bytes: Vec<u8> = bytes.iter().filter_map(|&b| u8::try_from(b).ok()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn code_points_are_never_split() {
        let mut detokenizer = Detokenizer::default();
        let pieces: Vec<String> = "aé🐝!".bytes().map(|b| detokenizer.push(b.into(), decode)).collect();
        assert_eq!(pieces, ["a", "", "é", "", "", "", "🐝", "!"]);
    }

    #[test]
    fn what_stays_incomplete_is_shown_at_the_end() {
        let mut detokenizer = Detokenizer::default();
        assert_eq!(detokenizer.push(b'a'.into(), decode), "a");
        assert_eq!(detokenizer.push(0xF0, decode), "");
        assert_eq!(detokenizer.finish(decode), "\u{FFFD}");
    }

    fn run(budget: u32, stop: &[&str], tokens: &[&str]) -> (String, Vec<Event>) {
        let mut answer = Answer::new(3, budget, stop.iter().map(ToString::to_string).collect());
        let mut events = Vec::new();
        if !tokens.iter().any(|token| answer.push(token, None, &mut events)) {
            answer.end("", FinishReason::Stop, &mut events);
        }
        let text = events.iter().filter_map(|event| match event {
            Event::Delta(delta) => Some(delta.text.as_str()),
            _ => None,
        });
        (text.collect(), events)
    }

    fn finish(reason: FinishReason, completion: u32) -> Event {
        Event::Finish {
            reason,
            usage: Usage { prompt: 3, completion },
        }
    }

    #[test]
    fn text_flows_token_by_token() {
        let (_, events) = run(9, &[], &["a", "b"]);
        assert_eq!(events.len(), 3);
        assert_eq!(events.last(), Some(&finish(FinishReason::Stop, 2)));
    }

    #[test]
    fn a_stop_text_across_tokens_never_shows() {
        let (text, events) = run(99, &["END"], &["on", "e E", "N", "Dx", "never"]);
        assert_eq!(text, "one ");
        assert_eq!(events.last(), Some(&finish(FinishReason::Stop, 4)));
    }

    #[test]
    fn a_near_miss_of_a_stop_text_is_shown_after_all() {
        assert_eq!(run(99, &["END", "ééé"], &["E", "N", "E", "éé"]).0, "ENEéé");
        assert_eq!(run(99, &["aab"], &["a", "a", "a", "b", "c"]).0, "a");
    }

    #[test]
    fn the_earliest_of_several_stop_texts_wins() {
        assert_eq!(run(99, &["c", "b"], &["abc"]).0, "a");
    }

    #[test]
    fn the_budget_ends_the_answer_with_what_was_held() {
        let (text, events) = run(2, &["END"], &["x", "EN", "D"]);
        assert_eq!(text, "xEN");
        assert_eq!(events.last(), Some(&finish(FinishReason::Length, 2)));
    }
}
