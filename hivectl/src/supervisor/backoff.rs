//! How long to wait before something that died is started again: 1 s × 2ⁿ, at most 60 s, with jitter, and from the
//! beginning after a stable minute.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A life this long was a stable one.
const STABLE: Duration = Duration::from_secs(60);

/// The deaths so far that count.
#[derive(Debug, Default)]
pub struct Backoff {
    deaths: u32,
}

impl Backoff {
    /// The wait after a life of this length; `chance` from 0 to 1 spreads restarts, so that many do not come at once.
    pub fn after(&mut self, life: Duration, chance: f64) -> Duration {
        if life >= STABLE {
            self.deaths = 0;
        }
        let whole = FIRST.saturating_mul(1 << self.deaths.min(6)).min(LONGEST);
        self.deaths = self.deaths.saturating_add(1);
        whole.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_start_anew_after_a_stable_life() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let waits: Vec<u64> = (0..8).map(|_| backoff.after(short, 1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.after(Duration::from_secs(60), 1.0).as_secs(), 1);
        assert_eq!(backoff.after(short, 0.0).as_secs(), 1);
        assert_eq!(Backoff::default().after(short, 0.0).as_millis(), 500);
    }
}
