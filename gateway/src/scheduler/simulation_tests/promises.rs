//! What must be so after every step of a history, and at its end.

use std::{collections::BTreeMap, time::Duration};

use wire::{Labels, WorkerId};

use super::{End, FIRST_TOKEN, HOSTS, Happening, World, model};
use crate::{
    registry::members::Standing,
    scheduler::{
        affinity::Home,
        choose::{Choice, Need, choose},
    },
};

impl World {
    pub(super) fn check_slots(&self) {
        let mut held: BTreeMap<(WorkerId, i64), (u32, u64)> = BTreeMap::new();
        for (claim, _) in self.clients.iter().filter_map(|client| client.claim.as_ref()) {
            let of = held.entry((claim.target.id.clone(), claim.target.epoch)).or_default();
            *of = (of.0 + 1, of.1 + claim.tokens);
        }
        for member in self.fleet.members().iter() {
            let of = held.get(&(member.target.id.clone(), member.target.epoch));
            assert_eq!(
                (member.in_flight, member.outstanding),
                of.copied().unwrap_or_default(),
                "no slot leaks"
            );
            assert!(member.in_flight <= member.slots, "never more than its slots");
        }
    }

    /// Nobody waits for what is free.
    pub(super) fn check_waiting(&self) {
        for client in self.clients.iter().filter(|client| client.ticket.is_some()) {
            let need = Need {
                model: &model(),
                tokens: client.tokens,
                labels: &Labels::new(),
                unfit: &[],
                tried: client.course.tried(),
                home: None::<Home>,
            };
            let choice = choose(self.fleet.members(), &need, self.instant());
            assert!(!matches!(choice, Choice::Worker(..)), "it waits for {choice:?}");
        }
    }

    pub(super) fn check_ejections(&mut self) {
        let (members, now) = (self.fleet.members(), self.instant());
        if members.ejections() > self.ejections {
            let of = |ejected: bool| members.iter().filter(|m| m.is_ejected(now) == ejected).count();
            // Of a fleet that fails as a whole, one may be on trial already.
            let all_fail = members
                .iter()
                .all(|m| m.is_ejected(now) || members.standing(m, now) == Standing::HalfOpen);
            assert!(all_fail || of(true) <= of(false), "at most half, unless all fail");
        }
        self.ejections = self.fleet.members().ejections();
    }

    /// All is well again: everything ends, and nothing is left behind.
    pub(super) fn wind_up(&mut self) {
        for host in 0..HOSTS {
            self.hosts[host].heard = true;
            self.join(host);
        }
        let end = self.now + 3 * FIRST_TOKEN;
        self.play_until(end, |happening| {
            !matches!(happening, Happening::Arrival | Happening::Chaos)
        });
        let count = |end: &End| {
            self.clients
                .iter()
                .filter(|client| client.end.as_ref() == Some(end))
                .count()
        };
        let ends = [End::Completed, End::Failed, End::Cancelled, End::Refused].map(|end| count(&end));
        assert_eq!(
            ends.iter().sum::<usize>(),
            self.clients.len(),
            "the books balance: {ends:?}"
        );
        assert!(self.fleet.members().iter().all(|member| member.in_flight == 0));
        assert_eq!(self.fleet.load(self.instant())[0].queued, 0);
        let later = self.instant() + Duration::from_secs(60);
        let permits: Vec<_> = (0..3).map(|_| self.budget.permit(0, later)).collect();
        assert!(permits.iter().all(Option::is_some), "no retry stays promised");
    }
}
