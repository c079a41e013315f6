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
use wire::{Attach, ModelName, WorkerId, WorkerState, WorkerView};

use crate::{
    cli::{AttachServer, Backend, WorkerCommand},
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    output::Output,
    state,
};

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
    epoch: i64,
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
            epoch: view.epoch,
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
        WorkerCommand::Detach { id } => {
            Gateway::find(config)?.detach(&id).await?;
            output.done(
                &json!({ "id": id, "detached": true }),
                format_args!("worker {id} is out"),
            );
            Ok(())
        }
    }
}

async fn list(config: &Config, output: &Output) -> Result<(), Failure> {
    show(&Gateway::find(config)?.workers().await?, output);
    Ok(())
}

/// Workers as they were asked for.
pub fn show(views: &[WorkerView], output: &Output) {
    if output.is_json() {
        output.json(&views.iter().map(WorkerLine::from).collect::<Vec<_>>());
    } else {
        table(views, output);
    }
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
            format!("{}/{}", view.in_flight, view.slots),
            view.tokens_per_second
                .map_or_else(|| "-".to_owned(), |speed| format!("{speed:.0}")),
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
        (Backend::Cpu, None) => Ok("cpu".to_owned()),
        (Backend::Metal, None) => Ok("metal".to_owned()),
        (Backend::Scripted, None) => Ok("scripted".to_owned()),
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
