//! Who is alive: the pure state of the registry. Every change is an event with the gateway's own time.
//!
//! It never does I/O, never reads a clock and never believes a worker's: silence is counted here.

mod handed;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use wire::{Labels, ModelFacts, ModelName, WorkerId, WorkerKind, WorkerState, WorkerView};

pub use self::handed::Handed;
use super::health::Health;
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
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
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
    /// Decode speed lately, in tokens per second, as the worker tells it.
    pub tokens_per_second: Option<f32>,
    /// Resident memory in bytes.
    pub memory_bytes: Option<u64>,
    /// What an operator calls it; keys may want some of it.
    pub labels: Labels,
    /// How much more than its speed says it is to get; 1 is as much.
    pub weight: f32,
    /// Leases on it now; only claims and releases change it.
    pub in_flight: u32,
    /// Those of them that are to show whether it has recovered.
    pub probes: u32,
    /// Slots that nobody leases and that are taken all the same, as the worker tells it: cancelled, still busy.
    pub still_busy: u32,
    /// Tokens that those leases were expected to take.
    pub outstanding: u64,
    /// Tokens per second of one answer, as we have seen them come; a moving mean.
    pub pace: Option<f32>,
    /// When it was last chosen, as a count of choices.
    pub last_chosen: u64,
    last_seen: Instant,
    drain_wanted: bool,
    health: Health,
    /// For which models it has no room until when, as it says.
    full: Vec<(ModelName, Instant)>,
    work: Progress,
}

/// Whether a worker that holds requests gets anywhere: alive means progress.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Tokens it had generated in all, and requests its engine had let go of.
    done: (u64, u64),
    /// Since when it holds requests and has done no more than that.
    stuck_since: Option<Instant>,
}

/// What may be given to a worker now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As much as it has slots.
    Open,
    /// One request, to see whether it has recovered.
    HalfOpen,
    /// Nothing: it is ejected.
    Ejected,
    /// Nothing, for this reason.
    Closed(WorkerState),
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

/// How a request on a worker ended, and what that says of the worker.
#[derive(Debug)]
pub struct Ending {
    /// How it went.
    pub outcome: Outcome,
    /// Whether it was to show if the worker has recovered.
    pub is_probe: bool,
    /// Why it went like that.
    pub reason: Option<String>,
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
    /// A request on this worker, of this epoch, ended.
    Ended(WorkerId, i64, Ending),
    /// A worker of this epoch has proved that it lives.
    Proved(WorkerId, i64),
    /// A worker of this epoch has no room for requests to this model for so long, whatever slots it has.
    Full(WorkerId, i64, ModelName, Duration),
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
    /// How long a worker may hold requests without a token or an end before it is suspect.
    pub stall: Duration,
}

/// All workers.
#[derive(Debug)]
pub struct Members {
    // In order, so that the same events always lead to the same choices.
    by_id: BTreeMap<WorkerId, Member>,
    limits: Limits,
    ejections: u64,
}

impl Members {
    /// An empty registry.
    pub fn new(limits: Limits) -> Self {
        Self {
            by_id: BTreeMap::new(),
            limits,
            ejections: 0,
        }
    }

    /// Changes the state by one event that happened `now`; true if an operator wants the worker to drain.
    pub fn apply(&mut self, event: Event, now: Instant) -> Result<bool, Refused> {
        match event {
            Event::Joined(member) => {
                let (id, epoch) = (&member.target.id, member.target.epoch);
                // Two registrations at once may come here in the wrong order.
                let held = self
                    .by_id
                    .get(id)
                    .filter(|held| !held.is_attached() && !member.is_attached());
                if held.is_some_and(|held| held.target.epoch > epoch) {
                    return Err(Refused::Stale);
                }
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
            Event::Proved(id, epoch) => self.own(&id, epoch).map(|member| {
                member.health.broken = false;
                false
            }),
            Event::Full(id, epoch, model, wait) => self.held(&id, epoch).map(|member| {
                let until = member
                    .full_until(&model, now)
                    .map_or(now + wait, |until| until.max(now + wait));
                member.full.retain(|(of, until)| *of != model && *until > now);
                member.full.push((model, until));
                false
            }),
            Event::Ended(id, epoch, ending) => {
                let member = self.held(&id, epoch)?;
                member.judge(ending, now);
                if member.health.is_outlier(now) {
                    self.eject(&id, now);
                }
                Ok(false)
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

    /// At most half of those that serve a model are ejected at a time, unless all of them fail.
    fn eject(&mut self, id: &WorkerId, now: Instant) {
        let Some(models) = self.by_id.get(id).map(|member| member.models.clone()) else {
            return;
        };
        let rivals = || {
            self.by_id
                .values()
                .filter(|m| m.models.iter().any(|model| models.contains(model)))
        };
        let ejected = rivals().filter(|m| m.health.is_ejected(now)).count();
        let is_spared = (ejected + 1) * 2 > rivals().count();
        let all_fail = rivals().all(|m| m.health.is_ejected(now) || m.health.is_outlier(now));
        if is_spared && !all_fail {
            return;
        }
        for member in self.by_id.values_mut() {
            let is_one = member.target.id == *id || all_fail && member.models.iter().any(|m| models.contains(m));
            if is_one && member.health.is_outlier(now) {
                member.health.eject(now);
                self.ejections += 1;
            }
        }
    }

    /// From here on nobody is heard: that a worker is silent says nothing any more.
    pub fn hear_no_more(&mut self) {
        self.limits.silence = Duration::from_secs(u32::MAX.into());
    }

    /// How often workers were ejected since the start.
    pub fn ejections(&self) -> u64 {
        self.ejections
    }

    /// One worker.
    pub fn get(&self, id: &WorkerId) -> Option<&Member> {
        self.by_id.get(id)
    }

    /// One worker, to count a lease on it.
    pub fn get_mut(&mut self, id: &WorkerId) -> Option<&mut Member> {
        self.by_id.get_mut(id)
    }

    /// All workers, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    /// Workers of ours of which a connection broke, and that have not been heard of since; without those that are lost.
    pub fn doubted(&self, now: Instant) -> impl Iterator<Item = &Member> {
        let doubted = self.iter().filter(|m| m.health.broken && !m.is_attached());
        doubted.filter(move |m| m.silent(now) <= self.limits.silence)
    }

    /// The workers that serve this model.
    pub fn serving<'a>(&'a self, model: &'a ModelName) -> impl Iterator<Item = &'a Member> {
        self.by_id.values().filter(move |m| m.models.contains(model))
    }

    /// Where a worker stands `now`.
    pub fn state(&self, member: &Member, now: Instant) -> WorkerState {
        match self.standing(member, now) {
            Standing::Open | Standing::HalfOpen => WorkerState::Ready,
            Standing::Ejected => WorkerState::Suspect,
            Standing::Closed(state) => state,
        }
    }

    /// What may be given to a worker `now`.
    pub fn standing(&self, member: &Member, now: Instant) -> Standing {
        if !member.is_attached() && member.silent(now) > self.limits.silence {
            Standing::Closed(WorkerState::Lost)
        } else if member.drain_wanted {
            Standing::Closed(WorkerState::Draining)
        } else if member.reported != WorkerState::Ready {
            Standing::Closed(member.reported)
        } else if member.health.broken || member.is_stuck(self.limits.stall, now) {
            Standing::Closed(WorkerState::Suspect)
        } else if member.health.is_ejected(now) {
            Standing::Ejected
        } else if member.health.is_half_open(now) {
            Standing::HalfOpen
        } else {
            Standing::Open
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
            still_busy: member.still_busy,
            outstanding_tokens: member.outstanding,
            epoch: member.target.epoch,
            kind: member.target.kind,
            device: member.device.clone(),
            progress: member.progress,
            message: member.message.clone(),
            tokens_per_second: member.tokens_per_second,
            memory_bytes: member.memory_bytes,
            labels: member.labels.clone(),
            weight: member.weight,
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
            labels: Labels::new(),
            weight: 1.0,
            in_flight: 0,
            probes: 0,
            still_busy: 0,
            outstanding: 0,
            pace: None,
            last_chosen: 0,
            last_seen: now,
            drain_wanted: false,
            health: Health::default(),
            full: Vec::new(),
            work: Progress {
                done: (0, 0),
                stuck_since: None,
            },
        }
    }

    /// Whether it is a server that an operator attached.
    pub fn is_attached(&self) -> bool {
        self.target.kind == WorkerKind::Attached
    }

    /// The place where the caches of this registration lie: another epoch is another home.
    pub fn home(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.target.id, self.target.epoch).hash(&mut hasher);
        hasher.finish()
    }

    /// Tokens per second of one slot: as we have seen them, else as the worker's own speed shared by its slots says.
    #[expect(clippy::cast_precision_loss, reason = "a speed needs no more precision")]
    pub fn pace(&self) -> Option<f32> {
        let told = || self.tokens_per_second.map(|speed| speed / self.slots.max(1) as f32);
        self.pace.or_else(told).filter(|pace| pace.is_finite() && *pace > 0.0)
    }

    /// Takes one more request that is expected to take so many tokens, as the choice of this number; true if it shows
    /// whether the worker has recovered.
    pub fn claim(&mut self, tokens: u64, choice: u64, now: Instant) -> bool {
        self.in_flight += 1;
        self.outstanding += tokens;
        self.last_chosen = choice;
        self.health.try_again(now);
        let is_probe = self.health.is_half_open(now);
        self.probes += u32::from(is_probe);
        is_probe
    }

    /// Takes note of how fast one answer came, in tokens per second.
    pub fn note_pace(&mut self, seen: f32) {
        self.pace = Some(self.pace.map_or(seen, |pace| pace + (seen - pace) / 5.0));
    }

    /// Until when it has no room for requests to this model, as it says; none if it has.
    pub fn full_until(&self, model: &ModelName, now: Instant) -> Option<Instant> {
        let mut full = self.full.iter().filter(|(of, until)| of == model && now < *until);
        full.next().map(|(_, until)| *until)
    }

    /// Whether it is set aside as an outlier.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.health.is_ejected(now)
    }

    /// Whether it has held requests for longer than this without a token or an end.
    fn is_stuck(&self, stall: Duration, now: Instant) -> bool {
        let since = self.work.stuck_since;
        since.is_some_and(|since| now.saturating_duration_since(since) > stall)
    }

    fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_seen)
    }

    fn hear(&mut self, beat: wire::Heartbeat, now: Instant) {
        self.last_seen = now;
        let done = (beat.tokens_generated, beat.requests_ended);
        let goes_on = done != self.work.done;
        self.work = Progress {
            done,
            stuck_since: self
                .work
                .stuck_since
                .filter(|_| !goes_on)
                .or(Some(now))
                .filter(|_| beat.in_flight > 0),
        };
        self.still_busy = beat.still_busy;
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

    fn judge(&mut self, ending: Ending, now: Instant) {
        self.health.note(ending.outcome, ending.is_probe, now);
        if ending.outcome != Outcome::Fine {
            self.message = ending.reason.or(self.message.take());
        }
    }
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "model_tests.rs"]
mod model_tests;
