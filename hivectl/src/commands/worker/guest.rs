//! Workers of this machine whose gateway is elsewhere: another machine's hivectl asks for them, brings their join token,
//! and says when they are ready, because this machine has no key for that gateway.

use std::time::Duration;

use tokio::time::sleep;
use wire::WorkerId;

use super::{
    not_from_here,
    spawn::{self, Unfinished},
};
use crate::{
    checkout::Programs,
    cli::Spawn,
    config::Config,
    error::Failure,
    hosts::{Caller, Frame, Placed},
    launch,
    output::Output,
    process,
    state::{self, WorkerRun, WorkerSpec},
    supervisor::stop,
};

/// Starts a worker for the caller's gateway.
pub async fn spawn(
    caller: &mut Caller,
    args: Spawn,
    gateway: String,
    config: &Config,
    output: &Output,
) -> Result<(), Failure> {
    let prepared = async {
        state::create_home(config)?;
        let id = args
            .name
            .clone()
            .ok_or_else(|| Failure::usage("the worker has no id", "name one with --name"))?;
        spawn::refuse_running(&id, config)?;
        spawn::specify(args, id, gateway, config, output).await
    };
    let spec = caller.while_there(prepared).await?;
    start(caller, &spec, config, output).await
}

/// Stops a worker of this machine and starts it again as it was.
pub async fn restart(
    caller: &mut Caller,
    id: &WorkerId,
    timeout: u64,
    config: &Config,
    output: &Output,
) -> Result<(), Failure> {
    let run = state::worker(config, id).ok_or_else(|| not_from_here(id))?;
    if state::gateway(config).is_some_and(|gateway| gateway.control_url == run.spec.gateway) {
        // It is no guest: its gateway is this machine's own.
        return caller.while_there(spawn::restart(id, timeout, config, output)).await;
    }
    let patience = sleep(Duration::from_secs(timeout));
    let note = |note: String| output.note(note);
    caller
        .while_there(stop::one(&run.process, &format!("worker {id}"), patience, &note))
        .await?;
    start(caller, &run.spec, config, output).await
}

/// The workers that were started on this machine.
pub fn placed(config: &Config) -> Vec<Placed> {
    let placed = |run: WorkerRun| Placed {
        alive: process::is_alive(&run.process),
        pid: run.process.pid,
        id: run.spec.id,
        model: run.spec.model,
        gateway: run.spec.gateway,
    };
    state::workers(config).into_iter().map(placed).collect()
}

async fn start(caller: &mut Caller, spec: &WorkerSpec, config: &Config, output: &Output) -> Result<(), Failure> {
    let programs = Programs::beside()?;
    programs.present()?;
    output.frame(&Frame::TokenWanted(spec.id.clone()));
    let token = caller.token().await?;
    let mut running = launch::joining(config, &token, &programs.worker, spec, false)?;
    let unfinished = Unfinished {
        config,
        id: &spec.id,
        process: running.process,
    };
    output.frame(&Frame::Started(running.process.pid));
    tokio::select! {
        released = caller.released() => released?,
        how = running.ended() => return Err(running.obituary(&format!("worker {}", spec.id), &how)),
    }
    std::mem::forget(unfinished);
    Ok(())
}
