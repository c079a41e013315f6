//! Whether a request that failed before its first event is given to another worker.
//!
//! Pure: what happened and the time are arguments. It knows no worker's state and no HTTP.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use wire::WorkerId;

/// Attempts for a request whose worker could not be reached at all.
const CONNECT_ATTEMPTS: usize = 3;
/// Attempts for a request that a worker may have seen.
const ATTEMPTS: usize = 2;
/// Workers that may die of a request; with the last of them it is poison.
const DEATHS: usize = 2;
/// Retries and requests are counted over this many seconds.
const WINDOW: usize = 10;
/// Retries there may always be (Envoy's and Linkerd's retry budgets have such a floor, too).
const FLOOR: usize = 3;

/// How an attempt failed, as far as the next one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The worker could not be reached: it has seen nothing.
    Unreachable,
    /// The worker died with the request.
    Died,
    /// The worker lives, and what it sent was no answer.
    Garbled,
    /// The worker answered what no client should see, or nothing, or has no room.
    Bad,
}

/// What comes after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another worker, whatever the budget says.
    Free,
    /// Another worker, if the budget has room.
    Budgeted,
    /// None: it has been tried enough.
    Enough,
    /// None: workers die of it.
    Poison,
}

/// One request's attempts.
#[derive(Debug, Clone, Default)]
pub struct Course {
    tried: Vec<WorkerId>,
    deaths: usize,
}

impl Course {
    /// The workers that have failed it.
    pub fn tried(&self) -> &[WorkerId] {
        &self.tried
    }

    /// A worker has failed it.
    pub fn failed(&mut self, worker: WorkerId, fault: Fault) -> Next {
        self.tried.push(worker);
        self.deaths += usize::from(fault == Fault::Died);
        let most = match fault {
            Fault::Unreachable => CONNECT_ATTEMPTS,
            Fault::Died | Fault::Garbled | Fault::Bad => ATTEMPTS,
        };
        match fault {
            _ if self.deaths >= DEATHS => Next::Poison,
            _ if self.tried.len() >= most => Next::Enough,
            Fault::Unreachable | Fault::Died | Fault::Garbled => Next::Free,
            Fault::Bad => Next::Budgeted,
        }
    }
}

/// How many retries there may be: a fifth of the requests that are open or were made in the last ten seconds, or three.
#[derive(Debug, Default)]
pub struct Budget(Mutex<Spent>);

#[derive(Debug, Default)]
struct Spent {
    requests: Lately,
    retries: Lately,
    /// Retries that may yet be made.
    promised: usize,
}

/// How often something happened in the last ten seconds, counted by the second.
#[derive(Debug, Default)]
struct Lately {
    began: Option<Instant>,
    second: usize,
    counts: [usize; WINDOW],
}

/// Leave to make one retry; unspent it goes back.
#[derive(Debug)]
pub struct Permit(Option<Arc<Budget>>);

impl Budget {
    /// A request was made.
    pub fn request(&self, now: Instant) {
        self.lock().requests.add(now);
    }

    /// Leave for a retry, if there is any while so many requests are open.
    pub fn permit(self: &Arc<Self>, open: usize, now: Instant) -> Option<Permit> {
        let mut spent = self.lock();
        let requests = spent.requests.count(now).max(open);
        let has_room = spent.retries.count(now) + spent.promised < (requests / 5).max(FLOOR);
        spent.promised += usize::from(has_room);
        has_room.then(|| Permit(Some(self.clone())))
    }

    fn lock(&self) -> MutexGuard<'_, Spent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lately {
    fn add(&mut self, now: Instant) {
        self.turn(now);
        self.counts[self.second % WINDOW] += 1;
    }

    fn count(&mut self, now: Instant) -> usize {
        self.turn(now);
        self.counts.iter().sum()
    }

    /// Forgets the seconds that are too long ago.
    fn turn(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let second = usize::try_from(now.saturating_duration_since(began).as_secs()).unwrap_or(usize::MAX);
        for past in (self.second + 1..=second).rev().take(WINDOW) {
            self.counts[past % WINDOW] = 0;
        }
        self.second = self.second.max(second);
    }
}

impl Permit {
    /// The retry is made now.
    pub fn spend(mut self, now: Instant) {
        if let Some(budget) = self.0.take() {
            let mut spent = budget.lock();
            spent.promised -= 1;
            spent.retries.add(now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(budget) = self.0.take() {
            budget.lock().promised -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn after(faults: &[Fault]) -> Next {
        let mut course = Course::default();
        let mut last = Next::Enough;
        for (number, fault) in faults.iter().enumerate() {
            last = course.failed(format!("w{number}").parse().unwrap(), *fault);
        }
        assert_eq!(course.tried().len(), faults.len());
        last
    }

    #[test]
    fn a_request_gets_two_attempts_and_three_if_workers_cannot_be_reached() {
        use Fault::{Bad, Died, Garbled, Unreachable};
        for (faults, next) in [
            (&[Bad][..], Next::Budgeted),
            (&[Bad, Bad], Next::Enough),
            (&[Died], Next::Free),
            (&[Died, Bad], Next::Enough),
            (&[Garbled], Next::Free),
            (&[Garbled, Garbled], Next::Enough),
            (&[Died, Died], Next::Poison),
            (&[Unreachable], Next::Free),
            (&[Unreachable, Unreachable], Next::Free),
            (&[Unreachable, Unreachable, Unreachable], Next::Enough),
            (&[Unreachable, Unreachable, Died], Next::Enough),
            (&[Died, Unreachable], Next::Free),
            (&[Died, Unreachable, Died], Next::Poison),
        ] {
            assert_eq!(after(faults), next, "{faults:?}");
        }
    }

    #[test]
    fn asking_for_leave_spends_nothing_and_making_the_retry_does() {
        let budget = Arc::<Budget>::default();
        let now = Instant::now();
        for _ in 0..9 {
            assert!(budget.permit(1, now).is_some(), "given back unspent");
        }
        let permits: Vec<Permit> = (0..3).map(|_| budget.permit(1, now).unwrap()).collect();
        assert!(budget.permit(1, now).is_none(), "promised to others");
        for permit in permits {
            permit.spend(now);
        }
        assert!(budget.permit(19, now).is_none());
        assert!(budget.permit(20, now).is_some(), "a fifth of twenty is four");
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(budget.permit(1, later(9)).is_none());
        assert!(budget.permit(1, later(10)).is_some());
    }

    #[test]
    fn a_fifth_of_many_short_requests_may_be_retries() {
        let budget = Arc::<Budget>::default();
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        for request in 0..200 {
            budget.request(later(request / 20));
        }
        let retries = |at| {
            let permits = std::iter::from_fn(|| budget.permit(1, at));
            permits.map(|permit| permit.spend(at)).count()
        };
        assert_eq!(retries(later(9)), 40, "a fifth of two hundred");
        assert_eq!(
            retries(later(14)),
            0,
            "half of the requests are forgotten, and no retry is"
        );
        assert_eq!(retries(later(19)), FLOOR, "all of them are");
    }
}
