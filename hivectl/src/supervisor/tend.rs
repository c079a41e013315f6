//! Tending a hive that is up: what dies is started again, what was stopped stays stopped, what keeps dying while it
//! loads is quarantined; and what somebody starts again by hand is tended again.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use secrecy::SecretString;
use tokio::time::sleep;

use super::{Event, Hive, Plan, backoff::Backoff, start_gateway};
use crate::{
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    launch::{self, Running},
    logs, process,
    state::{self, WorkerRun, WorkerSpec},
};

/// Deaths in a row while loading after which a worker is quarantined: not started again before somebody has looked.
const DEATHS_WHILE_LOADING: u32 = 5;
/// How often a worker that was let go is looked for.
const GLANCE: Duration = Duration::from_secs(1);
/// How often logs are looked at for rotation.
const ROTATION: Duration = Duration::from_secs(10);

impl Hive<'_> {
    /// Tends the hive for ever; dropping the future stops the tending, not the hive.
    pub(super) async fn tend(self, tell: &impl Fn(Event)) -> Infallible {
        let Self {
            config,
            plan,
            client,
            gateway,
            worker,
        } = self;
        let rotation = async {
            loop {
                sleep(ROTATION).await;
                if let Err(error) = logs::rotate_all(&config.logs()) {
                    tell(Event::Note(format!("a log could not be rotated: {error}")));
                }
            }
        };
        tokio::select! {
            never = tend_gateway(config, &plan, gateway, tell) => never,
            never = tend_worker(config, &plan, &client, worker, tell) => never,
            never = rotation => never,
        }
    }
}

async fn tend_gateway(config: &Config, plan: &Plan, mut gateway: Running, tell: &impl Fn(Event)) -> Infallible {
    let (mut backoff, mut began) = (Backoff::default(), Instant::now());
    let mut how = gateway.ended().await;
    loop {
        if let Some(mut successor) = successor(config, tell) {
            began = Instant::now();
            how = successor.ended().await;
            continue;
        }
        let wait = backoff.after(began.elapsed(), rand::random());
        tell(Event::Note(format!(
            "the gateway is gone: {how}; it is started again in {} ms",
            wait.as_millis()
        )));
        sleep(wait).await;
        began = Instant::now();
        how = match start_gateway(config, plan).await {
            Ok((mut running, ..)) => {
                tell(Event::Note("the gateway is back".to_owned()));
                running.ended().await
            }
            Err(failure) => failure.in_one_line(),
        };
    }
}

/// The gateway that has taken over from the one that ended, if one has.
fn successor(config: &Config, tell: &impl Fn(Event)) -> Option<Running> {
    let run = state::gateway(config)?;
    let pid = run.process.pid;
    tell(Event::Note(format!(
        "the gateway was upgraded: process {pid} serves now"
    )));
    if let Err(failure) = state::update_supervisor(config, |supervisor| supervisor.gateway = Some(run.process)) {
        tell(Event::Note(failure.in_one_line()));
    }
    Some(Running::adopted(run.process, config.logs().join("gateway.log")))
}

async fn tend_worker(
    config: &Config,
    plan: &Plan,
    client: &Gateway,
    mut worker: Running,
    tell: &impl Fn(Event),
) -> Infallible {
    loop {
        until_let_go(config, plan, client, worker, tell).await;
        worker = revived(config, &plan.worker).await;
        tell(Event::Note(format!("worker {} was started by hand", plan.worker.id)));
    }
}

/// Starts a worker again whenever it dies, until it is stopped or has died too often.
async fn until_let_go(config: &Config, plan: &Plan, client: &Gateway, mut worker: Running, tell: &impl Fn(Event)) {
    let spec = &plan.worker;
    let is_wanted = || state::worker(config, &spec.id).is_some_and(|run| !run.stopping);
    let (mut backoff, mut began) = (Backoff::default(), Instant::now());
    let mut deaths_while_loading = 0;
    let mut how = worker.ended().await;
    while is_wanted() && deaths_while_loading < DEATHS_WHILE_LOADING {
        let wait = backoff.after(began.elapsed(), rand::random());
        tell(Event::Note(format!(
            "worker {} is gone: {how}; it is started again in {} ms",
            spec.id,
            wait.as_millis()
        )));
        sleep(wait).await;
        if !is_wanted() {
            break;
        }
        began = Instant::now();
        let token = client.join_token(&spec.id).await;
        // Whoever stopped it meanwhile found no process to stop.
        if !is_wanted() {
            break;
        }
        let started = token.and_then(|token| {
            let token = SecretString::from(token.token);
            launch::joining(config, &token, &plan.programs.worker, spec, true)
        });
        how = match started {
            Ok(mut running) => match launch::until_ready(client, spec, &mut running, plan.load_limit(), |_| ()).await {
                Ok(()) => {
                    deaths_while_loading = 0;
                    tell(Event::Note(format!("worker {} is back", spec.id)));
                    running.ended().await
                }
                Err(failure) => {
                    deaths_while_loading += 1;
                    // One that is stuck must not load beside its successor.
                    let _ = process::send(&running.process, Signal::SIGKILL);
                    failure.in_one_line()
                }
            },
            // The gateway may be on its own way back: no death of the worker.
            Err(failure) => failure.in_one_line(),
        };
    }
    if let Err(failure) = let_go(config, spec, is_wanted(), tell) {
        tell(Event::Note(failure.in_one_line()));
    }
}

/// Waits until somebody has started the worker again as it was, and takes it over.
async fn revived(config: &Config, spec: &WorkerSpec) -> Running {
    loop {
        let run = state::worker(config, &spec.id)
            .filter(|run| run.spec == *spec && !run.stopping && process::is_alive(&run.process));
        if let Some(run) = run {
            let process = run.process;
            let supervised = true;
            // A record that cannot be written is tried again.
            if state::write_worker(config, &WorkerRun { supervised, ..run }).is_ok() {
                return Running::adopted(process, state::worker_log(config, &spec.id));
            }
        }
        sleep(GLANCE).await;
    }
}

/// Ends the tending of a worker: it was stopped, or it died too often.
fn let_go(config: &Config, spec: &WorkerSpec, is_wanted: bool, tell: &impl Fn(Event)) -> Result<(), Failure> {
    let id = &spec.id;
    let run = state::worker(config, id).filter(|run| !process::is_alive(&run.process));
    if !is_wanted {
        tell(Event::Note(format!("worker {id} was stopped")));
        if let Some(run) = run {
            state::forget_worker(config, id, &run.process);
        }
        return Ok(());
    }
    let trouble = format!(
        "it died {DEATHS_WHILE_LOADING} times while loading and is not started again; \
         `hivectl worker logs {id}` says why, `hivectl worker restart {id}` tries once more"
    );
    tell(Event::Note(format!("worker {id} is quarantined: {trouble}")));
    let Some(run) = run else { return Ok(()) };
    state::write_worker(
        config,
        &WorkerRun {
            supervised: false,
            trouble: Some(trouble),
            ..run
        },
    )
}
