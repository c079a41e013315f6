//! The relay: takes a lease and a body to a worker, and the worker's events back to the client.
//!
//! Before the first event it may try another worker; after it, never, but for a caller that wants its answer whole:
//! that one has seen nothing when a worker is lost in the middle. Dropping what it returns closes the upstream
//! connection and then gives the slot back: no clean-up code runs anywhere else.

mod aggregate;
mod answer;
mod chunk;
mod embedded;
mod mend;
mod pump;
mod refusal;
pub mod sse;
pub mod upstream;
mod watch;

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use wire::{ModelName, RequestState, WorkerId, WorkerKind, openai::parameters::Kind};

use self::{
    aggregate::Uncollected,
    embedded::Embedded,
    upstream::{Absence, Failure, Patience},
};
use crate::{
    books::{Entry, Tokens},
    error::ApiError,
    metrics,
    registry::members::{Outcome, Target},
    scheduler::{
        self, Ask, Lease, NoSlot,
        retry::{Course, Fault, Next, Permit},
        trace::Trace,
    },
    state::AppState,
    telemetry::AccessLog,
};

/// A worker that turned out to be busy is asked again after this.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// One request as the relay sees it.
#[derive(Debug)]
pub struct Call {
    /// What is asked for; the worker serves it under the same path as we do.
    pub kind: Kind,
    /// The model.
    pub model: ModelName,
    /// Its turn, and what it needs of a worker.
    pub request: scheduler::Request,
    /// Whether the caller may know which way it went.
    pub shows_route: bool,
    /// The client's name for the request, for the logs of both sides.
    pub correlation_id: String,
    /// The body for the worker: always a stream with usage, except for embeddings.
    pub body: Bytes,
    /// Whether the client wants a stream.
    pub stream: bool,
    /// Whether the client wants the usage chunk.
    pub include_usage: bool,
    /// How many choices the answer has.
    pub choices: usize,
    /// The texts that end one, if the server may not see to that.
    pub stop: Vec<String>,
    /// When the client no longer wants an answer.
    pub deadline: Option<Instant>,
    /// The access-log line to add to.
    pub log: AccessLog,
}

/// What a worker answers, as far as it must have come before the worker is believed.
trait Reply: Sized + Send {
    /// Reads a response of status 200, with so much patience for what must come first.
    fn read(
        response: reqwest::Response,
        call: &Call,
        target: &Target,
        id: &str,
        patience: Patience,
    ) -> impl Future<Output = Result<Self, Failure>> + Send;
}

/// A worker has answered, or begun to.
struct Opened<R> {
    reply: R,
    lease: Lease,
    entry: Entry,
}

/// What a request has been through.
#[derive(Default)]
struct Past {
    course: Course,
    /// How the last worker failed it.
    last: Option<Failure>,
    /// Leave to try another one, if that needs any.
    permit: Option<Permit>,
}

/// Answers a request in the form the client wants.
pub fn answer(state: AppState, call: Call, entry: Entry) -> BoxFuture<'static, Result<Response, ApiError>> {
    // Each takes the memory it needs and not that of the largest.
    match call.kind {
        Kind::Embeddings => Box::pin(embed(state, call, entry)),
        _ if call.stream => Box::pin(stream(state, call, entry)),
        _ => Box::pin(whole(state, call, entry)),
    }
}

/// Answers with a stream; the headers wait for the first event or `relay.hold_headers`.
async fn stream(state: AppState, call: Call, entry: Entry) -> Result<Response, ApiError> {
    let hold = state.config.relay.hold_headers;
    let include_usage = call.include_usage;
    let deadline = call.deadline;
    let way = Way::of(&call);
    let trace = call.request.trace.clone();
    let mut opening = Box::pin({
        let state = state.clone();
        async move { open(&state, &call, entry, &mut Past::default()).await }
    });
    let (worker, pump) = match tokio::time::timeout(hold, &mut opening).await {
        Ok(opened) => {
            let opened = opened?;
            (
                Some(opened.lease.target().clone()),
                pump::Pump::running(&state, opened, include_usage, deadline),
            )
        }
        Err(_) => (
            None,
            pump::Pump::opening(&state, opening, trace, include_usage, deadline),
        ),
    };
    let mut response = Body::from_stream(pump.into_stream()).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    way.tell(&mut response, worker.as_deref());
    Ok(response)
}

/// Answers with one JSON object, put together from the worker's stream.
async fn whole(state: AppState, call: Call, mut entry: Entry) -> Result<Response, ApiError> {
    let mut past = Past::default();
    loop {
        let opened = open(&state, &call, entry, &mut past).await?;
        let worker = opened.lease.target().clone();
        match aggregate::collect(&state, opened, call.kind, call.deadline).await {
            Ok(json) => {
                let mut response = axum::Json(json).into_response();
                Way::of(&call).tell(&mut response, Some(&worker));
                return Ok(response);
            }
            Err(Uncollected::Failed(error)) => return Err(error),
            Err(Uncollected::Lost(open_entry, loss)) => {
                entry = *open_entry;
                let failure = Failure::from(loss);
                call.request.trace.failed(failure.cause());
                entry.worker_failed(failure.kind());
                past.add(&state, &call, worker.id.clone(), failure)
                    .inspect_err(|error| settle(&mut entry, error))?;
            }
        }
    }
}

/// Answers with the worker's one JSON object.
async fn embed(state: AppState, call: Call, entry: Entry) -> Result<Response, ApiError> {
    let way = Way::of(&call);
    let Opened {
        reply,
        mut lease,
        mut entry,
        ..
    } = open::<Embedded>(&state, &call, entry, &mut Past::default()).await?;
    lease.report(Outcome::Fine, None);
    // It has come to something; a single one says nothing of speed.
    lease.generated(1);
    entry.tokens(reply.tokens);
    entry.end(RequestState::Completed, None);
    let mut response = ([(header::CONTENT_TYPE, "application/json")], reply.json).into_response();
    way.tell(&mut response, Some(lease.target()));
    Ok(response)
}

/// Which way a request went, for the headers of its answer.
struct Way(Option<Arc<Trace>>);

impl Way {
    fn of(call: &Call) -> Self {
        Self(call.shows_route.then(|| call.request.trace.clone()))
    }

    /// Names the worker, and to those who may know it how it was found; nothing while none is known.
    fn tell(&self, response: &mut Response, worker: Option<&Target>) {
        let Some(worker) = worker else { return };
        // For whoever writes the other headers.
        response.extensions_mut().insert(worker.kind);
        let route = self.0.as_ref().and_then(|trace| trace.route());
        let said = [("x-hive-worker", Some(worker.id.to_string())), ("x-hive-route", route)];
        for (name, value) in said {
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                response.headers_mut().insert(name, value);
            }
        }
    }
}

/// Waits for a slot and a worker's first event; whatever goes wrong is in the books when it returns.
async fn open<R: Reply>(
    state: &AppState,
    call: &Call,
    mut entry: Entry,
    past: &mut Past,
) -> Result<Opened<R>, ApiError> {
    let cancel = entry.cancel.clone();
    let cut = state.lifecycle.cut.clone();
    let deadline = call.deadline;
    let result = tokio::select! {
        result = attempts(state, call, &mut entry, past) => result,
        () = cancel.cancelled() => Err(ApiError::Cancelled),
        () = cut.cancelled() => Err(ApiError::ShuttingDown),
        () = at(deadline) => Err(ApiError::DeadlineExceeded),
    };
    match result {
        Ok((reply, lease)) => {
            lease.answers();
            Ok(Opened { reply, lease, entry })
        }
        Err(error) => {
            settle(&mut entry, &error);
            Err(error)
        }
    }
}

/// Writes an error into the books as the outcome it is.
fn settle(entry: &mut Entry, error: &ApiError) {
    let state = match error {
        ApiError::Cancelled => RequestState::Cancelled,
        ApiError::ShuttingDown => RequestState::Aborted,
        _ => RequestState::Failed,
    };
    entry.end(state, Some(error.code()));
}

/// What a broken answer says of who gave it: where the connection broke, our worker has probably died and is asked,
/// while a server that others call, too, lives on as long as it takes connections.
fn lost(target: &Target, died: bool) -> Outcome {
    match target.kind {
        WorkerKind::Own if died => Outcome::Broken,
        WorkerKind::Own | WorkerKind::Attached => Outcome::Failed,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn attempts<R: Reply>(
    state: &AppState,
    call: &Call,
    entry: &mut Entry,
    past: &mut Past,
) -> Result<(R, Lease), ApiError> {
    let busy_until = Instant::now() + state.config.scheduler.queue_timeout;
    let mut again = !past.course.tried().is_empty();
    loop {
        let ask = Ask {
            model: &call.model,
            request: &call.request,
            tried: past.course.tried(),
            again,
        };
        again = true;
        let lease = match (state.dispatcher.acquire(ask).await, past.last.take()) {
            (Ok(lease), _) => lease,
            // Nobody else is there to try: what the last one did is the news, unless it only had no room.
            (Err(_), Some(failure @ Failure::Away(_))) => return Err(told(failure, call)),
            (Err(NoSlot::NoWorker | NoSlot::Loading), Some(failure)) => return Err(told(failure, call)),
            (Err(no_slot), _) => return Err(ApiError::NoSlot(no_slot, call.model.to_string())),
        };
        if let Some(permit) = past.permit.take() {
            Permit::spend(permit, std::time::Instant::now());
        }
        let worker = lease.target().id.clone();
        entry.worker(&worker, lease.target().epoch);
        call.log.worker(worker.as_str());
        let failure = match attempt(state, call, entry, &lease).await {
            Ok(reply) => return Ok((reply, lease)),
            Err(failure) => failure,
        };
        call.request.trace.failed(failure.cause());
        entry.worker_failed(failure.kind());
        match &failure {
            Failure::Client(..) => {
                lease.report(Outcome::Fine, None);
                return Err(failure.into());
            }
            Failure::Busy if Instant::now() > busy_until => {
                return Err(ApiError::NoSlot(
                    NoSlot::QueueTimeout { wait: None },
                    call.model.to_string(),
                ));
            }
            Failure::Busy => {
                // Its slot is still taken by work that cannot be stopped: kept as taken here too for a moment.
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            }
            Failure::Away(absence) => {
                if absence.counts {
                    lease.report(Outcome::Failed, Some(absence.why.clone()));
                }
                if let Some(wait) = absence.wait {
                    lease.set_aside(wait);
                }
            }
            Failure::Connect(why) => lease.report(Outcome::Broken, Some(why.clone())),
            Failure::Lost(why) => lease.report(lost(lease.target(), true), Some(why.clone())),
            Failure::Garbled(_) | Failure::Bad(_) | Failure::Silent(_) => {
                lease.report(Outcome::Failed, Some(failure.cause().to_owned()));
            }
        }
        past.add(state, call, worker, failure)?;
    }
}

impl Past {
    /// Notes how a worker failed; an error if no other may be tried.
    fn add(&mut self, state: &AppState, call: &Call, worker: WorkerId, failure: Failure) -> Result<(), ApiError> {
        tracing::warn!(
            worker = worker.as_str(),
            request_id = call.correlation_id,
            cause = failure.cause(),
            "an attempt failed"
        );
        let fault = match &failure {
            Failure::Connect(_) => Fault::Unreachable,
            Failure::Lost(_) => Fault::Died,
            Failure::Garbled(_) => Fault::Garbled,
            _ => Fault::Bad,
        };
        let next = self.course.failed(worker, fault);
        if next == Next::Budgeted {
            let open = state.books.open_entries();
            self.permit = state.dispatcher.budget.permit(open, std::time::Instant::now());
        }
        match next {
            Next::Free => {}
            Next::Budgeted if self.permit.is_some() => {}
            Next::Poison => return Err(ApiError::Poison(failure.cause().to_owned())),
            Next::Budgeted | Next::Enough => {
                if next == Next::Budgeted {
                    metrics::not_retried();
                }
                return Err(told(failure, call));
            }
        }
        self.last = Some(failure);
        Ok(())
    }
}

/// What a client is told of the last worker's failure.
fn told(failure: Failure, call: &Call) -> ApiError {
    match failure {
        Failure::Away(Absence { wait, .. }) => ApiError::NoSlot(NoSlot::QueueFull { wait }, call.model.to_string()),
        failure => failure.into(),
    }
}

async fn attempt<R: Reply>(state: &AppState, call: &Call, entry: &mut Entry, lease: &Lease) -> Result<R, Failure> {
    let patience = Patience::new(state.config.relay.first_token_timeout);
    let sent = state.upstream.send(lease.target(), call, entry);
    let response = patience.with(sent).await?;
    let prompt = response
        .headers()
        .get(wire::PROMPT_TOKENS_HEADER)
        .and_then(|v| v.to_str().ok()?.parse().ok())
        .and_then(chunk::possible);
    entry.tokens(Tokens {
        prompt,
        completion: None,
        estimated: lease.target().kind == WorkerKind::Attached,
    });
    R::read(response, call, lease.target(), entry.id(), patience).await
}
