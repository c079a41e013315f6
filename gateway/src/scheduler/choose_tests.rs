//! What is chosen of what fleet.

use std::time::Duration;

use wire::WorkerKind;

use super::*;
use crate::registry::members::{Ending, Event, Limits, Outcome};

use WorkerState::{Draining, Loading, Ready};

fn fleet(workers: &[(&str, u32, u32, WorkerState)]) -> (Members, Instant) {
    let now = Instant::now();
    let mut members = Members::new(Limits {
        silence: Duration::from_secs(15),
        stall: Duration::from_secs(120),
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
        member.outstanding = u64::from(*in_flight) * 100;
        member.reported = *state;
        members.apply(Event::Joined(Box::new(member)), now).unwrap();
    }
    (members, now)
}

fn member<'a>(members: &'a mut Members, id: &str) -> &'a mut Member {
    members.get_mut(&id.parse().unwrap()).unwrap()
}

fn asked(members: &Members, home: Option<Home>, labels: &Labels, tried: &[&str], now: Instant) -> Choice {
    let tried: Vec<WorkerId> = tried.iter().map(|t| t.parse().unwrap()).collect();
    let need = Need {
        model: &"m".parse().unwrap(),
        tokens: 100,
        labels,
        unfit: &[],
        tried: &tried,
        home,
    };
    choose(members, &need, now)
}

fn pick(members: &Members, tried: &[&str], now: Instant) -> String {
    match asked(members, None, &Labels::new(), tried, now) {
        Choice::Worker(id, _) => id.to_string(),
        other => format!("{other:?}"),
    }
}

fn heard(members: &mut Members, id: &str, now: Instant) {
    let beat = wire::Heartbeat::idle(1, Ready);
    members.apply(Event::Beat(id.parse().unwrap(), beat), now).unwrap();
}

fn ending(outcome: Outcome) -> Ending {
    Ending {
        outcome,
        is_probe: true,
        reason: None,
    }
}

fn failed(members: &mut Members, id: &str, times: u32, now: Instant) {
    for _ in 0..times {
        let ended = Event::Ended(id.parse().unwrap(), 1, ending(Outcome::Failed));
        members.apply(ended, now).unwrap();
    }
}

#[test]
fn the_least_work_by_slots_is_chosen() {
    let (members, now) = fleet(&[("a", 4, 2, Ready), ("b", 16, 4, Ready), ("c", 1, 1, Ready)]);
    assert_eq!(pick(&members, &[], now), "b");
    assert_eq!(pick(&members, &["b"], now), "a");
}

#[test]
fn equal_workers_take_turns_also_if_one_is_a_little_faster() {
    let (mut members, now) = fleet(&[("a", 1, 0, Ready), ("b", 1, 0, Ready)]);
    (member(&mut members, "a").pace, member(&mut members, "b").pace) = (Some(50.0), Some(51.0));
    member(&mut members, "a").last_chosen = 1;
    assert_eq!(pick(&members, &[], now), "b");
    member(&mut members, "b").last_chosen = 2;
    assert_eq!(pick(&members, &[], now), "a");
}

#[test]
fn a_faster_worker_gets_as_much_more_as_it_is_faster() {
    let (mut members, now) = fleet(&[("cpu", 9, 0, Ready), ("gpu", 9, 0, Ready)]);
    (member(&mut members, "cpu").pace, member(&mut members, "gpu").pace) = (Some(20.0), Some(80.0));
    let mut chosen = Vec::new();
    for _ in 0..9 {
        chosen.push(pick(&members, &[], now));
        let taken = member(&mut members, &chosen[chosen.len() - 1].clone());
        taken.outstanding += 100;
        taken.in_flight += 1;
    }
    assert_eq!(chosen.iter().filter(|id| *id == "cpu").count(), 1, "{chosen:?}");
}

#[test]
fn a_speed_that_is_not_known_is_taken_for_the_others() {
    let (mut members, now) = fleet(&[("known", 2, 1, Ready), ("new", 2, 0, Ready)]);
    member(&mut members, "known").pace = Some(500.0);
    assert_eq!(pick(&members, &[], now), "new");
    let told = member(&mut members, "new");
    told.tokens_per_second = Some(20.0);
    assert_eq!(told.pace(), Some(10.0), "of two slots");
    assert_eq!(pick(&members, &[], now), "known");
}

#[test]
fn a_weight_counts_as_speed() {
    let (mut members, now) = fleet(&[("a", 4, 1, Ready), ("b", 4, 0, Ready)]);
    assert_eq!(pick(&members, &[], now), "b");
    member(&mut members, "a").weight = 3.0;
    assert_eq!(pick(&members, &[], now), "a");
}

#[test]
fn a_key_for_some_workers_gets_no_others() {
    let (mut members, now) = fleet(&[("a", 1, 1, Ready), ("b", 1, 0, Ready)]);
    let labels = Labels::from([("team".into(), "x".into())]);
    assert_eq!(asked(&members, None, &labels, &[], now), Choice::Nobody);
    member(&mut members, "a").labels = labels.clone();
    assert_eq!(asked(&members, None, &labels, &[], now), Choice::Busy { slots: 1 });
    member(&mut members, "a").in_flight = 0;
    let only = Choice::Worker("a".parse().unwrap(), Reason::OnlyOne);
    assert_eq!(asked(&members, None, &labels, &[], now), only);
    assert_eq!(pick(&members, &["a"], now), "b");
}

#[test]
fn the_worker_with_the_context_wins_until_it_is_twice_as_far_behind_or_gone() {
    let (mut members, now) = fleet(&[("a", 4, 0, Ready), ("b", 4, 0, Ready)]);
    let home = Home {
        worker: member(&mut members, "b").home(),
        by: Reason::Prefix,
    };
    let chosen = |members: &Members, tried: &[&str]| asked(members, Some(home), &Labels::new(), tried, now);
    let worker = |id: &str, by| Choice::Worker(id.parse().unwrap(), by);
    member(&mut members, "b").last_chosen = 9;
    member(&mut members, "b").outstanding = 100;
    assert_eq!(chosen(&members, &[]), worker("b", Reason::Prefix));
    member(&mut members, "b").outstanding = 101;
    assert_eq!(chosen(&members, &[]), worker("a", Reason::LeastWork));
    member(&mut members, "b").outstanding = 0;
    assert_eq!(chosen(&members, &["b"]), worker("a", Reason::OnlyOne));
    member(&mut members, "b").in_flight = 4;
    assert_eq!(
        chosen(&members, &[]),
        worker("a", Reason::OnlyOne),
        "it does not wait for it"
    );
    let mut anew = member(&mut members, "b").clone();
    anew.target = Arc::new(Target {
        epoch: 2,
        ..(*anew.target).clone()
    });
    anew.in_flight = 0;
    members.apply(Event::Joined(Box::new(anew)), now).unwrap();
    assert_eq!(
        chosen(&members, &[]),
        worker("a", Reason::LeastWork),
        "its cache is gone"
    );
}

#[test]
fn busy_loading_and_nobody_are_three_answers() {
    let (members, now) = fleet(&[("a", 2, 2, Ready), ("b", 1, 0, Draining)]);
    assert_eq!(pick(&members, &[], now), "Busy { slots: 2 }");
    let (members, now) = fleet(&[("a", 2, 0, Loading), ("b", 1, 0, Draining)]);
    assert_eq!(pick(&members, &[], now), "Loading");
    assert_eq!(pick(&members, &["a"], now), "Nobody");
}

#[test]
fn a_silent_or_broken_worker_is_not_chosen() {
    let (mut members, now) = fleet(&[("a", 1, 0, Ready)]);
    assert_eq!(pick(&members, &[], now + Duration::from_secs(16)), "Nobody");
    let broken = Event::Ended("a".parse().unwrap(), 1, ending(Outcome::Broken));
    members.apply(broken, now).unwrap();
    assert_eq!(pick(&members, &[], now), "Nobody");
}

#[test]
fn a_slot_that_is_cancelled_still_busy_is_as_good_as_taken() {
    let (mut members, now) = fleet(&[("a", 2, 1, Ready)]);
    assert_eq!(pick(&members, &[], now), "a");
    member(&mut members, "a").still_busy = 1;
    assert_eq!(pick(&members, &[], now), "Busy { slots: 2 }");
    assert!(!has_room(&members, &"m".parse().unwrap(), now));
    member(&mut members, "a").in_flight = 0;
    assert_eq!(pick(&members, &[], now), "a");
}

#[test]
fn an_ejected_worker_gets_nothing_then_one_request_and_if_all_are_ejected_one_each_at_once() {
    let (mut members, now) = fleet(&[("a", 4, 0, Ready), ("b", 1, 1, Ready)]);
    failed(&mut members, "a", 3, now);
    assert_eq!(pick(&members, &[], now), "Busy { slots: 1 }");
    let later = now + Duration::from_secs(30);
    for id in ["a", "b"] {
        heard(&mut members, id, later);
    }
    assert_eq!(pick(&members, &[], later), "a");
    member(&mut members, "a").claim(100, 1, later);
    assert_eq!(pick(&members, &[], later), "Busy { slots: 5 }", "it has its one");
    failed(&mut members, "a", 1, later);
    failed(&mut members, "b", 3, later);
    for id in ["a", "b"] {
        let free = member(&mut members, id);
        (free.in_flight, free.probes) = (0, 0);
    }
    let first = pick(&members, &[], later);
    assert!(["a", "b"].contains(&first.as_str()), "nobody else is left: {first}");
    member(&mut members, "a").claim(100, 2, later);
    member(&mut members, "b").claim(100, 3, later);
    assert_eq!(pick(&members, &[], later), "Busy { slots: 5 }");
}

#[test]
fn the_survey_says_of_each_what_was_made_of_it() {
    let (mut members, now) = fleet(&[
        ("best", 2, 0, Ready),
        ("busy", 1, 1, Ready),
        ("draining", 1, 0, Draining),
        ("loading", 1, 0, Loading),
        ("other", 2, 1, Ready),
        ("tried", 1, 0, Ready),
        ("ejected", 1, 0, Ready),
    ]);
    failed(&mut members, "ejected", 3, now);
    let need = Need {
        model: &"m".parse().unwrap(),
        tokens: 100,
        labels: &Labels::new(),
        unfit: &[],
        tried: &["tried".parse().unwrap()],
        home: None,
    };
    let mut found: Vec<_> = survey(&members, &need, &"best".parse().unwrap(), now)
        .into_iter()
        .map(|c| (c.target.id.to_string(), c.verdict))
        .collect();
    found.sort();
    let expected = [
        ("best", Verdict::Chosen),
        ("busy", Verdict::Busy),
        ("draining", Verdict::Draining),
        ("ejected", Verdict::Ejected),
        ("loading", Verdict::Loading),
        ("other", Verdict::Passed),
        ("tried", Verdict::Tried),
    ];
    assert_eq!(found, expected.map(|(id, verdict)| (id.to_owned(), verdict)));
}

#[test]
fn a_worker_that_is_unfit_for_the_request_is_not_chosen() {
    let (mut members, now) = fleet(&[("a", 1, 0, Ready), ("b", 1, 1, Ready)]);
    let small = ModelFacts {
        context_length: Some(1),
        ..ModelFacts::default()
    };
    member(&mut members, "a").facts = small.clone();
    let pick = |unfit: &[ModelFacts]| {
        let need = Need {
            model: &"m".parse().unwrap(),
            tokens: 100,
            labels: &Labels::new(),
            unfit,
            tried: &[],
            home: None,
        };
        choose(&members, &need, now)
    };
    assert!(matches!(pick(&[]), Choice::Worker(..)));
    let unfit = [small, ModelFacts::default()];
    assert_eq!(pick(&unfit[..1]), Choice::Busy { slots: 1 });
    assert_eq!(pick(&unfit), Choice::Nobody);
}

#[test]
fn a_worker_that_says_it_has_no_room_is_asked_for_nothing_for_so_long() {
    let (mut members, now) = fleet(&[("a", 4, 0, Ready), ("b", 1, 0, Ready)]);
    let full = |model: &str, seconds| {
        let (id, model) = ("a".parse().unwrap(), model.parse().unwrap());
        Event::Full(id, 1, model, Duration::from_secs(seconds))
    };
    members.apply(full("another", 60), now).unwrap();
    assert_eq!(pick(&members, &["b"], now), "a");
    for seconds in [5, 1] {
        members.apply(full("m", seconds), now).unwrap();
    }
    assert_eq!(pick(&members, &[], now), "b");
    let all_full = asked(&members, None, &Labels::new(), &["b"], now);
    let until = now + Duration::from_secs(5);
    assert_eq!(all_full, Choice::Full { until });
    assert_eq!(pick(&members, &["b"], until), "a");
}
