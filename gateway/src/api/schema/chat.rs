//! The shapes of `/v1/chat/completions`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Stop, StreamOptions, Usage};

/// A conversation to answer. What else becomes of which parameter is in the table of this route; what neither names is
/// ignored, and said to be in `x-hive-ignored-params`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"model": "smollm2-135m", "messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": false, "max_completion_tokens": 64}))]
pub struct ChatRequest {
    /// A model that `GET /v1/models` lists.
    #[schema(example = "smollm2-135m")]
    pub model: String,
    /// The conversation so far, the oldest message first.
    #[schema(min_items = 1, max_items = 2048)]
    pub messages: Vec<ChatMessage>,
    /// Whether the answer comes as server-sent events.
    #[schema(nullable)]
    pub stream: Option<bool>,
    /// What a stream tells beside the tokens.
    #[schema(nullable)]
    pub stream_options: Option<StreamOptions>,
    /// The most tokens to generate.
    #[schema(minimum = 1, nullable)]
    pub max_completion_tokens: Option<u32>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 1, nullable)]
    pub max_tokens: Option<u32>,
    /// 0 always takes the likeliest token.
    #[schema(minimum = 0, maximum = 2, nullable)]
    pub temperature: Option<f32>,
    /// Sample from the likeliest tokens that make up this share.
    #[schema(minimum = 0, maximum = 1, nullable)]
    pub top_p: Option<f32>,
    /// Sample from that many of the likeliest tokens.
    #[schema(minimum = -1, nullable)]
    pub top_k: Option<i64>,
    /// Sample from tokens at least this fraction as likely as the likeliest.
    #[schema(minimum = 0, maximum = 1, nullable)]
    pub min_p: Option<f32>,
    /// Makes tokens that came before less likely, once.
    #[schema(minimum = -2, maximum = 2, nullable)]
    pub presence_penalty: Option<f32>,
    /// Makes tokens that came before less likely, each time.
    #[schema(minimum = -2, maximum = 2, nullable)]
    pub frequency_penalty: Option<f32>,
    /// Divides the logits of tokens that came before, in the prompt too.
    #[schema(minimum = 0.01, maximum = 100, nullable)]
    pub repetition_penalty: Option<f32>,
    /// Another name of `repetition_penalty`, which goes before it.
    #[schema(minimum = 0.01, maximum = 100, nullable)]
    pub repeat_penalty: Option<f32>,
    /// Makes the answer repeatable on the same worker.
    #[schema(nullable)]
    pub seed: Option<i64>,
    /// Token ids, each with what is added to its logit, from -100 to 100.
    #[schema(nullable)]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Texts that end the answer and are not part of it.
    #[schema(nullable)]
    pub stop: Option<Stop>,
    /// How many answers.
    #[schema(minimum = 1, maximum = 128, nullable)]
    pub n: Option<u32>,
    /// Whether the log-probabilities of the tokens are told.
    #[schema(nullable)]
    pub logprobs: Option<bool>,
    /// And those of so many alternatives; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20, nullable)]
    pub top_logprobs: Option<u32>,
    /// The form the answer must have.
    #[schema(nullable)]
    pub response_format: Option<ResponseFormat>,
    /// The functions the model may call.
    #[schema(max_items = 128, nullable)]
    pub tools: Option<Vec<Tool>>,
    /// `none`, `auto`, `required`, or an object that names a function or the allowed ones.
    #[schema(nullable, example = "auto")]
    pub tool_choice: Option<ToolChoice>,
    /// Whether several functions may be called in one answer.
    #[schema(nullable)]
    pub parallel_tool_calls: Option<bool>,
    /// How much a model thinks before it answers, if its chat template reads that.
    #[schema(nullable)]
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Whether it does at all.
    #[schema(nullable)]
    pub enable_thinking: Option<bool>,
    /// The same two in vLLM's form; they go before the others.
    #[schema(nullable)]
    pub chat_template_kwargs: Option<TemplateArguments>,
}

/// How much a model thinks.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReasoningEffort {
    /// Not at all.
    None,
    /// As `low`.
    Minimal,
    /// Little.
    Low,
    /// As usual.
    Medium,
    /// Much.
    High,
    /// As `high`.
    Xhigh,
}

/// What is handed to the model's chat template.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateArguments {
    /// Whether the model thinks before it answers.
    #[schema(nullable)]
    pub enable_thinking: Option<bool>,
    /// How much.
    #[schema(nullable)]
    pub reasoning_effort: Option<ReasoningEffort>,
}

/// One message. What clients echo of earlier answers may stay in it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum ChatMessage {
    /// Instructions, under their older name.
    System {
        /// What is said.
        content: Content,
        /// Who of several in the same role.
        #[schema(nullable)]
        name: Option<String>,
    },
    /// Instructions.
    Developer {
        /// What is said.
        content: Content,
        /// Who of several in the same role.
        #[schema(nullable)]
        name: Option<String>,
    },
    /// The person.
    User {
        /// What is said.
        content: Content,
        /// Who of several in the same role.
        #[schema(nullable)]
        name: Option<String>,
    },
    /// The model.
    Assistant {
        /// What is said; nothing, if it only called functions.
        #[schema(nullable)]
        content: Option<Content>,
        /// What it said instead of an answer; read as content where there is none.
        #[schema(nullable)]
        refusal: Option<String>,
        /// What it thought before it spoke, as clients send it back.
        #[schema(nullable)]
        reasoning_content: Option<String>,
        /// The calls it made.
        #[schema(nullable)]
        tool_calls: Option<Vec<MadeCall>>,
        /// Who of several in the same role.
        #[schema(nullable)]
        name: Option<String>,
    },
    /// What a function gave back.
    Tool {
        /// What it gave back; null, if it only did something.
        #[schema(required)]
        content: Option<Content>,
        /// The id of the call that this answers, made by a message before it.
        tool_call_id: String,
        /// The function's name.
        #[schema(nullable)]
        name: Option<String>,
    },
}

/// A call of a function, as an answer before this one made it.
#[derive(Debug, Serialize, ToSchema)]
pub struct MadeCall {
    /// Its id; no other call of the message has it.
    #[schema(min_length = 1)]
    pub id: String,
    /// `function`.
    #[schema(pattern = "^function$")]
    pub r#type: String,
    /// What was called.
    pub function: MadeFunction,
}

/// What was called.
#[derive(Debug, Serialize, ToSchema)]
pub struct MadeFunction {
    /// The function's name.
    #[schema(min_length = 1)]
    pub name: String,
    /// The arguments as JSON text.
    pub arguments: String,
}

/// Whether functions are called, and which.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// Any of them, or none.
    Mode(ToolMode),
    /// This one.
    Function {
        /// `function`.
        r#type: String,
        /// The function.
        function: FunctionName,
    },
    /// Only these.
    Allowed {
        /// `allowed_tools`.
        r#type: String,
        /// Which, and whether one must be called.
        allowed_tools: AllowedTools,
    },
}

/// Whether functions are called.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolMode {
    /// No.
    None,
    /// As the model sees fit.
    Auto,
    /// At least one.
    Required,
}

/// A function by its name.
#[derive(Debug, Serialize, ToSchema)]
pub struct FunctionName {
    /// Its name.
    pub name: String,
}

/// The functions that may be called.
#[derive(Debug, Serialize, ToSchema)]
pub struct AllowedTools {
    /// `auto` or `required`.
    pub mode: ToolMode,
    /// They, as `{"type": "function", "function": {"name": …}}`.
    #[schema(value_type = Vec<Object>)]
    pub tools: Vec<Value>,
}

/// What a message says.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// Text.
    Text(String),
    /// Parts.
    Parts(Vec<Part>),
}

/// A part of what a message says.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// What a model said instead of an answer, as clients send it back.
    Refusal {
        /// The text.
        refusal: String,
    },
    /// An image, for models that see.
    ImageUrl {
        /// The image.
        image_url: ImageUrl,
    },
}

/// An image.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageUrl {
    /// A `data:` URL with the image in it; only attached servers fetch one from elsewhere.
    #[schema(
        pattern = "^(data:image/[^,]*;base64,.|https?://)",
        example = "data:image/png;base64,iVBORw0KGgo="
    )]
    pub url: String,
}

/// A function the model may call.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tool {
    /// `function`.
    #[schema(pattern = "^function$")]
    pub r#type: String,
    /// The function.
    pub function: Function,
}

/// What a function is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Function {
    /// Its name.
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$", example = "get_weather")]
    pub name: String,
    /// What it does, for the model.
    #[schema(nullable)]
    pub description: Option<String>,
    /// The JSON schema of its arguments, at most 64 KiB.
    #[schema(nullable, value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Whether the arguments must match exactly: then a schema that no grammar keeps is refused, else it is kept as far as
    /// can be.
    #[schema(nullable)]
    pub strict: Option<bool>,
}

/// A call of a function.
#[derive(Debug, Serialize, ToSchema)]
pub struct ToolCall {
    /// Its place among the calls; in streams only.
    pub index: Option<u32>,
    /// Its id; in a stream with its first fragment only.
    pub id: Option<String>,
    /// `function`; in a stream with its first fragment only.
    pub r#type: Option<String>,
    /// What is called.
    pub function: CalledFunction,
}

/// What is called.
#[derive(Debug, Serialize, ToSchema)]
pub struct CalledFunction {
    /// The function's name; in a stream with its first fragment only.
    pub name: Option<String>,
    /// The arguments as JSON text; in a stream a fragment of it.
    pub arguments: String,
}

/// The form an answer must have.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[schema(example = "json_object")]
    pub r#type: String,
    /// The schema, for `json_schema`.
    #[schema(nullable)]
    pub json_schema: Option<JsonSchema>,
}

/// A schema with its name.
#[derive(Debug, Serialize, ToSchema)]
pub struct JsonSchema {
    /// Its name.
    #[schema(nullable)]
    pub name: Option<String>,
    /// What it is for; without effect here.
    #[schema(nullable)]
    pub description: Option<String>,
    /// The JSON schema, at most 64 KiB.
    #[schema(value_type = Object)]
    pub schema: Value,
    /// Whether the answer must match exactly: then a schema that no grammar keeps is refused, else it is kept as far as can
    /// be.
    #[schema(nullable)]
    pub strict: Option<bool>,
}

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"id": "chatcmpl-req_4fzzzxjylrx", "object": "chat.completion", "created": 1_750_000_000, "model": "smollm2-135m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Because of Rayleigh scattering.", "refusal": null, "annotations": []}, "logprobs": null, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 14, "completion_tokens": 6, "total_tokens": 20}}))]
pub struct ChatCompletion {
    /// `chatcmpl-` and the request's id.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// When it was made, in Unix seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// The answers, in the order of their index.
    pub choices: Vec<ChatChoice>,
    /// Token counts; missing where an attached server counts none.
    pub usage: Option<Usage>,
    /// What made the answer; the same seed gives the same answer only where this is the same.
    pub system_fingerprint: Option<String>,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Its place.
    pub index: u32,
    /// What the model says.
    pub message: AssistantMessage,
    /// The tokens' log-probabilities, if they were asked for.
    #[schema(required)]
    pub logprobs: Option<Logprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: String,
    /// The text; null if it only called functions.
    #[schema(required)]
    pub content: Option<String>,
    /// Always null: the models here do not mark refusals.
    #[schema(required)]
    pub refusal: Option<String>,
    /// Empty, unless an attached server searched the web.
    #[schema(value_type = Vec<Object>)]
    pub annotations: Vec<Value>,
    /// What a model that reasons thought before it answered; no other model's answer has it.
    pub reasoning_content: Option<String>,
    /// The functions it calls.
    pub tool_calls: Option<Vec<ToolCall>>,
}

/// Why an answer ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// By itself, or at a text of `stop`.
    Stop,
    /// At `max_completion_tokens`, or the end of the context.
    Length,
    /// To call functions.
    ToolCalls,
    /// A filter cut it; attached servers only.
    ContentFilter,
    /// To call a function, in the older form; attached servers only.
    FunctionCall,
}

/// Log-probabilities of an answer's tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct Logprobs {
    /// One entry a token.
    #[schema(required)]
    pub content: Option<Vec<TokenLogprob>>,
    /// Null.
    #[schema(required)]
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token and how likely it was.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text.
    pub token: String,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes, which need not be whole characters.
    #[schema(required)]
    pub bytes: Option<Vec<u8>>,
    /// The likeliest alternatives.
    pub top_logprobs: Vec<Alternative>,
}

/// A token that was not taken.
#[derive(Debug, Serialize, ToSchema)]
pub struct Alternative {
    /// Its text.
    pub token: String,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    #[schema(required)]
    pub bytes: Option<Vec<u8>>,
}

/// One event of a stream: the role first, then deltas, then `finish_reason`; then, if asked for, the usage.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunk {
    /// The same in every chunk.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// The same in every chunk, in Unix seconds.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// What is new; empty in the chunk with the usage.
    pub choices: Vec<ChunkChoice>,
    /// Token counts, in the last chunk only; missing where an attached server counts none.
    pub usage: Option<Usage>,
    /// What makes the answer.
    pub system_fingerprint: Option<String>,
}

/// What is new of one answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// Which of the answers.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// The new tokens' log-probabilities, if they were asked for.
    pub logprobs: Option<Logprobs>,
    /// Why the answer ended; null until it does.
    #[schema(required)]
    pub finish_reason: Option<FinishReason>,
}

/// What is new.
#[derive(Debug, Serialize, ToSchema)]
pub struct Delta {
    /// `assistant`, in the first chunk only.
    pub role: Option<String>,
    /// More text.
    pub content: Option<String>,
    /// More of what a model that reasons thinks before it answers.
    pub reasoning_content: Option<String>,
    /// More of calls of functions.
    pub tool_calls: Option<Vec<ToolCall>>,
}
