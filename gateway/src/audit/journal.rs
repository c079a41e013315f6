//! The one writer of the journal, a thread of its own, and the handle through which all rooms reach it.
//!
//! Nobody waits for the disk unless they ask to. States of the writer:
//!
//! ```text
//!  writing ──write or fsync fails──▶ failing ──a write succeeds──▶ writing (the gap is recorded first)
//!     ├──told to stop──▶ the last counts, audit.stop, a checkpoint, gone
//!     └──told to part──▶ parted: the log is closed, and who writes waits ──▶ writing again
//!                                                                       └─▶ passing all on to a successor
//! ```
//!
//! While it fails, `metadata` counts what is lost and the hive serves on; `eu-strict` keeps what has happened and
//! refuses what has not. It never drops a record in silence.

use std::{
    collections::VecDeque,
    io, mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc::UnboundedSender, oneshot};

use super::{
    fold::{Denial, Fold},
    log::Log,
    parting::{Parted, Passed, Then},
    record::{Event, Kind, Outcome},
};
use crate::config::Mode;

/// Records that may wait for the writer; more are lost, and counted.
const INBOX: usize = 65_536;
/// Records written at once, and at most covered by one checkpoint.
const BATCH: usize = 1000;
/// How long a record may wait for its checkpoint.
const UNSIGNED: Duration = Duration::from_secs(1);
/// How often a writer that fails tries again by itself.
const RETRY: Duration = Duration::from_millis(200);
/// How often expired segments are looked for.
const PRUNING: Duration = Duration::from_secs(3600);
/// Records of what has happened that `eu-strict` keeps while it cannot write.
const KEPT: usize = 10_000;
/// How long `eu-strict` waits for a record to be on the disk.
const PATIENCE: Duration = Duration::from_secs(2);

/// The record is not on the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the audit journal cannot be written: {0}")]
pub struct Unavailable(pub String);

/// Where it is said whether something is on the disk.
pub type Answer<T> = oneshot::Sender<Result<T, Unavailable>>;

/// The way to the journal; cheap to clone. With the mode `off` it leads nowhere and costs nothing.
#[derive(Debug, Clone)]
pub struct Journal {
    mode: Mode,
    inbox: Option<SyncSender<Message>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    failing: AtomicBool,
    /// Records that found no place in the inbox.
    lost: Mutex<Loss>,
    /// Records that were ever lost, for whoever asks.
    lost_ever: AtomicU64,
    /// How many records the newest checkpoint counts.
    signed: AtomicU64,
    /// When the anchors last had all there was.
    anchored: Mutex<Option<Instant>>,
    /// Another process has the log now.
    passes_on: AtomicBool,
    writer: Mutex<Option<JoinHandle<Option<String>>>>,
}

/// What could not be recorded.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Loss {
    count: u64,
    from: i64,
    to: i64,
}

#[derive(Debug)]
enum Message {
    Event(Box<Event>),
    Durable(Box<Event>, Answer<()>),
    Denied(Denial),
    Checkpoint(Answer<String>),
    Prune(i64, String, Answer<Option<u64>>),
    Part(Answer<Parted>),
    Stop,
}

impl Journal {
    /// A journal that records nothing.
    pub fn off() -> Self {
        Self {
            mode: Mode::Off,
            inbox: None,
            shared: Arc::default(),
        }
    }

    /// Starts the writer; `first` is recorded before anything else, `retention` is how long records are kept.
    pub fn start(log: Log, mode: Mode, retention: Duration, first: Vec<Event>) -> io::Result<Self> {
        let (sender, inbox) = sync_channel(INBOX);
        let shared = Arc::<Shared>::default();
        let mut writer = Writer {
            log,
            strict: mode == Mode::EuStrict,
            retention_ms: i64::try_from(retention.as_millis()).unwrap_or(i64::MAX),
            shared: shared.clone(),
            fold: Fold::default(),
            kept: first.into(),
            waiting: Vec::new(),
            awaited: 0,
            askers: Vec::new(),
            lost: Loss::default(),
            unsigned_since: None,
            pruned: None,
            parting: None,
        };
        // Before anybody is served: what is wrong with the disk is known from the first request on.
        writer.turn(true);
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&inbox))?;
        *shared.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self {
            mode,
            inbox: Some(sender),
            shared,
        })
    }

    /// The mode it runs in.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether anything is recorded at all.
    pub fn is_on(&self) -> bool {
        self.inbox.is_some()
    }

    /// Whether requests may be served: in `eu-strict`, only while records can be written.
    pub fn serves(&self) -> bool {
        self.mode != Mode::EuStrict || !self.is_failing()
    }

    /// Whether records cannot be written now.
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Relaxed)
    }

    /// How many records the newest checkpoint counts.
    pub fn signed(&self) -> u64 {
        self.shared.signed.load(Ordering::Relaxed)
    }

    /// The anchors have all there is.
    pub fn anchored(&self) {
        *self.shared.anchored.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago the anchors last had all there was; none without anchors.
    pub fn unanchored_for(&self) -> Option<Duration> {
        let anchored = *self.shared.anchored.lock().unwrap_or_else(PoisonError::into_inner);
        anchored.map(|at| at.elapsed())
    }

    /// How many records were ever lost by this process.
    pub fn lost(&self) -> u64 {
        self.shared.lost_ever.load(Ordering::Relaxed)
    }

    /// Records an event soon; the caller does not wait.
    pub fn record(&self, event: Event) {
        let at = event.at_ms;
        self.post(Message::Event(Box::new(event)), at);
    }

    /// Counts a refused credential.
    pub fn denied(&self, denial: Denial) {
        self.post(Message::Denied(denial), crate::now_ms());
    }

    /// Records the start of a request, which must be on the disk before it is served: in `eu-strict` waits for that.
    pub async fn before_serving(&self, event: Event) -> Result<(), Unavailable> {
        if self.mode != Mode::EuStrict {
            self.record(event);
            return Ok(());
        }
        if let Ok(done) = tokio::time::timeout(PATIENCE, self.durable(event.clone())).await {
            return done;
        }
        // It may be written yet, and then nothing but this says that the request was refused.
        self.record(Event {
            kind: Kind::RequestEnd,
            outcome: Some(Outcome {
                state: "failed".into(),
                code: Some("audit_unavailable".into()),
            }),
            ..event
        });
        Err(Unavailable(format!("not within {} s", PATIENCE.as_secs())))
    }

    /// Records an event and waits until it is on the disk.
    pub async fn durable(&self, event: Event) -> Result<(), Unavailable> {
        self.ask(|answer| Message::Durable(Box::new(event), answer)).await
    }

    /// Signs all that was recorded so far; the checkpoint.
    pub async fn checkpoint(&self) -> Result<String, Unavailable> {
        self.ask(Message::Checkpoint).await
    }

    /// Removes whole segments that ended before this time, as the holder of this key wants it; the first record that is
    /// left, if any went.
    pub async fn prune(&self, before_ms: i64, key_id: &str) -> Result<Option<u64>, Unavailable> {
        let by = key_id.to_owned();
        self.ask(|answer| Message::Prune(before_ms, by, answer)).await
    }

    /// Writes and signs what has come, begins a new segment and closes the log, for another process to open it.
    pub async fn part(&self) -> Result<Parted, Unavailable> {
        self.ask(Message::Part).await
    }

    /// Whether another process has the log, and is given all that comes.
    pub fn passes_on(&self) -> bool {
        self.shared.passes_on.load(Ordering::Relaxed)
    }

    /// Writes and signs what is left, and ends the writer; the last checkpoint, unless it could not be signed.
    pub fn stop(&self) -> Option<String> {
        let inbox = self.inbox.as_ref()?;
        let writer = self
            .shared
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        inbox.send(Message::Stop).ok()?;
        writer.join().ok().flatten()
    }

    async fn ask<T>(&self, message: impl FnOnce(Answer<T>) -> Message) -> Result<T, Unavailable> {
        let gone = || Unavailable("its writer has ended".into());
        let (answer, answered) = oneshot::channel();
        let inbox = self.inbox.as_ref().ok_or_else(|| Unavailable("it is off".into()))?;
        match inbox.try_send(message(answer)) {
            Ok(()) => answered.await.map_err(|_| gone())?,
            Err(TrySendError::Full(_)) => Err(Unavailable("too many records wait for the disk".into())),
            Err(TrySendError::Disconnected(_)) => Err(gone()),
        }
    }

    fn post(&self, message: Message, at_ms: i64) {
        if let Some(inbox) = &self.inbox
            && inbox.try_send(message).is_err()
        {
            self.shared.lost_ever.fetch_add(1, Ordering::Relaxed);
            self.shared
                .lost
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(at_ms);
        }
    }
}

impl Loss {
    fn add(&mut self, at_ms: i64) {
        self.join(Self {
            count: 1,
            from: at_ms,
            to: at_ms,
        });
    }

    fn join(&mut self, other: Self) {
        if self.count == 0 {
            *self = other;
        } else if other.count > 0 {
            self.count += other.count;
            self.from = self.from.min(other.from);
            self.to = self.to.max(other.to);
        }
    }

    fn told_by(gap: &Event) -> Self {
        Self {
            count: gap.count.unwrap_or(0),
            from: gap.from.unwrap_or(gap.at_ms),
            to: gap.to.unwrap_or(gap.at_ms),
        }
    }

    fn event(self, strict: bool) -> Event {
        let mut event = Event::now(Kind::Gap);
        (event.count, event.from, event.to) = (Some(self.count), Some(self.from), Some(self.to));
        // What strict mode could not record was refused, not done.
        let state = if strict { "refused" } else { "lost" }.into();
        event.outcome = Some(Outcome { state, code: None });
        event
    }
}

struct Writer {
    log: Log,
    strict: bool,
    retention_ms: i64,
    shared: Arc<Shared>,
    fold: Fold,
    /// What is to be written and nobody waits for.
    kept: VecDeque<Event>,
    /// What somebody waits for.
    waiting: Vec<(Event, Answer<()>)>,
    /// How many of those the log has taken and the disk may not keep.
    awaited: usize,
    /// Who wants a checkpoint.
    askers: Vec<Answer<String>>,
    lost: Loss,
    unsigned_since: Option<Instant>,
    pruned: Option<Instant>,
    /// Who wants it to part from its log.
    parting: Option<Answer<Parted>>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Message>) -> Option<String> {
        loop {
            let mut stop = match inbox.recv_timeout(self.pause()) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            while !stop && self.kept.len() + self.waiting.len() < BATCH {
                let Ok(message) = inbox.try_recv() else { break };
                stop = self.take(message);
            }
            let now = crate::now_ms();
            let parting = self.parting.take();
            let until = if stop || parting.is_some() { i64::MAX } else { now };
            self.kept.extend(self.fold.due(until));
            if stop {
                self.kept.push_back(Event::now(Kind::Stop));
            }
            self.turn(stop || parting.is_some());
            if let Some(answer) = parting.filter(|_| !stop) {
                match self.part(answer, inbox) {
                    Some(again) => self = again,
                    None => return None,
                }
                continue;
            }
            if stop {
                return self
                    .log
                    .checkpoint()
                    .ok()
                    .map(ToOwned::to_owned)
                    .filter(|_| !self.is_failing());
            }
            self.prune_when_due(now);
        }
    }

    /// Closes the log, with nothing left to write, and waits; itself with a log again, or none if it has passed all on.
    fn part(mut self, answer: Answer<Parted>, inbox: &Receiver<Message>) -> Option<Self> {
        if self.is_failing() {
            let _ = answer.send(Err(Unavailable("it fails already".into())));
            return Some(self);
        }
        // What the successor reads before it can begin is then short.
        if let Err(error) = self.log.rotate() {
            let _ = answer.send(Err(Unavailable(error.to_string())));
            return Some(self);
        }
        drop(self.log);
        let (parted, decided) = Parted::new();
        // If nobody takes the answer, nobody will decide.
        let _ = answer.send(Ok(parted));
        match decided.recv() {
            Ok(Then::Resume(log)) => Some(Self { log: *log, ..self }),
            Ok(Then::PassOn(to)) => {
                self.shared.passes_on.store(true, Ordering::Relaxed);
                pass_on(inbox, &to, &self.shared);
                None
            }
            Err(_) => None,
        }
    }

    /// How long there is nothing to do unless somebody comes.
    fn pause(&self) -> Duration {
        if self.is_failing() {
            return RETRY;
        }
        match self.unsigned_since {
            Some(since) => UNSIGNED.saturating_sub(since.elapsed()),
            None if self.fold.is_empty() => PRUNING,
            None => UNSIGNED,
        }
    }

    /// Takes one message in; true if it was the last.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Event(event) => self.kept.push_back(*event),
            Message::Durable(event, answer) => self.waiting.push((*event, answer)),
            Message::Denied(denial) => self.kept.extend(self.fold.see(denial, crate::now_ms())),
            Message::Checkpoint(answer) => self.askers.push(answer),
            Message::Prune(before_ms, by, answer) => {
                let done = self
                    .prune(before_ms, Some(&by))
                    .map_err(|error| Unavailable(error.to_string()));
                let _ = answer.send(done);
            }
            Message::Part(answer) => self.parting = Some(answer),
            Message::Stop => return true,
        }
        false
    }

    /// Writes what has come, makes it durable for those who wait, signs and rotates when it is time.
    fn turn(&mut self, sign: bool) {
        let overflown = mem::take(&mut *self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner));
        self.lost.join(overflown);
        match self.write().and_then(|()| self.sign_and_rotate(sign)) {
            Ok(()) => self.recovered(),
            Err(error) => self.failed(&error),
        }
    }

    fn sign_and_rotate(&mut self, sign: bool) -> io::Result<()> {
        let (_, unsigned) = self.log.size();
        let due = unsigned >= BATCH as u64 || self.unsigned_since.is_some_and(|since| since.elapsed() >= UNSIGNED);
        if sign || due || !self.askers.is_empty() {
            self.sign()?;
        }
        if self.log.is_full(crate::now_ms()) {
            self.log.rotate()?;
        }
        if self.log.size().1 > 0 {
            self.unsigned_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(1 + self.kept.len() + self.waiting.len());
        if self.lost.count > 0 {
            events.push(self.lost.event(self.strict));
        }
        events.extend(self.kept.iter().cloned());
        events.extend(self.waiting.iter().map(|(event, _)| event.clone()));
        if !events.is_empty() {
            self.log.append(&events)?;
        }
        self.kept.clear();
        self.lost = Loss::default();
        if !self.waiting.is_empty() {
            self.awaited = self.waiting.len();
            self.log.sync()?;
            self.awaited = 0;
        }
        for (_, answer) in self.waiting.drain(..) {
            let _ = answer.send(Ok(()));
        }
        Ok(())
    }

    fn sign(&mut self) -> io::Result<()> {
        let note = self.log.checkpoint()?.to_owned();
        let (size, _) = self.log.size();
        self.shared.signed.store(size, Ordering::Relaxed);
        self.unsigned_since = None;
        for asker in self.askers.drain(..) {
            let _ = asker.send(Ok(note.clone()));
        }
        Ok(())
    }

    fn recovered(&mut self) {
        if self.shared.failing.swap(false, Ordering::Relaxed) {
            tracing::warn!("the audit journal is written again; what is missing is recorded in it as a gap");
        }
    }

    fn failed(&mut self, error: &io::Error) {
        if !self.shared.failing.swap(true, Ordering::Relaxed) {
            let doing = if self.strict {
                "requests are refused until it can be: free some space"
            } else {
                "requests are served on, and what is lost is counted: free some space"
            };
            tracing::error!(cause = %error, doing, "the audit journal cannot be written");
        }
        let why = Unavailable(error.to_string());
        for asker in self.askers.drain(..) {
            let _ = asker.send(Err(why.clone()));
        }
        let awaited = mem::take(&mut self.awaited);
        self.take_back(awaited);
        for (event, answer) in self.waiting.drain(..) {
            // An operator's act stays in the outbox; anything else is refused, and that is what the gap will say.
            if event.act.is_none() {
                self.lost.add(event.at_ms);
            }
            let _ = answer.send(Err(why.clone()));
        }
        let keep = if self.strict { KEPT } else { 0 };
        while self.kept.len() > keep {
            if let Some(event) = self.kept.pop_front() {
                self.shared.lost_ever.fetch_add(1, Ordering::Relaxed);
                self.lost.add(event.at_ms);
            }
        }
    }

    /// Puts what the disk took and did not keep back among what is to be written, but for the last ones: somebody waits
    /// for those.
    fn take_back(&mut self, awaited: usize) {
        let mut events = self.log.taken_back();
        events.truncate(events.len().saturating_sub(awaited));
        for event in events.into_iter().rev() {
            match event.kind {
                Kind::Gap => self.lost.join(Loss::told_by(&event)),
                // It said what has not come to pass.
                Kind::Prune => {}
                _ => self.kept.push_front(event),
            }
        }
    }

    fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Relaxed)
    }

    fn prune_when_due(&mut self, now_ms: i64) {
        if self.is_failing() || self.pruned.is_some_and(|at| at.elapsed() < PRUNING) {
            return;
        }
        self.pruned = Some(Instant::now());
        if let Err(error) = self.prune(now_ms.saturating_sub(self.retention_ms), None) {
            tracing::error!(cause = %error, "expired audit records could not be removed");
        }
    }

    fn prune(&mut self, before_ms: i64, by: Option<&str>) -> io::Result<Option<u64>> {
        let pruned = self.log.prune(before_ms, by);
        self.take_back(0);
        pruned
    }
}

/// Gives all that comes to the log's new owner, until told to stop.
fn pass_on(inbox: &Receiver<Message>, to: &UnboundedSender<Passed>, shared: &Shared) {
    fn refuse<T>(answer: Answer<T>) -> bool {
        answer
            .send(Err(Unavailable("another process has it now".into())))
            .is_ok()
    }
    for message in inbox {
        let done = match message {
            Message::Event(event) => to.send(Passed::Event(event)).is_ok(),
            Message::Durable(event, answer) => to.send(Passed::Durable(event, answer)).is_ok(),
            Message::Denied(denial) => to.send(Passed::Denied(denial)).is_ok(),
            Message::Checkpoint(answer) => refuse(answer),
            Message::Prune(.., answer) => refuse(answer),
            Message::Part(answer) => refuse(answer),
            Message::Stop => return,
        };
        if !done {
            shared.lost_ever.fetch_add(1, Ordering::Relaxed);
        }
    }
}
