//! What the registry does with events, on a clock of the test's own.

use super::*;

const LIMITS: Limits = Limits {
    silence: Duration::from_secs(15),
    stall: Duration::from_secs(120),
};

pub(super) fn member(id: &str, epoch: i64, now: Instant) -> Member {
    let target = Target {
        id: id.parse().unwrap(),
        epoch,
        kind: WorkerKind::Own,
        url: "http://127.0.0.1:1".into(),
        bearer: None,
    };
    Member::new(target, vec!["m".parse().unwrap()], 1, now)
}

pub(super) fn beat(epoch: i64) -> wire::Heartbeat {
    wire::Heartbeat::idle(epoch, WorkerState::Ready)
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

/// What a request comes to that shows whether the worker has recovered, whenever that is open.
fn ended(members: &mut Members, id: &str, outcome: Outcome, now: Instant) {
    ended_as(members, &id.parse().unwrap(), outcome, true, now);
}

fn ended_as(members: &mut Members, id: &WorkerId, outcome: Outcome, is_probe: bool, now: Instant) {
    let ending = Ending {
        outcome,
        is_probe,
        reason: None,
    };
    members.apply(Event::Ended(id.clone(), 1, ending), now).unwrap();
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
fn a_broken_connection_is_forgotten_when_the_worker_proves_that_it_lives() {
    let (mut members, now) = with(&["a"]);
    ended(&mut members, "a", Outcome::Broken, now);
    assert_eq!(members.doubted(now).count(), 1);
    assert_eq!(members.doubted(now + Duration::from_secs(16)).count(), 0, "it is lost");
    let proved = |epoch| Event::Proved("a".parse().unwrap(), epoch);
    assert_eq!(members.apply(proved(2), now), Err(Refused::Stale));
    assert_eq!(state(&members, "a", now), WorkerState::Suspect);
    members.apply(proved(1), now).unwrap();
    assert_eq!(state(&members, "a", now), WorkerState::Ready);
    assert_eq!(members.doubted(now).count(), 0);
}

#[test]
fn an_older_registration_does_not_replace_a_newer_one() {
    let (mut members, now) = with(&[]);
    let joined = |epoch| Event::Joined(Box::new(member("a", epoch, now)));
    members.apply(joined(2), now).unwrap();
    assert_eq!(members.apply(joined(1), now), Err(Refused::Stale));
    members.apply(Event::Beat("a".parse().unwrap(), beat(2)), now).unwrap();
}

#[test]
fn what_began_before_an_ejection_does_not_decide_whether_it_was_right() {
    let (mut members, now) = with(&["a", "b"]);
    let a: WorkerId = "a".parse().unwrap();
    for _ in 0..3 {
        ended(&mut members, "a", Outcome::Failed, now);
    }
    let later = now + Duration::from_secs(31);
    members.apply(Event::Beat(a.clone(), beat(1)), later).unwrap();
    let standing = |members: &Members| members.standing(members.get(&a).unwrap(), later);
    for outcome in [Outcome::Fine, Outcome::Failed] {
        ended_as(&mut members, &a, outcome, false, later);
        assert_eq!(standing(&members), Standing::HalfOpen, "{outcome:?}");
    }
    ended_as(&mut members, &a, Outcome::Fine, true, later);
    assert_eq!(standing(&members), Standing::Open);
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
    let standing = |members: &Members, now| members.standing(members.get(&"a".parse().unwrap()).unwrap(), now);
    assert_eq!(standing(&members, probe), Standing::HalfOpen);
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
    assert_eq!(standing(&members, probe + Duration::from_secs(60)), Standing::Open);
}

#[test]
fn at_most_half_the_fleet_is_ejected_unless_all_fail() {
    let ids = ["a", "b", "c", "d", "e"];
    let (mut members, now) = with(&ids);
    let suspects = |members: &Members| {
        let suspect = |id: &&&str| state(members, id, now) == WorkerState::Suspect;
        ids.iter().filter(suspect).count()
    };
    for (id, ejected) in ids.iter().zip([1, 2, 2, 2, 5]) {
        for _ in 0..3 {
            ended(&mut members, id, Outcome::Failed, now);
        }
        assert_eq!(suspects(&members), ejected, "{id}");
    }
    assert_eq!(members.ejections(), 5);
}

#[test]
fn a_worker_that_fails_every_other_request_is_ejected_too() {
    let (mut members, now) = with(&["a", "b"]);
    for _ in 0..7 {
        ended(&mut members, "a", Outcome::Failed, now);
        ended(&mut members, "a", Outcome::Fine, now);
    }
    assert_eq!(state(&members, "a", now), WorkerState::Ready);
    ended(&mut members, "a", Outcome::Failed, now);
    assert_eq!(state(&members, "a", now), WorkerState::Suspect);
    ended(&mut members, "a", Outcome::Fine, now);
    assert_eq!(
        state(&members, "a", now),
        WorkerState::Suspect,
        "what ends well now began before"
    );
}

#[test]
fn ejections_grow_to_five_minutes_and_are_forgiven_after_five_good_ones() {
    let (mut members, mut now) = with(&["a", "b"]);
    let alive = |members: &mut Members, now| members.apply(Event::Beat("a".parse().unwrap(), beat(1)), now).unwrap();
    for _ in 0..3 {
        ended(&mut members, "a", Outcome::Failed, now);
    }
    for seconds in [30, 60, 120, 240, 300, 300] {
        now += Duration::from_millis(seconds * 1000 - 1);
        alive(&mut members, now);
        assert_eq!(state(&members, "a", now), WorkerState::Suspect, "{seconds}");
        now += Duration::from_millis(1);
        assert_eq!(state(&members, "a", now), WorkerState::Ready, "{seconds}");
        ended(&mut members, "a", Outcome::Failed, now);
    }
    now += Duration::from_secs(300);
    ended(&mut members, "a", Outcome::Fine, now);
    now += Duration::from_secs(300);
    for _ in 0..3 {
        ended(&mut members, "a", Outcome::Failed, now);
    }
    now += Duration::from_secs(30);
    alive(&mut members, now);
    assert_eq!(state(&members, "a", now), WorkerState::Ready);
}

#[test]
fn a_worker_that_holds_requests_and_generates_nothing_is_suspect() {
    let (mut members, mut now) = with(&["a"]);
    let mut say = |in_flight, tokens, seconds| {
        now += Duration::from_secs(seconds);
        let beat = wire::Heartbeat {
            in_flight,
            tokens_generated: tokens,
            ..beat(1)
        };
        members.apply(Event::Beat("a".parse().unwrap(), beat), now).unwrap();
        state(&members, "a", now)
    };
    assert_eq!(say(0, 7, 500), WorkerState::Ready, "idle");
    assert_eq!(say(1, 7, 500), WorkerState::Ready, "it has just begun");
    assert_eq!(say(1, 7, 120), WorkerState::Ready);
    assert_eq!(say(1, 7, 1), WorkerState::Suspect);
    assert_eq!(say(1, 8, 5), WorkerState::Ready, "a token");
    assert_eq!(say(1, 8, 121), WorkerState::Suspect);
    assert_eq!(say(0, 8, 5), WorkerState::Ready, "all given up");
}

#[test]
fn requests_that_end_are_progress_too() {
    let (mut members, mut now) = with(&["a"]);
    let mut say = |ended| {
        now += Duration::from_secs(100);
        let beat = wire::Heartbeat {
            in_flight: 2,
            requests_ended: ended,
            ..beat(1)
        };
        members.apply(Event::Beat("a".parse().unwrap(), beat), now).unwrap();
        state(&members, "a", now)
    };
    assert!(
        (0..5).all(|ended| say(ended) == WorkerState::Ready),
        "cancelled prefills, each 100 s"
    );
    assert_eq!((say(4), say(4)), (WorkerState::Ready, WorkerState::Suspect));
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
