//! `hivectl`: arguments → output → config → the command → an exit code.

use std::process::ExitCode;

use clap::Parser;
use hivectl::{
    cli::{Cli, Command, usage_code},
    commands,
    config::Config,
    output::Output,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A terminal that is gone is no reason for another exit code.
            let _ = error.print();
            let arguments: Vec<String> = std::env::args().collect();
            return ExitCode::from(usage_code(&error, &arguments));
        }
    };
    let output = match cli.command {
        Command::RemoteExec => commands::remote_exec::answer(),
        _ => Output::new(cli.global.json, Config::wants_colour()),
    };
    let outcome = Config::load(&cli.global).and_then(|config| commands::run(cli.command, &config, &output));
    output.finish(outcome)
}
