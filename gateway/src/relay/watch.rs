//! Waiting for a worker's next events: until they come, or the answer breaks, or somebody wants it to end.
//!
//! It judges the worker's health on the way, and writes nothing to the client.

use std::time::Duration;

use tokio::time::Instant;

use super::{Opened, answer::Answer, at, lost};
use crate::{error::ApiError, registry::members::Outcome, state::AppState};

/// Watches one answer.
pub struct Watch {
    state: AppState,
    deadline: Option<Instant>,
    stall: Duration,
    /// When the worker last sent an event.
    last_event: Instant,
}

/// What ended a wait for the worker.
#[derive(Debug)]
pub enum Wake {
    /// Events are there, or the answer's proper end.
    Events,
    /// Nothing came for the time given.
    Quiet,
    /// The answer broke off.
    Lost(String),
    /// The worker went silent for so long.
    Stalled(Duration),
    /// The client's deadline, an operator, or the end of the gateway.
    Stop(ApiError),
}

impl Watch {
    /// From the worker's first event on.
    pub fn new(state: &AppState, deadline: Option<Instant>) -> Self {
        Self {
            deadline,
            stall: state.config.relay.inter_token_timeout,
            last_event: Instant::now(),
            state: state.clone(),
        }
    }

    /// The handles it was made with.
    pub fn state(&self) -> &AppState {
        &self.state
    }

    /// The first event has come now, after a wait of another kind.
    pub fn begin(&mut self) {
        self.last_event = Instant::now();
    }

    /// Waits for the next events, at most as long as `quiet` says.
    pub async fn next(&mut self, opened: &mut Opened<Answer>, quiet: Option<Duration>) -> Wake {
        let stalled_at = self.last_event + self.stall;
        let quiet_at = quiet.map(|quiet| Instant::now() + quiet);
        let wake = tokio::select! {
            biased;
            filled = opened.reply.fill() => filled.map_or_else(|loss| Wake::Lost(loss.0), |()| Wake::Events),
            () = opened.entry.cancel.cancelled() => Wake::Stop(ApiError::Cancelled),
            () = self.state.lifecycle.cut.cancelled() => Wake::Stop(ApiError::ShuttingDown),
            () = at(self.deadline) => Wake::Stop(ApiError::DeadlineExceeded),
            () = tokio::time::sleep_until(stalled_at) => Wake::Stalled(self.stall),
            () = at(quiet_at) => Wake::Quiet,
        };
        match &wake {
            Wake::Events => self.last_event = Instant::now(),
            Wake::Lost(cause) => {
                let outcome = lost(opened.lease.target());
                opened.lease.report(outcome, Some(cause.clone()));
                tracing::warn!(
                    worker = opened.lease.target().id.as_str(),
                    request = opened.entry.id(),
                    cause,
                    "a worker was lost in the middle of an answer"
                );
            }
            Wake::Stalled(_) => opened.lease.report(
                Outcome::Failed,
                Some("it went silent in the middle of an answer".into()),
            ),
            Wake::Quiet | Wake::Stop(_) => {}
        }
        wake
    }
}
