//! `hivectl worker spawn` and `restart`: a worker process of this machine, from its start to its first request.

use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::sleep;
use wire::{ProcessMark, WorkerId, WorkerState, WorkerView};

use super::{super::models, absolute, device, fresh_id, model_name, unknown};
use crate::{
    checkout::Programs,
    cli::{Backend, Spawn},
    config::{self, Config},
    download,
    error::Failure,
    gateway_client::Gateway,
    launch,
    output::Output,
    process,
    state::{self, WorkerRun, WorkerSpec},
    supervisor::{Event, stop},
};

/// A worker that is not ready yet: killed and forgotten if the command ends before it is.
pub struct Unfinished<'a> {
    /// Whose state folder records it.
    pub config: &'a Config,
    /// Its id.
    pub id: &'a WorkerId,
    /// Its process.
    pub process: ProcessMark,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        process::kill_now(&self.process);
        state::forget_worker(self.config, self.id, &self.process);
    }
}

/// Starts a worker and prints its id, once it is ready unless `--no-wait`.
pub async fn spawn(args: Spawn, config: &Config, output: &Output) -> Result<(), Failure> {
    state::create_home(config)?;
    let device = device(args.backend, args.gpu)?;
    let config = &match &args.gateway {
        Some(url) => Config {
            control_url: Some(config::base_url("--gateway", url)?),
            ..config.clone()
        },
        None => config.clone(),
    };
    let gateway = Gateway::find(config)?;
    let id = match &args.name {
        Some(id) => id.clone(),
        None => fresh_id(&device)?,
    };
    refuse_taken(&id, config, &gateway).await?;
    let (no_wait, limit) = (args.no_wait, Duration::from_secs(args.timeout));
    let spec = specify(args, id, gateway.control_url().to_owned(), config, output).await?;
    start(&spec, no_wait, limit, config, &gateway, output).await
}

/// How a worker that was asked for is to be started on this machine; fetches its model if that is not here.
pub async fn specify(
    args: Spawn,
    id: WorkerId,
    gateway: String,
    config: &Config,
    output: &Output,
) -> Result<WorkerSpec, Failure> {
    let device = device(args.backend, args.gpu)?;
    let (model, model_path) = if args.backend == Backend::Scripted {
        (model_name(&args.model)?, None)
    } else {
        let (model, is_new) = download::fetch(config, output, &args.model, None, false).await?;
        if is_new {
            models::downloaded(&model, config, output).await;
        }
        (model.name, Some(model.path))
    };
    Ok(WorkerSpec {
        id,
        model,
        model_path,
        device,
        slots: args.slots,
        threads: args.threads,
        port: args.port,
        script: args.script.as_deref().map(absolute).transpose()?,
        labels: args.labels.into_iter().collect(),
        weight: args.weight,
        gateway,
    })
}

/// Stops a worker of this machine and starts it again as it was; prints its id once it is ready.
pub async fn restart(id: &WorkerId, timeout: u64, config: &Config, output: &Output) -> Result<(), Failure> {
    let limit = Duration::from_secs(timeout);
    let Some(run) = state::worker(config, id) else {
        return Err(match Gateway::find(config)?.worker(id).await? {
            Some(view) => Failure::usage(
                format!("worker {id} was not started by this hivectl (it runs on {})", view.host),
                "restart it where it was started",
            ),
            None => unknown(id),
        });
    };
    let config = &Config {
        control_url: Some(run.spec.gateway.clone()),
        ..config.clone()
    };
    let gateway = Gateway::find(config)?;
    let kept_up = run.supervised && state::live_supervisor(config).is_some();
    stop::one(&run.process, &format!("worker {id}"), sleep(limit), &|note| {
        output.note(note);
    })
    .await?;
    if kept_up {
        return followed(&run, limit, config, &gateway, output).await;
    }
    start(&run.spec, false, limit, config, &gateway, output).await
}

async fn start(
    spec: &WorkerSpec,
    no_wait: bool,
    limit: Duration,
    config: &Config,
    gateway: &Gateway,
    output: &Output,
) -> Result<(), Failure> {
    let programs = Programs::beside()?;
    programs.present()?;
    let mut running = launch::worker(config, gateway, &programs.worker, spec, false).await?;
    if !no_wait {
        let unfinished = Unfinished {
            config,
            id: &spec.id,
            process: running.process,
        };
        let bar = output.percent(&format!("loading {} on {}", spec.model, spec.device));
        let outcome = launch::until_ready(gateway, spec, &mut running, limit, |view| show_loading(&bar, view)).await;
        bar.finish_and_clear();
        outcome?;
        std::mem::forget(unfinished);
    }
    tell(&spec.id, output);
    Ok(())
}

/// Shows how far a worker has loaded its model.
pub fn show_loading(bar: &ProgressBar, view: &WorkerView) {
    if let Event::Loading { percent, message } = Event::loading(view) {
        bar.set_message(message.unwrap_or_default());
        bar.set_position(percent.unwrap_or(0));
    }
}

/// Waits until the supervisor has started this worker's successor and that is ready.
async fn followed(
    before: &WorkerRun,
    limit: Duration,
    config: &Config,
    gateway: &Gateway,
    output: &Output,
) -> Result<(), Failure> {
    let id = &before.spec.id;
    let ready = async {
        loop {
            let run = state::worker(config, id).filter(|run| run.process != before.process);
            if let Some(run) = run
                && let Ok(Some(view)) = gateway.worker(id).await
                && view.pid == Some(run.process.pid)
                && view.state == WorkerState::Ready
            {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(limit, ready).await.map_err(|_| {
        Failure::timeout(
            format!("worker {id} was not ready again within {} s", limit.as_secs()),
            format!("read `hivectl worker logs {id}`, or allow more with --timeout"),
        )
    })?;
    tell(id, output);
    Ok(())
}

async fn refuse_taken(id: &WorkerId, config: &Config, gateway: &Gateway) -> Result<(), Failure> {
    refuse_running(id, config)?;
    match state::worker(config, id) {
        // Our own dead worker; the gateway may not have noticed yet, but its id is free.
        Some(dead)
            if gateway
                .worker(id)
                .await?
                .is_some_and(|view| view.pid == Some(dead.process.pid)) =>
        {
            Ok(())
        }
        _ => refuse_known(id, gateway).await,
    }
}

/// Fails if a worker of this id runs on this machine.
pub fn refuse_running(id: &WorkerId, config: &Config) -> Result<(), Failure> {
    match state::worker(config, id) {
        Some(run) if process::is_alive(&run.process) => Err(taken(id)),
        _ => Ok(()),
    }
}

/// Fails if the gateway has a worker of this id.
pub async fn refuse_known(id: &WorkerId, gateway: &Gateway) -> Result<(), Failure> {
    match gateway.worker(id).await? {
        Some(view) if view.state != WorkerState::Lost => Err(taken(id)),
        _ => Ok(()),
    }
}

fn taken(id: &WorkerId) -> Failure {
    Failure::task(
        format!("there is a worker {id} already"),
        format!("choose another --name, or stop it with `hivectl worker stop {id}`"),
    )
}

/// Says which worker has come to life.
pub fn tell(id: &WorkerId, output: &Output) {
    if output.is_json() {
        output.json(&serde_json::json!({ "id": id }));
    } else {
        output.line(id);
    }
}
