//! The shapes of `/v1/completions`.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::{Stop, StreamOptions, Usage};

/// Texts to continue. What else becomes of which parameter is in the table of this route; what neither names is ignored,
/// and said to be in `x-hive-ignored-params`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"model": "smollm2-135m", "prompt": "The sky is blue because", "max_tokens": 32}))]
pub struct CompletionRequest {
    /// A model that `GET /v1/models` lists.
    #[schema(example = "smollm2-135m")]
    pub model: String,
    /// What to continue.
    pub prompt: Prompt,
    /// The most tokens to generate for each choice; 16 if it is absent, 0 only with `echo`.
    #[schema(minimum = 0, nullable)]
    pub max_tokens: Option<u32>,
    /// Whether the prompt comes back before its continuation.
    #[schema(nullable)]
    pub echo: Option<bool>,
    /// How many continuations of each prompt; at most 128 in all.
    #[schema(minimum = 1, maximum = 128, nullable)]
    pub n: Option<u32>,
    /// Equal to `n`, or absent.
    #[schema(minimum = 1, maximum = 128, nullable)]
    pub best_of: Option<u32>,
    /// The tokens' log-probabilities, and those of so many alternatives.
    #[schema(minimum = 0, maximum = 5, nullable)]
    pub logprobs: Option<u32>,
    /// Texts that end the answer and are not part of it.
    #[schema(nullable)]
    pub stop: Option<Stop>,
    /// Whether the answer comes as server-sent events.
    #[schema(nullable)]
    pub stream: Option<bool>,
    /// What a stream tells beside the tokens.
    #[schema(nullable)]
    pub stream_options: Option<StreamOptions>,
    /// 0 always takes the likeliest token.
    #[schema(minimum = 0, maximum = 2, nullable)]
    pub temperature: Option<f32>,
    /// Sample from the likeliest tokens that make up this share.
    #[schema(minimum = 0, maximum = 1, nullable)]
    pub top_p: Option<f32>,
    /// Makes tokens that came before less likely, once.
    #[schema(minimum = -2, maximum = 2, nullable)]
    pub presence_penalty: Option<f32>,
    /// Makes tokens that came before less likely, each time.
    #[schema(minimum = -2, maximum = 2, nullable)]
    pub frequency_penalty: Option<f32>,
    /// Makes the answer repeatable on the same worker.
    #[schema(nullable)]
    pub seed: Option<i64>,
    /// Token ids, each with what is added to its logit, from -100 to 100.
    #[schema(nullable)]
    pub logit_bias: Option<BTreeMap<String, f32>>,
}

/// What to continue, or to embed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Prompt {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One text as the model's token ids.
    Tokens(Vec<u32>),
    /// Several texts as token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// Continuations; in a stream what is new of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion {
    /// `cmpl-` and the request's id.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// When it was made, in Unix seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// The continuations, in the order of their index.
    pub choices: Vec<TextChoice>,
    /// Token counts; in a stream in the last event only, if asked for; missing where an attached server counts none.
    pub usage: Option<Usage>,
    /// What made the answer.
    pub system_fingerprint: Option<String>,
}

/// One continuation.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextChoice {
    /// Its place: choice `i` continues prompt `i / n`.
    pub index: u32,
    /// The text.
    pub text: String,
    /// The tokens' log-probabilities, if they were asked for.
    #[schema(required)]
    pub logprobs: Option<TextLogprobs>,
    /// `stop` or `length`; in a stream null until it ends.
    #[schema(required)]
    pub finish_reason: Option<String>,
}

/// Log-probabilities in the older form: lists with one entry a token.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextLogprobs {
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// The natural logarithms of their probabilities.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest alternatives.
    #[schema(required)]
    pub top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    /// Where each begins in the text, in characters.
    pub text_offset: Vec<u32>,
}
