//! Which worker takes a request: a pure function of what is known now.
//!
//! The least work before it wins, measured by each worker's speed; a worker that has the request's context in its
//! cache wins over that while it is not twice as far behind. It never waits, claims nothing and reads no clock.

use std::{sync::Arc, time::Instant};

use wire::{Labels, ModelFacts, ModelName, Reason, Verdict, WorkerId, WorkerState};

use super::affinity::Home;
use crate::registry::members::{Member, Members, Standing, Target};

/// How much more work than the best may be before a worker that has the context.
const WORTH_OF_CONTEXT: f32 = 2.0;
/// Speeds within this ratio are the same speed: else the slightly faster of two equals would get everything.
const SAME_SPEED: f32 = 1.25;

/// What a request needs of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Need<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// Tokens it is expected to take.
    pub tokens: u64,
    /// Labels that the worker must have.
    pub labels: &'a Labels,
    /// What is known of workers that cannot do what it asks.
    pub unfit: &'a [ModelFacts],
    /// Workers that have failed it already.
    pub tried: &'a [WorkerId],
    /// Where its context lies, if anywhere.
    pub home: Option<Home>,
}

/// What the choice found.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// This worker has a free slot.
    Worker(WorkerId, Reason),
    /// Workers could take it, but all their slots are taken.
    Busy {
        /// Slots of all of them together.
        slots: u32,
    },
    /// Those that could take it have said that they have no room before then.
    Full {
        /// When the first of them has.
        until: Instant,
    },
    /// Workers serve the model, but all are still loading it.
    Loading,
    /// No worker that serves the model is alive, or all that are were tried already.
    Nobody,
}

/// A worker as it stood when a choice was made.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The worker.
    pub target: Arc<Target>,
    /// What the choice made of it.
    pub verdict: Verdict,
    /// Its score, of which the least wins.
    pub score: f32,
    /// Requests of ours it held.
    pub in_flight: u32,
    /// How many it takes at once.
    pub slots: u32,
    /// Tokens those requests were expected to take.
    pub outstanding: u64,
    /// Tokens per second of one slot, if known.
    pub pace: Option<f32>,
    /// Whether the request's context was there.
    pub has_context: bool,
}

/// The best worker for a request; among equals the one chosen longest ago.
pub fn choose(members: &Members, need: &Need<'_>, now: Instant) -> Choice {
    let fleet = Fleet::of(members, need.model, now);
    let mut best: Option<(f32, &Member)> = None;
    let mut home: Option<(f32, &Member)> = None;
    let (mut slots, mut full_until, mut loading, mut able) = (0, None::<Instant>, false, 0);
    for member in members.serving(need.model) {
        match fleet.verdict(member, need) {
            Verdict::Passed => {
                able += 1;
                let score = fleet.score(member, need.tokens);
                if best.is_none_or(|(least, b)| (score, member.last_chosen) < (least, b.last_chosen)) {
                    best = Some((score, member));
                }
                if need.home.is_some_and(|home| home.worker == member.home()) {
                    home = Some((score, member));
                }
            }
            Verdict::Busy if member.full_until(need.model, now).is_some() => {
                let until = member.full_until(need.model, now);
                full_until = [full_until, until].into_iter().flatten().min();
            }
            Verdict::Busy | Verdict::StillBusy | Verdict::OnTrial => slots += member.slots,
            Verdict::Loading => loading = true,
            _ => {}
        }
    }
    let Some((least, best)) = best else {
        return match (slots, full_until) {
            (1.., _) => Choice::Busy { slots },
            (0, Some(until)) => Choice::Full { until },
            (0, None) if loading => Choice::Loading,
            (0, None) => Choice::Nobody,
        };
    };
    let id = |member: &Member| member.target.id.clone();
    match (home, need.home) {
        (Some((score, member)), Some(Home { by, .. })) if score <= least * WORTH_OF_CONTEXT => {
            Choice::Worker(id(member), by)
        }
        _ if able == 1 => Choice::Worker(id(best), Reason::OnlyOne),
        _ => Choice::Worker(id(best), Reason::LeastWork),
    }
}

/// Whether any worker of the model could take anything now.
pub fn has_room(members: &Members, model: &ModelName, now: Instant) -> bool {
    let fleet = Fleet::of(members, model, now);
    members.serving(model).any(|member| fleet.room(member).is_ok())
}

/// All workers of the model as they stand now, of whom this one is chosen; for whoever asks why.
pub fn survey(members: &Members, need: &Need<'_>, chosen: &WorkerId, now: Instant) -> Vec<Candidate> {
    let fleet = Fleet::of(members, need.model, now);
    let candidate = |member: &Member| Candidate {
        target: member.target.clone(),
        verdict: match fleet.verdict(member, need) {
            Verdict::Passed if member.target.id == *chosen => Verdict::Chosen,
            verdict => verdict,
        },
        score: fleet.score(member, need.tokens),
        in_flight: member.in_flight,
        slots: member.slots,
        outstanding: member.outstanding,
        pace: member.pace(),
        has_context: need.home.is_some_and(|home| home.worker == member.home()),
    };
    members.serving(need.model).map(candidate).collect()
}

/// What is true of all workers of a model together.
struct Fleet<'a> {
    members: &'a Members,
    model: &'a ModelName,
    now: Instant,
    /// The mean speed of a slot, for workers whose own is not known.
    pace: f32,
    /// Nobody is left who was not ejected: then each is tried again with one request at once.
    all_ejected: bool,
}

impl<'a> Fleet<'a> {
    fn of(members: &'a Members, model: &'a ModelName, now: Instant) -> Self {
        let (mut sum, mut known, mut ejected, mut open) = (0.0, 0_u16, false, false);
        for member in members.serving(model) {
            if let Some(pace) = member.pace() {
                (sum, known) = (sum + pace, known + 1);
            }
            match members.standing(member, now) {
                Standing::Open | Standing::HalfOpen => open = true,
                Standing::Ejected => ejected = true,
                Standing::Closed(_) => {}
            }
        }
        Self {
            members,
            model,
            now,
            pace: if known == 0 { 1.0 } else { sum / f32::from(known) },
            all_ejected: ejected && !open,
        }
    }

    /// Whether a worker has room for one more, or why not.
    fn room(&self, member: &Member) -> Result<(), Verdict> {
        let (taken, most, full) = match self.members.standing(member, self.now) {
            Standing::Open => (member.in_flight, member.slots, Verdict::Busy),
            Standing::HalfOpen => (member.probes, 1, Verdict::OnTrial),
            Standing::Ejected if self.all_ejected => (member.probes, 1, Verdict::OnTrial),
            Standing::Ejected => (0, 0, Verdict::Ejected),
            Standing::Closed(state) => (0, 0, closed(state)),
        };
        if taken >= most {
            Err(full)
        } else if member.in_flight >= member.slots || member.full_until(self.model, self.now).is_some() {
            Err(Verdict::Busy)
        } else if member.in_flight.saturating_add(member.still_busy) >= member.slots {
            Err(Verdict::StillBusy)
        } else {
            Ok(())
        }
    }

    /// What is to be made of a worker; [`Verdict::Passed`] if it could take the request.
    fn verdict(&self, member: &Member, need: &Need<'_>) -> Verdict {
        if need.tried.contains(&member.target.id) {
            return Verdict::Tried;
        }
        if need
            .labels
            .iter()
            .any(|(key, value)| member.labels.get(key) != Some(value))
        {
            return Verdict::Unlabelled;
        }
        if need.unfit.contains(&member.facts) {
            return Verdict::Unfit;
        }
        self.room(member).err().unwrap_or(Verdict::Passed)
    }

    /// Tokens before and of a request, by the speed of the worker; in seconds if speeds are known.
    #[expect(clippy::cast_precision_loss, reason = "a score needs no more precision")]
    fn score(&self, member: &Member, tokens: u64) -> f32 {
        let pace = member.pace().unwrap_or(self.pace);
        let step = (pace.ln() / SAME_SPEED.ln()).round();
        let speed = SAME_SPEED.powf(step) * member.slots as f32 * member.weight;
        (member.outstanding + tokens.max(1)) as f32 / speed
    }
}

fn closed(state: WorkerState) -> Verdict {
    match state {
        WorkerState::Loading => Verdict::Loading,
        WorkerState::Draining => Verdict::Draining,
        WorkerState::Ready | WorkerState::Suspect => Verdict::Suspect,
        WorkerState::Lost => Verdict::Lost,
        WorkerState::Quarantined => Verdict::Quarantined,
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
