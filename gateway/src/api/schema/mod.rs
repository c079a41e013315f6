//! Shapes for the OpenAPI document alone: requests are read by `wire::openai`, and answers pass as they come.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod headers;

use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};
use wire::{
    ErrorEnvelope,
    openai::parameters::{self, Kind},
};

/// The routes that ask a worker.
const ASKING: [(&str, Kind); 3] = [
    ("/v1/chat/completions", Kind::Chat),
    ("/v1/completions", Kind::Completions),
    ("/v1/embeddings", Kind::Embeddings),
];

/// Adds to each route that asks a worker its headers, and what becomes of its parameters on our engines, from the one
/// table that the code goes by.
pub fn tell_of_asking(document: &mut utoipa::openapi::OpenApi) {
    headers::tell(document, ASKING.map(|(path, _)| path));
    for (path, kind) in ASKING {
        let route = document.paths.paths.get_mut(path);
        if let Some(operation) = route.and_then(|route| route.post.as_mut()) {
            let text = operation.description.get_or_insert_default();
            *text = format!("{text}\n\n{}", parameters::markdown(kind));
        }
    }
}

/// What every route that asks a worker may answer instead.
#[derive(IntoResponses)]
pub enum Refusals {
    /// The request is at fault; `param` names the first field, `message` all of them
    #[response(status = 400)]
    Invalid(ErrorEnvelope),
    /// The key is missing or wrong
    #[response(status = 401)]
    Unauthenticated(ErrorEnvelope),
    /// The key may not do this
    #[response(status = 403)]
    Forbidden(ErrorEnvelope),
    /// The model is not known
    #[response(status = 404)]
    NotFound(ErrorEnvelope),
    /// The body did not arrive in time
    #[response(status = 408)]
    Late(ErrorEnvelope),
    /// An operator cancelled the request
    #[response(status = 409)]
    Cancelled(ErrorEnvelope),
    /// The body is larger than 8 MiB
    #[response(status = 413)]
    TooLarge(ErrorEnvelope),
    /// The key's own limit; try again after `Retry-After`
    #[response(status = 429)]
    Limited(ErrorEnvelope),
    /// The worker failed
    #[response(status = 502)]
    WorkerFailed(ErrorEnvelope),
    /// No worker, or no room; try again after `Retry-After`
    #[response(status = 503)]
    Busy(ErrorEnvelope),
    /// The deadline passed
    #[response(status = 504)]
    DeadlineExceeded(ErrorEnvelope),
}

/// What a stream tells beside the tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct StreamOptions {
    /// Whether a last chunk with empty `choices` tells the token counts. Of OpenAI's others, `include_obfuscation` has no
    /// effect.
    #[schema(nullable)]
    pub include_usage: Option<bool>,
}

/// One text, or up to four.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// At most four.
    Several(Vec<String>),
}

/// Token counts.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// How the prompt's tokens came about.
    pub prompt_tokens_details: Option<PromptTokens>,
    /// How the generated tokens came about.
    pub completion_tokens_details: Option<CompletionTokens>,
}

/// How generated tokens came about.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionTokens {
    /// Those of its thoughts, where a worker counts them apart.
    pub reasoning_tokens: Option<u64>,
}

/// How a prompt's tokens came about.
#[derive(Debug, Serialize, ToSchema)]
pub struct PromptTokens {
    /// Those that were in the worker's memory already. On a CPU our engine keeps none from one request to the next (what
    /// it kept would be shared while it is written), so there are 0; on a GPU it keeps them and does not tell how many, so
    /// this is left out.
    pub cached_tokens: u64,
}
