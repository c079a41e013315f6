//! What an engine is: it prepares a prompt (template, tokens, grammar, limits) and then goes on from it, token by token;
//! or it makes embeddings.
//!
//! `mistral` runs a real model, [`scripted`] plays a script. An engine never knows of HTTP, the
//! gateway or other workers; the wire form of what it says is `api/`'s.

#![cfg_attr(
    not(feature = "engine"),
    allow(dead_code, reason = "only the real engine needs all of it")
)]

mod calls;
mod fingerprint;
mod gguf;
mod grammar;
#[cfg(feature = "engine")]
mod mistral;
#[cfg(feature = "engine")]
mod picture;
mod progress;
mod request;
mod run;
mod safetensors;
mod sampling;
mod schema;
pub mod scripted;
mod sight;
mod text;
mod thought;
mod tools;
mod turns;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use wire::{ModelFacts, openai::Input};

use crate::{
    config::{Device, EngineConfig, Weights},
    slots::Slot,
};
pub use calls::Piece;
pub use request::{Prepared, Prompt, Request, Schema, Tools};

/// One model, ready to answer.
pub trait Engine: Send + Sync {
    /// What is known about the loaded model.
    fn facts(&self) -> ModelFacts;

    /// Names the model's files, the engine and its settings in short: while it stays, a seed repeats its answer.
    fn fingerprint(&self) -> &str;

    /// How many tokens of a prompt were kept from an earlier one; none: some may have been, and nobody tells.
    fn cached_tokens(&self) -> Option<u32> {
        Some(0)
    }

    /// Applies the chat template, counts the prompt and checks what can be checked, without taking a slot.
    fn prepare(&self, request: Request) -> BoxFuture<'_, Result<Prepared, EngineError>>;

    /// Generates. Dropping the stream stops the work at the next token; the slot is dropped when the work has
    /// really ended, which can be later.
    fn generate(&self, prepared: Prepared, slot: Slot) -> BoxStream<'static, Event>;

    /// The prompt's tokens and how likely each was after those before it, with as many rivals as were asked for.
    fn likelihoods(&self, prepared: &Prepared, slot: Slot) -> BoxFuture<'_, Result<Vec<TokenLogprob>, EngineError>>;

    /// The tokens of things to embed, checked against the context, without taking a slot.
    fn prepare_embedding(&self, inputs: Vec<Input>) -> BoxFuture<'_, Result<Vec<Vec<u32>>, EngineError>>;

    /// A vector for each list of tokens.
    fn embed(&self, inputs: Vec<Vec<u32>>, slot: Slot) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EngineError>>;
}

/// What an engine says while it generates. The last one is a `Finish` or a `Failed`; a stream that ends
/// without is a lost generation.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Others have their turn first, and the engine gets on.
    Waiting,
    /// More of it.
    Delta(Delta),
    /// The answer is complete.
    Finish {
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// It broke; the text says how.
    Failed(String),
    /// A deliberate fault on the wire, which only the scripted engine commits.
    Fault(Fault),
}

/// More of an answer, and how likely its tokens were.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// What is said; whole code points only.
    pub piece: Piece,
    /// One for each token since the last delta, if asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// How likely a token was.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: Candidate,
    /// The likeliest ones in its place, likeliest first.
    pub top: Vec<Candidate>,
}

/// A token with its natural log-probability before temperature and penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its bytes; a code point can span several tokens.
    pub bytes: Vec<u8>,
    /// ln of its probability; not a number for the first token of a prompt, which follows nothing.
    pub logprob: f32,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop text did.
    Stop,
    /// It reached the most tokens allowed.
    Length,
    /// The model wants tools to be called.
    ToolCalls,
}

/// What a request took, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens generated, without the model's own end mark.
    pub completion: u32,
    /// Those of them that the model thought before it answered.
    pub reasoning: u32,
}

impl Usage {
    /// Adds what another choice of the same prompt took.
    pub fn add(&mut self, choice: Self) {
        self.completion += choice.completion;
        self.reasoning += choice.reasoning;
    }
}

/// What the scripted engine can do to the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// These bytes, as they are.
    Bytes(Bytes),
    /// The connection breaks in the middle of the body.
    Abort,
    /// The body ends here, properly.
    End,
    /// The end of this stream will lack its `[DONE]`.
    NoDone,
}

/// Why a request was refused before it took a slot.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Prompt and answer together do not fit.
    #[error("the prompt has {prompt} tokens and the context holds {context}")]
    ContextLength {
        /// What the model's context holds, in tokens.
        context: u32,
        /// What the prompt has, in tokens.
        prompt: u32,
        /// What was asked for the answer, in tokens.
        asked: Option<u32>,
    },
    /// A field the engine cannot work with.
    #[error("{param}: {message}")]
    Invalid {
        /// The field.
        param: String,
        /// What is wrong with it.
        message: String,
    },
    /// A field asks for more than this engine does.
    #[error("{param}: {message}")]
    Unsupported {
        /// The field.
        param: &'static str,
        /// What it does, and what to do instead.
        message: String,
    },
    /// The engine itself failed.
    #[error("{0}")]
    Failed(String),
    /// A thread of the engine is lost for good; only a new process helps.
    #[error("{0}")]
    Stuck(String),
    /// Not what this kind of model does.
    #[error("this model cannot do that: it {does}")]
    Unsuited {
        /// What it does instead.
        does: &'static str,
    },
    /// The script wants the caller sent elsewhere.
    #[error("the script redirects")]
    Redirect,
}

/// What to load, and how.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What to run on.
    pub device: Device,
    /// The model's file or folder.
    pub model_path: Option<PathBuf>,
    /// Longest prompt plus answer, in tokens; none: what the model was made for.
    pub context_length: Option<u32>,
    /// How many requests at once.
    pub slots: u32,
    /// What the scripted engine plays.
    pub script: Option<PathBuf>,
    /// What the engine's libraries read from the environment.
    pub variables: Vec<(&'static str, String)>,
}

/// Takes what loading has to say: a few words, and how far it is from 0 to 1.
pub type Report = Arc<dyn Fn(&str, f32) + Send + Sync>;

/// Why a model could not be loaded. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error("cannot read {} (check --model-path and its permissions)", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is damaged or not a model: {fault}; download it again (`hivectl models verify` finds damaged files)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// A sound file, with weights the engine has no arithmetic for.
    #[error(
        "{} has weights of type {kind}, which the engine cannot compute with; \
         get the model quantised as Q4_K_M (Q2_K to Q8_0, F16, BF16 and F32 work too, IQ… and MXFP4 do not)",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensors' type, as ggml names it, or its number.
        kind: String,
    },
    /// This program was built without what the device needs.
    #[error(
        "this hive-worker was built without support for `{device}`; build it with `cargo build -p worker --features {feature}`, or take another --device"
    )]
    NoSupport {
        /// The device asked for.
        device: Device,
        /// The cargo feature that is missing.
        feature: &'static str,
    },
    /// Something else, in the engine's words.
    #[error("{0}")]
    Engine(String),
}

/// Says whether this program can run on `device` at all.
pub fn check_support(device: Device) -> Result<(), LoadError> {
    let feature = match device {
        Device::Cpu if cfg!(not(feature = "engine")) => "engine",
        Device::Cuda(_) if cfg!(not(feature = "cuda")) => "cuda",
        Device::Metal if cfg!(not(feature = "metal")) => "metal",
        _ => return Ok(()),
    };
    Err(LoadError::NoSupport { device, feature })
}

/// Loads the model; takes seconds to minutes.
pub async fn load(spec: Spec, report: Report) -> Result<Arc<dyn Engine>, LoadError> {
    check_support(spec.device)?;
    if spec.device == Device::Scripted {
        return Ok(Arc::new(scripted::load(&spec, &report).await?));
    }
    #[cfg(feature = "engine")]
    return mistral::load(spec, report).await;
    #[cfg(not(feature = "engine"))]
    unreachable!("check_support refuses every other device");
}

/// What the engine's libraries read from the environment, as `config` wants it.
pub fn environment(config: &EngineConfig) -> Vec<(&'static str, String)> {
    let mut variables = Vec::new();
    if let Some(threads) = config.threads {
        variables.push(("RAYON_NUM_THREADS", threads.to_string()));
    }
    let dense = match config.weights {
        Weights::Packed => false,
        Weights::Dense => true,
        Weights::Auto => config.model_path.as_deref().is_some_and(is_small),
    };
    if dense && config.device == Device::Cpu {
        variables.push(("CANDLE_DEQUANTIZE_ALL", "1".to_owned()));
    }
    variables
}

/// On a CPU, packed weights are multiplied with activations rounded to 8 bits, row by row. Small models lose right
/// answers to that (SmolLM2-135M no longer knows the capital of France), and prefill is slower than with dense weights;
/// decoding is faster (31 tokens a second against 10 on 2 cores), and memory the reason why large models stay packed.
fn is_small(path: &Path) -> bool {
    const MOST: u64 = 1 << 30;
    let heads: Result<Vec<_>, _> = gguf::files(path).iter().map(|file| gguf::inspect(file)).collect();
    heads.is_ok_and(|heads| {
        !heads.is_empty() && heads.iter().fold(0, |sum: u64, head| sum.saturating_add(head.elements)) <= MOST / 4
    })
}
