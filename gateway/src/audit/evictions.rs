//! Workers that nothing is routed to any more, told once each time.
//!
//! Pure: it compares what the registry shows now with what it showed before.

use std::collections::HashMap;

use wire::{WorkerId, WorkerState, WorkerView};

use super::record::{Event, Kind, Object, Outcome};

/// What the registry showed before.
#[derive(Debug, Default)]
pub struct Evictions(HashMap<WorkerId, (i64, WorkerState)>);

impl Evictions {
    /// The records of workers that have just been given up.
    pub fn see(&mut self, workers: &[WorkerView]) -> Vec<Event> {
        let now: HashMap<_, _> = workers
            .iter()
            .map(|worker| (worker.id.clone(), (worker.epoch, worker.state)))
            .collect();
        let given_up = workers.iter().filter(|worker| {
            let out = matches!(
                worker.state,
                WorkerState::Suspect | WorkerState::Lost | WorkerState::Quarantined
            );
            let before = self.0.get(&worker.id);
            out && before.is_some_and(|before| *before != (worker.epoch, worker.state))
        });
        let events = given_up.map(evicted).collect();
        self.0 = now;
        events
    }
}

fn evicted(worker: &WorkerView) -> Event {
    let mut event = Event::now(Kind::WorkerEvict).on(Object {
        epoch: Some(worker.epoch),
        ..Object::worker(&worker.id)
    });
    event.outcome = Some(Outcome {
        state: format!("{:?}", worker.state).to_lowercase(),
        code: None,
    });
    event
}
