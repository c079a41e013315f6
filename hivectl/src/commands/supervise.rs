//! `hivectl supervise`: what `up --detach` leaves behind. Reads the plan from stdin, tells events as JSON lines on
//! stdout until the hive is ready, and keeps its notes as a log on stderr.

use std::{cell::Cell, io::Read};

use crate::{
    config::Config,
    error::Failure,
    output::Output,
    signals::Signals,
    supervisor::{self, Event, Plan, Then},
};

/// Keeps a hive up until a signal ends it.
pub async fn run(config: &Config, signals: &mut Signals) -> Result<(), Failure> {
    // A session of its own: the terminal it was started from may close. It fails only where it is one already.
    let _ = nix::unistd::setsid();
    let mut text = String::new();
    let plan: Plan = std::io::stdin()
        .read_to_string(&mut text)
        .map_err(serde_json::Error::io)
        .and_then(|_| serde_json::from_str(&text))
        .map_err(|error| Failure::usage("there is no plan on stdin", "use `hivectl up --detach`").because(error))?;

    let journal = Output::journal();
    let starting = Cell::new(true);
    let tell = |event: Event| {
        if let Event::Note(note) = &event {
            journal.note(note);
        }
        if starting.get()
            && let Ok(line) = serde_json::to_string(&event)
        {
            journal.line(line);
        }
        // From here on nobody reads stdout.
        starting.set(starting.get() && event != Event::Ready);
    };
    let outcome = supervisor::run(config, plan, &tell, signals, async || Ok(Then::Stay)).await;
    if let Err(failure) = &outcome {
        journal.note(failure.in_one_line());
        tell(Event::failed(failure));
    }
    outcome
}
