//! The pump: a worker's events to a client, with comments in long silences and an error event when it breaks.
//!
//! It is one future in the response's body: no task, no channel. Dropping the body stops everything.

use std::{future::Future, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, Stream};
use tokio::time::Instant;
use wire::{Place, RequestState};

use super::{
    Opened,
    answer::{Answer, Data, Event},
    settle,
    watch::{Wake, Watch},
};
use crate::{error::ApiError, registry::members::Outcome, scheduler::trace::Trace, state::AppState};

/// A comment that every parser skips, also those that choke on a blank line after one.
const COMMENT: &[u8] = b": ping\n";

type Opening = Pin<Box<dyn Future<Output = Result<Opened<Answer>, ApiError>> + Send>>;

/// A client's stream.
pub struct Pump {
    stage: Stage,
    watch: Watch,
    include_usage: bool,
    keepalive: Duration,
}

enum Stage {
    /// No worker has sent an event yet, but the headers are out.
    Opening(Opening, Arc<Trace>),
    Running(Box<Opened<Answer>>),
    Ended,
}

impl Pump {
    /// A stream whose first event is there.
    pub fn running(state: &AppState, opened: Opened<Answer>, include_usage: bool, deadline: Option<Instant>) -> Self {
        Self::new(state, Stage::Running(Box::new(opened)), include_usage, deadline)
    }

    /// A stream whose first event is still awaited.
    pub fn opening(
        state: &AppState,
        opening: Opening,
        trace: Arc<Trace>,
        include_usage: bool,
        deadline: Option<Instant>,
    ) -> Self {
        Self::new(state, Stage::Opening(opening, trace), include_usage, deadline)
    }

    fn new(state: &AppState, stage: Stage, include_usage: bool, deadline: Option<Instant>) -> Self {
        Self {
            stage,
            watch: Watch::new(state, deadline),
            include_usage,
            keepalive: state.config.relay.keepalive,
        }
    }

    /// The body's frames.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures_util::stream::unfold(self, |mut pump| async move {
            whatever(pump.frame()).await.map(|frame| (Ok(frame), pump))
        })
    }

    /// The next bytes for the client; `None` at the end.
    async fn frame(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Ended => None,
            Stage::Opening(mut opening, trace) => match tokio::time::timeout(self.keepalive, &mut opening).await {
                Ok(Ok(opened)) => {
                    self.stage = Stage::Running(Box::new(opened));
                    self.watch.begin();
                    Box::pin(self.frame()).await
                }
                Ok(Err(error)) => Some(error.event().into()),
                Err(_) => {
                    let place = trace.place(&self.watch.state().dispatcher);
                    self.stage = Stage::Opening(opening, trace);
                    Some(place.map_or(Bytes::from_static(COMMENT), waiting))
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

    async fn relay(&mut self, opened: &mut Opened<Answer>) -> Relayed {
        loop {
            let error = match self.watch.next(opened, Some(self.keepalive)).await {
                Wake::Events => {
                    let relayed = self.write(opened);
                    if relayed.is_empty() {
                        continue;
                    }
                    return relayed;
                }
                Wake::Quiet => return Relayed::More(Bytes::from_static(COMMENT)),
                Wake::Lost(_) => ApiError::WorkerLost,
                Wake::Stalled(stall) => ApiError::WorkerStalled(stall),
                Wake::Stop(error) => error,
            };
            opened.count();
            settle(&mut opened.entry, &error);
            return Relayed::Last(error.event().into());
        }
    }

    /// Writes every event that is there, in one frame.
    fn write(&self, opened: &mut Opened<Answer>) -> Relayed {
        // Made for what goes in: one that grows doubles, and a slow client's waits for long.
        let mut frame = BytesMut::with_capacity(opened.reply.waiting());
        while let Some(event) = opened.reply.take() {
            match event {
                Event::Chunk { data, token, usage } => {
                    if token {
                        opened.entry.first_token();
                    }
                    if let Data::Text(text) = data
                        && (!usage || self.include_usage)
                    {
                        frame.extend_from_slice(b"data: ");
                        frame.extend_from_slice(&text);
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
                    opened.failed(error);
                    settle(&mut opened.entry, &ApiError::WorkerLost);
                    frame.extend_from_slice(ApiError::WorkerLost.event().as_bytes());
                    return Relayed::Last(frame.freeze());
                }
                Event::TooFew(choices) => {
                    opened.count();
                    opened.lease.report(Outcome::Fine, None);
                    let error = ApiError::TooFewChoices(choices);
                    settle(&mut opened.entry, &error);
                    frame.extend_from_slice(error.event().as_bytes());
                    return Relayed::Last(frame.freeze());
                }
            }
        }
        opened.count();
        Relayed::More(frame.freeze())
    }
}

/// A comment that tells one who waits for a slot how long that may take.
fn waiting(place: Place) -> Bytes {
    let wait = place
        .wait_ms
        .map_or(String::new(), |ms| format!(", about {} s", ms.div_ceil(1000)));
    format!(": waiting for a slot, position {}{wait}\n", place.position).into()
}

impl Opened<Answer> {
    /// The worker has ended its answer with an error: whose words are for the log, since they may name paths of its host.
    pub fn failed(&mut self, error: wire::ErrorBody) {
        tracing::warn!(
            worker = self.lease.target().id.as_str(),
            request = self.entry.id(),
            code = error.code,
            cause = error.message,
            "a worker ended its answer with an error"
        );
        self.lease.report(Outcome::Failed, Some(error.message));
    }

    /// Brings the books' token counts up to date.
    pub fn count(&mut self) {
        let tokens = self.reply.tokens();
        self.lease
            .generated(tokens.completion.unwrap_or_default().unsigned_abs());
        self.entry.tokens(tokens);
    }
}

/// The frame, or the error event that a fault of ours comes to: a stream never just ends.
async fn whatever(frame: impl Future<Output = Option<Bytes>>) -> Option<Bytes> {
    match AssertUnwindSafe(frame).catch_unwind().await {
        Ok(frame) => frame,
        Err(_) => Some(
            ApiError::Internal("a bug: the stream's task panicked".into())
                .event()
                .into(),
        ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bug_in_a_stream_is_an_error_event() {
        let frame = whatever(async { panic!("a bug") }).await.unwrap();
        let text = String::from_utf8(frame.to_vec()).unwrap();
        assert!(text.starts_with("data: ") && text.contains("internal_error"), "{text}");
        assert_eq!(whatever(async { None }).await, None);
    }
}
