//! Fencing and ejection against models of them: any sequence of events, and what must be so after each.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    tests::{beat, member},
    *,
};

const LIMITS: Limits = Limits {
    silence: Duration::from_secs(15),
    stall: Duration::from_secs(120),
};

/// What may come from a registration, which may be an old one.
#[derive(Debug, Clone, Copy)]
enum Said {
    Joins,
    Beats,
    Leaves,
    Fails,
}

fn said() -> impl Strategy<Value = (Said, usize, i64)> {
    let what = prop_oneof![
        Just(Said::Joins),
        Just(Said::Beats),
        Just(Said::Leaves),
        Just(Said::Fails)
    ];
    // Which of three workers, and how many epochs ago it registered.
    (what, 0..3_usize, 0..3_i64)
}

/// How a request on the one worker of two that is looked at ended, or how many seconds passed.
#[derive(Debug, Clone, Copy)]
enum Ended {
    Well,
    Badly,
    Passed(u64),
}

fn ended() -> impl Strategy<Value = Ended> {
    prop_oneof![2 => Just(Ended::Well), 4 => Just(Ended::Badly), 3 => (1..400_u64).prop_map(Ended::Passed)]
}

/// Of a request that shows whether the worker has recovered, whenever that is open.
fn ending(outcome: Outcome) -> Ending {
    Ending {
        outcome,
        is_probe: true,
        reason: None,
    }
}

proptest! {
    #[test]
    fn only_the_present_epoch_is_heard(events in prop::collection::vec(said(), 1..60)) {
        let now = Instant::now();
        let mut members = Members::new(LIMITS);
        // The durable epochs, and those that are registered now.
        let mut given: HashMap<usize, i64> = HashMap::new();
        let mut present: HashMap<usize, i64> = HashMap::new();
        for (what, number, ago) in events {
            let name = format!("w{number}");
            let id = || name.parse::<WorkerId>().unwrap();
            let epoch = given.get(&number).copied().unwrap_or(0) - ago;
            let answer = match what {
                Said::Joins => {
                    let next = given.get(&number).copied().unwrap_or(0) + 1;
                    given.insert(number, next);
                    present.insert(number, next);
                    members.apply(Event::Joined(Box::new(member(&name, next, now))), now).unwrap();
                    continue;
                }
                Said::Beats => members.apply(Event::Beat(id(), beat(epoch)), now),
                Said::Leaves => members.apply(Event::Left(id(), epoch), now),
                Said::Fails => members.apply(Event::Ended(id(), epoch, ending(Outcome::Broken)), now),
            };
            let expected = match present.get(&number) {
                None => Err(Refused::Unknown),
                Some(held) if *held != epoch => Err(Refused::Stale),
                Some(_) => Ok(false),
            };
            prop_assert_eq!(answer, expected);
            if matches!(what, Said::Leaves) && answer.is_ok() {
                present.remove(&number);
            }
            let held: HashMap<usize, i64> = (0..3)
                .filter_map(|n| Some((n, members.get(&format!("w{n}").parse().unwrap())?.target.epoch)))
                .collect();
            prop_assert_eq!(&held, &present);
        }
    }

    #[test]
    fn an_ejection_needs_failures_lasts_as_long_as_it_must_and_ends_with_a_probe(
        events in prop::collection::vec(ended(), 1..80)
    ) {
        let mut now = Instant::now();
        let mut members = Members::new(LIMITS);
        for name in ["a", "b"] {
            let mut member = member(name, 1, now);
            // Attached servers are silent, so that time alone changes nothing else.
            member.target = Arc::new(Target { kind: WorkerKind::Attached, ..(*member.target).clone() });
            members.apply(Event::Joined(Box::new(member)), now).unwrap();
        }
        let id: WorkerId = "a".parse().unwrap();
        let standing = |members: &Members, now| members.standing(members.get(&id).unwrap(), now);
        let (mut failures, mut before, mut ejected_at) = (0_u32, Standing::Open, now);
        for event in events {
            let outcome = match event {
                Ended::Passed(seconds) => {
                    now += Duration::from_secs(seconds);
                    None
                }
                Ended::Well => Some(Outcome::Fine),
                Ended::Badly => Some(Outcome::Failed),
            };
            let at = standing(&members, now);
            if let Some(outcome) = outcome {
                failures += u32::from(outcome == Outcome::Failed);
                members.apply(Event::Ended(id.clone(), 1, ending(outcome)), now).unwrap();
            }
            let after = standing(&members, now);
            match (at, after) {
                (Standing::Open, Standing::Ejected) => prop_assert!(failures >= 3),
                (Standing::HalfOpen, Standing::Ejected) => prop_assert_eq!(outcome, Some(Outcome::Failed)),
                (Standing::HalfOpen, Standing::Open) => prop_assert_eq!(outcome, Some(Outcome::Fine)),
                (from, to) => prop_assert_eq!(from, to),
            }
            if at != Standing::Ejected && after == Standing::Ejected {
                ejected_at = now;
            }
            if before == Standing::Ejected && at == Standing::HalfOpen {
                let lasted = now - ejected_at;
                prop_assert!(lasted >= Duration::from_secs(30));
            }
            if at == Standing::Ejected {
                prop_assert!(now - ejected_at < Duration::from_secs(300));
            }
            if matches!((at, after), (Standing::HalfOpen, Standing::Open)) {
                failures = 0;
            }
            before = after;
        }
    }
}
