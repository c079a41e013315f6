//! What Prometheus reads at `/metrics`: counters and histograms as things happen, gauges at the moment of reading.
//!
//! Labels are bounded: models the registry knows, outcomes, states. No key, person, request or address is ever one.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use wire::{Reason, RequestState, RequestView, WorkerState};

use crate::{limits::Limit, scheduler::NoSlot, state::Hive};

const REQUESTS: &str = "hive_requests_total";
const TOKENS: &str = "hive_tokens_total";
const TTFT: &str = "hive_time_to_first_token_seconds";
const PER_TOKEN: &str = "hive_time_per_output_token_seconds";
const DURATION: &str = "hive_request_duration_seconds";
const QUEUED: &str = "hive_queue_wait_seconds";
const RETRIES: &str = "hive_retries_total";
const NOT_RETRIED: &str = "hive_retries_refused_total";
const DISPATCHED: &str = "hive_dispatched_total";
const NOT_SERVED: &str = "hive_not_served_total";
const EJECTIONS: &str = "hive_ejections_total";
const FAILURES: &str = "hive_worker_failures_total";
const REFUSED_LOGINS: &str = "hive_authentication_failures_total";
const LIMITED: &str = "hive_limited_total";
const CANCELS: &str = "hive_cancels_total";
const BLOCKED: &str = "hive_clients_blocked";
const BLOCKED_BYTES: &str = "hive_clients_blocked_bytes";
const SLOW_CLIENTS: &str = "hive_slow_clients_dropped_total";
const OPEN: &str = "hive_requests_open";
const SLOTS: &str = "hive_slots";
const TAKEN: &str = "hive_slots_taken";
const QUEUE: &str = "hive_queue_length";
const WORKERS: &str = "hive_workers";
const AUDIT_LOST: &str = "hive_audit_lost_records_total";
const AUDIT_FAILING: &str = "hive_audit_failing";
const AUDIT_SIGNED: &str = "hive_audit_signed_records";
const UNANCHORED: &str = "hive_audit_unanchored_seconds";

/// Why a request got no slot.
const NOT_SERVED_WHY: [&str; 5] = ["unknown_model", "no_worker", "loading", "queue_full", "queue_timeout"];

/// The label of all models that nobody was known to serve.
const UNKNOWN: &str = "unknown";

/// Every metric there is.
pub const NAMES: [&str; 27] = [
    REQUESTS,
    TOKENS,
    TTFT,
    PER_TOKEN,
    DURATION,
    QUEUED,
    RETRIES,
    NOT_RETRIED,
    DISPATCHED,
    NOT_SERVED,
    EJECTIONS,
    FAILURES,
    REFUSED_LOGINS,
    LIMITED,
    CANCELS,
    BLOCKED,
    BLOCKED_BYTES,
    SLOW_CLIENTS,
    OPEN,
    SLOTS,
    TAKEN,
    QUEUE,
    WORKERS,
    AUDIT_LOST,
    AUDIT_FAILING,
    AUDIT_SIGNED,
    UNANCHORED,
];

/// Seconds, from a cache hit on a GPU to a long prefill on a CPU.
const WAITS: [f64; 13] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];
/// Seconds, from 1,000 tokens a second to one.
const PACES: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Starts the collection, once for the program.
pub fn start() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets(&WAITS)?
        .set_buckets_for_metric(Matcher::Full(PER_TOKEN.to_owned()), &PACES)?
        .install_recorder()?;
    describe_counter!(REQUESTS, "Requests that ended, by model and outcome");
    describe_counter!(
        TOKENS,
        "Tokens of prompts and answers, by model; by estimate where an attached server counts none"
    );
    describe_histogram!(TTFT, Unit::Seconds, "From admission to the first token");
    describe_histogram!(
        PER_TOKEN,
        Unit::Seconds,
        "Mean time between the tokens of an answer after its first"
    );
    describe_histogram!(DURATION, Unit::Seconds, "From admission to the end");
    describe_histogram!(
        QUEUED,
        Unit::Seconds,
        "From asking for a slot to having it, once for each worker tried"
    );
    describe_counter!(RETRIES, "Requests given to another worker before the first token");
    describe_counter!(
        NOT_RETRIED,
        "Requests not given to another worker because too many were lately"
    );
    describe_counter!(DISPATCHED, "Requests given to a worker, by why it was that one");
    describe_counter!(NOT_SERVED, "Requests that got no slot, by why");
    describe_counter!(EJECTIONS, "Workers set aside because they failed too often");
    describe_counter!(FAILURES, "Failures of workers while they had a request");
    describe_counter!(
        REFUSED_LOGINS,
        "Requests with no, a wrong or an insufficient credential"
    );
    describe_counter!(LIMITED, "Requests refused because a key had used what it may, by limit");
    describe_counter!(CANCELS, "Requests that were cancelled, by whom");
    describe_gauge!(BLOCKED, "Clients whose sockets take nothing at present");
    describe_gauge!(
        BLOCKED_BYTES,
        Unit::Bytes,
        "What the write that got stuck held, for each of these"
    );
    describe_counter!(SLOW_CLIENTS, "Clients dropped because they took nothing for too long");
    describe_gauge!(OPEN, "Requests that wait or run");
    describe_gauge!(SLOTS, "Slots of workers that are ready, by model");
    describe_gauge!(TAKEN, "Slots taken by our requests, by model");
    describe_gauge!(QUEUE, "Requests that wait for a slot, by model");
    describe_gauge!(WORKERS, "Workers, by state");
    describe_counter!(
        AUDIT_LOST,
        "Audit records that could not be written; the journal counts them, too"
    );
    describe_gauge!(AUDIT_FAILING, "1 while audit records cannot be written");
    describe_gauge!(
        AUDIT_SIGNED,
        "Records that the newest checkpoint of the audit journal counts"
    );
    describe_gauge!(
        UNANCHORED,
        Unit::Seconds,
        "Since the anchors had all of the audit journal"
    );
    // A counter that begins with its first event hides that one from Prometheus, which looks for increases.
    for name in [RETRIES, NOT_RETRIED, FAILURES, REFUSED_LOGINS, SLOW_CLIENTS] {
        counter!(name).absolute(0);
    }
    for why in NOT_SERVED_WHY {
        counter!(NOT_SERVED, "why" => why).absolute(0);
    }
    Ok(handle)
}

/// All metrics in Prometheus' text form.
pub fn render(hive: &Hive) -> String {
    gauge!(OPEN).set(float(hive.books.open_entries()));
    for load in hive.dispatcher.load() {
        let model = load.model.to_string();
        gauge!(SLOTS, "model" => model.clone()).set(load.slots);
        gauge!(TAKEN, "model" => model.clone()).set(load.taken);
        gauge!(QUEUE, "model" => model).set(float(load.queued));
    }
    counter!(EJECTIONS).absolute(hive.dispatcher.ejections());
    let workers = hive.dispatcher.workers();
    for state in WorkerState::ALL {
        let count = workers.iter().filter(|worker| worker.state == state).count();
        gauge!(WORKERS, "state" => state.as_str()).set(float(count));
    }
    let journal = &hive.audit.journal;
    if journal.is_on() {
        counter!(AUDIT_LOST).absolute(journal.lost());
        gauge!(AUDIT_FAILING).set(if journal.is_failing() { 1.0 } else { 0.0 });
        gauge!(AUDIT_SIGNED).set(float(usize::try_from(journal.signed()).unwrap_or(usize::MAX)));
    }
    if let Some(time) = journal.unanchored_for() {
        gauge!(UNANCHORED).set(time.as_secs_f64());
    }
    hive.metrics.run_upkeep();
    hive.metrics.render()
}

/// A request has ended; its model is a label only if it is known, for any other name is the client's to choose.
pub fn settled(request: &RequestView, is_known_model: bool) {
    let model = if is_known_model {
        request.model.as_str()
    } else {
        UNKNOWN
    }
    .to_owned();
    counter!(REQUESTS, "model" => model.clone(), "state" => request.state.as_str()).increment(1);
    for (kind, tokens) in [
        ("prompt", request.prompt_tokens),
        ("completion", request.completion_tokens),
    ] {
        if let Some(tokens) = tokens.and_then(|tokens| u64::try_from(tokens).ok()) {
            counter!(TOKENS, "model" => model.clone(), "kind" => kind).increment(tokens);
        }
    }
    if let Some(ms) = request.ttft_ms {
        histogram!(TTFT, "model" => model.clone()).record(seconds(ms));
    }
    if request.state == RequestState::Cancelled {
        let by = if request.error.is_some() { "operator" } else { "client" };
        counter!(CANCELS, "by" => by).increment(1);
    }
    if request.state != RequestState::Completed {
        return;
    }
    let Some(total_ms) = request.total_ms else { return };
    histogram!(DURATION, "model" => model.clone()).record(seconds(total_ms));
    if let (Some(ttft_ms), Some(tokens @ 2..)) = (request.ttft_ms, request.completion_tokens) {
        let gaps = i32::try_from(tokens - 1).unwrap_or(i32::MAX);
        histogram!(PER_TOKEN, "model" => model).record(seconds(total_ms - ttft_ms) / f64::from(gaps));
    }
}

/// A request has got a slot after so long, of a worker that was chosen for this reason.
pub fn dispatched(model: &str, waited: Duration, reason: Reason) {
    histogram!(QUEUED, "model" => model.to_owned()).record(waited);
    counter!(DISPATCHED, "by" => reason.as_str()).increment(1);
}

/// A request has got no slot.
pub fn not_served(why: NoSlot) {
    let [unknown_model, no_worker, loading, queue_full, queue_timeout] = NOT_SERVED_WHY;
    let why = match why {
        NoSlot::UnknownModel => unknown_model,
        NoSlot::NoWorker => no_worker,
        NoSlot::Loading => loading,
        NoSlot::QueueFull { .. } => queue_full,
        NoSlot::QueueTimeout { .. } => queue_timeout,
    };
    counter!(NOT_SERVED, "why" => why).increment(1);
}

/// A request is not given to another worker for want of budget.
pub fn not_retried() {
    counter!(NOT_RETRIED).increment(1);
}

/// A worker failed while it had a request.
pub fn worker_failed() {
    counter!(FAILURES).increment(1);
}

/// A request goes to another worker.
pub fn retried() {
    counter!(RETRIES).increment(1);
}

/// Somebody did not get in.
pub fn refused_login() {
    counter!(REFUSED_LOGINS).increment(1);
}

/// A client takes nothing, and so many bytes wait for it.
pub fn blocked(bytes: usize) {
    gauge!(BLOCKED).increment(1.0);
    gauge!(BLOCKED_BYTES).increment(float(bytes));
}

/// A client with so many bytes waiting for it takes something again, or is gone.
pub fn unblocked(bytes: usize) {
    gauge!(BLOCKED).decrement(1.0);
    gauge!(BLOCKED_BYTES).decrement(float(bytes));
}

/// A client that took nothing for too long is dropped.
pub fn slow_client() {
    counter!(SLOW_CLIENTS).increment(1);
}

/// A key has used what it may.
pub fn limited(limit: Limit) {
    let limit = match limit {
        Limit::RequestsPerMinute => "requests_per_minute",
        Limit::TokensPerMinute => "tokens_per_minute",
        Limit::TokensPerDay => "tokens_per_day",
        Limit::ConcurrentRequests => "concurrent_requests",
        Limit::TokenBudget => "token_budget",
    };
    counter!(LIMITED, "limit" => limit).increment(1);
}

fn seconds(ms: i64) -> f64 {
    Duration::from_millis(ms.max(0).unsigned_abs()).as_secs_f64()
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
