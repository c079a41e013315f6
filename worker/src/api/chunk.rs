//! OpenAI's wire form of a chat, byte for byte: which keys there are, in which chunk, and which may be null.

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

/// A chunk: what all forms have in common.
#[derive(Debug, Serialize)]
pub struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

impl<'a, C> Envelope<'a, C> {
    /// With these choices; `object` names what it is.
    pub fn new(head: &'a Head, object: &'static str, choices: Vec<C>, usage: Option<engine::Usage>) -> Self {
        Self {
            id: &head.id,
            object,
            created: head.created,
            model: head.model.as_str(),
            system_fingerprint: &head.fingerprint,
            choices,
            usage: usage.map(|usage| Usage::new(usage, head.cached)),
        }
    }
}

/// What a chunk adds to a choice.
#[derive(Debug, Serialize)]
pub struct Choice<'a> {
    index: usize,
    delta: Delta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs>,
    finish_reason: Option<FinishReason>,
}

/// What a chunk adds to a message.
#[derive(Debug)]
pub enum Delta<'a> {
    /// The speaker, once, at the beginning; whether a call and not text follows.
    Role { calls: bool },
    /// More text.
    Content(&'a str),
    /// More of what is thought before the answer.
    Reasoning(&'a str),
    /// A call begins.
    Call { index: usize, id: &'a str, name: &'a str },
    /// More of a call's arguments.
    Arguments { index: usize, text: &'a str },
    /// Nothing; the end.
    Nothing,
}

impl Serialize for Delta<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct RoleKeys {
            role: &'static str,
            content: Option<&'static str>,
        }
        #[derive(Serialize)]
        struct ContentKeys<'a> {
            content: &'a str,
        }
        #[derive(Serialize)]
        struct ReasoningKeys<'a> {
            reasoning_content: &'a str,
        }
        #[derive(Serialize)]
        struct CallsKeys<T> {
            tool_calls: [T; 1],
        }
        #[derive(Serialize)]
        struct CallKeys<'a> {
            index: usize,
            id: &'a str,
            r#type: &'static str,
            function: FunctionKeys<'a>,
        }
        #[derive(Serialize)]
        struct FunctionKeys<'a> {
            name: &'a str,
            arguments: &'static str,
        }
        #[derive(Serialize)]
        struct MoreKeys<'a> {
            index: usize,
            function: ArgumentsKeys<'a>,
        }
        #[derive(Serialize)]
        struct ArgumentsKeys<'a> {
            arguments: &'a str,
        }
        #[derive(Serialize)]
        struct NoKeys {}
        match *self {
            Self::Role { calls } => RoleKeys {
                role: "assistant",
                content: (!calls).then_some(""),
            }
            .serialize(serializer),
            Self::Content(content) => ContentKeys { content }.serialize(serializer),
            Self::Reasoning(reasoning_content) => ReasoningKeys { reasoning_content }.serialize(serializer),
            Self::Call { index, id, name } => {
                let function = FunctionKeys { name, arguments: "" };
                let call = CallKeys {
                    index,
                    id,
                    r#type: "function",
                    function,
                };
                CallsKeys { tool_calls: [call] }.serialize(serializer)
            }
            Self::Arguments { index, text } => {
                let function = ArgumentsKeys { arguments: text };
                let more = MoreKeys { index, function };
                CallsKeys { tool_calls: [more] }.serialize(serializer)
            }
            Self::Nothing => NoKeys {}.serialize(serializer),
        }
    }
}

impl<'a> Choice<'a> {
    /// What a chunk adds to the choice of that index.
    pub fn new(
        index: usize,
        delta: Delta<'a>,
        logprobs: Option<&[TokenLogprob]>,
        finish_reason: Option<FinishReason>,
    ) -> Self {
        Self {
            index,
            delta,
            logprobs: logprobs.map(Logprobs::new),
            finish_reason,
        }
    }
}

impl Serialize for FinishReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        })
    }
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: CompletionDetails,
}

/// Left out where the engine does not tell.
#[derive(Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

#[derive(Debug, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u32,
}

impl Usage {
    fn new(usage: engine::Usage, cached: Option<u32>) -> Self {
        let engine::Usage {
            prompt,
            completion,
            reasoning,
        } = usage;
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt.saturating_add(completion),
            prompt_tokens_details: cached.map(|cached_tokens| PromptDetails { cached_tokens }),
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: reasoning,
            },
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
            logprob: finite(candidate.logprob),
            bytes: candidate.bytes.clone(),
        }
    }
}

/// OpenAI's number for "impossible"; JSON has no infinity.
pub fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
