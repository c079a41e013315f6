//! Keeps a hive up: starts a gateway and a worker, and starts them again when they die.
//!
//! The same code runs in the foreground of `up` and, after `up --detach`, in a process of its own. It draws nothing:
//! what happens is told as [`Event`]s.

mod backoff;
pub mod stop;
mod tend;

use std::{
    cell::Cell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use wire::{GatewayRun, NewKey, ProcessMark, Scope, WorkerView};

use crate::{
    checkout::Programs,
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    launch::{self, Running},
    process,
    signals::{Signals, Wish},
    state::{self, SupervisorRun, WorkerRun, WorkerSpec},
};

/// How long answers in the making may take to end when the hive is stopped.
const DRAIN: Duration = Duration::from_secs(120);
/// A stop that takes longer than this is explained.
const SOON: Duration = Duration::from_secs(1);
/// How long what an earlier supervisor left may take to be usable.
const ADOPTION: Duration = Duration::from_secs(5);

/// What to keep up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The programs to run.
    pub programs: Programs,
    /// Where the data plane listens.
    pub data: SocketAddr,
    /// Where the control plane listens.
    pub control: SocketAddr,
    /// The worker; its `gateway` is filled in once that listens.
    pub worker: WorkerSpec,
    /// How long the model may take to load, in seconds.
    pub load_limit_s: u64,
    /// The audit journal's mode, if one was named.
    #[serde(default)]
    pub audit: Option<String>,
}

/// What happens, for whoever watches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A sentence about what is going on.
    Note(String),
    /// How far the model is loaded, in percent, and what the worker does.
    Loading {
        /// From 0 to 100, if known.
        percent: Option<u64>,
        /// In the worker's words.
        message: Option<String>,
    },
    /// Gateway and worker can be used.
    Ready,
    /// The start failed; what was started is stopped again.
    Failed {
        /// What failed.
        what: String,
        /// Why.
        why: Option<String>,
        /// What to do next.
        next: String,
        /// The exit code of its kind.
        exit_code: u8,
    },
}

/// What to do once a hive is up and its owner has said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Keep it up.
    Stay,
    /// Stop it again.
    Stop,
}

/// A hive that is up.
struct Hive<'a> {
    config: &'a Config,
    plan: Plan,
    client: Gateway,
    gateway: Running,
    worker: Running,
}

impl Event {
    /// How a loading worker looks.
    pub fn loading(view: &WorkerView) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0 to 100"
        )]
        let percent = view.progress.map(|progress| (progress.clamp(0.0, 1.0) * 100.0) as u64);
        Self::Loading {
            percent,
            message: view.message.clone(),
        }
    }

    /// A failed start.
    pub fn failed(failure: &Failure) -> Self {
        Self::Failed {
            what: failure.what().to_owned(),
            why: failure.why(),
            next: failure.next().to_owned(),
            exit_code: failure.exit_code(),
        }
    }
}

/// Brings a hive up and keeps it up until a signal or `when_ready` says otherwise, then stops all of it.
pub async fn run(
    config: &Config,
    plan: Plan,
    tell: &impl Fn(Event),
    signals: &mut Signals,
    when_ready: impl AsyncFnOnce() -> Result<Then, Failure>,
) -> Result<(), Failure> {
    let serving = Cell::new(false);
    let work = async {
        let hive = start(config, plan, tell).await?;
        serving.set(true);
        let ready = async {
            match when_ready().await? {
                Then::Stop => Ok(()),
                Then::Stay => std::future::pending().await,
            }
        };
        tokio::select! {
            outcome = ready => outcome,
            never = hive.tend(tell) => match never {},
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        wish = signals.next() => match wish {
            Wish::Interrupt => Err(Failure::interrupted("interrupted; the hive is stopped", "start it again with `hivectl up`")),
            Wish::Terminate if serving.get() => Ok(()),
            Wish::Terminate => Err(Failure::task("stopped before the hive was ready", "start it again with `hivectl up`")),
        },
    };
    // Whoever looks now must not take the hive for one that stays.
    let shown = state::update_supervisor(config, |run| run.ready = false);
    tell(Event::Note("stopping".to_owned()));
    let enough = async {
        tokio::select! {
            () = sleep(SOON) => {}
            _ = signals.next() => return,
        }
        tell(Event::Note(
            "answers in the making may end; a second Ctrl-C cuts them off".to_owned(),
        ));
        tokio::select! {
            () = sleep(DRAIN) => {}
            _ = signals.next() => {}
        }
    };
    let stopped = stop::everything(config, enough, &|note| tell(Event::Note(note))).await;
    outcome.and(shown).and(stopped.map(drop))
}

/// Brings a hive up, taking over what an earlier supervisor left running.
///
/// On failure something may be left running; [`stop::everything`] finds it.
async fn start<'a>(config: &'a Config, mut plan: Plan, tell: &impl Fn(Event)) -> Result<Hive<'a>, Failure> {
    let earlier = state::supervisor(config).and_then(|run| run.gateway);
    let own = SupervisorRun {
        process: process::own(),
        model: plan.worker.model.clone(),
        worker: plan.worker.id.clone(),
        gateway: earlier,
        ready: false,
    };
    state::write_supervisor(config, &own)?;

    let (gateway, run, client) = if let Some(adopted) = adopt_gateway(config, earlier).await? {
        tell(Event::Note("the gateway runs already".to_owned()));
        adopted
    } else {
        tell(Event::Note("starting the gateway".to_owned()));
        start_gateway(config, &plan).await?
    };
    // From now on the gateway comes back where its clients know it.
    plan.data.set_port(port(&run.data_url).unwrap_or(plan.data.port()));
    plan.control
        .set_port(port(&run.control_url).unwrap_or(plan.control.port()));
    plan.worker.gateway = run.control_url;
    state::update_supervisor(config, |run| run.gateway = Some(gateway.process))?;
    keep_inference_key(config, &client).await?;

    let spec = &plan.worker;
    let mut worker = if let Some(adopted) = adopt_worker(config, spec, tell).await? {
        tell(Event::Note(format!("worker {} runs already", spec.id)));
        adopted
    } else {
        tell(Event::Note(format!("starting worker {} with {}", spec.id, spec.model)));
        launch::worker(config, &client, &plan.programs.worker, spec, true).await?
    };
    launch::until_ready(&client, spec, &mut worker, plan.load_limit(), |view| {
        tell(Event::loading(view));
    })
    .await?;
    state::update_supervisor(config, |run| run.ready = true)?;
    tell(Event::Ready);
    Ok(Hive {
        config,
        plan,
        client,
        gateway,
        worker,
    })
}

impl Plan {
    fn load_limit(&self) -> Duration {
        Duration::from_secs(self.load_limit_s)
    }
}

async fn start_gateway(config: &Config, plan: &Plan) -> Result<(Running, GatewayRun, Gateway), Failure> {
    let planes = (plan.data, plan.control);
    launch::gateway(
        config,
        &plan.programs.gateway,
        planes,
        plan.audit.as_deref(),
        |process| state::update_supervisor(config, |run| run.gateway = Some(process)),
    )
    .await
}

/// The gateway that an earlier supervisor left running, if one did.
async fn adopt_gateway(
    config: &Config,
    earlier: Option<ProcessMark>,
) -> Result<Option<(Running, GatewayRun, Gateway)>, Failure> {
    let recorded = state::gateway(config).map(|run| run.process).or(earlier);
    let Some(process) = recorded.filter(process::is_alive) else {
        return Ok(None);
    };
    let deadline = Instant::now() + ADOPTION;
    while process::is_alive(&process) {
        if let Some(run) = state::gateway(config) {
            let client = Gateway::local(config, &run)?;
            if client.is_ready().await {
                return Ok(Some((
                    Running::adopted(process, config.logs().join("gateway.log")),
                    run,
                    client,
                )));
            }
        }
        if Instant::now() >= deadline {
            return Err(Failure::task(
                format!(
                    "a gateway of this hive runs already (process {}), but it is not ready",
                    process.pid
                ),
                "stop it with `hivectl down`, then run `hivectl up` again",
            ));
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(None)
}

/// The worker that an earlier supervisor left running, if it serves the same model; one with another model is stopped.
async fn adopt_worker(config: &Config, spec: &WorkerSpec, tell: &impl Fn(Event)) -> Result<Option<Running>, Failure> {
    let Some(run) = state::worker(config, &spec.id).filter(|run| process::is_alive(&run.process)) else {
        return Ok(None);
    };
    if run.spec.model == spec.model && run.spec.gateway == spec.gateway {
        let adopted = Running::adopted(run.process, state::worker_log(config, &spec.id));
        state::write_worker(
            config,
            &WorkerRun {
                supervised: true,
                stopping: false,
                ..run
            },
        )?;
        return Ok(Some(adopted));
    }
    stop::one(&run.process, &format!("worker {}", spec.id), sleep(ADOPTION), &|note| {
        tell(Event::Note(note));
    })
    .await?;
    Ok(None)
}

/// Sees to it that `keys/inference` holds a key this gateway takes.
async fn keep_inference_key(config: &Config, client: &Gateway) -> Result<(), Failure> {
    let file = config.key_file("inference");
    if let Some(key) = state::read_secret(&file)?
        && client.accepts(&key).await?
    {
        return Ok(());
    }
    let new = NewKey {
        name: "hivectl up".to_owned(),
        scopes: vec![Scope::Infer, Scope::ModelsRead],
        ..NewKey::default()
    };
    let created = client.create_key(&new).await?;
    state::write_secret(&file, &SecretString::from(created.key))
}

/// The port of a URL such as `http://127.0.0.1:7411`; the address itself may not be what the gateway listens on.
fn port(url: &str) -> Option<u16> {
    url.trim_end_matches('/').rsplit_once(':')?.1.parse().ok()
}
