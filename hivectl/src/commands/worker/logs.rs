//! `hivectl worker logs`: what a worker of this machine wrote.

use std::{io, time::Duration};

use wire::WorkerId;

use crate::{config::Config, error::Failure, logs, output::Output, state};

/// How often a followed log is looked at.
const GLANCE: Duration = Duration::from_millis(200);

/// Prints the last lines of a worker's log, and with `follow` those that come, until nobody reads them.
pub async fn print(id: &WorkerId, follow: bool, lines: usize, config: &Config, output: &Output) -> Result<(), Failure> {
    let log = state::worker_log(config, id);
    let unreadable = |error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            return Failure::usage(
                format!("there is no log of a worker {id} on this machine"),
                "see the workers with `hivectl worker list`; a log lies where its worker was started",
            );
        }
        Failure::task(format!("{} cannot be read", log.display()), "make it readable for you").because(error)
    };
    let (mut said, mut end) = logs::tail(&log, lines).map_err(unreadable)?;
    loop {
        for line in &said {
            output.line(line);
        }
        if !follow || output.reader_has_gone() {
            return Ok(());
        }
        tokio::time::sleep(GLANCE).await;
        (said, end) = logs::more(&log, end).map_err(unreadable)?;
    }
}
