//! From tokens to text that may be shown: whole code points, and nothing of a stop text.
//!
//! Both engines go through here, so that both count, stop and end alike. It knows neither model nor wire.

use wire::openai::Stops;

use super::{
    Delta, Event, FinishReason, TokenLogprob, Usage,
    calls::{Piece, Reader},
    thought::{Start, Thinker, Told},
    tools::Dialect,
};

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

/// Gathers an answer: finds thoughts, calls and stop texts, counts tokens, and says what may be shown and when it is over.
#[derive(Debug)]
pub struct Answer {
    stops: Stops,
    thinker: Option<Thinker>,
    reader: Option<Reader>,
    /// It has called a tool.
    called: bool,
    logprobs: Vec<TokenLogprob>,
    usage: Usage,
    budget: u32,
}

impl Answer {
    /// For an answer of at most `budget` tokens to a prompt of `prompt` tokens, in which calls are looked for if there
    /// is a dialect to read them in.
    pub fn new(prompt: u32, budget: u32, stop: Vec<String>, dialect: Option<Dialect>) -> Self {
        Self {
            stops: Stops::new(stop),
            thinker: None,
            reader: dialect.map(Reader::new),
            called: false,
            logprobs: Vec::new(),
            usage: Usage {
                prompt,
                ..Usage::default()
            },
            budget,
        }
    }

    /// The same, in which thoughts are looked for if it is known where they begin.
    pub fn with_thoughts(self, start: Option<Start>) -> Self {
        Self {
            thinker: start.map(Thinker::new),
            ..self
        }
    }

    /// Whether the next token is the last one allowed.
    pub fn is_last(&self) -> bool {
        self.usage.completion + 1 >= self.budget
    }

    /// Takes one token's text into `events`; `ends` if nothing can follow it. True: the answer is over.
    pub fn push(&mut self, text: &str, logprob: Option<TokenLogprob>, ends: bool, events: &mut Vec<Event>) -> bool {
        let is_last = self.is_last();
        self.usage.completion += 1;
        self.logprobs.extend(logprob);
        let text = self.think(text, events);
        let pieces = match &mut self.reader {
            None => vec![Piece::Text(text)],
            Some(reader) => reader.push(&text),
        };
        if self.tell(pieces, events) {
            self.finish(FinishReason::Stop, events);
        } else if ends {
            self.end("", FinishReason::Stop, events);
        } else if is_last {
            self.end("", FinishReason::Length, events);
        } else {
            return false;
        }
        true
    }

    /// Ends the answer: shows what was held back and the `rest`, and says why it ended.
    pub fn end(&mut self, rest: &str, reason: FinishReason, events: &mut Vec<Event>) {
        let mut rest = self.think(rest, events);
        if let Some(told) = self.thinker.as_mut().map(Thinker::finish) {
            rest.push_str(&self.show_thought(told, events));
        }
        let pieces = match &mut self.reader {
            None => vec![Piece::Text(rest)],
            Some(reader) => {
                let mut pieces = reader.push(&rest);
                pieces.extend(reader.finish());
                pieces
            }
        };
        if !self.tell(pieces, events) {
            self.show_held(events);
        }
        self.finish(reason, events);
    }

    /// Shows what is thought, and counts its token; what is left is the answer's.
    fn think(&mut self, text: &str, events: &mut Vec<Event>) -> String {
        let Some(thinker) = &mut self.thinker else {
            return text.to_owned();
        };
        let was_inside = thinker.is_inside();
        let told = thinker.push(text);
        if !text.is_empty() && (was_inside || thinker.is_inside()) {
            self.usage.reasoning += 1;
        }
        self.show_thought(told, events)
    }

    fn show_thought(&mut self, told: Told, events: &mut Vec<Event>) -> String {
        if !told.thought.is_empty() {
            self.show(Piece::Thought(told.thought), events);
        }
        told.answer
    }

    /// Shows what may be shown. True: a stop text was found.
    fn tell(&mut self, pieces: Vec<Piece>, events: &mut Vec<Event>) -> bool {
        for piece in pieces {
            let Piece::Text(text) = piece else {
                self.show_held(events);
                self.called = true;
                self.show(piece, events);
                continue;
            };
            let (text, over) = self.stops.push(&text);
            self.show_text(text, events);
            if over {
                return true;
            }
        }
        false
    }

    fn show_held(&mut self, events: &mut Vec<Event>) {
        let text = self.stops.rest();
        self.show_text(text, events);
    }

    fn show_text(&mut self, text: String, events: &mut Vec<Event>) {
        if !text.is_empty() {
            self.show(Piece::Text(text), events);
        }
    }

    fn show(&mut self, piece: Piece, events: &mut Vec<Event>) {
        let logprobs = std::mem::take(&mut self.logprobs);
        events.push(Event::Delta(Delta { piece, logprobs }));
    }

    fn finish(&mut self, reason: FinishReason, events: &mut Vec<Event>) {
        let reason = if self.called && reason == FinishReason::Stop {
            FinishReason::ToolCalls
        } else {
            reason
        };
        events.push(Event::Finish {
            reason,
            usage: self.usage,
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        play(None, budget, stop, tokens)
    }

    fn play(dialect: Option<Dialect>, budget: u32, stop: &[&str], tokens: &[&str]) -> (String, Vec<Event>) {
        let mut answer = Answer::new(3, budget, stop.iter().map(ToString::to_string).collect(), dialect);
        let mut events = Vec::new();
        if !tokens.iter().any(|token| answer.push(token, None, false, &mut events)) {
            answer.end("", FinishReason::Stop, &mut events);
        }
        let text = events.iter().filter_map(|event| match event {
            Event::Delta(Delta {
                piece: Piece::Text(text),
                ..
            }) => Some(text.as_str()),
            _ => None,
        });
        (text.collect(), events)
    }

    fn finish(reason: FinishReason, completion: u32) -> Event {
        Event::Finish {
            reason,
            usage: Usage {
                prompt: 3,
                completion,
                reasoning: 0,
            },
        }
    }

    #[test]
    fn text_flows_token_by_token() {
        let (_, events) = run(9, &[], &["a", "b"]);
        assert_eq!(events.len(), 3);
        assert_eq!(events.last(), Some(&finish(FinishReason::Stop, 2)));
    }

    #[test]
    fn thoughts_are_told_apart_and_counted_and_no_stop_text_ends_them() {
        let stop = vec!["so".to_owned()];
        let mut answer = Answer::new(3, 9, stop, Some(Dialect::Hermes)).with_thoughts(Some(Start::Before));
        let mut events = Vec::new();
        let tokens = ["<think>", "\nso", " be it", "</think>", "\n\n", "it is ", "so"];
        let over = tokens.iter().map(|token| answer.push(token, None, false, &mut events));
        assert_eq!(
            over.collect::<Vec<_>>(),
            [false, false, false, false, false, false, true]
        );
        let delta = |piece| {
            Event::Delta(Delta {
                piece,
                logprobs: Vec::new(),
            })
        };
        let usage = Usage {
            prompt: 3,
            completion: 7,
            reasoning: 4,
        };
        let finish = Event::Finish {
            reason: FinishReason::Stop,
            usage,
        };
        let told: String = events
            .iter()
            .filter_map(|event| match event {
                Event::Delta(Delta {
                    piece: Piece::Text(text),
                    ..
                }) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(
            events[..2],
            [
                delta(Piece::Thought("so".into())),
                delta(Piece::Thought(" be it".into()))
            ]
        );
        assert_eq!((told.trim_end(), events.last()), ("it is", Some(&finish)));
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

    proptest! {
        #[test]
        fn text_ends_before_the_first_stop_text_however_it_is_cut(
            text in "[abé🐝 ]{0,24}",
            stop in proptest::collection::vec("[abé🐝 ]{1,4}", 0..4),
            cuts in proptest::collection::vec(0..32_usize, 0..8),
        ) {
            let at = |end: usize| stop.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
            let mut ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
            let kept = ends.find_map(|end| Some(end - at(end)?));
            let stops: Vec<&str> = stop.iter().map(String::as_str).collect();
            let tokens = cut(&text, &cuts);
            let (said, events) = run(99, &stops, &tokens);
            prop_assert_eq!(&said, &text[..kept.unwrap_or(text.len())]);
            let single: Vec<String> = text.chars().map(String::from).collect();
            let single: Vec<&str> = single.iter().map(String::as_str).collect();
            prop_assert_eq!(&run(99, &stops, &single).0, &said);
            // What may still become a stop text is all that is held back.
            if let Some(Event::Finish { usage, .. }) = events.last() {
                prop_assert!(usage.completion as usize <= tokens.len());
            }
            for i in 0..tokens.len() {
                let held = tokens[..i].concat().len().saturating_sub(run_open(&stops, &tokens[..i]).len());
                prop_assert!(kept.is_some() || held < 4 * 4, "{held} bytes are held back");
            }
        }

        #[test]
        fn code_points_come_whole_however_their_bytes_are_cut(text in any::<String>(), cuts in proptest::collection::vec(0..64_usize, 0..9)) {
            // A token is a number here, and says some bytes.
            let bytes = text.as_bytes();
            let mut ends: Vec<usize> = cuts.into_iter().map(|at| at % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
            ends.sort_unstable();
            let words: Vec<&[u8]> = ends.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let decode = |tokens: &[u32]| {
                let said: Vec<u8> = tokens.iter().flat_map(|token| words[*token as usize].iter().copied()).collect();
                String::from_utf8_lossy(&said).into_owned()
            };
            let mut detokenizer = Detokenizer::default();
            let mut said: String = (0_u32..).take(words.len()).map(|token| detokenizer.push(token, decode)).collect();
            said += &detokenizer.finish(decode);
            prop_assert_eq!(said, text);
        }
    }

    /// A text cut at these characters.
    fn cut<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
        let mut ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        ends.push(text.len());
        let mut chosen: Vec<usize> = cuts
            .iter()
            .map(|at| ends[at % ends.len()])
            .chain([0, text.len()])
            .collect();
        chosen.sort_unstable();
        chosen.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
    }

    /// What is shown while the answer goes on.
    fn run_open(stop: &[&str], tokens: &[&str]) -> String {
        let mut answer = Answer::new(3, 99, stop.iter().map(ToString::to_string).collect(), None);
        let mut events = Vec::new();
        let _ = tokens.iter().any(|token| answer.push(token, None, false, &mut events));
        let text = events.into_iter().filter_map(|event| match event {
            Event::Delta(Delta {
                piece: Piece::Text(text),
                ..
            }) => Some(text),
            _ => None,
        });
        text.collect()
    }

    #[test]
    fn the_budget_ends_the_answer_with_what_was_held() {
        let (text, events) = run(2, &["END"], &["x", "EN", "D"]);
        assert_eq!(text, "xEN");
        assert_eq!(events.last(), Some(&finish(FinishReason::Length, 2)));
    }

    #[test]
    fn a_call_is_no_text_and_a_stop_text_does_not_cut_it() {
        let call = [
            "See: ",
            "<tool_",
            "call>{\"name\": \"f\", \"arguments\": ",
            "{\"END\"",
            ": 1}}</tool_call>",
        ];
        let (text, events) = play(Some(Dialect::Hermes), 99, &["END"], &call);
        assert_eq!(text, "See:");
        let arguments: String = events
            .iter()
            .filter_map(|event| match event {
                Event::Delta(Delta {
                    piece: Piece::Arguments(text),
                    ..
                }) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(arguments, "{\"END\": 1}");
        assert_eq!(events.last(), Some(&finish(FinishReason::ToolCalls, 5)));
        let (_, cut) = play(Some(Dialect::Hermes), 4, &[], &call);
        assert_eq!(cut.last(), Some(&finish(FinishReason::Length, 4)));
    }
}
