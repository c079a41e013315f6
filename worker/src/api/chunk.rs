//! OpenAI's wire form, byte for byte: which keys there are, in which chunk, and which may be null.

use axum::body::Bytes;
use serde::{Serialize, Serializer};
use wire::{ErrorBody, ErrorEnvelope};

use super::answer::Head;
use crate::engine::{self, Candidate, FinishReason, TokenLogprob};

/// One server-sent event with `data` as JSON.
pub fn sse(data: &impl Serialize) -> Bytes {
    let mut event = b"data: ".to_vec();
    if let Err(error) = serde_json::to_writer(&mut event, data) {
        tracing::error!(%error, "a chunk could not be written");
    }
    event.extend(b"\n\n");
    event.into()
}

/// The event that tells a client, whatever it is, that its answer broke.
pub fn error_event(code: &str, message: &str) -> Bytes {
    let error = ErrorBody {
        message: message.to_owned(),
        r#type: "server_error".to_owned(),
        param: None,
        code: Some(code.to_owned()),
    };
    sse(&ErrorEnvelope { error })
}

/// One chunk of a stream.
#[derive(Debug, Serialize)]
pub struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Debug, Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs>,
    finish_reason: Option<FinishReason>,
}

/// What a chunk adds.
#[derive(Debug)]
pub enum Delta<'a> {
    /// The speaker; once, at the beginning.
    Role,
    /// More text.
    Content(&'a str),
    /// Nothing; the end.
    Nothing,
}

impl Serialize for Delta<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Keys<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            role: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            content: Option<&'a str>,
        }
        match *self {
            Self::Role => Keys {
                role: Some("assistant"),
                content: Some(""),
            },
            Self::Content(text) => Keys {
                role: None,
                content: Some(text),
            },
            Self::Nothing => Keys {
                role: None,
                content: None,
            },
        }
        .serialize(serializer)
    }
}

impl<'a> Chunk<'a> {
    /// A chunk with the one choice.
    pub fn choice(
        head: &'a Head,
        delta: Delta<'a>,
        logprobs: &[TokenLogprob],
        finish_reason: Option<FinishReason>,
    ) -> Self {
        let logprobs = (!logprobs.is_empty()).then(|| Logprobs::new(logprobs));
        Self::new(
            head,
            vec![ChunkChoice {
                index: 0,
                delta,
                logprobs,
                finish_reason,
            }],
            None,
        )
    }

    /// The chunk after the last choice.
    pub fn usage(head: &'a Head, usage: engine::Usage) -> Self {
        Self::new(head, Vec::new(), Some(usage.into()))
    }

    fn new(head: &'a Head, choices: Vec<ChunkChoice<'a>>, usage: Option<Usage>) -> Self {
        let model = head.model.as_str();
        Self {
            id: &head.id,
            object: "chat.completion.chunk",
            created: head.created,
            model,
            choices,
            usage,
        }
    }
}

/// An answer in one piece.
#[derive(Debug, Serialize)]
pub struct Whole {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: [WholeChoice; 1],
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct WholeChoice {
    index: u32,
    message: WholeMessage,
    logprobs: Option<Logprobs>,
    finish_reason: FinishReason,
}

#[derive(Debug, Serialize)]
struct WholeMessage {
    role: &'static str,
    content: String,
    refusal: Option<String>,
    annotations: [(); 0],
}

impl Whole {
    /// The answer `text` and what it took.
    pub fn new(
        head: &Head,
        text: String,
        logprobs: &[TokenLogprob],
        finish_reason: FinishReason,
        usage: engine::Usage,
    ) -> Self {
        let message = WholeMessage {
            role: "assistant",
            content: text,
            refusal: None,
            annotations: [],
        };
        let logprobs = (!logprobs.is_empty()).then(|| Logprobs::new(logprobs));
        Self {
            id: head.id.clone(),
            object: "chat.completion",
            created: head.created,
            model: head.model.to_string(),
            choices: [WholeChoice {
                index: 0,
                message,
                logprobs,
                finish_reason,
            }],
            usage: usage.into(),
        }
    }
}

impl Serialize for FinishReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
        })
    }
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the wire's names")]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
}

impl From<engine::Usage> for Usage {
    fn from(usage: engine::Usage) -> Self {
        let engine::Usage { prompt, completion } = usage;
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt.saturating_add(completion),
        }
    }
}

#[derive(Debug, Serialize)]
struct Logprobs {
    content: Vec<Token>,
    refusal: Option<String>,
}

#[derive(Debug, Serialize)]
struct Token {
    #[serde(flatten)]
    token: Rival,
    top_logprobs: Vec<Rival>,
}

#[derive(Debug, Serialize)]
struct Rival {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Logprobs {
    fn new(tokens: &[TokenLogprob]) -> Self {
        let content = tokens
            .iter()
            .map(|TokenLogprob { token, top }| Token {
                token: token.into(),
                top_logprobs: top.iter().map(Into::into).collect(),
            })
            .collect();
        Self { content, refusal: None }
    }
}

impl From<&Candidate> for Rival {
    fn from(candidate: &Candidate) -> Self {
        Self {
            token: String::from_utf8_lossy(&candidate.bytes).into_owned(),
            // OpenAI's number for "impossible"; JSON has no infinity.
            logprob: if candidate.logprob.is_finite() {
                candidate.logprob
            } else {
                -9999.0
            },
            bytes: candidate.bytes.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn head() -> Head {
        Head {
            id: "chatcmpl-1".to_owned(),
            created: 5,
            model: "m".parse().unwrap(),
        }
    }

    fn text(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    const START: &str =
        r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m","choices":"#;

    #[test]
    fn chunks_have_the_keys_that_clients_expect_and_no_others() {
        let head = head();
        let chunk = |delta, finish| sse(&Chunk::choice(&head, delta, &[], finish));
        assert_eq!(
            text(&chunk(Delta::Role, None)),
            format!(
                "{START}[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"finish_reason\":null}}]}}\n\n"
            )
        );
        assert_eq!(
            text(&chunk(Delta::Content("a\n[DONE]"), None)),
            format!("{START}[{{\"index\":0,\"delta\":{{\"content\":\"a\\n[DONE]\"}},\"finish_reason\":null}}]}}\n\n")
        );
        assert_eq!(
            text(&chunk(Delta::Nothing, Some(FinishReason::Length))),
            format!("{START}[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"length\"}}]}}\n\n")
        );
        let usage = engine::Usage {
            prompt: 3,
            completion: 4,
        };
        assert_eq!(
            text(&sse(&Chunk::usage(&head, usage))),
            format!("{START}[],\"usage\":{{\"prompt_tokens\":3,\"completion_tokens\":4,\"total_tokens\":7}}}}\n\n")
        );
    }

    #[test]
    fn logprobs_have_all_four_keys_and_no_infinity() {
        let candidate = |bytes: &[u8], logprob| Candidate {
            bytes: bytes.to_vec(),
            logprob,
        };
        let logprob = TokenLogprob {
            token: candidate(b"a", -0.5),
            top: vec![candidate(&[0xF0], f32::NEG_INFINITY)],
        };
        let json = serde_json::to_value(Logprobs::new(&[logprob])).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"content": [{"token": "a", "logprob": -0.5, "bytes": [97],
                "top_logprobs": [{"token": "\u{FFFD}", "logprob": -9999.0, "bytes": [240]}]}], "refusal": null})
        );
    }
}
