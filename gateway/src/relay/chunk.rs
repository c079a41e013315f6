//! What the relay reads of a chunk as it passes: the end, the usage, how much it says.
//!
//! It never rewrites a chunk; what it does not know passes untouched.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use serde_json::{Map, Value};

use crate::limits;

/// The parts of a chunk the relay looks at.
#[derive(Debug, Deserialize)]
pub struct Chunk<'a> {
    /// One per choice; none in the usage chunk.
    #[serde(borrow, default)]
    pub choices: Option<Vec<Choice<'a>>>,
    /// Present in the usage chunk.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// Present when the worker failed in the middle.
    #[serde(default)]
    pub error: Option<serde_json::Value>,
}

/// The parts of a chunk's choice the relay looks at.
#[derive(Debug, Deserialize)]
pub struct Choice<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(default)]
    delta: Said,
    /// What a completion has instead of a delta.
    #[serde(default)]
    text: Said,
}

/// How much a field says, whatever its type: the bytes of its texts, one for anything else, nothing for who speaks.
#[derive(Debug, Default)]
struct Said(usize);

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Token counts, as far as the books keep them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    #[serde(default, deserialize_with = "believable")]
    pub prompt_tokens: Option<i64>,
    /// Tokens generated.
    #[serde(default, deserialize_with = "believable")]
    pub completion_tokens: Option<i64>,
}

/// A worker's count of tokens, if it can be true; sums of such counts stay exact in books and record.
pub fn possible(count: i64) -> Option<i64> {
    (0..=i64::from(u32::MAX)).contains(&count).then_some(count)
}

fn believable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Ok(Option::deserialize(deserializer)?.and_then(possible))
}

/// How far an answer has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// Deltas that carried a token; the count of tokens until the worker's own usage comes.
    pub tokens: i64,
    /// What they said, in bytes.
    said: usize,
    /// The worker's own count.
    pub usage: Option<Usage>,
    /// How many choices there must be, if that is known.
    expected: usize,
    open: Vec<u32>,
    finished: Vec<u32>,
}

impl Progress {
    /// Of an answer that must have so many choices.
    pub fn of(expected: usize) -> Self {
        Self {
            expected,
            ..Self::default()
        }
    }

    /// Takes note of a chunk; true if it carried a token.
    pub fn note(&mut self, chunk: &Chunk<'_>) -> bool {
        let mut token = false;
        for choice in chunk.choices.iter().flatten() {
            if !self.open.contains(&choice.index) {
                self.open.push(choice.index);
            }
            if choice.finish_reason.is_some() && !self.finished.contains(&choice.index) {
                self.finished.push(choice.index);
            }
            self.said += choice.says();
            self.tokens += i64::from(choice.says() > 0);
            token |= choice.says() > 0;
        }
        self.usage = chunk.usage.or(self.usage);
        token
    }

    /// About how many tokens have passed, where an event may be more than one.
    pub fn estimate(&self) -> i64 {
        let tokens = limits::estimate(self.said);
        self.tokens.max(i64::try_from(tokens).unwrap_or(i64::MAX))
    }

    /// How many choices have begun.
    pub fn choices(&self) -> usize {
        self.open.len()
    }

    /// Whether every choice has its finish reason.
    pub fn is_finished(&self) -> bool {
        let choices = self.open.len().max(self.expected);
        choices > 0 && self.finished.len() == choices
    }
}

impl Chunk<'_> {
    /// Whether it is the chunk that carries the usage and nothing else.
    pub fn is_usage_chunk(&self) -> bool {
        self.usage.is_some() && self.choices.as_ref().is_none_or(Vec::is_empty)
    }
}

impl Choice<'_> {
    /// How much it says, in bytes.
    fn says(&self) -> usize {
        self.delta.0 + self.text.0
    }
}

/// Whether a chunk's choice says anything.
pub fn says(choice: &Map<String, Value>) -> bool {
    Choice::deserialize(choice).is_ok_and(|choice| choice.says() > 0)
}

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Look;
        impl<'de> Visitor<'de> for Look {
            type Value = Said;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_str<E>(self, text: &str) -> Result<Said, E> {
                Ok(Said(text.len()))
            }
            fn visit_unit<E>(self) -> Result<Said, E> {
                Ok(Said(0))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Said, E> {
                Ok(Said(1))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Said, E> {
                Ok(Said(1))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Said, E> {
                Ok(Said(1))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Said, E> {
                Ok(Said(1))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Said, A::Error> {
                let mut all = 0;
                while let Some(Said(some)) = list.next_element()? {
                    all += some;
                }
                Ok(Said(all))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Said, A::Error> {
                let mut all = 0;
                while let Some((Name(key), Said(some))) = map.next_entry()? {
                    all += if key == "role" { 0 } else { some };
                }
                Ok(Said(all))
            }
        }
        deserializer.deserialize_any(Look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(progress: &mut Progress, json: &str) -> bool {
        progress.note(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn an_answer_is_finished_when_every_choice_is() {
        let mut progress = Progress::default();
        assert!(!progress.is_finished());
        assert!(!note(
            &mut progress,
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#
        ));
        assert!(!note(
            &mut progress,
            r#"{"choices":[{"index":1,"delta":{"role":"assistant"}}]}"#
        ));
        assert!(note(
            &mut progress,
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":null,"error":null}"#
        ));
        note(
            &mut progress,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        );
        assert!(!progress.is_finished());
        note(
            &mut progress,
            r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#,
        );
        assert!(progress.is_finished());
        assert_eq!(progress.tokens, 1);
        assert!(!Progress::of(1).is_finished());
    }

    #[test]
    fn an_answer_without_one_of_its_choices_is_not_finished() {
        let mut progress = Progress::of(2);
        let finish = |index| format!(r#"{{"choices":[{{"index":{index},"text":"a","finish_reason":"stop"}}]}}"#);
        assert!(note(&mut progress, &finish(0)));
        assert!(!progress.is_finished());
        note(&mut progress, &finish(1));
        assert!(progress.is_finished());
        assert_eq!(progress.tokens, 2);
    }

    #[test]
    fn a_delta_of_any_form_is_looked_at_and_not_refused() {
        let mut progress = Progress::default();
        for (delta, token) in [
            (r#"{"content":[{"type":"text","text":"a"}]}"#, true),
            (r#"{"content":{"x":1}}"#, true),
            (r#"{"content":7}"#, true),
            (r#"{"content":null,"tool_calls":[],"reasoning_content":""}"#, false),
            (r#"{"reasoning_content":"hm"}"#, true),
            (r#"{"tool_calls":[{"index":0}]}"#, true),
            ("{}", false),
            ("null", false),
        ] {
            let json = format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}],"usage":{{"prompt_tokens":1}}}}"#);
            assert_eq!(note(&mut progress, &json), token, "{delta}");
        }
        assert_eq!(progress.tokens, 5);
    }

    #[test]
    fn usage_is_read_where_it_stands() {
        let json = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#;
        let chunk: Chunk<'_> = serde_json::from_str(json).unwrap();
        assert!(chunk.is_usage_chunk());
        let mut progress = Progress::default();
        progress.note(&chunk);
        assert_eq!(
            progress.usage,
            Some(Usage {
                prompt_tokens: Some(3),
                completion_tokens: Some(4)
            })
        );
    }

    #[test]
    fn a_count_that_cannot_be_true_is_not_believed() {
        for count in [-1, i64::MIN, 1 << 32, i64::MAX] {
            let json = format!(r#"{{"prompt_tokens":{count},"completion_tokens":{count}}}"#);
            assert_eq!(
                serde_json::from_str::<Usage>(&json).unwrap(),
                Usage::default(),
                "{count}"
            );
        }
        let usage: Usage = serde_json::from_str(r#"{"prompt_tokens":0,"completion_tokens":4294967295}"#).unwrap();
        assert_eq!(
            (usage.prompt_tokens, usage.completion_tokens),
            (Some(0), Some(4_294_967_295))
        );
    }
}
