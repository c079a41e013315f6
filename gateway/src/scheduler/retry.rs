//! Whether a request that failed before its first event is given to another worker.
//!
//! Pure: what happened and the time are arguments. It knows no worker's state and no HTTP.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use wire::WorkerId;

/// Attempts for a request whose worker could not be reached at all.
const CONNECT_ATTEMPTS: usize = 3;
/// Attempts for a request that a worker may have seen.
const ATTEMPTS: usize = 2;
/// Workers that may die of a request; with the last of them it is poison.
const DEATHS: usize = 2;
/// Retries are counted over this long.
const WINDOW: Duration = Duration::from_secs(10);
/// Retries there may always be (Envoy's retry budget, whose other part is a fifth of the open requests).
const FLOOR: usize = 3;

/// How an attempt failed, as far as the next one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The worker could not be reached: it has seen nothing.
    Unreachable,
    /// The worker died with the request.
    Died,
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
            Fault::Died | Fault::Bad => ATTEMPTS,
        };
        match fault {
            _ if self.deaths >= DEATHS => Next::Poison,
            _ if self.tried.len() >= most => Next::Enough,
            Fault::Unreachable | Fault::Died => Next::Free,
            Fault::Bad => Next::Budgeted,
        }
    }
}

/// How many retries there may be: a fifth of the open requests, or three, in ten seconds.
#[derive(Debug, Default)]
pub struct Budget(Mutex<Spent>);

#[derive(Debug, Default)]
struct Spent {
    /// When retries were made, of the last ten seconds.
    at: VecDeque<Instant>,
    /// Retries that may yet be made.
    promised: usize,
}

/// Leave to make one retry; unspent it goes back.
#[derive(Debug)]
pub struct Permit(Option<Arc<Budget>>);

impl Budget {
    /// Leave for a retry, if there is any while so many requests are open.
    pub fn permit(self: &Arc<Self>, open: usize, now: Instant) -> Option<Permit> {
        let mut spent = self.lock();
        spent.at.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        let has_room = spent.at.len() + spent.promised < (open / 5).max(FLOOR);
        spent.promised += usize::from(has_room);
        has_room.then(|| Permit(Some(self.clone())))
    }

    fn lock(&self) -> MutexGuard<'_, Spent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The retry is made now.
    pub fn spend(mut self, now: Instant) {
        if let Some(budget) = self.0.take() {
            let mut spent = budget.lock();
            spent.promised -= 1;
            spent.at.push_back(now);
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
        use Fault::{Bad, Died, Unreachable};
        for (faults, next) in [
            (&[Bad][..], Next::Budgeted),
            (&[Bad, Bad], Next::Enough),
            (&[Died], Next::Free),
            (&[Died, Bad], Next::Enough),
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
        assert!(budget.permit(1, now + WINDOW).is_some());
    }
}
