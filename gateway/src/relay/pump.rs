//! The pump: a worker's events to a client, with comments in long silences and an error event when it breaks.
//!
//! It is one future in the response's body: no task, no channel. Dropping the body stops everything.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::time::Instant;
use wire::RequestState;

use super::{
    Opened,
    answer::{Event, Loss},
    at, settle,
};
use crate::{error::ApiError, registry::members::Outcome, state::AppState};

/// A comment that every parser skips, also those that choke on a blank line after one.
const COMMENT: &[u8] = b": ping\n";

type Opening = Pin<Box<dyn Future<Output = Result<Opened, ApiError>> + Send>>;

/// A client's stream.
pub struct Pump {
    state: AppState,
    stage: Stage,
    include_usage: bool,
    deadline: Option<Instant>,
    keepalive: Duration,
    stall: Duration,
    /// When the worker last sent an event.
    last_event: Instant,
}

enum Stage {
    /// No worker has sent an event yet, but the headers are out.
    Opening(Opening),
    Running(Box<Opened>),
    Ended,
}

/// What ended a wait for the worker.
enum Wake {
    Events,
    Lost(Loss),
    Silence,
    Stop(ApiError),
}

impl Pump {
    /// A stream whose first event is there.
    pub fn running(state: &AppState, opened: Opened, include_usage: bool, deadline: Option<Instant>) -> Self {
        Self::new(state, Stage::Running(Box::new(opened)), include_usage, deadline)
    }

    /// A stream whose first event is still awaited.
    pub fn opening(state: &AppState, opening: Opening, include_usage: bool, deadline: Option<Instant>) -> Self {
        Self::new(state, Stage::Opening(opening), include_usage, deadline)
    }

    fn new(hive: &AppState, stage: Stage, include_usage: bool, deadline: Option<Instant>) -> Self {
        let relay = &hive.config.relay;
        Self {
            stage,
            include_usage,
            deadline,
            keepalive: relay.keepalive,
            stall: relay.inter_token_timeout,
            last_event: Instant::now(),
            state: hive.clone(),
        }
    }

    /// The body's frames.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures_util::stream::unfold(self, |mut pump| async move {
            pump.frame().await.map(|frame| (Ok(frame), pump))
        })
    }

    /// The next bytes for the client; `None` at the end.
    async fn frame(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Ended => None,
            Stage::Opening(mut opening) => match tokio::time::timeout(self.keepalive, &mut opening).await {
                Ok(Ok(opened)) => {
                    self.stage = Stage::Running(Box::new(opened));
                    self.last_event = Instant::now();
                    Box::pin(self.frame()).await
                }
                Ok(Err(error)) => Some(error.event().into()),
                Err(_) => {
                    self.stage = Stage::Opening(opening);
                    Some(Bytes::from_static(COMMENT))
                }
            },
            Stage::Running(mut opened) => {
                let frame = self.relay(&mut opened).await;
                match frame {
                    Relayed::More(bytes) => {
                        self.stage = Stage::Running(opened);
                        Some(bytes)
                    }
                    Relayed::Last(bytes) => Some(bytes),
                }
            }
        }
    }

    async fn relay(&mut self, opened: &mut Opened) -> Relayed {
        loop {
            match self.wait(opened).await {
                Wake::Events => {
                    self.last_event = Instant::now();
                    let relayed = self.write(opened);
                    if !relayed.is_empty() {
                        return relayed;
                    }
                }
                Wake::Silence => return Relayed::More(Bytes::from_static(COMMENT)),
                Wake::Lost(loss) => {
                    opened.lease.report(Outcome::Broken, Some(loss.0.clone()));
                    tracing::warn!(
                        worker = opened.lease.target().id.as_str(),
                        request = opened.entry.id(),
                        cause = loss.0,
                        "a worker was lost in the middle of an answer"
                    );
                    return Self::fail(opened, &ApiError::WorkerLost);
                }
                Wake::Stop(error) => {
                    if matches!(error, ApiError::WorkerStalled(_)) {
                        opened.lease.report(
                            Outcome::Failed,
                            Some("it went silent in the middle of an answer".into()),
                        );
                    }
                    return Self::fail(opened, &error);
                }
            }
        }
    }

    async fn wait(&mut self, opened: &mut Opened) -> Wake {
        let stalled_at = self.last_event + self.stall;
        let ping_at = Instant::now() + self.keepalive;
        tokio::select! {
            biased;
            filled = opened.answer.fill() => match filled {
                Ok(()) => Wake::Events,
                Err(loss) => Wake::Lost(loss),
            },
            () = opened.entry.cancel.cancelled() => Wake::Stop(ApiError::Cancelled),
            () = self.state.lifecycle.cut.cancelled() => Wake::Stop(ApiError::ShuttingDown),
            () = at(self.deadline) => Wake::Stop(ApiError::DeadlineExceeded),
            () = tokio::time::sleep_until(stalled_at) => Wake::Stop(ApiError::WorkerStalled(self.stall)),
            () = tokio::time::sleep_until(ping_at) => Wake::Silence,
        }
    }

    /// Writes every event that is there, in one frame.
    fn write(&self, opened: &mut Opened) -> Relayed {
        let mut frame = BytesMut::new();
        while let Some(event) = opened.answer.take() {
            match event {
                Event::Chunk { data, token, usage } => {
                    if token {
                        opened.entry.first_token();
                    }
                    if !usage || self.include_usage {
                        frame.extend_from_slice(b"data: ");
                        frame.extend_from_slice(&data);
                        frame.extend_from_slice(b"\n\n");
                    }
                }
                Event::Done => {
                    opened.count();
                    opened.lease.report(Outcome::Fine, None);
                    opened.entry.end(RequestState::Completed, None);
                    frame.extend_from_slice(b"data: [DONE]\n\n");
                    return Relayed::Last(frame.freeze());
                }
                Event::Error(error) => {
                    opened.count();
                    opened.lease.report(Outcome::Failed, Some(error.message.clone()));
                    opened
                        .entry
                        .end(RequestState::Failed, error.code.as_deref().or(Some("worker_failed")));
                    let json = serde_json::to_string(&wire::ErrorEnvelope { error }).unwrap_or_default();
                    frame.extend_from_slice(format!("data: {json}\n\n").as_bytes());
                    return Relayed::Last(frame.freeze());
                }
            }
        }
        opened.count();
        Relayed::More(frame.freeze())
    }

    fn fail(opened: &mut Opened, error: &ApiError) -> Relayed {
        opened.count();
        settle(&mut opened.entry, error);
        Relayed::Last(error.event().into())
    }
}

impl Opened {
    /// Brings the books' token counts up to date: the worker's own count, else the tokens that passed.
    pub fn count(&mut self) {
        let progress = &self.answer.progress;
        let usage = progress.usage.unwrap_or_default();
        self.entry
            .tokens(usage.prompt_tokens, usage.completion_tokens.or(Some(progress.tokens)));
    }
}

enum Relayed {
    More(Bytes),
    Last(Bytes),
}

impl Relayed {
    fn is_empty(&self) -> bool {
        matches!(self, Self::More(bytes) if bytes.is_empty())
    }
}
