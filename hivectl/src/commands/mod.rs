//! The commands, one file for each noun.

pub mod audit;
pub mod chat;
pub mod doctor;
pub mod down;
pub mod explain;
pub mod jobs;
pub mod keys;
pub mod models;
pub mod remote_exec;
pub mod status;
pub mod supervise;
pub mod there;
pub mod token;
pub mod up;
pub mod upgrade;
pub mod usage;
pub mod worker;

use clap::CommandFactory;

use crate::{
    cli::{Cli, Command, JobsCommand},
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    output::Output,
    signals::Signals,
};

/// Runs one command to its end.
pub fn run(command: Command, config: &Config, output: &Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| {
        Failure::task(
            "hivectl could not start its threads",
            "raise the limit on processes (`ulimit -u`)",
        )
        .because(error)
    })?;
    let outcome = runtime.block_on(dispatch(command, config, output));
    // A read of stdin cannot be called back; waiting for it would keep the command from ending.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: Command, config: &Config, output: &Output) -> Result<(), Failure> {
    if speaks_to_a_gateway(&command)
        && let Some(warning) = Gateway::environment_leads_elsewhere(config)
    {
        output.note(warning);
    }
    match command {
        Command::Up(args) => up::run(&args, config, output, &mut signals()?).await,
        Command::Supervise => supervise::run(config, &mut signals()?).await,
        Command::Jobs(JobsCommand::Submit(args)) => jobs::submit(&args, config, output, &mut signals()?).await,
        Command::Chat(args) => chat::run(args, config, output, &mut signals()?).await,
        Command::Completions { shell } => {
            completions(shell, output);
            Ok(())
        }
        Command::Down(args) => interruptible(down::run(&args, config, output)).await,
        Command::Upgrade => interruptible(upgrade::run(config, output)).await,
        Command::Status => interruptible(status::run(config, output)).await,
        Command::Doctor => interruptible(doctor::run(config, output)).await,
        Command::Models { place, command } => match there::route(place, config)? {
            Some(route) => there::models(&route, command, config, output, &mut signals()?).await,
            None => interruptible(models::run(command, config, output)).await,
        },
        Command::Worker { place, command } => match there::route(place, config)? {
            Some(route) => there::worker(&route, command, config, output, &mut signals()?).await,
            None => Box::pin(interruptible(worker::run(command, config, output))).await,
        },
        Command::RemoteExec => Box::pin(interruptible(remote_exec::run(config))).await,
        Command::Jobs(JobsCommand::List { limit }) => interruptible(jobs::list(limit, config, output)).await,
        Command::Jobs(JobsCommand::Cancel { id }) => interruptible(jobs::cancel(&id, config, output)).await,
        Command::Explain { id } => interruptible(explain::run(&id, config, output)).await,
        Command::Keys(command) => interruptible(keys::run(command, config, output)).await,
        Command::Token(command) => interruptible(token::run(command, config, output)).await,
        Command::Audit(command) => audit::run(command, config, output, &mut signals()?).await,
        Command::Usage(args) => interruptible(usage::run(&args, config, output)).await,
    }
}

/// Whether a command goes to the gateway that the configuration names, and not to what runs in the state folder.
fn speaks_to_a_gateway(command: &Command) -> bool {
    matches!(
        command,
        Command::Jobs(_)
            | Command::Explain { .. }
            | Command::Chat(_)
            | Command::Keys(_)
            | Command::Token(_)
            | Command::Usage(_)
            | Command::Worker { .. }
    )
}

/// For commands that a signal may end wherever they are: what they hold is given back as it is dropped.
async fn interruptible(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    signals()?.or(work).await
}

fn signals() -> Result<Signals, Failure> {
    Signals::new().map_err(|error| Failure::task("signals cannot be received", "run the command again").because(error))
}

fn completions(shell: clap_complete::Shell, output: &Output) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hivectl", &mut script);
    output.raw(&script);
}
