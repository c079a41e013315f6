//! What was decided about each request and why, for whoever asks: in memory, the latest requests only.
//!
//! It decides nothing itself, and holds nothing of what a request says.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use wire::{Attempt, Decision, Labels, ModelName, Place, Priority, Reason};

use super::{Dispatcher, choose::Candidate, fleet::Claim, queue::Ticket};
use crate::registry::members::Target;

/// Requests whose decisions are remembered.
const REMEMBERED: usize = 4096;

/// The decisions about the latest requests.
#[derive(Debug, Default)]
pub struct Traces(Mutex<VecDeque<Arc<Trace>>>);

/// What a request was when it was admitted.
#[derive(Debug)]
pub struct Subject {
    /// Its id in the books.
    pub id: String,
    /// The client's name for it.
    pub correlation: String,
    /// The model.
    pub model: ModelName,
    /// Whose turn it is.
    pub priority: Priority,
    /// Tokens it is expected to take.
    pub tokens: u64,
    /// Labels that its worker must have.
    pub labels: Labels,
}

/// One request's decisions, as they are made.
#[derive(Debug)]
pub struct Trace {
    subject: Subject,
    story: Mutex<Story>,
}

#[derive(Debug, Default)]
struct Story {
    /// Its place in the queue, while it waits.
    ticket: Option<Ticket>,
    attempts: Vec<Try>,
}

#[derive(Debug)]
struct Try {
    target: Arc<Target>,
    reason: Reason,
    queued: Duration,
    candidates: Vec<Candidate>,
    failure: Option<String>,
}

impl Traces {
    /// Begins to follow a request; the oldest one is forgotten for it.
    pub fn follow(&self, subject: Subject) -> Arc<Trace> {
        let trace = Arc::new(Trace {
            subject,
            story: Mutex::default(),
        });
        let mut ring = self.lock();
        let oldest = if ring.len() >= REMEMBERED {
            ring.pop_front()
        } else {
            None
        };
        ring.push_back(trace.clone());
        drop(ring);
        // Outside the lock: it may hold the only handles on workers long gone.
        drop(oldest);
        trace
    }

    /// The latest request of that id, in the books or as the client named it.
    pub fn find(&self, id: &str) -> Option<Arc<Trace>> {
        let ring = self.lock();
        let of = |name: fn(&Subject) -> &str| ring.iter().rev().find(|trace| name(&trace.subject) == id).cloned();
        of(|subject| &subject.id).or_else(|| of(|subject| &subject.correlation))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Trace>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trace {
    /// Its id in the books.
    pub fn id(&self) -> &str {
        &self.subject.id
    }

    /// It waits in the queue.
    pub fn waits(&self, ticket: Option<Ticket>) {
        self.lock().ticket = ticket;
    }

    /// It has got a slot, after so long.
    pub fn claimed(&self, claim: &mut Claim, queued: Duration) {
        let attempt = Try {
            target: claim.target.clone(),
            reason: claim.reason,
            queued,
            candidates: std::mem::take(&mut claim.candidates),
            failure: None,
        };
        let mut story = self.lock();
        story.ticket = None;
        story.attempts.push(attempt);
    }

    /// The worker that has it failed before its first event.
    pub fn failed(&self, why: &str) {
        if let Some(attempt) = self.lock().attempts.last_mut() {
            attempt.failure = Some(why.to_owned());
        }
    }

    /// Where it stands in the queue, if it waits now.
    pub fn place(&self, dispatcher: &Dispatcher) -> Option<Place> {
        let ticket = self.lock().ticket.clone()?;
        let (position, wait) = dispatcher.place(&self.subject.model, &ticket)?;
        Some(Place {
            position: u32::try_from(position).unwrap_or(u32::MAX),
            wait_ms: wait.map(millis),
        })
    }

    /// Which way it went, in one line for a header: `w1; by=prefix; attempts=1; queued_ms=0; candidates=2`.
    pub fn route(&self) -> Option<String> {
        let story = self.lock();
        let last = story.attempts.last()?;
        let queued: Duration = story.attempts.iter().map(|attempt| attempt.queued).sum();
        Some(format!(
            "{}; by={}; attempts={}; queued_ms={}; candidates={}",
            last.target.id,
            last.reason.as_str(),
            story.attempts.len(),
            queued.as_millis(),
            last.candidates.len(),
        ))
    }

    /// All of it.
    pub fn decision(&self, dispatcher: &Dispatcher) -> Decision {
        let place = self.place(dispatcher);
        let subject = &self.subject;
        Decision {
            correlation: Some(subject.correlation.clone()).filter(|correlation| *correlation != subject.id),
            priority: subject.priority,
            expected_tokens: subject.tokens,
            labels: subject.labels.clone(),
            place,
            attempts: self.lock().attempts.iter().map(Try::told).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Story> {
        self.story.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Try {
    fn told(&self) -> Attempt {
        let mut candidates: Vec<_> = self.candidates.iter().map(Candidate::told).collect();
        candidates.sort_by(|a, b| (a.verdict, &a.worker).cmp(&(b.verdict, &b.worker)));
        Attempt {
            worker: self.target.id.clone(),
            epoch: self.target.epoch,
            reason: self.reason,
            queued_ms: millis(self.queued),
            candidates,
            failure: self.failure.clone(),
        }
    }
}

impl Candidate {
    fn told(&self) -> wire::Candidate {
        wire::Candidate {
            worker: self.target.id.clone(),
            verdict: self.verdict,
            score: self.score,
            in_flight: self.in_flight,
            slots: self.slots,
            outstanding_tokens: self.outstanding,
            tokens_per_second: self.pace,
            has_context: self.has_context,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(id: &str, correlation: &str) -> Subject {
        Subject {
            id: id.into(),
            correlation: correlation.into(),
            model: "m".parse().unwrap(),
            priority: Priority::Normal,
            tokens: 1,
            labels: Labels::new(),
        }
    }

    #[test]
    fn the_latest_requests_are_remembered_under_both_their_names() {
        let traces = Traces::default();
        traces.follow(subject("req_0", "mine"));
        traces.follow(subject("req_1", "mine"));
        assert_eq!(traces.find("req_0").unwrap().id(), "req_0");
        assert_eq!(traces.find("mine").unwrap().id(), "req_1");
        for n in 0..REMEMBERED {
            traces.follow(subject(&format!("later_{n}"), "x"));
        }
        assert!(traces.find("req_1").is_none());
        assert!(traces.find("later_0").is_some());
    }
}
