//! Taking a hive down on this machine: first the gateway, which lets running answers end, then the workers.
//!
//! It finds processes only by what `run/` recorded, so that it works the same for a supervisor that ends and for
//! `down` after the supervisor was killed.

use std::time::Duration;

use futures_util::FutureExt;
use nix::sys::signal::Signal;
use tokio::time::sleep;
use wire::ProcessMark;

use crate::{config::Config, error::Failure, process, state};

/// How long a gateway may take for its last words after its drain time or a second SIGTERM.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long a worker without a gateway may take: nobody waits for its answers.
const WORKER: Duration = Duration::from_secs(10);

/// Stops the gateway and all workers of this state folder; answers in the making may end until `enough` does. True if
/// anything was running.
pub async fn everything(
    config: &Config,
    enough: impl Future<Output = ()>,
    note: &impl Fn(String),
) -> Result<bool, Failure> {
    let mut enough = std::pin::pin!(enough.fuse());
    let mut gateways: Vec<ProcessMark> = state::gateway(config).map(|run| run.process).into_iter().collect();
    // One that was upgraded comes last: it ends with its successor.
    gateways.extend(state::supervisor(config).and_then(|run| run.gateway));
    gateways.dedup();
    gateways.retain(process::is_alive);

    let mut stopped = !gateways.is_empty();
    for gateway in &gateways {
        one(gateway, "the gateway", &mut enough, note).await?;
    }
    let workers = state::workers(config);
    let ends = workers.iter().map(|run| async move {
        let alive = process::is_alive(&run.process);
        let outcome = one(&run.process, &format!("worker {}", run.spec.id), sleep(WORKER), note).await;
        state::forget_worker(config, &run.spec.id, &run.process);
        outcome.map(|()| alive)
    });
    for outcome in futures_util::future::join_all(ends).await {
        stopped |= outcome?;
    }
    state::forget_gateway(config);
    Ok(stopped)
}

/// Stops one process: SIGTERM, once `enough` ends a second one, at last SIGKILL.
pub async fn one(
    process: &ProcessMark,
    name: &str,
    enough: impl Future<Output = ()>,
    note: &impl Fn(String),
) -> Result<(), Failure> {
    let send = |signal| {
        process::send(process, signal).map_err(|error| {
            let what = format!("{name} (process {}) cannot be stopped", process.pid);
            Failure::task(what, "stop it as the user who started it").because(error)
        })
    };
    send(Signal::SIGTERM)?;
    tokio::select! {
        () = process::gone(process) => return Ok(()),
        () = enough => send(Signal::SIGTERM)?,
    };
    if process::gone_within(process, LAST_WORDS).await {
        return Ok(());
    }
    note(format!(
        "{name} (process {}) did not end in time and is killed",
        process.pid
    ));
    send(Signal::SIGKILL)?;
    if process::gone_within(process, LAST_WORDS).await {
        return Ok(());
    }
    Err(Failure::task(
        format!("{name} (process {}) is still there after SIGKILL", process.pid),
        "it waits inside the kernel, for a disk or a GPU: see `dmesg`",
    ))
}
