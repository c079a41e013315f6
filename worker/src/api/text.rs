//! OpenAI's wire form of a text completion, the older API.

use std::collections::BTreeMap;

use serde::Serialize;

use super::chunk::finite;
use crate::engine::{Candidate, FinishReason, TokenLogprob};

/// What a chunk adds to a choice.
#[derive(Debug, Serialize)]
pub struct TextChoice<'a> {
    text: &'a str,
    index: usize,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<FinishReason>,
}

#[derive(Debug, Serialize)]
struct TextLogprobs {
    tokens: Vec<String>,
    /// The first token of a prompt follows nothing, and has none.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    text_offset: Vec<usize>,
}

impl<'a> TextChoice<'a> {
    /// `text` of the choice of that index; `offset` counts the characters before it, and goes on.
    pub fn new(
        index: usize,
        text: &'a str,
        logprobs: Option<&[TokenLogprob]>,
        offset: &mut usize,
        finish_reason: Option<FinishReason>,
    ) -> Self {
        Self {
            text,
            index,
            logprobs: logprobs.map(|logprobs| TextLogprobs::new(logprobs, offset)),
            finish_reason,
        }
    }
}

impl TextLogprobs {
    fn new(logprobs: &[TokenLogprob], offset: &mut usize) -> Self {
        let place = |logprob: &TokenLogprob| {
            let at = *offset;
            // Every byte but those that go on within a character.
            *offset += logprob.token.bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
            at
        };
        let text_offset = logprobs.iter().map(place).collect();
        // The one chosen is always among its rivals, so there may be one more than asked for.
        let rivals = |logprob: &TokenLogprob| {
            let all = logprob.top.iter().chain([&logprob.token]);
            let all = all.map(|rival| (name(rival), finite(rival.logprob))).collect();
            (!logprob.token.logprob.is_nan()).then_some(all)
        };
        let own = |logprob: &TokenLogprob| {
            let own = logprob.token.logprob;
            (!own.is_nan()).then(|| finite(own))
        };
        Self {
            tokens: logprobs.iter().map(|logprob| name(&logprob.token)).collect(),
            token_logprobs: logprobs.iter().map(own).collect(),
            top_logprobs: logprobs.iter().map(rivals).collect(),
            text_offset,
        }
    }
}

/// A token's text, or OpenAI's way to write bytes that are none.
fn name(candidate: &Candidate) -> String {
    if let Ok(text) = std::str::from_utf8(&candidate.bytes) {
        return text.to_owned();
    }
    let bytes = candidate.bytes.iter().map(|byte| format!("\\x{byte:02x}"));
    format!("bytes:{}", bytes.collect::<String>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn the_older_logprobs_are_lists_side_by_side() {
        let candidate = |bytes: &[u8], logprob| Candidate {
            bytes: bytes.to_vec(),
            logprob,
        };
        let logprob = |bytes: &[u8]| TokenLogprob {
            token: candidate(bytes, -0.5),
            top: vec![candidate(b"x", -0.25)],
        };
        let mut offset = 10;
        let tokens = [logprob("é ".as_bytes()), logprob(&[0xF0, 0x9F])];
        let choice = TextChoice::new(1, "é ", Some(&tokens), &mut offset, None);
        assert_eq!(
            serde_json::to_value(choice).unwrap(),
            json!({"text": "é ", "index": 1, "finish_reason": null, "logprobs": {
                "tokens": ["é ", "bytes:\\xf0\\x9f"], "token_logprobs": [-0.5, -0.5],
                "top_logprobs": [{"x": -0.25, "é ": -0.5}, {"x": -0.25, "bytes:\\xf0\\x9f": -0.5}],
                "text_offset": [10, 12]}})
        );
        assert_eq!(offset, 13);
        let plain = TextChoice::new(0, "", None, &mut offset, Some(FinishReason::Length));
        assert_eq!(
            serde_json::to_value(plain).unwrap(),
            json!({"text": "", "index": 0, "logprobs": null, "finish_reason": "length"})
        );
    }
}
