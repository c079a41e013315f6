//! What the registry does with events, on a clock of the test's own.

use super::*;

const LIMITS: Limits = Limits {
    silence: Duration::from_secs(15),
};

fn member(id: &str, epoch: i64, now: Instant) -> Member {
    let target = Target {
        id: id.parse().unwrap(),
        epoch,
        kind: WorkerKind::Own,
        url: "http://127.0.0.1:1".into(),
        bearer: None,
    };
    Member::new(target, vec!["m".parse().unwrap()], 1, now)
}

fn beat(epoch: i64) -> wire::Heartbeat {
    wire::Heartbeat {
        epoch,
        state: WorkerState::Ready,
        progress: None,
        message: None,
        in_flight: 0,
        tokens_generated: 0,
        tokens_per_second: None,
        memory_bytes: None,
        facts: ModelFacts::default(),
    }
}

fn with(ids: &[&str]) -> (Members, Instant) {
    let now = Instant::now();
    let mut members = Members::new(LIMITS);
    for id in ids {
        members.apply(Event::Joined(Box::new(member(id, 1, now))), now).unwrap();
    }
    (members, now)
}

fn state(members: &Members, id: &str, now: Instant) -> WorkerState {
    members.state(members.get(&id.parse().unwrap()).unwrap(), now)
}

fn ended(members: &mut Members, id: &str, outcome: Outcome, now: Instant) {
    members
        .apply(Event::Ended(id.parse().unwrap(), 1, outcome, None), now)
        .unwrap();
}

#[test]
fn a_silent_worker_is_lost_and_a_heartbeat_brings_it_back() {
    let (mut members, now) = with(&["a"]);
    assert_eq!(state(&members, "a", now + Duration::from_secs(15)), WorkerState::Ready);
    let later = now + Duration::from_secs(16);
    assert_eq!(state(&members, "a", later), WorkerState::Lost);
    members
        .apply(Event::Beat("a".parse().unwrap(), beat(1)), later)
        .unwrap();
    assert_eq!(state(&members, "a", later), WorkerState::Ready);
    assert_eq!(members.iter().count(), 1);
}

#[test]
fn a_silent_worker_is_forgotten() {
    let (mut members, now) = with(&["a"]);
    members.apply(Event::Swept, now + Duration::from_secs(600)).unwrap();
    assert_eq!(members.iter().count(), 1);
    members.apply(Event::Swept, now + Duration::from_secs(616)).unwrap();
    assert_eq!(members.iter().count(), 0);
}

#[test]
fn a_stale_epoch_is_refused_and_changes_nothing() {
    let (mut members, now) = with(&["a"]);
    members
        .apply(Event::Joined(Box::new(member("a", 2, now))), now)
        .unwrap();
    let late = now + Duration::from_secs(16);
    assert_eq!(
        members.apply(Event::Beat("a".parse().unwrap(), beat(1)), late),
        Err(Refused::Stale)
    );
    assert_eq!(
        members.apply(Event::Left("a".parse().unwrap(), 1), late),
        Err(Refused::Stale)
    );
    assert_eq!(state(&members, "a", late), WorkerState::Lost);
    assert_eq!(
        members.apply(Event::Beat("b".parse().unwrap(), beat(1)), late),
        Err(Refused::Unknown)
    );
}

#[test]
fn a_broken_connection_makes_a_worker_suspect_until_its_next_heartbeat() {
    let (mut members, now) = with(&["a"]);
    ended(&mut members, "a", Outcome::Broken, now);
    assert_eq!(state(&members, "a", now), WorkerState::Suspect);
    members.apply(Event::Beat("a".parse().unwrap(), beat(1)), now).unwrap();
    assert_eq!(state(&members, "a", now), WorkerState::Ready);
}

#[test]
fn three_failures_eject_for_thirty_seconds_then_sixty() {
    let (mut members, now) = with(&["a", "b"]);
    for _ in 0..2 {
        ended(&mut members, "a", Outcome::Failed, now);
    }
    assert_eq!(state(&members, "a", now), WorkerState::Ready);
    ended(&mut members, "a", Outcome::Failed, now);
    assert_eq!(state(&members, "a", now), WorkerState::Suspect);
    for seconds in [10, 20, 29] {
        members
            .apply(
                Event::Beat("a".parse().unwrap(), beat(1)),
                now + Duration::from_secs(seconds),
            )
            .unwrap();
    }
    let probe = now + Duration::from_secs(30);
    assert_eq!(state(&members, "a", probe), WorkerState::Ready);
    assert!(members.get(&"a".parse().unwrap()).unwrap().is_half_open());
    ended(&mut members, "a", Outcome::Failed, probe);
    members
        .apply(
            Event::Beat("a".parse().unwrap(), beat(1)),
            probe + Duration::from_secs(59),
        )
        .unwrap();
    assert_eq!(
        state(&members, "a", probe + Duration::from_secs(59)),
        WorkerState::Suspect
    );
    assert_eq!(
        state(&members, "a", probe + Duration::from_secs(60)),
        WorkerState::Ready
    );
    ended(&mut members, "a", Outcome::Fine, probe + Duration::from_secs(60));
    assert!(!members.get(&"a".parse().unwrap()).unwrap().is_half_open());
}

#[test]
fn at_most_half_the_fleet_is_ejected() {
    let (mut members, now) = with(&["a", "b", "c"]);
    for id in ["a", "b", "c"] {
        for _ in 0..3 {
            ended(&mut members, id, Outcome::Failed, now);
        }
    }
    let suspects = ["a", "b", "c"]
        .iter()
        .filter(|id| state(&members, id, now) == WorkerState::Suspect)
        .count();
    assert_eq!(suspects, 1);
}

#[test]
fn a_drain_is_wanted_until_the_worker_leaves() {
    let (mut members, now) = with(&["a"]);
    members.apply(Event::DrainWanted("a".parse().unwrap()), now).unwrap();
    assert_eq!(state(&members, "a", now), WorkerState::Draining);
    assert_eq!(members.apply(Event::Beat("a".parse().unwrap(), beat(1)), now), Ok(true));
    members.apply(Event::Left("a".parse().unwrap(), 1), now).unwrap();
    assert!(members.get(&"a".parse().unwrap()).is_none());
}
