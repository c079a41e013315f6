//! `hivectl models …`.

use crate::{cli::ModelsCommand, config::Config, error::Failure, output::Output};

/// Runs one `models` command.
pub async fn run(command: ModelsCommand, _config: &Config, _output: &Output) -> Result<(), Failure> {
    Err(Failure::task(format!("{command:?} cannot be run yet"), "wait"))
}
