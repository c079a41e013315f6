//! `hivectl`: arguments → output → config → the command → an exit code.

use std::process::ExitCode;

use clap::Parser;
use hivectl::{
    cli::{Cli, Command},
    commands,
    config::Config,
    output::Output,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = match cli.command {
        Command::RemoteExec => commands::remote_exec::answer(),
        _ => Output::new(cli.global.json, Config::wants_colour()),
    };
    let outcome = Config::load(&cli.global).and_then(|config| commands::run(cli.command, &config, &output));
    output.finish(outcome)
}
