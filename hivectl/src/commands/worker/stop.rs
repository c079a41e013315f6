//! `hivectl worker stop`: a worker of this machine by its process, one elsewhere by way of the gateway.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use wire::{WorkerId, WorkerKind, WorkerState};

use super::{not_from_here, unknown};
use crate::{
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    output::Output,
    process,
    state::{self, WorkerRun},
    supervisor::stop,
};

/// Signals that come at the same moment count as one, so even no drain time takes this long.
const SHORTEST: Duration = Duration::from_millis(300);
/// How long a drained worker may take to leave.
const BEYOND: Duration = Duration::from_secs(10);

/// Lets a worker finish what it holds for `drain` seconds, and waits until it is gone.
pub async fn stop(id: &WorkerId, drain: u64, config: &Config, output: &Output) -> Result<(), Failure> {
    let drain = Duration::from_secs(drain).max(SHORTEST);
    match state::worker(config, id) {
        Some(run) => here(run, drain, config, output).await,
        None => elsewhere(id, drain, config, output).await,
    }
}

/// Stops a worker of this machine, and knows no other.
pub async fn stop_here(id: &WorkerId, drain: u64, config: &Config, output: &Output) -> Result<(), Failure> {
    let drain = Duration::from_secs(drain).max(SHORTEST);
    here(
        state::worker(config, id).ok_or_else(|| not_from_here(id))?,
        drain,
        config,
        output,
    )
    .await
}

async fn here(run: WorkerRun, drain: Duration, config: &Config, output: &Output) -> Result<(), Failure> {
    let id = &run.spec.id;
    // The supervisor looks here before it starts a worker again.
    state::write_worker(
        config,
        &WorkerRun {
            stopping: true,
            ..run.clone()
        },
    )?;
    let lived = process::is_alive(&run.process);
    stop::one(&run.process, &format!("worker {id}"), sleep(drain), &|note| {
        output.note(note);
    })
    .await?;
    state::forget_worker(config, id, &run.process);
    if !lived {
        // It could not say good-bye; without a gateway there is nobody to be told.
        if let Ok(gateway) = Gateway::find(config) {
            let _ = gateway.detach(id, false).await;
        }
    }
    tell(id, lived, output);
    Ok(())
}

fn tell(id: &WorkerId, lived: bool, output: &Output) {
    let how = if lived {
        "has stopped"
    } else {
        "was not running any more"
    };
    output.done(
        &json!({ "id": id, "stopped": lived }),
        format_args!("worker {id} {how}"),
    );
}

async fn elsewhere(id: &WorkerId, drain: Duration, config: &Config, output: &Output) -> Result<(), Failure> {
    let gateway = Gateway::find(config)?;
    let view = gateway.worker(id).await?.ok_or_else(|| unknown(id))?;
    if view.kind == WorkerKind::Attached {
        return Err(Failure::usage(
            format!("{id} is an attached server, not a worker of ours"),
            format!("take it out with `hivectl worker detach {id}`; its own process is its operator's"),
        ));
    }
    if view.state != WorkerState::Lost {
        gateway.drain(id).await?;
    }
    let gone = async {
        while gateway
            .worker(id)
            .await?
            .is_some_and(|view| view.state != WorkerState::Lost)
        {
            sleep(Duration::from_millis(200)).await;
        }
        Ok::<(), Failure>(())
    };
    tokio::time::timeout(drain + BEYOND, gone).await.map_err(|_| {
        Failure::timeout(
            format!("worker {id} on {} still finishes what it holds", view.host),
            "it takes nothing new; look again with `hivectl worker list`, or stop it where it was started",
        )
    })??;
    tell(id, true, output);
    Ok(())
}
