//! One key that asks for a hundred times as much as nine others, counted in completed requests on simulated time.

use std::collections::BTreeMap;

use super::{
    simulation_tests::{Dice, LIMITS, LONGEST_WAIT, beat, id, model, worker},
    *,
};

/// Requests of each key that one worker with four slots completes in ten minutes, where nine keys ask every three
/// seconds or so and a tenth one, if it is greedy, a hundred times as often.
fn goodput(seed: u64, greedy: bool) -> [usize; 10] {
    let start = Instant::now();
    let mut fleet = Fleet::<usize>::new(LIMITS, 4);
    fleet.remember_model(model(), 0, ModelFacts::default());
    fleet
        .apply(Event::Joined(Box::new(worker(0, 1, 4, start))), start)
        .unwrap();
    let keys: Vec<String> = (0..10).map(|key| format!("key{key}")).collect();
    let mut dice: Vec<Dice> = (0..10).map(|key| Dice(seed * 100 + key)).collect();
    let mut next: Vec<u64> = (0..10).map(|key| 300 * key).collect();
    // Whose each request is, until when it has its slot, and until when those who wait do.
    let (mut whose, mut running, mut waiting) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut completed = [0; 10];
    for now in (0..600_000).step_by(20) {
        let instant = start + Duration::from_millis(now);
        let _ = fleet.apply(Event::Beat(id(0), beat(1)), instant);
        for key in 0..if greedy { 10 } else { 9 } {
            while next[key] <= now {
                let every = if key == 9 { 30 } else { 3000 };
                next[key] += dice[key].roll(2 * every);
                let order = Order {
                    need: Need {
                        model: &model(),
                        tokens: 100,
                        labels: &Labels::new(),
                        unfit: &[],
                        tried: &[],
                        home: None,
                    },
                    key: &keys[key],
                    priority: Priority::Normal,
                    again: false,
                };
                let asker = whose.len();
                whose.push(key);
                match fleet.admit(&order, || asker, instant) {
                    Ok(Admission::Granted(claim)) => running.push((now + 1000, asker, claim)),
                    Ok(Admission::Queued(ticket)) => drop(waiting.insert(asker, (now + LONGEST_WAIT, ticket))),
                    Err(_) => {}
                }
            }
        }
        let (done, on): (Vec<_>, Vec<_>) = running.into_iter().partition(|(until, ..)| *until <= now);
        running = on;
        for (_, asker, claim) in done {
            completed[whose[asker]] += 1;
            fleet.release(&claim, Use::default(), instant);
        }
        let late: Vec<usize> = waiting
            .iter()
            .filter(|(_, (until, _))| *until <= now)
            .map(|(asker, _)| *asker)
            .collect();
        for (_, ticket) in late.iter().filter_map(|asker| waiting.remove(asker)) {
            fleet.leave(&model(), &ticket);
        }
        for (asker, outcome) in fleet.take_grants() {
            waiting.remove(&asker);
            running.extend(outcome.ok().map(|claim| (now + 1000, asker, claim)));
        }
    }
    completed
}

#[test]
fn one_greedy_key_leaves_nine_modest_ones_their_goodput() {
    for seed in 1..4 {
        let (alone, beside) = (goodput(seed, false), goodput(seed, true));
        for key in 0..9 {
            assert!(
                beside[key] * 100 >= alone[key] * 95,
                "SEED={seed}, key {key}: {alone:?} alone, {beside:?} beside a greedy one"
            );
        }
        assert!(beside[9] > 0, "what is left over is the greedy one's: {beside:?}");
        let all: usize = beside.iter().sum();
        assert!(
            all * 100 >= 2400 * 95,
            "goodput does not fall as load rises: {all} of 2400"
        );
    }
}
