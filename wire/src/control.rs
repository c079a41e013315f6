//! What hivectl and the gateway say to each other on the control plane (`/control/v1/…`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Labels, ModelFacts, ModelName, WorkerId, WorkerState};

/// The error envelope of both planes, as OpenAI's document states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorEnvelope {
    /// The error.
    pub error: ErrorBody,
}

/// What went wrong, in OpenAI's four fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A sentence a person can act on.
    pub message: String,
    /// OpenAI's class of error, such as `invalid_request_error`.
    pub r#type: String,
    /// The field at fault, if one is.
    pub param: Option<String>,
    /// The stable code, such as `model_not_found`.
    pub code: Option<String>,
}

/// One worker, as `GET /control/v1/workers` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    /// Its id.
    pub id: WorkerId,
    /// The model it serves; an attached server's first one.
    pub model: ModelName,
    /// All models it serves.
    pub models: Vec<ModelName>,
    /// Where it stands.
    pub state: WorkerState,
    /// Its process id; none for an attached server.
    pub pid: Option<u32>,
    /// Where the gateway reaches it.
    pub url: String,
    /// The machine it runs on.
    pub host: String,
    /// How many requests it takes at once.
    pub slots: u32,
    /// How many of ours it holds now.
    pub in_flight: u32,
    /// Slots more that are taken: their requests are cancelled, and the engine cannot let go of them yet.
    #[serde(default)]
    pub still_busy: u32,
    /// Tokens those are expected to take.
    #[serde(default)]
    pub outstanding_tokens: u64,
    /// The epoch of its registration.
    pub epoch: i64,
    /// `own` or `attached`.
    pub kind: WorkerKind,
    /// What it runs on.
    pub device: String,
    /// How far loading is, from 0 to 1.
    pub progress: Option<f32>,
    /// What it is doing, or why it is not ready.
    pub message: Option<String>,
    /// Decode speed lately, in tokens per second.
    pub tokens_per_second: Option<f32>,
    /// Resident memory in bytes.
    pub memory_bytes: Option<u64>,
    /// What an operator calls it.
    #[serde(default)]
    pub labels: Labels,
    /// How much more than its speed says it is to get; 1 is as much.
    #[serde(default = "one")]
    pub weight: f32,
    /// Milliseconds since it was last heard of.
    pub silent_ms: u64,
    /// The worker program's version; empty for an attached server.
    pub version: String,
    /// What is known about its model.
    pub facts: ModelFacts,
}

/// The weight of a worker that nobody gave one.
pub(crate) fn one() -> f32 {
    1.0
}

/// Whose program a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkerKind {
    /// A `hive-worker` that registered itself.
    Own,
    /// Any OpenAI-compatible server an operator attached.
    Attached,
}

/// `POST /control/v1/workers`: attach an OpenAI-compatible server.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The server's base URL, with or without `/v1`.
    pub url: String,
    /// The models to route to it; empty: those its own `/v1/models` lists.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// The server's API key, if it wants one.
    #[serde(default)]
    pub api_key: Option<String>,
    /// The id to give it; none: one is made from its host and port.
    #[serde(default)]
    pub id: Option<WorkerId>,
    /// How many requests it takes at once; none: 64.
    #[serde(default)]
    pub slots: Option<u32>,
    /// What to call it; keys may be for workers of some labels alone.
    #[serde(default)]
    pub labels: Labels,
    /// How much more than its speed says it is to get; none: 1, as much.
    #[serde(default)]
    pub weight: Option<f32>,
}

/// `POST /control/v1/join-tokens`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewJoinToken {
    /// Only a worker of this id may use it, and it then takes over from whoever held the id.
    pub worker_id: Option<WorkerId>,
    /// How long it is good for, in seconds; at most and by default 900.
    pub ttl_s: Option<u32>,
}

/// A single-use join token, shown once.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// The token.
    pub token: String,
    /// When it expires, in Unix milliseconds.
    pub expires_at_ms: i64,
    /// Where workers on other machines reach this control plane, if the gateway was told (`control.advertise_url`).
    #[serde(default)]
    pub gateway_url: Option<String>,
}

/// How a request stands or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RequestState {
    /// Waiting for a slot.
    Queued,
    /// On a worker.
    Running,
    /// Ended with a finish reason.
    Completed,
    /// Ended with an error.
    Failed,
    /// The client left, or an operator cancelled it.
    Cancelled,
    /// The gateway died or was stopped while it ran.
    Aborted,
}

impl RequestState {
    /// The state's one word, as JSON and the database spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Aborted => "aborted",
        }
    }

    /// The state of that word, if there is one.
    pub fn parse(s: &str) -> Option<Self> {
        [
            Self::Queued,
            Self::Running,
            Self::Completed,
            Self::Failed,
            Self::Cancelled,
            Self::Aborted,
        ]
        .into_iter()
        .find(|state| state.as_str() == s)
    }
}

/// One request, as `GET /control/v1/requests` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RequestView {
    /// Its id.
    pub id: String,
    /// The public id of the key that made it.
    pub key_id: String,
    /// The model it asked for.
    pub model: String,
    /// The worker that took it; the last one, if there were several.
    pub worker: Option<WorkerId>,
    /// How it stands or ended.
    pub state: RequestState,
    /// Tokens of the prompt, if known.
    pub prompt_tokens: Option<i64>,
    /// Tokens generated.
    pub completion_tokens: Option<i64>,
    /// That tokens are an estimate of ours, since the attached server that has it counts none; only there if so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// When it was admitted, in Unix milliseconds.
    pub started_at_ms: i64,
    /// Time to first token, in milliseconds.
    pub ttft_ms: Option<i64>,
    /// From admission to the end, in milliseconds.
    pub total_ms: Option<i64>,
    /// The code of the error it ended with.
    pub error: Option<String>,
}

/// One model the registry knows, as `GET /control/v1/models` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelView {
    /// Its name.
    pub id: ModelName,
    /// When the registry first heard of it, in Unix milliseconds.
    pub created_at_ms: i64,
    /// Workers that serve it and are ready.
    pub workers_ready: u32,
    /// Workers that serve it and are loading.
    pub workers_loading: u32,
    /// What is known about it.
    pub facts: ModelFacts,
}
