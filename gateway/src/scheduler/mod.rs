//! The dispatcher: gives a request a slot on one worker, or a place in a bounded queue that is fair between keys.
//!
//! Choice and claim are one step under one lock that is never held across an await.
//! It never speaks to a worker: it hands out a [`Lease`], and the lease gives the slot back when dropped.

pub mod choose;
mod queue;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use wire::{ModelName, ModelView, WorkerId, WorkerState, WorkerView};

use self::{
    choose::{Choice, choose},
    queue::{FairQueue, Ticket},
};
use crate::metrics;
use crate::registry::members::{Event, Limits, Member, Members, Outcome, Refused, Target};

/// How requests wait.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Places in a model's queue for each slot that serves it.
    pub places_per_slot: u32,
    /// The longest wait.
    pub wait: Duration,
}

/// What a request asks of the dispatcher.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// The public id of the caller's key: queues are fair between keys.
    pub key: &'a str,
    /// Workers that have failed this request already.
    pub tried: &'a [WorkerId],
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
    QueueFull,
    /// No slot came free in time.
    #[error("no slot came free in time")]
    QueueTimeout,
}

/// How busy a model's workers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// The model.
    pub model: ModelName,
    /// Slots of its workers that are ready.
    pub slots: u32,
    /// Slots that our requests hold.
    pub taken: u32,
    /// Requests that wait for one.
    pub queued: usize,
}

/// A slot on one worker, given back when dropped.
#[derive(Debug)]
pub struct Lease {
    target: Arc<Target>,
    dispatcher: Arc<Dispatcher>,
}

/// Hands out slots; shared by all threads.
#[derive(Debug)]
pub struct Dispatcher {
    fleet: Mutex<Fleet>,
    queue: QueueLimits,
}

#[derive(Debug)]
struct Fleet {
    members: Members,
    /// Every model ever served, with when it was first heard of.
    known: HashMap<ModelName, Known>,
    queues: HashMap<ModelName, FairQueue>,
    choices: u64,
}

#[derive(Debug, Clone)]
struct Known {
    since_ms: i64,
    facts: wire::ModelFacts,
}

impl Lease {
    /// The worker to call.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Tells the registry how the worker did; the slot stays taken until the lease is dropped.
    pub fn report(&self, outcome: Outcome, reason: Option<String>) {
        let target = &self.target;
        if outcome != Outcome::Fine {
            metrics::worker_failed();
        }
        // A worker that left or came back meanwhile is judged no more.
        let _ = self
            .dispatcher
            .apply(Event::Ended(target.id.clone(), target.epoch, outcome, reason));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.dispatcher.release(&self.target);
    }
}

impl Dispatcher {
    /// A dispatcher without workers.
    pub fn new(limits: Limits, queue: QueueLimits) -> Self {
        let fleet = Fleet {
            members: Members::new(limits),
            known: HashMap::new(),
            queues: HashMap::new(),
            choices: 0,
        };
        Self {
            fleet: Mutex::new(fleet),
            queue,
        }
    }

    /// A slot at once, or after a wait in the queue; dropping the future gives the place up.
    pub async fn acquire(self: &Arc<Self>, ask: Ask<'_>) -> Result<Lease, NoSlot> {
        let began = Instant::now();
        let (model, is_retry) = (ask.model.clone(), !ask.tried.is_empty());
        let lease = self.claim_or_wait(ask).await?;
        metrics::waited(model.as_str(), began.elapsed());
        if is_retry {
            metrics::retried();
        }
        Ok(lease)
    }

    async fn claim_or_wait(self: &Arc<Self>, ask: Ask<'_>) -> Result<Lease, NoSlot> {
        let place = {
            let mut fleet = self.lock();
            match fleet.admit(&ask, self.queue.places_per_slot)? {
                Admission::Granted(target) => return Ok(self.lease(target)),
                Admission::Queued(granted, ticket) => Place {
                    granted,
                    ticket,
                    model: ask.model.clone(),
                    dispatcher: self.clone(),
                },
            }
        };
        place.wait(self.queue.wait).await
    }

    /// Changes the registry by one event of now, and wakes those who wait if that frees a slot for them.
    pub fn apply(self: &Arc<Self>, event: Event) -> Result<bool, Refused> {
        let mut fleet = self.lock();
        if let Event::Joined(member) = &event {
            fleet.note_models(member);
        }
        let beat_of = if let Event::Beat(id, _) = &event {
            Some(id.clone())
        } else {
            None
        };
        let result = fleet.members.apply(event, Instant::now());
        if let Some(id) = beat_of.filter(|_| result.is_ok()) {
            fleet.note_facts(&id);
        }
        let grants = fleet.serve_queues();
        drop(fleet);
        self.hand_out(grants);
        result
    }

    /// A model the registry knew before this program started.
    pub fn remember_model(&self, model: ModelName, since_ms: i64, facts: wire::ModelFacts) {
        self.lock().known.entry(model).or_insert(Known { since_ms, facts });
    }

    /// All workers, by id.
    pub fn workers(&self) -> Vec<WorkerView> {
        let fleet = self.lock();
        let now = Instant::now();
        let mut views: Vec<_> = fleet
            .members
            .iter()
            .filter_map(|m| fleet.members.view(m, now))
            .collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    /// One worker.
    pub fn worker(&self, id: &WorkerId) -> Option<WorkerView> {
        let fleet = self.lock();
        fleet
            .members
            .get(id)
            .and_then(|m| fleet.members.view(m, Instant::now()))
    }

    /// All models the registry knows, by name.
    pub fn models(&self) -> Vec<ModelView> {
        let fleet = self.lock();
        let now = Instant::now();
        let mut views: Vec<_> = fleet
            .known
            .iter()
            .map(|(id, known)| fleet.model_view(id, known, now))
            .collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    /// One model.
    pub fn model(&self, id: &ModelName) -> Option<ModelView> {
        let fleet = self.lock();
        fleet
            .known
            .get(id)
            .map(|known| fleet.model_view(id, known, Instant::now()))
    }

    /// How busy every known model's workers are.
    pub fn load(&self) -> Vec<Load> {
        let fleet = self.lock();
        let now = Instant::now();
        let load = |model: &ModelName| {
            let serving = || fleet.members.serving(model);
            let ready = serving().filter(|m| fleet.members.state(m, now) == WorkerState::Ready);
            Load {
                model: model.clone(),
                slots: ready.map(|m| m.slots).sum(),
                taken: serving().map(|m| m.in_flight).sum(),
                queued: fleet.queues.get(model).map_or(0, FairQueue::len),
            }
        };
        fleet.known.keys().map(load).collect()
    }

    /// The places where workers of this kind are called.
    pub fn targets(&self, kind: wire::WorkerKind) -> Vec<Arc<Target>> {
        self.lock()
            .members
            .iter()
            .filter(|m| m.target.kind == kind)
            .map(|m| m.target.clone())
            .collect()
    }

    fn release(self: &Arc<Self>, target: &Target) {
        let mut fleet = self.lock();
        // A worker that registered anew starts with no leases: the old epoch's are not its own.
        if let Some(member) = fleet
            .members
            .get_mut(&target.id)
            .filter(|m| m.target.epoch == target.epoch)
        {
            member.in_flight = member.in_flight.saturating_sub(1);
        }
        let grants = fleet.serve_queues();
        drop(fleet);
        self.hand_out(grants);
    }

    /// Outside the lock: a grant whose asker has just gone is dropped here, which takes the lock again.
    fn hand_out(self: &Arc<Self>, grants: Vec<(oneshot::Sender<Lease>, Arc<Target>)>) {
        for (asker, target) in grants {
            drop(asker.send(self.lease(target)));
        }
    }

    fn lease(self: &Arc<Self>, target: Arc<Target>) -> Lease {
        Lease {
            target,
            dispatcher: self.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Fleet> {
        // Nothing under this lock panics half-way through a change.
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Admission {
    Granted(Arc<Target>),
    Queued(oneshot::Receiver<Lease>, Ticket),
}

impl Fleet {
    fn admit(&mut self, ask: &Ask<'_>, places_per_slot: u32) -> Result<Admission, NoSlot> {
        if !self.known.contains_key(ask.model) {
            return Err(NoSlot::UnknownModel);
        }
        let slots = match choose(&self.members, ask.model, ask.tried, Instant::now()) {
            Choice::Worker(id) if self.queues.get(ask.model).is_none_or(FairQueue::is_empty) => {
                return self.claim(&id).map(Admission::Granted).ok_or(NoSlot::NoWorker);
            }
            // Others wait for this very slot: take a place behind them.
            Choice::Worker(_) => 1,
            Choice::Busy { slots } => slots,
            Choice::Loading => return Err(NoSlot::Loading),
            Choice::Nobody => return Err(NoSlot::NoWorker),
        };
        let queue = self.queues.entry(ask.model.clone()).or_default();
        if queue.len() >= slots.saturating_mul(places_per_slot) as usize {
            return Err(NoSlot::QueueFull);
        }
        let (sender, granted) = oneshot::channel();
        let ticket = queue.push(ask.key, ask.tried.to_vec(), sender);
        Ok(Admission::Queued(granted, ticket))
    }

    fn claim(&mut self, id: &WorkerId) -> Option<Arc<Target>> {
        self.choices += 1;
        let member = self.members.get_mut(id)?;
        member.in_flight += 1;
        member.last_chosen = self.choices;
        Some(member.target.clone())
    }

    /// Matches those who wait with slots that are free now.
    fn serve_queues(&mut self) -> Vec<(oneshot::Sender<Lease>, Arc<Target>)> {
        let mut grants = Vec::new();
        if self.queues.is_empty() {
            return grants;
        }
        let now = Instant::now();
        let mut queues = std::mem::take(&mut self.queues);
        for (model, queue) in &mut queues {
            let claims = &mut grants;
            queue.serve(|waiter| {
                let Choice::Worker(id) = choose(&self.members, model, &waiter.tried, now) else {
                    return Some(waiter);
                };
                match self.claim(&id) {
                    Some(target) => {
                        claims.push((waiter.asker, target));
                        None
                    }
                    None => Some(waiter),
                }
            });
        }
        queues.retain(|_, queue| !queue.is_empty());
        self.queues = queues;
        grants
    }

    fn note_models(&mut self, member: &Member) {
        for model in &member.models {
            let known = self.known.entry(model.clone()).or_insert_with(|| Known {
                since_ms: crate::now_ms(),
                facts: wire::ModelFacts::default(),
            });
            if member.facts != wire::ModelFacts::default() {
                known.facts = member.facts.clone();
            }
        }
    }

    fn note_facts(&mut self, id: &WorkerId) {
        let Some(member) = self.members.get(id) else { return };
        for model in &member.models {
            if let Some(known) = self.known.get_mut(model).filter(|k| k.facts != member.facts) {
                known.facts = member.facts.clone();
            }
        }
    }

    fn model_view(&self, id: &ModelName, known: &Known, now: Instant) -> ModelView {
        let count = |state| {
            let n = self
                .members
                .serving(id)
                .filter(|m| self.members.state(m, now) == state)
                .count();
            u32::try_from(n).unwrap_or(u32::MAX)
        };
        ModelView {
            id: id.clone(),
            created_at_ms: known.since_ms,
            workers_ready: count(WorkerState::Ready),
            workers_loading: count(WorkerState::Loading),
            facts: known.facts.clone(),
        }
    }
}

/// A place in the queue; dropping it gives it up.
struct Place {
    granted: oneshot::Receiver<Lease>,
    ticket: Ticket,
    model: ModelName,
    dispatcher: Arc<Dispatcher>,
}

impl Place {
    async fn wait(mut self, longest: Duration) -> Result<Lease, NoSlot> {
        match tokio::time::timeout(longest, &mut self.granted).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(_)) => Err(NoSlot::NoWorker),
            // A grant may have come in the last instant; then it is taken, not lost.
            Err(_) => self.granted.try_recv().map_err(|_| NoSlot::QueueTimeout),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut fleet = self.dispatcher.lock();
        if let Some(queue) = fleet.queues.get_mut(&self.model) {
            queue.remove(&self.ticket);
            if queue.is_empty() {
                fleet.queues.remove(&self.model);
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
