//! Which worker takes a request: a pure function of what is known now.
//!
//! It never waits, claims nothing and reads no clock.

use wire::{ModelName, WorkerId, WorkerState};

use std::time::Instant;

use crate::registry::members::{Member, Members};

/// What the choice found.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// This worker has a free slot.
    Worker(WorkerId),
    /// Workers could take it, but all their slots are taken.
    Busy {
        /// Slots of all of them together.
        slots: u32,
    },
    /// Workers serve the model, but all are still loading it.
    Loading,
    /// No worker that serves the model is alive, or all that are were tried already.
    Nobody,
}

/// The ready worker with the smallest share of its slots taken; among equals the one chosen longest ago.
pub fn choose(members: &Members, model: &ModelName, tried: &[WorkerId], now: Instant) -> Choice {
    let mut best: Option<&Member> = None;
    let (mut slots, mut loading) = (0, false);
    for member in members.serving(model).filter(|m| !tried.contains(&m.target.id)) {
        match members.state(member, now) {
            WorkerState::Ready => {
                slots += member.slots;
                if has_room(member) && best.is_none_or(|b| is_better(member, b)) {
                    best = Some(member);
                }
            }
            WorkerState::Loading => loading = true,
            _ => {}
        }
    }
    match best {
        Some(member) => Choice::Worker(member.target.id.clone()),
        None if slots > 0 => Choice::Busy { slots },
        None if loading => Choice::Loading,
        None => Choice::Nobody,
    }
}

fn has_room(member: &Member) -> bool {
    // After an ejection one request goes first, to see whether the worker has recovered.
    member.in_flight < if member.is_half_open() { 1 } else { member.slots }
}

fn is_better(a: &Member, b: &Member) -> bool {
    // in_flight / slots compared as cross products, so that no rounding makes unequals equal.
    let load = |m: &Member, other: &Member| u64::from(m.in_flight) * u64::from(other.slots);
    (load(a, b), a.last_chosen) < (load(b, a), b.last_chosen)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wire::WorkerKind;

    use super::*;
    use crate::registry::members::{Event, Limits, Outcome, Target};

    fn fleet(workers: &[(&str, u32, u32, WorkerState)]) -> (Members, Instant) {
        let now = Instant::now();
        let mut members = Members::new(Limits {
            silence: Duration::from_secs(15),
        });
        for (id, slots, in_flight, state) in workers {
            let target = Target {
                id: id.parse().unwrap(),
                epoch: 1,
                kind: WorkerKind::Own,
                url: String::new(),
                bearer: None,
            };
            let mut member = Member::new(target, vec!["m".parse().unwrap()], *slots, now);
            member.in_flight = *in_flight;
            member.reported = *state;
            members.apply(Event::Joined(Box::new(member)), now).unwrap();
        }
        (members, now)
    }

    fn pick(members: &Members, tried: &[&str], now: Instant) -> Choice {
        let tried: Vec<WorkerId> = tried.iter().map(|t| t.parse().unwrap()).collect();
        choose(members, &"m".parse().unwrap(), &tried, now)
    }

    fn worker(id: &str) -> Choice {
        Choice::Worker(id.parse().unwrap())
    }

    use WorkerState::{Draining, Loading, Ready};

    #[test]
    fn the_least_loaded_worker_is_chosen_by_share_of_its_slots() {
        let (members, now) = fleet(&[("a", 4, 2, Ready), ("b", 16, 4, Ready), ("c", 1, 1, Ready)]);
        assert_eq!(pick(&members, &[], now), worker("b"));
        assert_eq!(pick(&members, &["b"], now), worker("a"));
    }

    #[test]
    fn equal_workers_take_turns() {
        let (mut members, now) = fleet(&[("a", 1, 0, Ready), ("b", 1, 0, Ready)]);
        members.get_mut(&"a".parse().unwrap()).unwrap().last_chosen = 1;
        assert_eq!(pick(&members, &[], now), worker("b"));
        members.get_mut(&"b".parse().unwrap()).unwrap().last_chosen = 2;
        assert_eq!(pick(&members, &[], now), worker("a"));
    }

    #[test]
    fn busy_loading_and_nobody_are_three_answers() {
        let (members, now) = fleet(&[("a", 2, 2, Ready), ("b", 1, 0, Draining)]);
        assert_eq!(pick(&members, &[], now), Choice::Busy { slots: 2 });
        let (members, now) = fleet(&[("a", 2, 0, Loading), ("b", 1, 0, Draining)]);
        assert_eq!(pick(&members, &[], now), Choice::Loading);
        assert_eq!(pick(&members, &["a"], now), Choice::Nobody);
        assert_eq!(choose(&members, &"other".parse().unwrap(), &[], now), Choice::Nobody);
    }

    #[test]
    fn a_silent_or_broken_worker_is_not_chosen() {
        let (mut members, now) = fleet(&[("a", 1, 0, Ready)]);
        assert_eq!(pick(&members, &[], now + Duration::from_secs(16)), Choice::Nobody);
        members
            .apply(Event::Ended("a".parse().unwrap(), 1, Outcome::Broken, None), now)
            .unwrap();
        assert_eq!(pick(&members, &[], now), Choice::Nobody);
    }
}
