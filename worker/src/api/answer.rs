//! From an engine's events to an answer: a stream of OpenAI's chunks, or one piece.
//!
//! The first chunk leaves with the first event of the engine, not before: until then the gateway may still take the
//! request elsewhere. A stream that fails ends with an error event and without `[DONE]`.

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use tokio_util::task::task_tracker::TaskTrackerToken;
use wire::ModelName;

use super::{
    chunk::{Chunk, Delta, Whole, error_event, sse},
    refusal::Refusal,
};
use crate::{
    engine::{self, Event, Fault, FinishReason, TokenLogprob, Usage},
    state::Worker,
};

/// What all chunks of an answer have in common.
#[derive(Debug, Clone)]
pub struct Head {
    /// `chatcmpl-` and the id of the request.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model that answers.
    pub model: ModelName,
}

impl Head {
    /// For the answer to the request of that id.
    pub fn new(request: &str, model: ModelName) -> Self {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        Self {
            id: format!("chatcmpl-{request}"),
            created,
            model,
        }
    }
}

/// The answer as server-sent events. Dropping the body ends the work.
pub fn stream(head: Head, include_usage: bool, events: BoxStream<'static, Event>, giving: Giving) -> Response {
    let writer = Writer::new(head, include_usage);
    let body = stream::unfold(
        (events, writer, giving),
        |(mut events, mut writer, mut giving)| async move {
            while writer.ready.is_empty() && writer.phase != Phase::Over {
                match giving.next(&mut events).await {
                    Said::Event(event) => writer.write(event),
                    Said::Nothing => writer.fail("engine_failed", "The engine lost the generation."),
                    Said::Stop => writer.fail("shutting_down", "This worker is shutting down."),
                }
            }
            let frame = writer.ready.pop_front()?;
            if frame.is_err() {
                // What was written before must be on the wire when the connection breaks.
                tokio::task::yield_now().await;
            }
            Some((frame, (events, writer, giving)))
        },
    );
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// The answer in one piece.
pub async fn whole(head: &Head, mut events: BoxStream<'static, Event>, mut giving: Giving) -> Result<Whole, Refusal> {
    let mut text = String::new();
    let mut logprobs = Vec::new();
    loop {
        match giving.next(&mut events).await {
            Said::Event(Event::Delta(delta)) => {
                text.push_str(&delta.text);
                logprobs.extend(delta.logprobs);
            }
            Said::Event(Event::Finish { reason, usage }) => {
                return Ok(Whole::new(head, text, &logprobs, reason, usage));
            }
            Said::Event(Event::Failed(reason)) => return Err(Refusal::Failed(reason)),
            Said::Event(Event::Fault(_)) | Said::Nothing => {
                return Err(Refusal::Failed("it lost the generation".to_owned()));
            }
            Said::Stop => return Err(Refusal::ShuttingDown),
        }
    }
}

/// What comes next of an answer.
enum Said {
    Event(Event),
    /// The engine ended without a last word.
    Nothing,
    /// The worker wants all answers to end.
    Stop,
}

/// An answer being given: counts it, and logs how it went when it is over, whichever way.
pub struct Giving {
    worker: Arc<Worker>,
    id: String,
    prompt_tokens: u32,
    deltas: u32,
    usage: Option<Usage>,
    outcome: &'static str,
    began: Instant,
    first: Option<Instant>,
    _present: TaskTrackerToken,
}

impl Giving {
    /// An answer to a prompt of so many tokens begins.
    pub fn new(worker: Arc<Worker>, head: &Head, prompt_tokens: u32) -> Self {
        let present = worker.answers.token();
        let (id, began) = (head.id.clone(), Instant::now());
        Self {
            worker,
            id,
            prompt_tokens,
            deltas: 0,
            usage: None,
            outcome: "cancelled",
            began,
            first: None,
            _present: present,
        }
    }

    async fn next(&mut self, events: &mut BoxStream<'static, Event>) -> Said {
        let next = tokio::select! {
            biased;
            () = self.worker.stop.cancelled() => {
                self.outcome = "stopped";
                return Said::Stop;
            }
            // A panic of the engine's is a failure like any other.
            next = AssertUnwindSafe(events.next()).catch_unwind() => next,
        };
        let event = next.unwrap_or_else(|_| Some(Event::Failed("a bug; the worker's log has the place".to_owned())));
        match &event {
            Some(Event::Delta(_)) => {
                self.first.get_or_insert_with(Instant::now);
                self.deltas += 1;
                self.worker.count_tokens(1);
            }
            Some(Event::Finish { usage, .. }) => {
                self.outcome = "complete";
                self.usage = Some(*usage);
                self.worker
                    .count_tokens(usage.completion.saturating_sub(self.deltas).into());
            }
            Some(Event::Failed(reason)) => {
                self.outcome = "failed";
                tracing::error!(id = self.id, reason, "the engine failed");
            }
            Some(Event::Fault(_)) | None => self.outcome = "failed",
        }
        event.map_or(Said::Nothing, Said::Event)
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        let millis = |at: Instant| u64::try_from((at - self.began).as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            id = self.id,
            outcome = self.outcome,
            prompt_tokens = self.prompt_tokens,
            completion_tokens = self.usage.map_or(self.deltas, |usage| usage.completion),
            first_token_ms = self.first.map(millis),
            total_ms = millis(Instant::now()),
            "answered"
        );
    }
}

/// What hyper is told in order to break the connection.
#[derive(Debug, thiserror::Error)]
#[error("the script breaks the connection")]
struct Broken;

/// Writes events as the frames of a stream.
struct Writer {
    head: Head,
    include_usage: bool,
    ready: VecDeque<Result<Bytes, Broken>>,
    lacks_done: bool,
    phase: Phase,
}

#[derive(PartialEq, Eq)]
enum Phase {
    /// Nothing has been written.
    New,
    /// The speaker has been named.
    Begun,
    /// Nothing more will be written.
    Over,
}

impl Writer {
    fn new(head: Head, include_usage: bool) -> Self {
        Self {
            head,
            include_usage,
            ready: VecDeque::new(),
            lacks_done: false,
            phase: Phase::New,
        }
    }

    fn write(&mut self, event: Event) {
        match event {
            Event::Delta(engine::Delta { text, logprobs }) => {
                self.begin();
                self.choice(Delta::Content(&text), &logprobs, None);
            }
            Event::Finish { reason, usage } => {
                self.begin();
                self.choice(Delta::Nothing, &[], Some(reason));
                if self.include_usage {
                    self.push(sse(&Chunk::usage(&self.head, usage)));
                }
                if !self.lacks_done {
                    self.push(Bytes::from_static(b"data: [DONE]\n\n"));
                }
                self.phase = Phase::Over;
            }
            Event::Failed(reason) => self.fail("engine_failed", &format!("The engine failed: {reason}")),
            Event::Fault(Fault::Bytes(bytes)) => self.push(bytes),
            Event::Fault(Fault::NoDone) => self.lacks_done = true,
            Event::Fault(Fault::End) => self.phase = Phase::Over,
            Event::Fault(Fault::Abort) => {
                self.ready.push_back(Err(Broken));
                self.phase = Phase::Over;
            }
        }
    }

    fn begin(&mut self) {
        if self.phase == Phase::New {
            self.phase = Phase::Begun;
            self.choice(Delta::Role, &[], None);
        }
    }

    fn fail(&mut self, code: &str, message: &str) {
        self.push(error_event(code, message));
        self.phase = Phase::Over;
    }

    fn choice(&mut self, delta: Delta, logprobs: &[TokenLogprob], finish: Option<FinishReason>) {
        self.push(sse(&Chunk::choice(&self.head, delta, logprobs, finish)));
    }

    fn push(&mut self, frame: Bytes) {
        self.ready.push_back(Ok(frame));
    }
}
