//! `hivectl upgrade`: has the running gateway start its program anew and hand everything over to it, while both serve.
//!
//! It builds and installs nothing: the new program lies where the running one was started from.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};
use wire::GatewayRun;

use crate::{
    config::Config,
    error::Failure,
    output::Output,
    process,
    state::{self, Lock},
};

/// Longer than the running gateway waits for the new one.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked who serves.
const GLANCE: Duration = Duration::from_millis(50);

/// Upgrades the gateway; a new program that fails leaves the running one as it is.
pub async fn run(config: &Config, output: &Output) -> Result<(), Failure> {
    let none = || {
        let what = format!("no gateway runs in {}", config.home.display());
        Failure::task(what, "start one with `hivectl up`")
    };
    if !config.run().is_dir() {
        return Err(none());
    }
    // Whoever starts or stops the hive waits until it is clear which gateway that is.
    let _lock = Lock::take(config, output).await?;
    let before = state::gateway(config).ok_or_else(none)?;
    process::send(&before.process, Signal::SIGUSR2).map_err(|error| {
        let what = format!("the gateway (process {}) cannot be told to upgrade", before.process.pid);
        Failure::task(what, "upgrade it as the user who started it").because(error)
    })?;
    let serving = timeout(PATIENCE, succeeded(config, &before)).await.map_err(|_| {
        Failure::timeout(
            format!("no new gateway had taken over within {} s", PATIENCE.as_secs()),
            format!("read {}", config.logs().join("gateway.log").display()),
        )
    })??;
    let (old, new) = (before.process.pid, serving.process.pid);
    if output.is_json() {
        output.json(&serde_json::json!({ "old_pid": old, "new_pid": new }));
    } else {
        output.line(format_args!(
            "the gateway is upgraded: process {new} serves, and {old} ends once what it runs has finished"
        ));
    }
    Ok(())
}

/// Waits until another gateway has taken over from this one.
async fn succeeded(config: &Config, before: &GatewayRun) -> Result<GatewayRun, Failure> {
    let log = config.logs().join("gateway.log");
    let read = || {
        format!(
            "the running gateway serves on; mend what {} says, then try again",
            log.display()
        )
    };
    loop {
        match state::gateway(config) {
            Some(run) if run.process != before.process => return Ok(run),
            Some(run) if run.failed_upgrade != before.failed_upgrade => {
                let why = run.failed_upgrade.map(|failed| failed.why).unwrap_or_default();
                return Err(Failure::task("the gateway was not upgraded", read()).because(why));
            }
            None if !process::is_alive(&before.process) => {
                let next = format!("read {}, then `hivectl status`", log.display());
                return Err(Failure::task("the gateway ended before another had taken over", next));
            }
            _ => sleep(GLANCE).await,
        }
    }
}
