//! The books: every admitted request ends in exactly one outcome, also when nobody is left to say so.
//!
//! An [`Entry`] travels with the request and settles when it is dropped. Writing is done elsewhere, in
//! batches; a request never waits for the database.

pub mod retention;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::HeaderMap;
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use wire::{RequestState, RequestView, WorkerId, openai::parameters};

use crate::{
    audit::{
        journal::{Journal, Unavailable},
        record::{Actor, Event, Kind, Object, Outcome, Times, Usage},
        recorder::Recorder,
    },
    db::{self, DbError},
    limits::Reservation,
    metrics,
    spans::{Parent, Span, Spans},
};

/// Entries that may wait for a database that cannot be written; more are dropped, and counted in the log.
const BACKLOG: usize = 100_000;
/// Postings taken in at once.
const BATCH: usize = 512;
/// How long a transaction waits for company: a short request's beginning, worker and end are then one row, written once.
const COMPANY: Duration = Duration::from_millis(5);

/// Where entries are opened, cancelled and read.
#[derive(Debug, Clone)]
pub struct Books {
    writer: mpsc::UnboundedSender<Posting>,
    running: Arc<Mutex<HashMap<String, Running>>>,
    /// Requests that have ended and whose rows do not say so yet.
    unwritten: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Running {
    key_id: String,
    cancel: CancellationToken,
}

#[derive(Debug)]
enum Posting {
    Entry(Box<RequestView>),
    Flush(oneshot::Sender<()>),
}

/// One request in the books; dropping it settles it.
#[derive(Debug)]
pub struct Entry {
    view: RequestView,
    started: Instant,
    books: Books,
    /// What the request may use of its key's limits; settled when the entry is.
    pub reservation: Option<Reservation>,
    /// Tokens that its prompt has by our guess, which holds where nobody counts them.
    pub prompt_guess: u64,
    /// Whether anybody was known to serve its model when it was admitted: a name that only the client knows is no label.
    pub is_known_model: bool,
    /// What OpenTelemetry is told of it, if anything.
    span: Option<Span>,
    /// An operator wants the request to end.
    pub cancel: CancellationToken,
    /// Where its end is recorded, once its start is.
    journal: Option<Journal>,
    /// By whom it is recorded.
    actor: Option<Actor>,
    epoch: Option<i64>,
    queued_ms: Option<i64>,
}

/// Tokens of a request, as far as they are known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompt.
    pub prompt: Option<i64>,
    /// Generated.
    pub completion: Option<i64>,
    /// Nobody has counted some of them; the prompt's are guessed, if those are among them.
    pub estimated: bool,
}

impl Books {
    /// Opens the books and starts their writer on this runtime; it ends when the last handle is dropped.
    pub fn open(db: SqlitePool) -> Self {
        let (writer, postings) = mpsc::unbounded_channel();
        let unwritten = Arc::<AtomicUsize>::default();
        tokio::spawn(write(db, postings, unwritten.clone()));
        Self {
            writer,
            running: Arc::default(),
            unwritten,
        }
    }

    /// Opens an entry for a request that was just admitted.
    pub fn admit(&self, id: &str, key_id: &str, model: &str) -> Entry {
        let view = RequestView {
            id: id.to_owned(),
            key_id: key_id.to_owned(),
            model: model.to_owned(),
            worker: None,
            state: RequestState::Queued,
            prompt_tokens: None,
            completion_tokens: None,
            estimated: false,
            started_at_ms: crate::now_ms(),
            ttft_ms: None,
            total_ms: None,
            error: None,
        };
        let cancel = CancellationToken::new();
        let running = Running {
            key_id: view.key_id.clone(),
            cancel: cancel.clone(),
        };
        self.lock().insert(view.id.clone(), running);
        Entry {
            view,
            started: Instant::now(),
            books: self.clone(),
            reservation: None,
            prompt_guess: 0,
            is_known_model: false,
            span: None,
            cancel,
            journal: None,
            actor: None,
            epoch: None,
            queued_ms: None,
        }
    }

    /// Asks a running request to end; false if none of that id runs.
    pub fn cancel(&self, id: &str) -> bool {
        self.lock().get(id).map(|running| running.cancel.cancel()).is_some()
    }

    /// Asks all running requests of a key to end; how many there were.
    pub fn cancel_all_of(&self, key_id: &str) -> usize {
        let running = self.lock();
        let of_key = running.values().filter(|running| running.key_id == key_id);
        of_key.map(|running| running.cancel.cancel()).count()
    }

    /// Requests that run or wait now.
    pub fn open_entries(&self) -> usize {
        self.lock().len()
    }

    /// The ids of requests that run or wait now.
    pub fn open_ids(&self) -> HashSet<String> {
        self.lock().keys().cloned().collect()
    }

    /// Waits until everything posted so far is in the database.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.writer.send(Posting::Flush(done)).is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(6), written).await;
        }
    }

    /// Requests that have ended and that the database does not know about.
    pub fn unwritten(&self) -> usize {
        self.unwritten.load(Ordering::Relaxed)
    }

    fn post(&self, view: &RequestView) {
        // The receiver lives as long as the runtime; after that there is nobody left to tell.
        let _ = self.writer.send(Posting::Entry(Box::new(view.clone())));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The request's id.
    pub fn id(&self) -> &str {
        &self.view.id
    }

    /// Begins to tell OpenTelemetry of it, if anybody wants to know.
    pub fn traced(&mut self, spans: &Spans, kind: parameters::Kind, parent: &Parent) {
        self.span = spans.begin(kind, &self.view, parent);
    }

    /// Puts the start on the record, for this person, and then into the books; in mode `eu-strict` it is on the disk when this returns.
    pub async fn on_record(
        &mut self,
        recorder: &Recorder,
        subject: &str,
        correlation: &str,
    ) -> Result<(), Unavailable> {
        if !recorder.journal.is_on() {
            self.books.post(&self.view);
            return Ok(());
        }
        let mut event = self.event(Kind::RequestStart);
        event.correlation = Some(correlation.to_owned()).filter(|correlation| *correlation != self.view.id);
        // Set before the wait: a client that leaves during it has an end, too.
        self.journal = Some(recorder.journal.clone());
        let recorded = async {
            event.actor = Some(recorder.actor(&self.view.key_id, subject).await?);
            self.actor.clone_from(&event.actor);
            recorder.journal.before_serving(event).await
        }
        .await;
        if recorded.is_ok() {
            self.books.post(&self.view);
        } else {
            self.journal = None;
            self.end(RequestState::Failed, Some("audit_unavailable"));
        }
        recorded
    }

    fn event(&self, kind: Kind) -> Event {
        let mut event = Event::now(kind).on(Object {
            model: Some(self.view.model.clone()),
            worker: self.view.worker.as_ref().map(ToString::to_string),
            epoch: self.epoch,
            ..Object::default()
        });
        event.req = Some(self.view.id.clone());
        event.actor.clone_from(&self.actor);
        event
    }

    /// How it ended, as the journal keeps it.
    fn ending(&self) -> Event {
        let mut event = self.event(Kind::RequestEnd);
        event.outcome = Some(Outcome {
            state: self.view.state.as_str().to_owned(),
            code: self.view.error.clone(),
        });
        event.usage = Some(Usage {
            prompt: self.view.prompt_tokens,
            completion: self.view.completion_tokens,
            estimated: self.view.estimated,
        });
        event.t = Some(Times {
            queue: self.queued_ms,
            ttft: self.view.ttft_ms,
            total: self.view.total_ms,
        });
        event
    }

    /// The worker that has it now, under this epoch.
    pub fn worker(&mut self, worker: &WorkerId, epoch: i64) {
        self.epoch = Some(epoch);
        if let Some(span) = &mut self.span {
            span.worker(worker, epoch);
        }
        self.queued_ms.get_or_insert(millis(self.started.elapsed()));
        self.view.worker = Some(worker.clone());
        self.view.state = RequestState::Running;
        self.books.post(&self.view);
    }

    /// The worker that has it has failed, in this way.
    pub fn worker_failed(&mut self, how: &'static str) {
        if let Some(span) = &mut self.span {
            span.worker_failed(how);
        }
    }

    /// Tells the worker which span the request is.
    pub fn tell(&self, headers: &mut HeaderMap) {
        self.span.iter().for_each(|span| span.tell(headers));
    }

    /// The first token has come.
    pub fn first_token(&mut self) {
        if self.view.ttft_ms.is_none() {
            self.span.iter().for_each(Span::first_token);
            self.view.ttft_ms = Some(millis(self.started.elapsed()));
        }
    }

    /// What is known of its tokens so far; called again, the later count holds.
    pub fn tokens(&mut self, tokens: Tokens) {
        let guess = || i64::try_from(self.prompt_guess).ok().filter(|_| tokens.estimated);
        self.view.prompt_tokens = tokens.prompt.or_else(guess).or(self.view.prompt_tokens);
        self.view.completion_tokens = tokens.completion.or(self.view.completion_tokens);
        self.view.estimated = tokens.estimated;
    }

    /// How it ended; without this it settles as cancelled, since only a client that leaves, or a bug, drops it open.
    pub fn end(&mut self, state: RequestState, error: Option<&str>) {
        self.view.state = state;
        self.view.error = error.map(ToOwned::to_owned);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if matches!(self.view.state, RequestState::Queued | RequestState::Running) {
            if std::thread::panicking() {
                self.end(RequestState::Failed, Some("internal_error"));
            } else {
                self.view.state = RequestState::Cancelled;
            }
        }
        self.view.total_ms = Some(millis(self.started.elapsed()));
        if let Some(reservation) = &mut self.reservation {
            let tokens = [self.view.prompt_tokens, self.view.completion_tokens];
            reservation.used(tokens.into_iter().flatten().map(i64::unsigned_abs).sum());
        }
        metrics::settled(&self.view, self.is_known_model);
        if let Some(span) = self.span.take() {
            span.end(&self.view);
        }
        self.books.lock().remove(&self.view.id);
        self.books.unwritten.fetch_add(1, Ordering::Relaxed);
        self.books.post(&self.view);
        if let Some(journal) = self.journal.take() {
            journal.record(self.ending());
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

async fn write(db: SqlitePool, mut postings: mpsc::UnboundedReceiver<Posting>, unwritten: Arc<AtomicUsize>) {
    // By id, the latest of each.
    let mut waiting: HashMap<String, RequestView> = HashMap::new();
    let mut incoming = Vec::with_capacity(BATCH);
    let mut dropped = 0_u64;
    while postings.recv_many(&mut incoming, BATCH).await > 0 {
        tokio::time::sleep(COMPANY).await;
        while incoming.len() < BATCH
            && let Ok(posting) = postings.try_recv()
        {
            incoming.push(posting);
        }
        let mut askers = Vec::new();
        for posting in incoming.drain(..) {
            match posting {
                Posting::Entry(view) if waiting.len() < BACKLOG || waiting.contains_key(&view.id) => {
                    waiting.insert(view.id.clone(), *view);
                }
                Posting::Entry(_) => dropped += 1,
                Posting::Flush(asker) => askers.push(asker),
            }
        }
        match write_batch(&db, &waiting).await {
            Ok(()) => {
                let ended = waiting.values().filter(|view| view.total_ms.is_some()).count();
                unwritten.fetch_sub(ended, Ordering::Relaxed);
                waiting.clear();
                if dropped > 0 {
                    tracing::error!(
                        dropped,
                        "requests are missing from the books: the database could not be written for too long"
                    );
                    dropped = 0;
                }
            }
            Err(error) => tracing::warn!(
                cause = crate::error::chain(&error),
                waiting = waiting.len(),
                "the books could not be written; kept in memory"
            ),
        }
        // Answered also after a failure: readers then see what the database has.
        for asker in askers {
            let _ = asker.send(());
        }
    }
}

async fn write_batch(db: &SqlitePool, views: &HashMap<String, RequestView>) -> Result<(), DbError> {
    if views.is_empty() {
        return Ok(());
    }
    let mut transaction = db.begin().await?;
    for view in views.values() {
        db::requests::write(&mut transaction, view).await?;
    }
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn books() -> (tempfile::TempDir, SqlitePool, Books) {
        let dir = tempfile::tempdir().unwrap();
        let db = db::open(&dir.path().join("hive.db")).await.unwrap();
        (dir, db.clone(), Books::open(db))
    }

    #[tokio::test]
    async fn an_entry_dropped_open_is_settled_as_cancelled_with_what_was_counted() {
        let (_dir, db, books) = books().await;
        let mut entry = books.admit("req_1", "key", "m");
        entry.worker(&"w".parse().unwrap(), 1);
        entry.tokens(Tokens {
            prompt: Some(7),
            completion: Some(3),
            estimated: false,
        });
        assert_eq!(books.open_entries(), 1);
        drop(entry);
        books.flush().await;
        let view = db::requests::find(&db, "req_1").await.unwrap().unwrap();
        assert_eq!(
            (view.state, view.prompt_tokens, view.completion_tokens),
            (RequestState::Cancelled, Some(7), Some(3))
        );
        assert_eq!(books.open_entries(), 0);
    }

    #[tokio::test]
    async fn an_entry_dropped_by_a_panic_has_failed() {
        let (_dir, db, books) = books().await;
        let entry = books.admit("req_1", "key", "m");
        let bug = tokio::spawn(async move {
            let _entry = entry;
            panic!("a bug");
        });
        assert!(bug.await.unwrap_err().is_panic());
        books.flush().await;
        let view = db::requests::find(&db, "req_1").await.unwrap().unwrap();
        assert_eq!(
            (view.state, view.error.as_deref()),
            (RequestState::Failed, Some("internal_error"))
        );
    }

    #[tokio::test]
    async fn what_ran_when_the_gateway_died_is_closed_as_aborted() {
        let (dir, db, books) = books().await;
        let mut entry = books.admit("req_1", "key", "m");
        entry.worker(&"w".parse().unwrap(), 1);
        books.flush().await;
        let again = db::open(&dir.path().join("hive.db")).await.unwrap();
        assert_eq!(db::requests::abort_open(&again).await.unwrap(), 1);
        assert_eq!(
            db::requests::find(&db, "req_1").await.unwrap().unwrap().state,
            RequestState::Aborted
        );
        std::mem::forget(entry);
    }

    #[tokio::test]
    async fn a_running_request_can_be_cancelled_by_its_id_and_no_other() {
        let (_dir, _db, books) = books().await;
        let entry = books.admit("req_1", "key", "m");
        assert!(!books.cancel("req_2"));
        assert!(books.cancel("req_1"));
        assert!(entry.cancel.is_cancelled());
        drop(entry);
        assert!(!books.cancel("req_1"));
    }
}
