//! The heartbeat of a member: regular, at once when something changes, and patient when no gateway listens.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::Rng;
use secrecy::SecretString;
use tokio::{sync::mpsc, time::Instant};
use wire::{Heartbeat, HeartbeatReply, Registered, WorkerState};

use super::{
    Credential, Ending,
    control::{Control, ControlError},
};
use crate::state::Worker;

/// How often it beats while the model is being loaded: progress that does not move looks like a hang.
const WHILE_LOADING: Duration = Duration::from_millis(500);

/// Beats until it is dropped, or until another process has taken the worker's place.
pub struct Pulse {
    control: Arc<Control>,
    worker: Arc<Worker>,
    credential: Credential,
    interval: Duration,
    ends: mpsc::Sender<Ending>,
    speed: Speed,
    /// How many slots the gateway was last told to be still busy.
    still_busy: u32,
}

impl Pulse {
    /// The pulse of a worker that has just registered; `ends` hears when the gateway wants it to go.
    pub fn new(control: Arc<Control>, worker: Arc<Worker>, registered: Registered, ends: mpsc::Sender<Ending>) -> Self {
        let credential = Arc::new(Mutex::new(SecretString::from(registered.credential)));
        let interval = at_least_a_moment(registered.heartbeat_interval_ms);
        Self {
            control,
            worker,
            credential,
            interval,
            ends,
            speed: Speed::new(),
            still_busy: 0,
        }
    }

    /// The worker's own bearer, always the latest.
    pub fn credential(&self) -> Credential {
        self.credential.clone()
    }

    /// Beats.
    pub async fn beat(mut self) {
        let mut life = self.worker.life.subscribe();
        let mut failures = 0;
        loop {
            life.mark_unchanged();
            let pause = match self.beat_once().await {
                Ok(pause) => {
                    failures = 0;
                    pause
                }
                Err(error) if error.status() == Some(409) => {
                    tracing::error!(reason = %error, "another process holds this worker's id");
                    let _ = self.ends.send(Ending::Replaced).await;
                    return;
                }
                Err(error) => {
                    // The first failure and then every tenth: a gateway that is down must not fill the log.
                    if failures % 10 == 0 {
                        tracing::warn!(reason = %error, failures, "the gateway does not hear the heartbeat");
                    }
                    let pause = pause_after(failures, error.is_no_connection());
                    failures += 1;
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = life.changed(), if failures == 0 => {}
                () = self.worker.slots.news(self.still_busy), if failures == 0 => {}
            }
        }
    }

    /// One heartbeat, and a new registration where the gateway has forgotten the worker.
    async fn beat_once(&mut self) -> Result<Duration, ControlError> {
        let bearer = self.credential.lock().map(|bearer| bearer.clone()).unwrap_or_default();
        let beat = self.measure();
        match self.control.heartbeat(&self.worker, &bearer, &beat).await {
            Ok(HeartbeatReply {
                drain,
                heartbeat_interval_ms,
            }) => {
                if drain {
                    let _ = self.ends.try_send(Ending::Drained);
                }
                self.interval = at_least_a_moment(heartbeat_interval_ms);
                Ok(match beat.state {
                    WorkerState::Loading => self.interval.min(WHILE_LOADING),
                    _ => self.interval,
                })
            }
            Err(error) if matches!(error.status(), Some(401 | 404)) => {
                tracing::info!(reason = %error, "registering again");
                let registered = self.control.register(&self.worker, &bearer).await?;
                tracing::info!(epoch = registered.epoch, "joined again");
                if let Ok(mut credential) = self.credential.lock() {
                    *credential = SecretString::from(registered.credential);
                }
                // The registration has told the state; the next heartbeat tells the rest.
                Ok(at_least_a_moment(registered.heartbeat_interval_ms))
            }
            Err(error) => Err(error),
        }
    }

    fn measure(&mut self) -> Heartbeat {
        let life = self.worker.life.borrow().clone();
        self.still_busy = self.worker.slots.still_busy();
        let tokens = self.worker.tokens.load(std::sync::atomic::Ordering::Relaxed);
        Heartbeat {
            epoch: self.worker.epoch.borrow().number.unwrap_or_default(),
            state: life.state,
            progress: life.progress,
            message: life.message,
            in_flight: self.worker.slots.in_flight(),
            still_busy: self.still_busy,
            requests_ended: self.worker.slots.ended(),
            tokens_generated: tokens,
            tokens_per_second: self.speed.measure(tokens, Instant::now()),
            memory_bytes: memory_bytes(),
            facts: self.worker.facts(),
        }
    }
}

/// Decode speed lately: over the last stretch between two heartbeats in which tokens were generated.
struct Speed {
    tokens: u64,
    at: Instant,
    last: Option<f32>,
}

impl Speed {
    fn new() -> Self {
        Self {
            tokens: 0,
            at: Instant::now(),
            last: None,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a speed needs no more precision")]
    fn measure(&mut self, tokens: u64, now: Instant) -> Option<f32> {
        let seconds = (now - self.at).as_secs_f32();
        let new = tokens.saturating_sub(self.tokens);
        // Heartbeats that follow each other closely say little.
        if seconds >= 0.5 {
            if new > 0 {
                self.last = Some(new as f32 / seconds);
            }
            (self.tokens, self.at) = (tokens, now);
        }
        self.last
    }
}

/// How long to wait after so many failures in a row: 1 s × 2ⁿ up to 10 s, up to 2 s while nobody listens (a restarted
/// gateway has its workers back within two heartbeats), with jitter.
pub fn pause_after(failures: u32, is_no_connection: bool) -> Duration {
    let most = if is_no_connection { 2.0 } else { 10.0 };
    let pause = 2_f64.powi(i32::try_from(failures.min(10)).unwrap_or(10)).min(most);
    Duration::from_secs_f64(pause * rand::rng().random_range(0.7..=1.0))
}

fn at_least_a_moment(millis: u64) -> Duration {
    Duration::from_millis(millis.max(50))
}

/// Resident memory, where the system tells.
fn memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_that_depends_on_the_failure() {
        for (failures, most) in [(0, 1.0), (1, 2.0), (2, 4.0), (9, 10.0), (u32::MAX, 10.0)] {
            let pause = pause_after(failures, false).as_secs_f64();
            assert!((most * 0.69..=most).contains(&pause), "{failures}: {pause}");
            assert!(pause_after(failures, true).as_secs_f64() <= most.min(2.0));
        }
    }

    #[test]
    fn speed_is_that_of_the_last_stretch_with_tokens() {
        let mut speed = Speed::new();
        let start = speed.at;
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(speed.measure(0, at(1000)), None);
        assert_eq!(speed.measure(50, at(2000)), Some(50.0));
        assert_eq!(speed.measure(60, at(2001)), Some(50.0), "too short to say");
        assert_eq!(speed.measure(60, at(2500)), Some(20.0));
        assert_eq!(speed.measure(60, at(9000)), Some(20.0), "idle");
    }
}
