//! What the rooms of a worker share: who it is, where it stands, its slots and its counters. No room's logic.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use rand::Rng;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wire::{Labels, ModelFacts, ModelName, WorkerId, WorkerState};

use crate::{
    Error,
    config::{Config, read_secret},
    engine::Engine,
    slots::Slots,
};

/// One worker.
pub struct Worker {
    /// The id it goes by.
    pub id: WorkerId,
    /// The one model it serves.
    pub model: ModelName,
    /// What it runs on, as the registry shows it.
    pub device: String,
    /// Where the gateway reaches it.
    pub url: String,
    /// The bearer every dispatch must show.
    pub dispatch_token: SecretString,
    /// The places for requests, of which it takes so many at once.
    pub slots: Slots,
    /// What an operator calls it.
    pub labels: Labels,
    /// How much more than its speed says the gateway is to give it.
    pub weight: Option<f32>,
    /// When it started, in Unix seconds.
    pub started: u64,
    /// Where it stands.
    pub life: watch::Sender<Life>,
    /// What its gateway calls this registration.
    pub epoch: watch::Sender<Epoch>,
    /// The model, once it is loaded.
    pub engine: OnceLock<Arc<dyn Engine>>,
    /// Tokens generated since the start.
    pub tokens: AtomicU64,
    /// The answers being given.
    pub answers: TaskTracker,
    /// Running answers must end now.
    pub stop: CancellationToken,
    /// The listener must close now.
    pub close: CancellationToken,
    /// Why only a new process can go on, once it is so.
    pub broken: watch::Sender<Option<String>>,
}

/// Where a worker stands, and what it is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct Life {
    /// `loading`, `ready` or `draining`.
    pub state: WorkerState,
    /// What it is doing, in a few words.
    pub message: Option<String>,
    /// How far loading is, from 0 to 1.
    pub progress: Option<f32>,
}

/// The registration in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Epoch {
    /// Its number; none while it has not joined, and for a worker without a gateway.
    pub number: Option<i64>,
    /// A registration is under way: the gateway may know the next number before we do.
    pub changing: bool,
}

impl Worker {
    /// A worker that listens at `url` and is about to load.
    pub fn new(config: &Config, url: String) -> Result<Self, Error> {
        let device = config.engine.device.to_string();
        let dispatch_token = match &config.api.dispatch_token_file {
            Some(path) => read_secret("--dispatch-token-file", path)?,
            None => SecretString::from(random_hex::<32>()),
        };
        let id = match &config.membership.id {
            Some(id) => id.clone(),
            None => format!("{}-{}", device.replace(':', "-"), random_hex::<3>())
                .parse()
                .map_err(|error| Error::Usage(format!("--id: {error}")))?,
        };
        let life = Life {
            state: WorkerState::Loading,
            message: None,
            progress: None,
        };
        Ok(Self {
            id,
            model: config.engine.model.clone(),
            device,
            url,
            dispatch_token,
            slots: Slots::new(config.engine.slots()),
            labels: config.membership.labels.iter().cloned().collect(),
            weight: config.membership.weight,
            started: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            life: watch::Sender::new(life),
            epoch: watch::Sender::new(Epoch::default()),
            engine: OnceLock::new(),
            tokens: AtomicU64::new(0),
            answers: TaskTracker::new(),
            stop: CancellationToken::new(),
            close: CancellationToken::new(),
            broken: watch::Sender::new(None),
        })
    }

    /// Where it stands.
    pub fn state(&self) -> WorkerState {
        self.life.borrow().state
    }

    /// Goes on to another state; whoever watches `life` hears of it.
    pub fn enter(&self, state: WorkerState, message: Option<String>) {
        self.life.send_replace(Life {
            state,
            message,
            progress: None,
        });
    }

    /// Tells how far loading is. Only new words are news to those who watch.
    pub fn report(&self, message: &str, progress: f32) {
        self.life.send_if_modified(|life| {
            let is_news = life.message.as_deref() != Some(message);
            life.message = Some(message.to_owned());
            life.progress = Some(progress.max(life.progress.unwrap_or(0.0)));
            is_news && life.state == WorkerState::Loading
        });
    }

    /// Something is beyond repair: the worker leaves, and whoever started it may start it anew.
    pub fn break_down(&self, reason: &str) {
        self.broken.send_replace(Some(reason.to_owned()));
    }

    /// What is known about the model; nothing before it is loaded.
    pub fn facts(&self) -> ModelFacts {
        self.engine.get().map(|engine| engine.facts()).unwrap_or_default()
    }

    /// Counts a generated token.
    pub fn count_tokens(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }
}

/// `N` random bytes in hexadecimal.
pub fn random_hex<const N: usize>() -> String {
    let bytes: [u8; N] = rand::rng().random();
    hex(&bytes)
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}
