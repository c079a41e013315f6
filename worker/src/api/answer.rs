//! From an engine's events to a stream of OpenAI's chunks. An answer in one piece is its gateway's to make.
//!
//! The first chunk leaves with the first event of the engine, not before: until then the gateway may still take the
//! request elsewhere. A stream that fails ends with an error event and without `[DONE]`. Several choices are one
//! stream, and end as one.

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
    stream::{self, BoxStream, SelectAll},
};
use tokio_util::task::task_tracker::TaskTrackerToken;
use wire::ModelName;

use super::{
    chunk::{Choice, Delta, Envelope, error_event, sse},
    order::Form,
    text::TextChoice,
};
use crate::{
    engine::{self, Engine, Event, Fault, FinishReason, Piece, TokenLogprob, Usage},
    slots::Client,
    state::{Worker, random_hex},
};

/// Said instead of a first event, while others have their turn at an engine that gets on.
const WAITING: &[u8] = b": waiting for the engine\n\n";

/// What all chunks of an answer have in common.
#[derive(Debug, Clone)]
pub struct Head {
    /// `chatcmpl-` or `cmpl-`, and the id of the request.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model that answers.
    pub model: ModelName,
    /// What decides what a seed answers.
    pub fingerprint: String,
    /// Tokens of the prompt that were kept from an earlier one, if that is known.
    pub cached: Option<u32>,
}

impl Head {
    /// For the answer to the request of that id.
    pub fn new(request: &str, form: Form, model: ModelName, engine: &dyn Engine) -> Self {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let kind = if form == Form::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            id: format!("{kind}-{request}"),
            created,
            model,
            fingerprint: engine.fingerprint().to_owned(),
            cached: engine.cached_tokens(),
        }
    }
}

/// The choices of one answer: what each says, with its number; nothing where one has ended.
pub type Choices = SelectAll<BoxStream<'static, (usize, Option<Event>)>>;

/// The choices of one answer, in their order.
pub fn choices(all: impl IntoIterator<Item = BoxStream<'static, Event>>) -> Choices {
    let numbered = all.into_iter().enumerate().map(|(i, events)| {
        let end = stream::once(std::future::ready((i, None)));
        events.map(move |event| (i, Some(event))).chain(end).boxed()
    });
    stream::select_all(numbered)
}

/// Bytes of text, and tokens with their log-probabilities, of an echo in one event.
const PIECE: (usize, usize) = (8 * 1024, 64);

/// A prompt that is told before its continuation.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    /// As it was written; empty where none is wanted.
    pub text: String,
    /// Its tokens, if it is wanted to know how likely they were.
    pub logprobs: Vec<TokenLogprob>,
}

impl Echo {
    /// Itself in pieces that each make a small event: a gateway takes none of more than 256 KiB.
    fn pieces(&self) -> Vec<(&str, &[TokenLogprob])> {
        let (mut text, mut logprobs) = (self.text.as_str(), self.logprobs.as_slice());
        let mut pieces = Vec::new();
        while !text.is_empty() || !logprobs.is_empty() {
            let (told, rest) = text.split_at(text.floor_char_boundary(PIECE.0));
            let (known, untold) = logprobs.split_at(logprobs.len().min(PIECE.1));
            pieces.push((told, known));
            (text, logprobs) = (rest, untold);
        }
        pieces
    }
}

/// How an answer is told.
#[derive(Debug)]
pub struct Telling {
    /// What all chunks have in common.
    pub head: Head,
    /// Chat or text.
    pub form: Form,
    /// Tokens of all prompts.
    pub prompt_tokens: u32,
    /// What comes before each choice.
    pub echoes: Vec<Echo>,
    /// A stream ends with its usage.
    pub include_usage: bool,
    /// Log-probabilities were asked for: they are told also where there are none to tell.
    pub logprobs: bool,
    /// Every choice begins with a call.
    pub must_call: bool,
}

/// The answer as server-sent events. Dropping the body ends the work.
pub fn stream(telling: Telling, choices: Choices, giving: Giving) -> Response {
    let writer = Writer::new(telling);
    let body = stream::unfold(
        (choices, writer, giving),
        |(mut choices, mut writer, mut giving)| async move {
            while writer.ready.is_empty() && writer.phase != Phase::Over {
                match giving.next(&mut choices).await {
                    Said::Event(i, event) => writer.write(i, event),
                    Said::Ended(i) if writer.choices[i].is_over => {}
                    Said::Ended(_) | Said::Nothing => writer.fail("engine_failed", "The engine lost the generation."),
                    Said::Stop => writer.fail("shutting_down", "This worker is shutting down."),
                }
            }
            let frame = writer.ready.pop_front()?;
            if frame.is_err() {
                // What was written before must be on the wire when the connection breaks.
                tokio::task::yield_now().await;
            }
            Some((frame, (choices, writer, giving)))
        },
    );
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// An id that no other call in the conversation has.
fn call_id() -> String {
    format!("call_{}", random_hex::<12>())
}

/// What comes next of an answer.
enum Said {
    Event(usize, Event),
    /// This choice says no more.
    Ended(usize),
    /// No choice does.
    Nothing,
    /// The worker wants all answers to end.
    Stop,
}

/// An answer being given: counts it, and logs how it went when it is over, whichever way.
pub struct Giving {
    worker: Arc<Worker>,
    id: String,
    prompt_tokens: u32,
    /// Choices that have not ended.
    open: usize,
    /// Tokens of choices that have ended.
    completion: u32,
    /// Tokens counted so far.
    counted: u32,
    outcome: &'static str,
    began: Instant,
    first: Option<Instant>,
    _client: Client,
    _present: TaskTrackerToken,
}

impl Giving {
    /// An answer begins for this client.
    pub fn new(worker: Arc<Worker>, client: Client, telling: &Telling) -> Self {
        let present = worker.answers.token();
        Self {
            worker,
            id: telling.head.id.clone(),
            prompt_tokens: telling.prompt_tokens,
            open: telling.echoes.len(),
            completion: 0,
            counted: 0,
            outcome: "cancelled",
            began: Instant::now(),
            first: None,
            _client: client,
            _present: present,
        }
    }

    async fn next(&mut self, choices: &mut Choices) -> Said {
        let next = tokio::select! {
            biased;
            () = self.worker.stop.cancelled() => {
                self.outcome = "stopped";
                return Said::Stop;
            }
            // A panic of the engine's is a failure like any other.
            next = AssertUnwindSafe(choices.next()).catch_unwind() => next,
        };
        let bug = || Event::Failed("a bug; the worker's log has the place".to_owned());
        let (i, event) = match next {
            Ok(Some((i, Some(event)))) => (i, event),
            Ok(Some((i, None))) => return Said::Ended(i),
            Ok(None) => return Said::Nothing,
            Err(_) => (0, bug()),
        };
        match &event {
            Event::Delta(_) => {
                self.first.get_or_insert_with(Instant::now);
                self.count(1);
            }
            Event::Finish { usage, .. } => {
                self.completion += usage.completion;
                self.open = self.open.saturating_sub(1);
                if self.open == 0 {
                    self.outcome = "complete";
                    self.count(self.completion.saturating_sub(self.counted));
                }
            }
            Event::Failed(reason) => {
                self.outcome = "failed";
                tracing::error!(id = self.id, reason, "the engine failed");
            }
            Event::Fault(_) => self.outcome = "failed",
            Event::Waiting => {}
        }
        Said::Event(i, event)
    }

    fn count(&mut self, tokens: u32) {
        self.counted += tokens;
        self.worker.count_tokens(tokens.into());
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        let millis = |at: Instant| u64::try_from((at - self.began).as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            id = self.id,
            outcome = self.outcome,
            prompt_tokens = self.prompt_tokens,
            completion_tokens = if self.open == 0 { self.completion } else { self.counted },
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
    telling: Telling,
    choices: Vec<Written>,
    usage: Usage,
    ready: VecDeque<Result<Bytes, Broken>>,
    lacks_done: bool,
    phase: Phase,
}

/// How far a choice has been written.
#[derive(Clone, Copy, Default)]
struct Written {
    /// Calls begun.
    calls: usize,
    /// Characters of text.
    offset: usize,
    is_over: bool,
}

#[derive(PartialEq, Eq)]
enum Phase {
    /// Nothing has been written.
    New,
    /// The speakers have been named.
    Begun,
    /// Nothing more will be written.
    Over,
}

impl Writer {
    fn new(telling: Telling) -> Self {
        Self {
            choices: vec![Written::default(); telling.echoes.len()],
            usage: Usage {
                prompt: telling.prompt_tokens,
                ..Usage::default()
            },
            telling,
            ready: VecDeque::new(),
            lacks_done: false,
            phase: Phase::New,
        }
    }

    fn write(&mut self, i: usize, event: Event) {
        match event {
            Event::Delta(engine::Delta { piece, logprobs }) => {
                self.begin(matches!(piece, Piece::Call { .. }).then_some(i));
                self.delta(i, &piece, &logprobs);
            }
            Event::Finish { reason, usage } => {
                self.begin(None);
                let none: Option<&[TokenLogprob]> = self.telling.logprobs.then_some(&[]);
                match self.telling.form {
                    Form::Chat => self.chat(i, Delta::Nothing, none, Some(reason)),
                    Form::Text { .. } => self.text(i, "", none, Some(reason)),
                }
                self.choices[i].is_over = true;
                self.usage.add(usage);
                if self.choices.iter().all(|choice| choice.is_over) {
                    self.end();
                }
            }
            Event::Waiting if self.phase == Phase::New => self.push(Bytes::from_static(WAITING)),
            Event::Waiting => {}
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

    /// Names the speaker of every choice, in their order; that of a choice known to begin with a `call` says no text.
    fn begin(&mut self, call: Option<usize>) {
        if self.phase != Phase::New {
            return;
        }
        self.phase = Phase::Begun;
        for i in 0..self.choices.len() {
            let echo = std::mem::take(&mut self.telling.echoes[i]);
            match self.telling.form {
                Form::Chat => {
                    let calls = self.telling.must_call || call == Some(i);
                    self.chat(i, Delta::Role { calls }, None, None);
                }
                Form::Text { .. } => {
                    for (text, logprobs) in echo.pieces() {
                        self.text(i, text, some(logprobs), None);
                    }
                }
            }
            self.choices[i].offset = echo.text.chars().count();
        }
    }

    fn delta(&mut self, i: usize, piece: &Piece, logprobs: &[TokenLogprob]) {
        let logprobs = some(logprobs);
        match (piece, self.telling.form) {
            (Piece::Text(text), Form::Text { .. }) => self.text(i, text, logprobs, None),
            (Piece::Thought(text), _) => self.chat(i, Delta::Reasoning(text), logprobs, None),
            (Piece::Text(text), Form::Chat) => self.chat(i, Delta::Content(text), logprobs, None),
            (Piece::Call { name }, _) => {
                let (index, id) = (self.choices[i].calls, call_id());
                self.choices[i].calls += 1;
                self.chat(i, Delta::Call { index, id: &id, name }, logprobs, None);
            }
            (Piece::Arguments(text), _) => {
                let index = self.choices[i].calls.saturating_sub(1);
                self.chat(i, Delta::Arguments { index, text }, logprobs, None);
            }
        }
    }

    fn end(&mut self) {
        if self.telling.include_usage {
            let object = match self.telling.form {
                Form::Chat => "chat.completion.chunk",
                Form::Text { .. } => "text_completion",
            };
            self.push(sse(&Envelope::<()>::new(
                &self.telling.head,
                object,
                Vec::new(),
                Some(self.usage),
            )));
        }
        if !self.lacks_done {
            self.push(Bytes::from_static(b"data: [DONE]\n\n"));
        }
        self.phase = Phase::Over;
    }

    fn fail(&mut self, code: &str, message: &str) {
        self.push(error_event(code, message));
        self.phase = Phase::Over;
    }

    fn chat(&mut self, i: usize, delta: Delta, logprobs: Option<&[TokenLogprob]>, finish: Option<FinishReason>) {
        let choices = vec![Choice::new(i, delta, logprobs, finish)];
        self.push(sse(&Envelope::new(
            &self.telling.head,
            "chat.completion.chunk",
            choices,
            None,
        )));
    }

    fn text(&mut self, i: usize, text: &str, logprobs: Option<&[TokenLogprob]>, finish: Option<FinishReason>) {
        let choices = vec![TextChoice::new(i, text, logprobs, &mut self.choices[i].offset, finish)];
        self.push(sse(&Envelope::new(
            &self.telling.head,
            "text_completion",
            choices,
            None,
        )));
    }

    fn push(&mut self, frame: Bytes) {
        self.ready.push_back(Ok(frame));
    }
}

/// Those there are; a piece of a stream without any does not mention them.
fn some(logprobs: &[TokenLogprob]) -> Option<&[TokenLogprob]> {
    (!logprobs.is_empty()).then_some(logprobs)
}
