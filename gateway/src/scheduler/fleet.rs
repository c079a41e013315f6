//! Workers, models and queues together: who gets a slot now, who waits, and who is served when something changes.
//!
//! Pure: every change is a call with the time it happens at, and what it leads to is kept in [`Fleet::take_grants`] for
//! whoever can send. It never waits, and never gives a worker more than its slots.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use wire::{ModelFacts, ModelName, ModelView, Priority, Reason, WorkerId, WorkerState, WorkerView, openai::ability};

use super::{
    NoSlot,
    choose::{Candidate, Choice, Need, choose, has_room, survey},
    queue::{FairQueue, Ticket, Wish},
};
use crate::registry::members::{Event, Limits, Member, Members, Refused, Target};

/// An answer with fewer tokens, or that came faster, says nothing about a worker's speed.
const TELLING: (u64, Duration) = (8, Duration::from_millis(100));

/// What a request asks of the fleet.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// What it needs of a worker.
    pub need: Need<'a>,
    /// Whose it is: queues are fair between keys.
    pub key: &'a str,
    /// Whose turn it is.
    pub priority: Priority,
    /// It has had a slot before.
    pub again: bool,
}

/// A slot that was taken.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The worker.
    pub target: Arc<Target>,
    /// The model.
    pub model: ModelName,
    /// Where the request's context lies from now on.
    pub home: u64,
    /// Tokens it is expected to take.
    pub tokens: u64,
    /// Why this worker.
    pub reason: Reason,
    /// What comes of it decides whether the worker, set aside before, has recovered.
    pub is_probe: bool,
    /// All workers of the model as they stood.
    pub candidates: Vec<Candidate>,
}

/// What a request used of the slot it gives back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Use {
    /// How long it had the slot.
    pub held: Duration,
    /// Tokens that were generated.
    pub generated: u64,
    /// From the first of them to the last.
    pub decoding: Duration,
}

/// What became of a request at once.
#[derive(Debug)]
pub enum Admission {
    /// It has a slot.
    Granted(Claim),
    /// It waits.
    Queued(Ticket),
}

/// What became of one who waited: a slot, or no place any more.
pub type Grant<A> = (A, Result<Claim, NoSlot>);

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

/// All of it; `A` is where one who waits is answered.
#[derive(Debug)]
pub struct Fleet<A> {
    members: Members,
    /// Every model ever served.
    known: HashMap<ModelName, Known>,
    queues: BTreeMap<ModelName, FairQueue<A>>,
    places_per_slot: u32,
    choices: u64,
    /// Places in queues that were ever given out.
    tickets: u64,
    grants: Vec<Grant<A>>,
}

#[derive(Debug, Clone)]
struct Known {
    since_ms: i64,
    facts: ModelFacts,
    /// How long a request has a slot, as a moving mean.
    held: Option<Duration>,
}

impl<A> Fleet<A> {
    /// One without workers, with so many queue places for each slot of a model.
    pub fn new(limits: Limits, places_per_slot: u32) -> Self {
        Self {
            members: Members::new(limits),
            known: HashMap::new(),
            queues: BTreeMap::new(),
            places_per_slot,
            choices: 0,
            tickets: 0,
            grants: Vec::new(),
        }
    }

    /// Gives a request a slot, or a place in the queue; `asker` is where one who waits is answered.
    pub fn admit(&mut self, order: &Order<'_>, asker: impl FnOnce() -> A, now: Instant) -> Result<Admission, NoSlot> {
        let need = &order.need;
        if !self.known.contains_key(need.model) {
            return Err(NoSlot::UnknownModel);
        }
        // Time alone may have freed a slot; those who wait come first.
        self.serve(need.model, now);
        let slots = match choose(&self.members, need, now) {
            Choice::Worker(id, reason) => {
                let claim = claim(&mut self.members, &mut self.choices, need, &id, reason, now);
                return claim.map(Admission::Granted).ok_or(NoSlot::NoWorker);
            }
            Choice::Busy { slots } => slots,
            Choice::Full { until } => {
                let wait = Some(until.saturating_duration_since(now));
                return Err(NoSlot::QueueFull { wait });
            }
            Choice::Loading => return Err(NoSlot::Loading),
            Choice::Nobody => return Err(NoSlot::NoWorker),
        };
        // Those who wait for other workers of the model are in the queue, too, so their slots count as well.
        let slots = slots.max(self.ready_slots(need.model, now));
        let places = slots.saturating_mul(self.places_per_slot) as usize;
        let queue = self.queues.entry(need.model.clone()).or_default();
        if queue.len() >= places && !order.again {
            let wait = self.known.get(need.model).and_then(|known| known.held);
            let wait = wait.and_then(|held| estimate(held, queue.len() + 1, slots));
            let Some(asker) = queue.make_room(order.priority, order.key, places) else {
                if queue.is_empty() {
                    self.queues.remove(need.model);
                }
                return Err(NoSlot::QueueFull { wait });
            };
            self.grants.push((asker, Err(NoSlot::QueueFull { wait })));
        }
        let wish = Wish {
            tokens: need.tokens,
            labels: need.labels.clone(),
            unfit: need.unfit.to_vec(),
            tried: need.tried.to_vec(),
            again: order.again,
            home: need.home,
        };
        self.tickets += 1;
        let ticket = queue.push(self.tickets, order.priority, order.key, wish, asker());
        Ok(Admission::Queued(ticket))
    }

    /// Gives a slot back, with what was used of it.
    pub fn release(&mut self, claim: &Claim, used: Use, now: Instant) {
        // A worker that registered anew starts with no leases: the old epoch's are not its own.
        let member = self.members.get_mut(&claim.target.id);
        if let Some(member) = member.filter(|m| m.target.epoch == claim.target.epoch) {
            member.in_flight = member.in_flight.saturating_sub(1);
            member.probes = member.probes.saturating_sub(u32::from(claim.is_probe));
            member.outstanding = member.outstanding.saturating_sub(claim.tokens);
            if used.generated >= TELLING.0 && used.decoding >= TELLING.1 {
                #[expect(clippy::cast_precision_loss, reason = "a speed needs no more precision")]
                member.note_pace((used.generated - 1) as f32 / used.decoding.as_secs_f32());
            }
        }
        // One that came to nothing says nothing of how long those take that come to something.
        if let Some(known) = self.known.get_mut(&claim.model).filter(|_| used.generated > 0) {
            let mean = known.held.map_or(used.held, |held| (held * 4 + used.held) / 5);
            known.held = Some(mean);
        }
        self.serve_all(now);
    }

    /// Changes the registry by one event; true if an operator wants the worker to drain.
    pub fn apply(&mut self, event: Event, now: Instant) -> Result<bool, Refused> {
        let tells = match &event {
            Event::Beat(id, _) => Some(id.clone()),
            Event::Joined(member) if member.facts != ModelFacts::default() => Some(member.target.id.clone()),
            _ => None,
        };
        let result = self.members.apply(event, now);
        if let Some(id) = tells.filter(|_| result.is_ok()) {
            self.note_facts(&id);
        }
        self.serve_all(now);
        result
    }

    /// Gives a place in the queue up.
    pub fn leave(&mut self, model: &ModelName, ticket: &Ticket) {
        if let Some(queue) = self.queues.get_mut(model) {
            queue.remove(ticket);
            if queue.is_empty() {
                self.queues.remove(model);
            }
        }
    }

    /// About how many are served up to and with this one, and how long that takes if it can be told.
    pub fn place(&self, model: &ModelName, ticket: &Ticket, now: Instant) -> Option<(usize, Option<Duration>)> {
        let position = self.queues.get(model)?.position(ticket)?;
        let wait = self.known.get(model).and_then(|known| known.held);
        Some((
            position,
            wait.and_then(|held| estimate(held, position, self.ready_slots(model, now))),
        ))
    }

    /// What has become of those who waited since this was last asked.
    pub fn take_grants(&mut self) -> Vec<Grant<A>> {
        std::mem::take(&mut self.grants)
    }

    /// A model that is, or was, served here.
    pub fn remember_model(&mut self, model: ModelName, since_ms: i64, facts: ModelFacts) {
        self.known.entry(model).or_insert(Known {
            since_ms,
            facts,
            held: None,
        });
    }

    /// All workers.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// From here on nobody is heard: that a worker is silent says nothing any more.
    pub fn hear_no_more(&mut self) {
        self.members.hear_no_more();
    }

    /// All workers as the control plane shows them, by id.
    pub fn workers(&self, now: Instant) -> Vec<WorkerView> {
        let mut views: Vec<_> = self.members.iter().filter_map(|m| self.members.view(m, now)).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    /// All models the registry knows, by name.
    pub fn models(&self, now: Instant) -> Vec<ModelView> {
        let mut views: Vec<_> = self
            .known
            .iter()
            .map(|(id, known)| self.model_view(id, known, now))
            .collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    /// One model.
    pub fn model(&self, id: &ModelName, now: Instant) -> Option<ModelView> {
        self.known.get(id).map(|known| self.model_view(id, known, now))
    }

    /// What is known of the workers of a model that are ready, each set of facts once; without any, what was last known.
    pub fn facts(&self, id: &ModelName, now: Instant) -> Vec<ModelFacts> {
        let mut facts: Vec<ModelFacts> = Vec::new();
        for ready in self.ready(id, now) {
            if !facts.contains(&ready.facts) {
                facts.push(ready.facts.clone());
            }
        }
        if facts.is_empty() {
            facts.extend(self.known.get(id).map(|known| known.facts.clone()));
        }
        facts
    }

    /// How busy every known model's workers are.
    pub fn load(&self, now: Instant) -> Vec<Load> {
        let load = |model: &ModelName| Load {
            model: model.clone(),
            slots: self.ready_slots(model, now),
            taken: self.members.serving(model).map(|m| m.in_flight).sum(),
            queued: self.queues.get(model).map_or(0, FairQueue::len),
        };
        self.known.keys().map(load).collect()
    }

    fn ready_slots(&self, model: &ModelName, now: Instant) -> u32 {
        self.ready(model, now).map(|m| m.slots).sum()
    }

    fn ready<'a>(&'a self, id: &'a ModelName, now: Instant) -> impl Iterator<Item = &'a Member> {
        let serving = self.members.serving(id);
        serving.filter(move |member| self.members.state(member, now) == WorkerState::Ready)
    }

    fn serve_all(&mut self, now: Instant) {
        if self.queues.is_empty() {
            return;
        }
        for model in self.queues.keys().cloned().collect::<Vec<_>>() {
            self.serve(&model, now);
        }
    }

    /// Matches those who wait for a model with slots that are free now.
    fn serve(&mut self, model: &ModelName, now: Instant) {
        let Some(queue) = self.queues.get_mut(model) else {
            return;
        };
        while has_room(&self.members, model, now) {
            let members = &mut self.members;
            let choices = &mut self.choices;
            let served = queue.serve(|wish| {
                let need = Need {
                    model,
                    tokens: wish.tokens,
                    labels: &wish.labels,
                    unfit: &wish.unfit,
                    tried: &wish.tried,
                    home: wish.home,
                };
                match choose(members, &need, now) {
                    Choice::Worker(id, reason) => claim(members, choices, &need, &id, reason, now),
                    _ => None,
                }
            });
            // What is free may be of no use to any of those who wait.
            let Some((waiter, claim)) = served else { break };
            self.grants.push((waiter.asker, Ok(claim)));
        }
        if queue.is_empty() {
            self.queues.remove(model);
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
            let of_state = |m: &&Member| self.members.state(m, now) == state;
            u32::try_from(self.members.serving(id).filter(of_state).count()).unwrap_or(u32::MAX)
        };
        ModelView {
            id: id.clone(),
            created_at_ms: known.since_ms,
            workers_ready: count(WorkerState::Ready),
            workers_loading: count(WorkerState::Loading),
            facts: match self.ready(id, now).next() {
                None => known.facts.clone(),
                Some(_) => ability::together(self.ready(id, now).map(|member| &member.facts)),
            },
        }
    }
}

fn claim(
    members: &mut Members,
    choices: &mut u64,
    need: &Need<'_>,
    id: &WorkerId,
    reason: Reason,
    now: Instant,
) -> Option<Claim> {
    let candidates = survey(members, need, id, now);
    let member = members.get_mut(id)?;
    *choices += 1;
    let is_probe = member.claim(need.tokens, *choices, now);
    Some(Claim {
        target: member.target.clone(),
        model: need.model.clone(),
        home: member.home(),
        tokens: need.tokens,
        reason,
        is_probe,
        candidates,
    })
}

/// How long until the one in this position is served, where a slot is held for so long at a time.
fn estimate(held: Duration, position: usize, slots: u32) -> Option<Duration> {
    let position = u32::try_from(position).unwrap_or(u32::MAX);
    (slots > 0).then(|| held.saturating_mul(position) / slots)
}
