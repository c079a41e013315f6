//! What a worker and the gateway say to each other on the control plane: joining, heartbeats, leaving;
//! and the headers and the challenge of the dispatch connection.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Labels, ModelName, WorkerId};

/// Request header from gateway to worker: the epoch of the registration the gateway means.
pub const EPOCH_HEADER: &str = "x-hive-epoch";
/// Request header from gateway to worker: the id of the request, from which the worker makes `chatcmpl-<id>`.
pub const REQUEST_HEADER: &str = "x-hive-request";
/// Response header from our worker: how many tokens the prompt has, known before the first token.
pub const PROMPT_TOKENS_HEADER: &str = "x-hive-prompt-tokens";
/// Path on the worker that the gateway dials back when a worker registers: `GET …?nonce=<hex>`.
pub const CHALLENGE_PATH: &str = "/hive/challenge";

/// Where a worker stands, as the registry shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Its model is being loaded; nothing is routed to it.
    Loading,
    /// It takes requests.
    Ready,
    /// It finishes what it holds and takes nothing new.
    Draining,
    /// It failed lately; it is asked again after its ejection, or after its next heartbeat.
    Suspect,
    /// It has been silent for too long, or has left.
    Lost,
    /// It kept dying; an operator must look at it.
    Quarantined,
}

impl WorkerState {
    /// All states.
    pub const ALL: [Self; 6] = [
        Self::Loading,
        Self::Ready,
        Self::Draining,
        Self::Suspect,
        Self::Lost,
        Self::Quarantined,
    ];

    /// The state's one word, as JSON spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
            Self::Quarantined => "quarantined",
        }
    }
}

/// What a worker knows about the model it serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ModelFacts {
    /// Longest prompt plus answer, in tokens.
    pub context_length: Option<u32>,
    /// The weights' quantisation, such as `Q4_1`.
    pub quantization: Option<String>,
    /// The model's architecture, such as `llama`.
    pub architecture: Option<String>,
    /// Which of our engines runs it; none: an attached server, whose abilities we do not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineName>,
    /// What it can do; none: not known, so everything is let through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
}

/// Our own engines, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// mistral.rs, with a real model.
    Mistral,
    /// The one that plays a script.
    Scripted,
}

/// What a model can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an ability of its own")]
pub struct Capabilities {
    /// Answer a conversation.
    pub chat: bool,
    /// Continue a text.
    pub completions: bool,
    /// Make embeddings.
    pub embeddings: bool,
    /// See images.
    pub vision: bool,
    /// Call functions.
    pub tools: bool,
    /// Answer in the form of a JSON schema.
    pub structured_output: bool,
    /// Think before it answers, or not, as it is told.
    pub thinking: bool,
}

/// `POST /control/v1/workers/register`, with the join token or the worker's own credential as bearer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Registration {
    /// The id it wants; a join token that is bound to an id must match.
    pub id: WorkerId,
    /// The model it serves.
    pub model: ModelName,
    /// Where the gateway reaches it: scheme, host and port; an unspecified host (`0.0.0.0`, `[::]`) is
    /// replaced by the address the registration came from.
    pub url: String,
    /// The bearer the gateway must show on every dispatch; random, made by the worker at its start.
    pub dispatch_token: String,
    /// What it runs on: `cpu`, `cuda:0`, `metal`, `scripted`.
    pub device: String,
    /// How many requests it takes at once.
    pub slots: u32,
    /// Its operating-system process id.
    pub pid: u32,
    /// The name of the machine it runs on.
    pub host: String,
    /// The worker program's version.
    pub version: String,
    /// `loading` or `ready`.
    pub state: WorkerState,
    /// What an operator calls it; keys may be for workers of some labels alone.
    #[serde(default)]
    pub labels: Labels,
    /// How much more than its speed says it is to get; none: 1, as much.
    #[serde(default)]
    pub weight: Option<f32>,
    /// What is known about the model; complete once loaded.
    #[serde(default)]
    pub facts: ModelFacts,
}

/// The answer to a registration.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// The id the worker goes by.
    pub id: WorkerId,
    /// The epoch of this registration; every heartbeat and dispatch names it.
    pub epoch: i64,
    /// The worker's own credential, shown once: its bearer from now on, also to register again.
    pub credential: String,
    /// How often to send a heartbeat, in milliseconds.
    pub heartbeat_interval_ms: u64,
}

/// `POST /control/v1/workers/{id}/heartbeat`, with the worker's credential as bearer.
///
/// 409 `stale_epoch`: another process holds this id now, so exit. 404 `unknown_worker`: the gateway has
/// forgotten, so register again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Heartbeat {
    /// The epoch it was given.
    pub epoch: i64,
    /// `loading`, `ready` or `draining`.
    pub state: WorkerState,
    /// How far loading is, from 0 to 1.
    #[serde(default)]
    pub progress: Option<f32>,
    /// What it is doing, in a few words.
    #[serde(default)]
    pub message: Option<String>,
    /// Requests it holds now.
    pub in_flight: u32,
    /// Those among them whose clients have left, and which the engine cannot let go of yet: cancelled, still busy.
    #[serde(default)]
    pub still_busy: u32,
    /// Requests that the engine has let go of since its start, however they ended.
    #[serde(default)]
    pub requests_ended: u64,
    /// Tokens generated in all since its start.
    #[serde(default)]
    pub tokens_generated: u64,
    /// Decode speed lately, in tokens per second.
    #[serde(default)]
    pub tokens_per_second: Option<f32>,
    /// Resident memory in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// What is known about the model.
    #[serde(default)]
    pub facts: ModelFacts,
}

impl Heartbeat {
    /// Of a worker in this state that holds no request, has done nothing yet, and tells nothing more.
    pub fn idle(epoch: i64, state: WorkerState) -> Self {
        Self {
            epoch,
            state,
            progress: None,
            message: None,
            in_flight: 0,
            still_busy: 0,
            requests_ended: 0,
            tokens_generated: 0,
            tokens_per_second: None,
            memory_bytes: None,
            facts: ModelFacts::default(),
        }
    }
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatReply {
    /// An operator wants the worker to finish what it holds and exit.
    pub drain: bool,
    /// How often to send a heartbeat from now on, in milliseconds.
    pub heartbeat_interval_ms: u64,
}

/// `POST /control/v1/workers/{id}/leave`: the worker is going, and says why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leave {
    /// The epoch it was given.
    pub epoch: i64,
    /// Why it goes, in a few words: `SIGTERM`, `the model could not be loaded: …`.
    pub reason: String,
}

/// What the worker answers to a challenge: HMAC-SHA-256 over `<id>\n<nonce>` keyed with its dispatch
/// token, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChallengeAnswer {
    /// The proof.
    pub proof: String,
}
