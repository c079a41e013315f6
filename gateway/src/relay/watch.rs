//! Waiting for a worker's next events: until they come, or the answer breaks, or somebody wants it to end.
//!
//! It judges the worker's health on the way, and writes nothing to the client.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep};

use super::{
    Opened,
    answer::{Answer, Loss},
    lost,
};
use crate::{error::ApiError, registry::members::Outcome, state::AppState};

/// Watches one answer.
pub struct Watch {
    state: AppState,
    deadline: Option<Instant>,
    stall: Duration,
    /// When the worker last sent an event.
    last_event: Instant,
    /// Rings when something is due or before, and is only then set anew: a timer for each event would cost more than
    /// the event does.
    alarm: Pin<Box<Sleep>>,
    /// Somebody wants the answer to end; once for all waits, like the alarm.
    stopped: Option<BoxFuture<'static, ApiError>>,
}

/// What ended a wait for the worker.
#[derive(Debug)]
pub enum Wake {
    /// Events are there, or the answer's proper end.
    Events,
    /// Nothing came for the time given.
    Quiet,
    /// The answer broke off.
    Lost(Loss),
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
            alarm: Box::pin(tokio::time::sleep(state.config.relay.inter_token_timeout)),
            stopped: None,
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
        let quiet_at = quiet.map(|quiet| Instant::now() + quiet);
        let stopped = self.stopped.take();
        let mut stopped = stopped.unwrap_or_else(|| self.stopped(opened));
        let wake = {
            let mut filled = pin!(opened.reply.fill());
            poll_fn(|cx| {
                if let Poll::Ready(filled) = filled.as_mut().poll(cx) {
                    return Poll::Ready(filled.map_or_else(Wake::Lost, |()| Wake::Events));
                }
                match stopped.as_mut().poll(cx) {
                    Poll::Ready(error) => Poll::Ready(Wake::Stop(error)),
                    Poll::Pending => self.poll_due(quiet_at, cx),
                }
            })
            .await
        };
        self.stopped = Some(stopped).filter(|_| !matches!(wake, Wake::Stop(_)));
        match &wake {
            Wake::Events => self.last_event = Instant::now(),
            Wake::Lost(loss) => {
                let cause = loss.why();
                let died = matches!(loss, Loss::Died(_));
                opened
                    .lease
                    .report(lost(opened.lease.target(), died), Some(cause.to_owned()));
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

    /// An operator who wants this request to end, or the end of the gateway.
    fn stopped(&self, opened: &Opened<Answer>) -> BoxFuture<'static, ApiError> {
        let (cancel, cut) = (opened.entry.cancel.clone(), self.state.lifecycle.cut.clone());
        Box::pin(async move {
            tokio::select! {
                () = cancel.cancelled() => ApiError::Cancelled,
                () = cut.cancelled() => ApiError::ShuttingDown,
            }
        })
    }

    /// What is due by the clock.
    fn poll_due(&mut self, quiet_at: Option<Instant>, cx: &mut Context<'_>) -> Poll<Wake> {
        let stalled_at = self.last_event + self.stall;
        let next = [self.deadline, quiet_at]
            .into_iter()
            .flatten()
            .fold(stalled_at, Instant::min);
        if next < self.alarm.deadline() {
            self.alarm.as_mut().reset(next);
        }
        while self.alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| deadline <= now) {
                return Poll::Ready(Wake::Stop(ApiError::DeadlineExceeded));
            }
            if stalled_at <= now {
                return Poll::Ready(Wake::Stalled(self.stall));
            }
            if quiet_at.is_some_and(|quiet_at| quiet_at <= now) {
                return Poll::Ready(Wake::Quiet);
            }
            self.alarm.as_mut().reset(next);
        }
        Poll::Pending
    }
}
