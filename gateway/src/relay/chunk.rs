//! What the relay reads of a chunk as it passes: the end, the usage, whether it carries a token.
//!
//! It never rewrites a chunk; what it does not know passes untouched.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

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
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(default)]
    tool_calls: Option<IgnoredAny>,
}

/// Token counts, as far as the books keep them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: i64,
    /// Tokens generated.
    pub completion_tokens: i64,
}

/// How far an answer has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// Chunks that carried a token; the count of tokens until the worker's own usage comes.
    pub tokens: i64,
    /// The worker's own count.
    pub usage: Option<Usage>,
    open: Vec<u32>,
    finished: Vec<u32>,
}

impl Progress {
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
            token |= choice.delta.as_ref().is_some_and(Delta::carries_a_token);
        }
        self.tokens += i64::from(token);
        self.usage = chunk.usage.or(self.usage);
        token
    }

    /// Whether every choice that was begun has its finish reason.
    pub fn is_finished(&self) -> bool {
        !self.open.is_empty() && self.open.len() == self.finished.len()
    }
}

impl Chunk<'_> {
    /// Whether it is the chunk that carries the usage and nothing else.
    pub fn is_usage_chunk(&self) -> bool {
        self.usage.is_some() && self.choices.as_ref().is_none_or(Vec::is_empty)
    }
}

impl Delta<'_> {
    fn carries_a_token(&self) -> bool {
        let some = |text: &Option<Cow<'_, str>>| text.as_ref().is_some_and(|t| !t.is_empty());
        some(&self.content) || some(&self.reasoning_content) || self.tool_calls.is_some()
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
                prompt_tokens: 3,
                completion_tokens: 4
            })
        );
    }
}
