//! The commands, one file for each noun.

pub mod models;

use crate::{cli::Command, config::Config, error::Failure, output::Output};

/// Runs one command to its end, or until Ctrl-C where a command does not handle that itself.
pub fn run(command: Command, config: &Config, output: &Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| {
        Failure::task(
            "hivectl could not start its threads",
            "raise the limit on processes (`ulimit -u`)",
        )
        .because(error)
    })?;
    let outcome = runtime.block_on(until_interrupted(dispatch(command, config, output)));
    // A read of stdin cannot be called back; waiting for it would keep the command from ending.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: Command, config: &Config, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Models(command) => models::run(command, config, output).await,
        command => Err(Failure::task(format!("{command:?} cannot be run yet"), "wait")),
    }
}

async fn until_interrupted(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::interrupted("interrupted", "run the command again to go on")),
    }
}
