//! Slots and places against a model of them: whatever is asked, given back or given up, in any order.

use std::collections::HashSet;

use proptest::prelude::*;
use wire::WorkerKind;

use super::*;
use crate::registry::members::Member;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A key asks for so many tokens.
    Ask(usize, u64),
    /// One of those who have a slot gives it back.
    GiveBack(usize),
    /// One of those who wait gives up.
    GiveUp(usize),
    /// One who waits no more comes to know it, and leaves.
    Notice(usize),
    /// A worker registers, or does so anew.
    Join(usize),
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_usize, 1..500_u64).prop_map(|(key, tokens)| Step::Ask(key, tokens)),
        4 => (0..9_usize).prop_map(Step::GiveBack),
        1 => (0..9_usize).prop_map(Step::GiveUp),
        2 => (0..9_usize).prop_map(Step::Notice),
        1 => (0..2_usize).prop_map(Step::Join),
        1 => (0..2_usize).prop_map(Step::Leave),
    ]
}

proptest! {
    #[test]
    fn every_slot_is_somebodys_or_free_and_nobody_waits_for_a_free_one(steps in prop::collection::vec(step(), 1..80)) {
        let now = Instant::now();
        let model: ModelName = "m".parse().unwrap();
        let limits = Limits { silence: Duration::from_secs(15), stall: Duration::from_secs(120) };
        let mut fleet = Fleet::<usize>::new(limits, 2);
        fleet.remember_model(model.clone(), 0, ModelFacts::default());
        let (mut held, mut waiting, mut answered) = (Vec::<Claim>::new(), Vec::new(), HashSet::new());
        let mut stale = Vec::new();
        let mut epochs = [0_i64; 2];
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Ask(key, tokens) => {
                    let order = Order {
                        need: Need {
                            model: &model,
                            tokens,
                            labels: &Labels::new(),
                            unfit: &[],
                            tried: &[],
                            home: None,
                        },
                        key: ["a", "b", "c"][key],
                        priority: Priority::ALL[key],
                        again: false,
                    };
                    match fleet.admit(&order, || number, now) {
                        Ok(Admission::Granted(claim)) => held.push(claim),
                        Ok(Admission::Queued(ticket)) => waiting.push((number, ticket)),
                        Err(_) => {}
                    }
                }
                Step::GiveBack(which) if which < held.len() => {
                    let claim = held.swap_remove(which);
                    fleet.release(&claim, Use::default(), now);
                }
                Step::GiveUp(which) if which < waiting.len() => {
                    let (_, ticket) = waiting.swap_remove(which);
                    fleet.leave(&model, &ticket);
                }
                Step::Join(worker) => {
                    epochs[worker] += 1;
                    let target = Target {
                        id: format!("w{worker}").parse().unwrap(),
                        epoch: epochs[worker],
                        kind: WorkerKind::Own,
                        url: String::new(),
                        bearer: None,
                    };
                    let slots = 1 + u32::try_from(worker).unwrap();
                    let member = Member::new(target, vec![model.clone()], slots, now);
                    fleet.apply(Event::Joined(Box::new(member)), now).unwrap();
                }
                Step::Leave(worker) => {
                    let _ = fleet.apply(Event::Left(format!("w{worker}").parse().unwrap(), epochs[worker]), now);
                }
                Step::Notice(which) if which < stale.len() => fleet.leave(&model, &stale.swap_remove(which)),
                Step::GiveBack(_) | Step::GiveUp(_) | Step::Notice(_) => {}
            }
            for (asker, outcome) in fleet.take_grants() {
                prop_assert!(answered.insert(asker), "answered twice");
                let place = waiting.iter().position(|(number, _)| *number == asker);
                prop_assert!(place.is_some(), "who is answered had waited");
                stale.extend(place.map(|place| waiting.remove(place).1));
                held.extend(outcome.ok());
            }
            let mut free = 0;
            for member in fleet.members().iter() {
                let of = held.iter().filter(|claim| claim.target == member.target);
                let (count, tokens) = of.fold((0, 0), |(n, tokens), claim| (n + 1, tokens + claim.tokens));
                prop_assert_eq!((member.in_flight, member.outstanding), (count, tokens));
                prop_assert!(member.in_flight <= member.slots);
                free += member.slots - member.in_flight;
            }
            prop_assert!(waiting.is_empty() || free == 0, "{} wait while {} slots are free", waiting.len(), free);
            prop_assert_eq!(fleet.load(now)[0].queued, waiting.len());
        }
    }
}
