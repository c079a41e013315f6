//! `hivectl worker …`: the gateway's workers, and the processes of this machine behind them.

pub mod guest;
pub mod logs;
pub mod spawn;
pub mod stop;

use std::path::{Path, PathBuf};

use rand::Rng;
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;
use wire::{Attach, ModelFacts, ModelName, WorkerId, WorkerKind, WorkerState, WorkerView};

use crate::{
    cli::{AttachServer, Backend, WorkerCommand},
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    output::Output,
    state::{self, WorkerRun},
};

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// One worker, exactly as `--json` shows it.
#[derive(Debug, Serialize)]
pub struct WorkerLine<'a> {
    id: &'a WorkerId,
    model: &'a ModelName,
    state: WorkerState,
    pid: Option<u32>,
    url: &'a str,
    host: &'a str,
    slots: u32,
    in_flight: u32,
    /// Slots that are cancelled, still busy; told while there are any.
    #[serde(skip_serializing_if = "is_zero")]
    still_busy: u32,
    epoch: i64,
    /// Why it is quarantined.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

impl<'a> From<&'a WorkerView> for WorkerLine<'a> {
    fn from(view: &'a WorkerView) -> Self {
        Self {
            id: &view.id,
            model: &view.model,
            state: view.state,
            pid: view.pid,
            url: &view.url,
            host: &view.host,
            slots: view.slots,
            in_flight: view.in_flight,
            still_busy: view.still_busy,
            epoch: view.epoch,
            message: view
                .message
                .as_deref()
                .filter(|_| view.state == WorkerState::Quarantined),
        }
    }
}

/// Runs one `worker` command.
pub async fn run(command: WorkerCommand, config: &Config, output: &Output) -> Result<(), Failure> {
    match command {
        WorkerCommand::Spawn(args) => spawn::spawn(*args, config, output).await,
        WorkerCommand::List => list(config, output).await,
        WorkerCommand::Stop { id, drain } => stop::stop(&id, drain, config, output).await,
        WorkerCommand::Restart { id, timeout } => spawn::restart(&id, timeout, config, output).await,
        WorkerCommand::Logs { id, follow, lines } => logs::print(&id, follow, lines, config, output).await,
        WorkerCommand::Attach(args) => attach(args, config, output).await,
        WorkerCommand::Detach { id, force } => detach(&id, force, config, output).await,
    }
}

async fn list(config: &Config, output: &Output) -> Result<(), Failure> {
    show(&all(config, &Gateway::find(config)?).await?, output);
    Ok(())
}

/// The gateway's workers, and those of this machine that its supervisor has given up, which the gateway only misses.
pub async fn all(config: &Config, gateway: &Gateway) -> Result<Vec<WorkerView>, Failure> {
    let mut views = gateway.workers().await?;
    for run in state::workers(config) {
        let is_here = run.spec.gateway == gateway.control_url();
        let Some(trouble) = run.trouble.clone().filter(|_| is_here) else {
            continue;
        };
        let known = views.iter().position(|view| view.id == run.spec.id);
        // Its name may have a new owner by now.
        if known.is_some_and(|at| views[at].pid != Some(run.process.pid) && views[at].state != WorkerState::Lost) {
            continue;
        }
        let seen = known.map(|at| views.remove(at));
        views.push(WorkerView {
            state: WorkerState::Quarantined,
            pid: None,
            progress: None,
            message: Some(trouble),
            ..seen.unwrap_or_else(|| forgotten(&run))
        });
    }
    views.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(views)
}

/// A worker of which only its record on this machine is left.
fn forgotten(run: &WorkerRun) -> WorkerView {
    WorkerView {
        id: run.spec.id.clone(),
        model: run.spec.model.clone(),
        models: vec![run.spec.model.clone()],
        state: WorkerState::Lost,
        pid: None,
        url: String::new(),
        host: "localhost".to_owned(),
        slots: run.spec.slots.unwrap_or(0),
        in_flight: 0,
        still_busy: 0,
        outstanding_tokens: 0,
        epoch: 0,
        kind: WorkerKind::Own,
        device: run.spec.device.clone(),
        progress: None,
        message: None,
        tokens_per_second: None,
        memory_bytes: None,
        labels: run.spec.labels.clone(),
        weight: run.spec.weight.unwrap_or(1.0),
        silent_ms: 0,
        version: String::new(),
        facts: ModelFacts::default(),
    }
}

/// Workers as they were asked for.
pub fn show(views: &[WorkerView], output: &Output) {
    if output.is_json() {
        output.json(&views.iter().map(WorkerLine::from).collect::<Vec<_>>());
    } else {
        table(views, output);
    }
}

/// A worker's labels, and its weight if it has one of its own.
fn labels(view: &WorkerView) -> String {
    let labels = view.labels.iter().map(|(name, value)| format!("{name}={value}"));
    let weight = (view.weight - 1.0).abs() > f32::EPSILON;
    let weight = weight.then(|| format!("weight={}", view.weight));
    labels.chain(weight).collect::<Vec<_>>().join(" ")
}

/// Slots in use, with a word about those that no request of ours has any more.
fn busy(view: &WorkerView) -> String {
    let still = match view.still_busy {
        0 => String::new(),
        count => format!(" + {count} cancelled, still busy"),
    };
    format!("{}/{}{still}", view.in_flight, view.slots)
}

/// Workers for a person to read.
pub fn table(views: &[WorkerView], output: &Output) {
    let headers = [
        "worker",
        "model",
        "state",
        "device",
        "host",
        "busy",
        "tokens/s",
        "labels",
        "what it says",
    ];
    let row = |view: &WorkerView| {
        let progress = view.progress.filter(|_| view.state == WorkerState::Loading);
        let progress = progress
            .map(|progress| format!("{:.0} % ", progress * 100.0))
            .unwrap_or_default();
        vec![
            view.id.to_string(),
            view.models.iter().map(ModelName::as_str).collect::<Vec<_>>().join(" "),
            view.state.as_str().to_owned(),
            view.device.clone(),
            view.host.clone(),
            busy(view),
            view.tokens_per_second
                .map_or_else(|| "-".to_owned(), |speed| format!("{speed:.0}")),
            labels(view),
            progress + view.message.as_deref().unwrap_or_default(),
        ]
    };
    output.table(&headers, &views.iter().map(row).collect::<Vec<_>>());
}

async fn attach(args: AttachServer, config: &Config, output: &Output) -> Result<(), Failure> {
    let api_key = match &args.api_key_file {
        None => None,
        Some(file) => Some(state::read_secret(file)?.ok_or_else(|| {
            Failure::usage(
                format!("there is no key file {}", file.display()),
                "name a file that holds the server's API key",
            )
        })?),
    };
    let attach = Attach {
        url: args.url,
        models: args.models,
        api_key: api_key.map(|key| key.expose_secret().to_owned()),
        id: args.name,
        slots: args.slots,
        labels: args.labels.into_iter().collect(),
        weight: args.weight,
    };
    let view = Gateway::find(config)?.attach(&attach).await?;
    if output.is_json() {
        output.json(&WorkerLine::from(&view));
        return Ok(());
    }
    let models: Vec<&str> = view.models.iter().map(ModelName::as_str).collect();
    output.note(format_args!("attached {} with {}", view.url, models.join(", ")));
    output.line(&view.id);
    Ok(())
}

async fn detach(id: &WorkerId, force: bool, config: &Config, output: &Output) -> Result<(), Failure> {
    let gateway = Gateway::find(config)?;
    let quarantined =
        state::worker(config, id).filter(|run| run.trouble.is_some() && run.spec.gateway == gateway.control_url());
    // Of a quarantined worker, its record may be all there is.
    if gateway.worker(id).await?.is_some() {
        gateway.detach(id, force).await?;
    } else if quarantined.is_none() {
        return Err(unknown(id));
    }
    if let Some(run) = quarantined {
        state::forget_worker(config, id, &run.process);
    }
    output.done(
        &json!({ "id": id, "detached": true }),
        format_args!("worker {id} is out"),
    );
    Ok(())
}

/// A name from the command line as a model name.
pub fn model_name(text: &str) -> Result<ModelName, Failure> {
    text.parse().map_err(|error: wire::NameError| {
        Failure::usage(
            format!("{text:?} is not a model name"),
            "see the models with `hivectl models list`",
        )
        .because(error)
    })
}

/// What a worker is told to run on.
pub fn device(backend: Backend, gpu: Option<u32>) -> Result<String, Failure> {
    match (backend, gpu) {
        (Backend::Cuda, gpu) => Ok(format!("cuda:{}", gpu.unwrap_or(0))),
        (backend, None) => Ok(backend.name().to_owned()),
        (_, Some(_)) => Err(Failure::usage(
            "--gpu goes with the backend `cuda` only",
            "leave --gpu out, or use `cuda`",
        )),
    }
}

/// A new worker's id: what it runs on, and a few characters that no other has, also on other machines.
pub fn fresh_id(device: &str) -> Result<WorkerId, Failure> {
    let mut random = rand::rng();
    let tail: String = (0..5)
        .map(|_| char::from(b"0123456789abcdefghijklmnopqrstuvwxyz"[random.random_range(0..36)]))
        .collect();
    worker_id(&format!("{}-{tail}", device.replace(':', "")))
}

/// A worker id from its parts.
pub fn worker_id(text: &str) -> Result<WorkerId, Failure> {
    text.parse().map_err(|error: wire::NameError| {
        Failure::usage(format!("{text:?} is not a worker id"), "choose another with --name").because(error)
    })
}

/// A path that means the same in every folder.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path).map_err(|error| {
        Failure::usage(
            format!("{} cannot be read", path.display()),
            "name a file that is there",
        )
        .because(error)
    })
}

fn not_from_here(id: &WorkerId) -> Failure {
    Failure::usage(
        format!("no worker {id} was started on this machine"),
        "see the workers, and the machines they run on, with `hivectl worker list`",
    )
}

fn unknown(id: &WorkerId) -> Failure {
    Failure::usage(
        format!("there is no worker {id}"),
        "see the workers with `hivectl worker list`",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_gpu_belongs_to_cuda() {
        assert_eq!(device(Backend::Cuda, Some(1)).unwrap(), "cuda:1");
        assert_eq!(device(Backend::Cuda, None).unwrap(), "cuda:0");
        assert_eq!(device(Backend::Cpu, None).unwrap(), "cpu");
        assert_eq!(device(Backend::Cpu, Some(0)).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn made_up_ids_are_valid_and_differ() {
        let (a, b) = (fresh_id("cuda:1").unwrap(), fresh_id("cuda:1").unwrap());
        assert!(a.as_str().starts_with("cuda1-"), "{a}");
        assert_ne!(a, b);
    }
}
