//! A worker as a gateway tells its successor of it: what registration and heartbeats have told, and no judgement.
//!
//! Pure. What requests on it came to, and how many it holds, is not told: the successor sees for itself.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wire::{Labels, ModelFacts, ModelName, WorkerId, WorkerKind, WorkerState};

use super::{Bearer, Member, Progress, Target};

/// A member of the registry on its way to another process. A field that comes later needs a default: an older program
/// does not say it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handed {
    id: WorkerId,
    epoch: i64,
    kind: WorkerKind,
    url: String,
    bearer: Option<Bearer>,
    models: Vec<ModelName>,
    device: String,
    slots: u32,
    pid: Option<u32>,
    host: String,
    version: String,
    reported: WorkerState,
    facts: ModelFacts,
    progress: Option<f32>,
    message: Option<String>,
    tokens_per_second: Option<f32>,
    memory_bytes: Option<u64>,
    labels: Labels,
    weight: f32,
    pace: Option<f32>,
    drain_wanted: bool,
    still_busy: u32,
    done: (u64, u64),
    silent_ms: u64,
}

impl Handed {
    /// A member as it is known `now`.
    pub fn of(member: &Member, now: Instant) -> Self {
        let (target, known) = (member.target.as_ref().clone(), member.clone());
        Self {
            id: target.id,
            epoch: target.epoch,
            kind: target.kind,
            url: target.url,
            bearer: target.bearer,
            models: known.models,
            device: known.device,
            slots: known.slots,
            pid: known.pid,
            host: known.host,
            version: known.version,
            reported: known.reported,
            facts: known.facts,
            progress: known.progress,
            message: known.message,
            tokens_per_second: known.tokens_per_second,
            memory_bytes: known.memory_bytes,
            labels: known.labels,
            weight: known.weight,
            pace: known.pace,
            drain_wanted: known.drain_wanted,
            still_busy: known.still_busy,
            done: known.work.done,
            silent_ms: u64::try_from(member.silent(now).as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The member it was; its silence goes on.
    pub fn member(self, now: Instant) -> Member {
        let target = Target {
            id: self.id,
            epoch: self.epoch,
            kind: self.kind,
            url: self.url,
            bearer: self.bearer,
        };
        let heard = now.checked_sub(Duration::from_millis(self.silent_ms)).unwrap_or(now);
        Member {
            device: self.device,
            pid: self.pid,
            host: self.host,
            version: self.version,
            reported: self.reported,
            facts: self.facts,
            progress: self.progress,
            message: self.message,
            tokens_per_second: self.tokens_per_second,
            memory_bytes: self.memory_bytes,
            labels: self.labels,
            weight: self.weight,
            pace: self.pace,
            drain_wanted: self.drain_wanted,
            still_busy: self.still_busy,
            work: Progress {
                done: self.done,
                stuck_since: None,
            },
            ..Member::new(target, self.models, self.slots, heard)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::members::{Event, Limits, Members};

    #[test]
    fn a_worker_that_was_handed_over_is_the_same_but_for_its_leases() {
        let (limits, began) = (
            Limits {
                silence: Duration::from_secs(15),
                stall: Duration::from_secs(120),
            },
            Instant::now(),
        );
        let target = Target {
            id: "w".parse().unwrap(),
            epoch: 7,
            kind: WorkerKind::Own,
            url: "http://127.0.0.1:9".into(),
            bearer: Some(Bearer("secret".into())),
        };
        let mut member = Member::new(target, vec!["m".parse().unwrap()], 4, began);
        member.labels.insert("rack".into(), "2".into());
        member.still_busy = 1;
        member.claim(10, 1, began);
        let mut old = Members::new(limits);
        old.apply(Event::Joined(Box::new(member)), began).unwrap();
        old.apply(Event::DrainWanted("w".parse().unwrap()), began).unwrap();

        let now = began + Duration::from_secs(9);
        let told = serde_json::to_string(&Handed::of(old.iter().next().unwrap(), now)).unwrap();
        assert!(!format!("{:?}", Handed::of(old.iter().next().unwrap(), now)).contains("secret"));
        let told: Handed = serde_json::from_str(&told).unwrap();
        let mut new = Members::new(limits);
        new.apply(Event::Joined(Box::new(told.member(now))), now).unwrap();
        let (before, after) = (old.iter().next().unwrap(), new.iter().next().unwrap());
        assert_eq!(before.target, after.target);
        assert_eq!((before.in_flight, after.in_flight), (1, 0));
        let mut views = [old.view(before, now).unwrap(), new.view(after, now).unwrap()];
        for view in &mut views {
            (view.in_flight, view.outstanding_tokens) = (0, 0);
        }
        assert_eq!(views[0], views[1]);
        let lost = now + Duration::from_secs(7);
        assert_eq!(new.state(after, lost), WorkerState::Lost, "its silence goes on");
    }
}
