//! The dispatcher: gives a request a slot on one worker, or a place in a bounded queue that is fair between keys.
//!
//! Choice and claim are one step under one lock that is never held across an await. What is decided is in pure files:
//! [`fleet`] and what it is made of. It never speaks to a worker: it hands out a [`Lease`], and the lease gives the slot
//! back when dropped.

pub mod affinity;
pub mod choose;
pub mod fleet;
mod queue;
pub mod retry;
pub mod trace;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};
use wire::{Labels, ModelFacts, ModelName, ModelView, Priority, WorkerId, WorkerView};

pub use self::fleet::Load;
use self::{
    affinity::{Context, Memory},
    choose::Need,
    fleet::{Admission, Claim, Fleet, Order, Use},
    queue::Ticket,
    retry::Budget,
    trace::{Trace, Traces},
};
use crate::metrics;
use crate::registry::members::{Ending, Event, Handed, Limits, Outcome, Refused, Target};

/// How requests wait.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Places in a model's queue for each slot that serves it.
    pub places_per_slot: u32,
    /// The longest wait.
    pub wait: Duration,
}

/// A request as far as its turn and its worker go.
#[derive(Debug)]
pub struct Request {
    /// The public id of the caller's key: queues are fair between keys.
    pub key: String,
    /// Whose turn it is.
    pub priority: Priority,
    /// Tokens that prompt and answer are expected to take.
    pub tokens: u64,
    /// Labels that the worker must have.
    pub labels: Labels,
    /// What is known of workers that cannot do what it asks.
    pub unfit: Vec<ModelFacts>,
    /// What a worker may remember of it.
    pub context: Context,
    /// Where decisions about it are kept.
    pub trace: Arc<Trace>,
}

/// What a request asks of the dispatcher.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// The request.
    pub request: &'a Request,
    /// Workers that have failed it already.
    pub tried: &'a [WorkerId],
    /// It has had a slot before, which came to nothing.
    pub again: bool,
}

/// Why a request got no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSlot {
    /// The registry has never heard of the model.
    #[error("the model is not known")]
    UnknownModel,
    /// No live worker serves it.
    #[error("no live worker serves the model")]
    NoWorker,
    /// Its workers are loading it.
    #[error("the model is being loaded")]
    Loading,
    /// All slots and all places in the queue are taken.
    #[error("all slots and queue places are taken")]
    QueueFull {
        /// About how long until one who waits now is served, if it can be told.
        wait: Option<Duration>,
    },
    /// No slot came free in time.
    #[error("no slot came free in time")]
    QueueTimeout {
        /// About how long it would have taken yet, if it can be told.
        wait: Option<Duration>,
    },
}

/// A slot on one worker, given back when dropped.
#[derive(Debug)]
pub struct Lease {
    claim: Claim,
    dispatcher: Arc<Dispatcher>,
    taken: Instant,
    /// Tokens generated so far, with when the first and the latest of them came.
    generated: Option<(u64, Instant, Instant)>,
}

type Asker = oneshot::Sender<Result<Lease, NoSlot>>;

/// Hands out slots; shared by all threads.
#[derive(Debug)]
pub struct Dispatcher {
    fleet: Mutex<Fleet<Asker>>,
    memory: Mutex<Memory>,
    longest_wait: Duration,
    /// The decisions about the latest requests.
    pub traces: Traces,
    /// Retries there may be.
    pub budget: Arc<Budget>,
    /// Wakes who asks workers of which a connection broke whether they live.
    pub doubts: Notify,
}

impl Lease {
    /// The worker to call.
    pub fn target(&self) -> &Arc<Target> {
        &self.claim.target
    }

    /// So many tokens have been generated, as far as is known now.
    pub fn generated(&mut self, tokens: u64) {
        if tokens > self.generated.map_or(0, |(known, ..)| known) {
            let now = Instant::now();
            let first = self.generated.map_or(now, |(_, first, _)| first);
            self.generated = Some((tokens, first, now));
        }
    }

    /// The worker answers: that is enough, if the request was to show whether it has recovered.
    pub fn answers(&self) {
        if self.claim.is_probe {
            self.report(Outcome::Fine, None);
        }
    }

    /// The worker has no room for the model for so long, which is no fault of its health.
    pub fn set_aside(&self, wait: Duration) {
        let Claim { target, model, .. } = &self.claim;
        let full = Event::Full(target.id.clone(), target.epoch, model.clone(), wait);
        let _ = self.dispatcher.apply(full);
    }

    /// Tells the registry how the worker did; the slot stays taken until the lease is dropped.
    pub fn report(&self, outcome: Outcome, reason: Option<String>) {
        let target = &self.claim.target;
        if outcome != Outcome::Fine {
            metrics::worker_failed();
        }
        let ending = Ending {
            outcome,
            is_probe: self.claim.is_probe,
            reason,
        };
        // A worker that left or came back meanwhile is judged no more.
        let judged = self
            .dispatcher
            .apply(Event::Ended(target.id.clone(), target.epoch, ending));
        if judged.is_ok() && outcome == Outcome::Broken {
            self.dispatcher.doubts.notify_one();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (generated, first, last) = self.generated.unwrap_or((0, self.taken, self.taken));
        let used = Use {
            held: self.taken.elapsed(),
            generated,
            decoding: last - first,
        };
        let claim = &self.claim;
        self.dispatcher.change(|fleet, now| fleet.release(claim, used, now));
    }
}

impl Dispatcher {
    /// A dispatcher without workers.
    pub fn new(limits: Limits, queue: QueueLimits) -> Self {
        Self {
            fleet: Mutex::new(Fleet::new(limits, queue.places_per_slot)),
            memory: Mutex::default(),
            longest_wait: queue.wait,
            traces: Traces::default(),
            budget: Arc::default(),
            doubts: Notify::new(),
        }
    }

    /// A slot at once, or after a wait in the queue; dropping the future gives the place up.
    pub async fn acquire(self: &Arc<Self>, ask: Ask<'_>) -> Result<Lease, NoSlot> {
        let began = Instant::now();
        let request = ask.request;
        if !ask.again {
            self.budget.request(began);
        }
        let mut lease = self
            .claim_or_wait(ask)
            .await
            .inspect_err(|no_slot| metrics::not_served(*no_slot))?;
        let queued = began.elapsed();
        self.memory().keep(&request.context, lease.claim.home);
        request.trace.claimed(&mut lease.claim, queued);
        metrics::dispatched(ask.model.as_str(), queued, lease.claim.reason);
        if !ask.tried.is_empty() {
            metrics::retried();
        }
        Ok(lease)
    }

    async fn claim_or_wait(self: &Arc<Self>, ask: Ask<'_>) -> Result<Lease, NoSlot> {
        let request = ask.request;
        let order = Order {
            need: Need {
                model: ask.model,
                tokens: request.tokens,
                labels: &request.labels,
                unfit: &request.unfit,
                tried: ask.tried,
                home: self.memory().find(&request.context),
            },
            key: &request.key,
            priority: request.priority,
            again: ask.again,
        };
        let mut answer = None;
        let admission = self.change(|fleet, now| {
            let asker = || {
                let (asker, granted) = oneshot::channel();
                answer = Some(granted);
                asker
            };
            fleet.admit(&order, asker, now)
        })?;
        match (admission, answer) {
            (Admission::Granted(claim), _) => Ok(self.lease(claim)),
            (Admission::Queued(ticket), Some(granted)) => {
                request.trace.waits(Some(ticket.clone()));
                let place = Waiting {
                    granted,
                    ticket,
                    model: ask.model.clone(),
                    dispatcher: self.clone(),
                };
                let served = place.served(self.longest_wait).await;
                request.trace.waits(None);
                served
            }
            // Whoever waits has a channel.
            (Admission::Queued(_), None) => Err(NoSlot::NoWorker),
        }
    }

    /// Changes the registry by one event of now, and wakes those who wait if that frees a slot for them.
    pub fn apply(self: &Arc<Self>, event: Event) -> Result<bool, Refused> {
        self.change(|fleet, now| {
            if let Event::Joined(member) = &event {
                for model in &member.models {
                    fleet.remember_model(model.clone(), crate::now_ms(), ModelFacts::default());
                }
            }
            fleet.apply(event, now)
        })
    }

    /// A model the registry knew before this program started.
    pub fn remember_model(&self, model: ModelName, since_ms: i64, facts: ModelFacts) {
        self.lock().remember_model(model, since_ms, facts);
    }

    /// All workers, by id.
    pub fn workers(&self) -> Vec<WorkerView> {
        self.lock().workers(Instant::now())
    }

    /// One worker.
    pub fn worker(&self, id: &WorkerId) -> Option<WorkerView> {
        let fleet = self.lock();
        let member = fleet.members().get(id)?;
        fleet.members().view(member, Instant::now())
    }

    /// All models the registry knows, by name.
    pub fn models(&self) -> Vec<ModelView> {
        self.lock().models(Instant::now())
    }

    /// One model.
    pub fn model(&self, id: &ModelName) -> Option<ModelView> {
        self.lock().model(id, Instant::now())
    }

    /// What is known of the workers of a model that are ready, each set of facts once; without any, what was last known.
    pub fn facts(&self, id: &ModelName) -> Vec<ModelFacts> {
        self.lock().facts(id, Instant::now())
    }

    /// How busy every known model's workers are.
    pub fn load(&self) -> Vec<Load> {
        self.lock().load(Instant::now())
    }

    /// How often workers were ejected since the start.
    pub fn ejections(&self) -> u64 {
        self.lock().members().ejections()
    }

    /// All workers, for a successor.
    pub fn hand(&self) -> Vec<Handed> {
        let now = Instant::now();
        self.lock()
            .members()
            .iter()
            .map(|member| Handed::of(member, now))
            .collect()
    }

    /// From here on nobody is heard: heartbeats go to the successor.
    pub fn hear_no_more(&self) {
        self.lock().hear_no_more();
    }

    /// Workers of ours of which a connection broke, and that have not been heard of since.
    pub fn doubted(&self) -> Vec<Arc<Target>> {
        let fleet = self.lock();
        fleet
            .members()
            .doubted(Instant::now())
            .map(|m| m.target.clone())
            .collect()
    }

    /// The places where workers of this kind are called.
    pub fn targets(&self, kind: wire::WorkerKind) -> Vec<Arc<Target>> {
        let fleet = self.lock();
        let of_kind = fleet.members().iter().filter(|m| m.target.kind == kind);
        of_kind.map(|m| m.target.clone()).collect()
    }

    fn place(&self, model: &ModelName, ticket: &Ticket) -> Option<(usize, Option<Duration>)> {
        self.lock().place(model, ticket, Instant::now())
    }

    /// Changes the fleet, and answers those for whom that changes something. Outside the lock: an answer whose asker
    /// has just gone is dropped here, which takes the lock again.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut Fleet<Asker>, Instant) -> T) -> T {
        let mut fleet = self.lock();
        let result = change(&mut fleet, Instant::now());
        let grants = fleet.take_grants();
        drop(fleet);
        for (asker, outcome) in grants {
            drop(asker.send(outcome.map(|claim| self.lease(claim))));
        }
        result
    }

    fn lease(self: &Arc<Self>, claim: Claim) -> Lease {
        Lease {
            claim,
            dispatcher: self.clone(),
            taken: Instant::now(),
            generated: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Fleet<Asker>> {
        // Nothing under this lock panics half-way through a change.
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue; dropping it gives it up.
struct Waiting {
    granted: oneshot::Receiver<Result<Lease, NoSlot>>,
    ticket: Ticket,
    model: ModelName,
    dispatcher: Arc<Dispatcher>,
}

impl Waiting {
    async fn served(mut self, longest: Duration) -> Result<Lease, NoSlot> {
        match tokio::time::timeout(longest, &mut self.granted).await {
            Ok(answer) => answer.unwrap_or(Err(NoSlot::NoWorker)),
            // An answer may have come in the last instant; then it is taken, not lost.
            Err(_) => self.granted.try_recv().unwrap_or_else(|_| {
                let place = self.dispatcher.place(&self.model, &self.ticket);
                let wait = place.and_then(|(_, wait)| wait);
                Err(NoSlot::QueueTimeout { wait })
            }),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.dispatcher.lock().leave(&self.model, &self.ticket);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
mod greedy_tests;

#[cfg(test)]
mod lease_tests;

#[cfg(test)]
mod simulation_tests;
