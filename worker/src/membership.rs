//! A worker's life: joining → member → leaving, each a function.
//!
//! It decides when to register, when to take requests and when to go. It never exits because a gateway is gone: a
//! member goes on serving and goes on knocking.

mod control;
mod pulse;
mod state_file;

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::Instant,
};
use wire::{Registered, WorkerState};

use crate::{
    Config, Error,
    config::read_secret,
    engine::{self, Engine, LoadError, Spec},
    state::Worker,
};
use control::{Control, ControlError};

/// How long a gateway that is not there yet is waited for.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// Lives from the first registration to the end.
pub async fn live(config: &Config, worker: &Arc<Worker>) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let _state_file = config
        .api
        .state_file
        .clone()
        .map(|path| state_file::keep(path, worker.clone()));
    let (ends, mut gateway_says) = mpsc::channel(1);
    let mut tie = None;
    if let Some(url) = &config.membership.gateway {
        let control = Arc::new(Control::new(url, config.membership.gateway_ca.as_deref())?);
        let registered = tokio::select! {
            registered = joining(config, worker, &control) => registered?,
            _ = signals.next() => return Ok(()),
        };
        let pulse = pulse::Pulse::new(control.clone(), worker.clone(), registered, ends);
        tie = Some((control, pulse.credential(), tokio::spawn(pulse.beat())));
    }
    let loading = start_loading(config, worker);
    let ending = member(worker, loading, &mut signals, &mut gateway_says).await;
    let end = leaving(config, worker, &ending, &mut signals).await;
    if let Some((control, credential, pulse)) = tie {
        pulse.abort();
        if !matches!(ending, Ending::Replaced) && end.is_ok() {
            control.leave(worker, &credential, &ending.reason()).await;
        }
    }
    end.and(ending.verdict(worker))
}

/// Why a member leaves.
#[derive(Debug)]
pub enum Ending {
    /// A signal.
    Told(&'static str),
    /// The gateway's wish.
    Drained,
    /// Another process holds the id.
    Replaced,
    /// The model is not to be had.
    NotLoaded(LoadError),
    /// The engine is stuck for good.
    Broken(String),
}

impl Ending {
    fn reason(&self) -> String {
        match self {
            Self::Told(signal) => (*signal).to_owned(),
            Self::Drained => "drained by the gateway".to_owned(),
            Self::Replaced => "replaced".to_owned(),
            Self::NotLoaded(error) => format!("the model could not be loaded: {error}"),
            Self::Broken(reason) => reason.clone(),
        }
    }

    fn verdict(self, worker: &Worker) -> Result<(), Error> {
        match self {
            Self::Told(_) | Self::Drained => Ok(()),
            Self::Replaced => Err(Error::Replaced(worker.id.to_string())),
            Self::NotLoaded(error) => Err(error.into()),
            Self::Broken(reason) => Err(Error::Broken(reason)),
        }
    }
}

/// Registers with the join token as soon as a gateway answers; the token's file goes when the token has been used.
async fn joining(config: &Config, worker: &Worker, control: &Control) -> Result<Registered, Error> {
    let file = config.membership.join_token_file.as_deref();
    let file = file.ok_or_else(|| Error::Usage("--join-token-file is missing".to_owned()))?;
    let token = read_secret("--join-token-file", file)?;
    let deadline = Instant::now() + JOIN_LIMIT;
    let mut tries = 0;
    loop {
        match control.register(worker, &token).await {
            Ok(registered) => {
                tracing::info!(epoch = registered.epoch, gateway = control.url(), "joined");
                if let Err(error) = std::fs::remove_file(file) {
                    tracing::warn!(%error, "the used join token's file could not be removed");
                }
                return Ok(registered);
            }
            Err(ControlError::Refused { status, message }) if status < 500 && status != 429 => {
                return Err(Error::Refused(format!("{message} (status {status})")));
            }
            Err(error) => {
                let pause = pulse::pause_after(tries, error.is_no_connection());
                tries += 1;
                if Instant::now() + pause > deadline {
                    return Err(Error::Unreachable {
                        url: control.url().to_owned(),
                        reason: error.to_string(),
                    });
                }
                tracing::info!(reason = %error, "no gateway yet");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

type Loading = JoinHandle<Result<Arc<dyn Engine>, LoadError>>;

fn start_loading(config: &Config, worker: &Arc<Worker>) -> Loading {
    let wanted = &config.engine;
    let spec = Spec {
        device: wanted.device,
        model_path: wanted.model_path.clone(),
        context_length: wanted.context_length,
        slots: wanted.slots(),
        script: wanted.script.clone(),
        variables: engine::environment(wanted),
    };
    let reporter = worker.clone();
    tokio::spawn(engine::load(
        spec,
        Arc::new(move |message: &str, progress| reporter.report(message, progress)),
    ))
}

/// Loads, then serves, until something says to go.
async fn member(
    worker: &Worker,
    loading: Loading,
    signals: &mut Signals,
    gateway_says: &mut mpsc::Receiver<Ending>,
) -> Ending {
    let loaded = tokio::select! {
        signal = signals.next() => return Ending::Told(signal),
        Some(ending) = gateway_says.recv() => return ending,
        loaded = loading => loaded.unwrap_or_else(|error| Err(LoadError::Engine(error.to_string()))),
    };
    match loaded {
        Ok(engine) => {
            tracing::info!(facts = ?engine.facts(), "ready");
            let _ = worker.engine.set(engine);
            worker.enter(WorkerState::Ready, None);
        }
        Err(error) => return Ending::NotLoaded(error),
    }
    let mut broken = worker.broken.subscribe();
    tokio::select! {
        signal = signals.next() => Ending::Told(signal),
        Some(ending) = gateway_says.recv() => ending,
        Ok(reason) = broken.wait_for(Option::is_some) => Ending::Broken(reason.clone().unwrap_or_default()),
    }
}

/// Takes nothing new, lets running answers end, and at the deadline ends them with a word.
async fn leaving(config: &Config, worker: &Worker, ending: &Ending, signals: &mut Signals) -> Result<(), Error> {
    let reason = ending.reason();
    tracing::info!(reason, in_flight = worker.slots.in_flight(), "leaving");
    worker.enter(WorkerState::Draining, Some(reason));
    worker.answers.close();
    let patience = match ending {
        Ending::Replaced | Ending::Broken(_) => Duration::ZERO,
        _ => config.api.drain_timeout,
    };
    tokio::select! {
        () = worker.answers.wait() => return Ok(()),
        () = tokio::time::sleep(patience) => tracing::warn!("running answers are cut: the time to drain is over"),
        _ = signals.next() => {
            worker.stop.cancel();
            return Err(Error::Forced);
        }
    }
    worker.stop.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), worker.answers.wait()).await;
    Ok(())
}

/// The two signals that mean "go".
struct Signals {
    term: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let listen = |kind| {
            signal(kind).map_err(|source| Error::System {
                what: "cannot listen for signals",
                source,
            })
        };
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// A credential that a new registration replaces.
type Credential = Arc<std::sync::Mutex<SecretString>>;
