//! Logs on stderr: for people if it is a terminal, else one JSON object a line. Never prompts, answers or secrets.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::Error;

/// Starts logging, panics included.
pub fn start(filter: &str) -> Result<(), Error> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Error::Usage(format!("--log: `{filter}` is not a filter: {error}; try `info`")))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        logs.with_target(false).init();
    } else {
        logs.json().flatten_event(true).init();
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "a panic: {}", panic.payload_as_str().unwrap_or("no text"));
    }));
    Ok(())
}
