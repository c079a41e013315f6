//! Who is alive: the pure state of the registry. Every change is an event with the gateway's own time.
//!
//! It never does I/O, never reads a clock and never believes a worker's: silence is counted here.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use wire::{ModelFacts, ModelName, WorkerId, WorkerKind, WorkerState, WorkerView};

/// Failures in a row, short of a dead connection, after which a worker is ejected.
const FAILURES_TO_EJECT: u32 = 3;
/// The first ejection; each further one is twice as long (Envoy's outlier detection).
const FIRST_EJECTION: Duration = Duration::from_secs(30);
/// The longest ejection.
const LONGEST_EJECTION: Duration = Duration::from_secs(300);
/// How long a silent worker is still shown as lost.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Where and how a worker is called; shared by every lease on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The worker's id.
    pub id: WorkerId,
    /// The epoch of the registration meant.
    pub epoch: i64,
    /// Our program or an attached server.
    pub kind: WorkerKind,
    /// Base URL up to and without `/v1`.
    pub url: String,
    /// The bearer it wants; none for an attached server without a key.
    pub bearer: Option<Bearer>,
}

/// A bearer token that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer(pub String);

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer(…)")
    }
}

/// One worker as the registry knows it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Where and how it is called.
    pub target: Arc<Target>,
    /// The models it serves.
    pub models: Vec<ModelName>,
    /// What it runs on.
    pub device: String,
    /// How many requests it takes at once.
    pub slots: u32,
    /// Its process id, if it is ours.
    pub pid: Option<u32>,
    /// The machine it runs on.
    pub host: String,
    /// Its program's version.
    pub version: String,
    /// What it says of itself.
    pub reported: WorkerState,
    /// What is known about its model.
    pub facts: ModelFacts,
    /// How far loading is, from 0 to 1.
    pub progress: Option<f32>,
    /// What it is doing, or what it last failed with.
    pub message: Option<String>,
    /// Decode speed lately, in tokens per second.
    pub tokens_per_second: Option<f32>,
    /// Resident memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Leases on it now; only claims and releases change it.
    pub in_flight: u32,
    /// When it was last chosen, as a count of choices.
    pub last_chosen: u64,
    last_seen: Instant,
    drain_wanted: bool,
    health: Health,
}

#[derive(Debug, Clone, Default)]
struct Health {
    failures: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
    /// A connection to it broke; a later heartbeat proves it lives.
    broken: bool,
}

/// How a request on a worker went, as far as the worker's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did its part; also when the client left or was at fault.
    Fine,
    /// It answered 5xx, stalled or sent garbage.
    Failed,
    /// The connection could not be made, or broke.
    Broken,
}

/// What can happen to the registry.
#[derive(Debug)]
pub enum Event {
    /// A worker registered or a server was attached; it replaces whoever held the id.
    Joined(Box<Member>),
    /// A heartbeat came.
    Beat(WorkerId, wire::Heartbeat),
    /// An attached server answered its probe, or did not.
    Probed(WorkerId, Result<(), String>),
    /// A worker says it goes.
    Left(WorkerId, i64),
    /// An operator wants a worker to drain.
    DrainWanted(WorkerId),
    /// An operator removed a worker.
    Removed(WorkerId),
    /// A request on this worker, of this epoch, ended like this, for this reason.
    Ended(WorkerId, i64, Outcome, Option<String>),
    /// Time passed.
    Swept,
}

/// Why an event was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody here has that id.
    #[error("no worker here has that id")]
    Unknown,
    /// Another registration holds the id now.
    #[error("another registration holds this id now")]
    Stale,
}

/// The registry's limits on silence.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Silence after which a worker counts as lost.
    pub silence: Duration,
}

/// All workers.
#[derive(Debug)]
pub struct Members {
    by_id: HashMap<WorkerId, Member>,
    limits: Limits,
}

impl Members {
    /// An empty registry.
    pub fn new(limits: Limits) -> Self {
        Self {
            by_id: HashMap::new(),
            limits,
        }
    }

    /// Changes the state by one event that happened `now`; true if an operator wants the worker to drain.
    pub fn apply(&mut self, event: Event, now: Instant) -> Result<bool, Refused> {
        match event {
            Event::Joined(member) => {
                self.by_id.insert(member.target.id.clone(), *member);
                Ok(false)
            }
            Event::Beat(id, beat) => self.own(&id, beat.epoch).map(|member| {
                member.hear(beat, now);
                member.drain_wanted
            }),
            Event::Probed(id, result) => self.by_id.get_mut(&id).ok_or(Refused::Unknown).map(|member| {
                member.probed(result, now);
                false
            }),
            Event::Left(id, epoch) => {
                self.own(&id, epoch)?;
                self.by_id.remove(&id);
                Ok(false)
            }
            Event::DrainWanted(id) => self.by_id.get_mut(&id).ok_or(Refused::Unknown).map(|member| {
                member.drain_wanted = true;
                true
            }),
            Event::Removed(id) => self.by_id.remove(&id).map(|_| false).ok_or(Refused::Unknown),
            Event::Ended(id, epoch, outcome, reason) => {
                let ejectable = self.one_more_may_be_ejected(&id, now);
                self.held(&id, epoch).map(|member| {
                    member.judge(outcome, reason, ejectable, now);
                    false
                })
            }
            Event::Swept => {
                let forgotten = self.limits.silence + REMEMBERED;
                self.by_id
                    .retain(|_, m| m.is_attached() || m.in_flight > 0 || m.silent(now) < forgotten);
                Ok(false)
            }
        }
    }

    /// The worker of that id, if it holds this epoch.
    fn held(&mut self, id: &WorkerId, epoch: i64) -> Result<&mut Member, Refused> {
        let member = self.by_id.get_mut(id).ok_or(Refused::Unknown)?;
        if member.target.epoch == epoch {
            Ok(member)
        } else {
            Err(Refused::Stale)
        }
    }

    /// As [`Self::held`], but only a worker of ours: an attached server under the same id counts its own epochs.
    fn own(&mut self, id: &WorkerId, epoch: i64) -> Result<&mut Member, Refused> {
        self.held(id, epoch).and_then(|member| {
            if member.is_attached() {
                Err(Refused::Stale)
            } else {
                Ok(member)
            }
        })
    }

    /// At most half of those that serve the same model are ejected at a time.
    fn one_more_may_be_ejected(&self, id: &WorkerId, now: Instant) -> bool {
        let Some(model) = self.by_id.get(id).and_then(|m| m.models.first()) else {
            return false;
        };
        let serving = || self.by_id.values().filter(|m| m.models.contains(model));
        (serving().filter(|m| m.is_ejected(now)).count() + 1) * 2 <= serving().count()
    }

    /// One worker.
    pub fn get(&self, id: &WorkerId) -> Option<&Member> {
        self.by_id.get(id)
    }

    /// One worker, to count a lease on it.
    pub fn get_mut(&mut self, id: &WorkerId) -> Option<&mut Member> {
        self.by_id.get_mut(id)
    }

    /// All workers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    /// The workers that serve this model.
    pub fn serving<'a>(&'a self, model: &'a ModelName) -> impl Iterator<Item = &'a Member> {
        self.by_id.values().filter(move |m| m.models.contains(model))
    }

    /// Where a worker stands `now`.
    pub fn state(&self, member: &Member, now: Instant) -> WorkerState {
        if !member.is_attached() && member.silent(now) > self.limits.silence {
            WorkerState::Lost
        } else if member.drain_wanted {
            WorkerState::Draining
        } else if member.reported == WorkerState::Ready && (member.health.broken || member.is_ejected(now)) {
            WorkerState::Suspect
        } else {
            member.reported
        }
    }

    /// A worker as the control plane shows it.
    pub fn view(&self, member: &Member, now: Instant) -> Option<WorkerView> {
        Some(WorkerView {
            id: member.target.id.clone(),
            model: member.models.first()?.clone(),
            models: member.models.clone(),
            state: self.state(member, now),
            pid: member.pid,
            url: member.target.url.clone(),
            host: member.host.clone(),
            slots: member.slots,
            in_flight: member.in_flight,
            epoch: member.target.epoch,
            kind: member.target.kind,
            device: member.device.clone(),
            progress: member.progress,
            message: member.message.clone(),
            tokens_per_second: member.tokens_per_second,
            memory_bytes: member.memory_bytes,
            silent_ms: u64::try_from(member.silent(now).as_millis()).unwrap_or(u64::MAX),
            version: member.version.clone(),
            facts: member.facts.clone(),
        })
    }
}

impl Member {
    /// A worker that was just heard of.
    pub fn new(target: Target, models: Vec<ModelName>, slots: u32, now: Instant) -> Self {
        Self {
            target: Arc::new(target),
            models,
            device: String::new(),
            slots,
            pid: None,
            host: String::new(),
            version: String::new(),
            reported: WorkerState::Ready,
            facts: ModelFacts::default(),
            progress: None,
            message: None,
            tokens_per_second: None,
            memory_bytes: None,
            in_flight: 0,
            last_chosen: 0,
            last_seen: now,
            drain_wanted: false,
            health: Health::default(),
        }
    }

    /// Whether it is a server that an operator attached.
    pub fn is_attached(&self) -> bool {
        self.target.kind == WorkerKind::Attached
    }

    /// Whether it may be tried with one request only, to see if it has recovered.
    pub fn is_half_open(&self) -> bool {
        self.health.ejected_until.is_some()
    }

    fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_seen)
    }

    fn is_ejected(&self, now: Instant) -> bool {
        self.health.ejected_until.is_some_and(|until| now < until)
    }

    fn hear(&mut self, beat: wire::Heartbeat, now: Instant) {
        self.last_seen = now;
        self.reported = beat.state;
        self.progress = beat.progress;
        self.message = beat.message;
        self.tokens_per_second = beat.tokens_per_second;
        self.memory_bytes = beat.memory_bytes;
        self.facts = beat.facts;
        self.health.broken = false;
    }

    fn probed(&mut self, result: Result<(), String>, now: Instant) {
        match result {
            Ok(()) => {
                self.last_seen = now;
                self.reported = WorkerState::Ready;
                self.health.broken = false;
                self.message = None;
            }
            Err(why) => {
                self.reported = WorkerState::Suspect;
                self.message = Some(why);
            }
        }
    }

    fn judge(&mut self, outcome: Outcome, reason: Option<String>, ejectable: bool, now: Instant) {
        let health = &mut self.health;
        match outcome {
            Outcome::Fine => {
                *health = Health {
                    broken: health.broken,
                    ..Health::default()
                }
            }
            Outcome::Failed | Outcome::Broken => {
                health.failures += 1;
                health.broken |= outcome == Outcome::Broken;
                let probe_failed = health.ejected_until.is_some_and(|until| now >= until);
                if (health.failures >= FAILURES_TO_EJECT || probe_failed) && ejectable {
                    let doubled = FIRST_EJECTION.saturating_mul(1 << health.ejections.min(8));
                    health.ejected_until = Some(now + doubled.min(LONGEST_EJECTION));
                    health.ejections += 1;
                    health.failures = 0;
                }
                self.message = reason.or(self.message.take());
            }
        }
    }
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
