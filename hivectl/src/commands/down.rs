//! `hivectl down`: stops everything of this hive that runs on this machine. Running it twice is fine.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::sleep;
use wire::ProcessMark;

use crate::{
    cli::Down,
    config::Config,
    error::Failure,
    output::Output,
    process,
    state::{self, Lock},
    supervisor::stop,
};

/// How long a supervisor may need beyond the drain time: last words, and SIGKILL for what ignores them.
const BEYOND: Duration = Duration::from_secs(20);
/// Signals that come at the same moment count as one, so even no drain time takes this long.
const SHORTEST: Duration = Duration::from_millis(300);

/// Stops supervisor, gateway and workers, and waits until they are gone.
pub async fn run(args: &Down, config: &Config, output: &Output) -> Result<(), Failure> {
    if !config.run().is_dir() {
        tell(false, output);
        return Ok(());
    }
    let drain = Duration::from_secs(args.drain).max(SHORTEST);
    let note = |note: String| output.note(note);
    let mut stopped = false;
    if let Some(starting) = Lock::holder(config).filter(|holder| *holder != process::own()) {
        note(format!(
            "a start is under way (process {}); it is stopped",
            starting.pid
        ));
        stopped |= end(&starting, drain).await?;
    }
    let _lock = Lock::take(config, output).await?;
    if let Some(run) = state::live_supervisor(config) {
        stopped |= end(&run.process, drain).await?;
    }
    // What a supervisor that was killed left behind.
    stopped |= stop::everything(config, sleep(drain), &note).await?;
    tell(stopped, output);
    Ok(())
}

fn tell(stopped: bool, output: &Output) {
    if output.is_json() {
        output.json(&serde_json::json!({ "stopped": stopped }));
    } else {
        output.line(if stopped {
            "the hive is down"
        } else {
            "nothing is running"
        });
    }
}

/// Lets a supervisor or a start end by itself: the first SIGTERM drains, the second cuts.
async fn end(process: &ProcessMark, drain: Duration) -> Result<bool, Failure> {
    let mut sent = false;
    for (signal, patience) in [
        (Signal::SIGTERM, drain),
        (Signal::SIGTERM, BEYOND),
        (Signal::SIGKILL, BEYOND),
    ] {
        sent |= process::send(process, signal).map_err(|error| {
            let what = format!("process {} cannot be stopped", process.pid);
            Failure::task(what, "stop it as the user who started it").because(error)
        })?;
        if process::gone_within(process, patience).await {
            break;
        }
    }
    Ok(sent)
}
