//! `hivectl status`: what runs.

use serde::Serialize;

use super::worker::{self, WorkerLine};
use crate::{
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    output::{Mark, Output},
    process, state,
};

#[derive(Serialize)]
struct Status<'a> {
    gateway: Option<GatewayLine>,
    /// None if the gateway does not tell.
    workers: Option<Vec<WorkerLine<'a>>>,
}

#[derive(Serialize)]
struct GatewayLine {
    pid: u32,
    data_url: String,
    control_url: String,
    ready: bool,
}

/// Prints what runs; fails if nothing does, or if the gateway does not tell its workers.
pub async fn run(config: &Config, output: &Output) -> Result<(), Failure> {
    let run = state::gateway(config);
    let (mut workers, mut ready) = (Ok(Vec::new()), false);
    if let Some(run) = &run {
        let client = Gateway::local(config, run)?;
        ready = client.is_ready().await;
        workers = worker::all(config, &client).await;
    }
    let gateway = run.map(|run| GatewayLine {
        pid: run.process.pid,
        data_url: run.data_url,
        control_url: run.control_url,
        ready,
    });
    if output.is_json() {
        let is_up = gateway.is_some();
        output.json(&Status {
            gateway,
            workers: workers
                .as_ref()
                .ok()
                .map(|views| views.iter().map(WorkerLine::from).collect()),
        });
        return if is_up { workers.map(drop) } else { Err(nothing(config)) };
    }
    let Some(gateway) = gateway else {
        return Err(nothing(config));
    };
    let (mark, word) = if ready {
        (Mark::Good, "ready")
    } else {
        (Mark::Warning, "not ready")
    };
    output.marked(mark, word, format_args!("gateway (process {})", gateway.pid));
    output.line(format_args!("  data plane     {}/v1", gateway.data_url));
    output.line(format_args!("  control plane  {}", gateway.control_url));
    match state::supervisor(config) {
        Some(run) if process::is_alive(&run.process) => {
            output.line(format_args!("  kept up by     process {}", run.process.pid));
        }
        _ => output.marked(
            Mark::Warning,
            "alone",
            "no supervisor keeps it up; `hivectl up --detach` takes it over, `hivectl down` stops it",
        ),
    }
    let views = workers?;
    output.line("");
    worker::table(&views, output);
    Ok(())
}

fn nothing(config: &Config) -> Failure {
    let left: Vec<String> = state::workers(config)
        .into_iter()
        .filter(|run| process::is_alive(&run.process))
        .map(|run| format!("worker {} (process {})", run.spec.id, run.process.pid))
        .collect();
    let home = config.home.display();
    if left.is_empty() {
        Failure::task(format!("nothing runs in {home}"), "start it with `hivectl up`")
    } else {
        Failure::task(
            format!("no gateway runs in {home}, but {} still does", left.join(", ")),
            "start it with `hivectl up`, or stop the rest with `hivectl down`",
        )
    }
}
