//! How much a key may use: requests and tokens in a minute, tokens in a day and in all, requests at a time.
//!
//! A [`Reservation`] is made before a request is admitted and settled by what was really used when it is dropped.
//! The arithmetic is in [`meter`]; nothing here knows who may call, or HTTP.

mod meter;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use wire::{KeyLimits, KeyView};

pub use self::meter::{Limit, Refusal, Share, Standing};
use self::meter::{Meter, Moment};
use crate::metrics;

/// Bytes of a text for one of its tokens: about right for English.
const BYTES_PER_TOKEN: u64 = 4;
/// Milliseconds of a day.
const DAY_MS: i64 = 24 * 3_600_000;
/// Meters that are kept without asking whether they still count anything.
const FEW: usize = 10_000;

/// The meters of all keys that have limits; keys rotated from one another share one.
#[derive(Debug, Default)]
pub struct Meters {
    by_family: Mutex<Held>,
    /// What the books say was used before this start.
    before: HashMap<String, Used>,
}

#[derive(Debug, Default)]
struct Held {
    meters: HashMap<String, Meter>,
    /// When so many are held, those that count nothing are let go: holders of tokens are as many as the issuer has
    /// people.
    sweep_at: usize,
}

impl Held {
    fn make_room(&mut self, now: Moment) {
        if self.meters.len() < self.sweep_at.max(FEW) {
            return;
        }
        self.meters.retain(|_, meter| !meter.is_at_rest(now));
        self.sweep_at = self.meters.len() * 2;
    }
}

/// Tokens used before this start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// On that day (UTC), in days since 1970.
    pub day: i64,
    /// On that day.
    pub tokens_that_day: u64,
    /// In all.
    pub tokens: u64,
}

impl Meters {
    /// Meters that go on from what the books say.
    pub fn new(before: HashMap<String, Used>) -> Self {
        let by_family = Mutex::default();
        Self { by_family, before }
    }

    /// Reserves a request of about so many tokens, of which the last `unsure` are a guess; `None` for a key without limits.
    pub fn reserve(self: &Arc<Self>, key: &KeyView, tokens: u64, unsure: u64) -> Result<Option<Reservation>, Refusal> {
        if key.limits == KeyLimits::default() {
            return Ok(None);
        }
        let now = now();
        let mut held = self.lock();
        held.make_room(now);
        let meter = held.meters.entry(key.family.clone()).or_insert_with(|| {
            let before = self.before.get(&key.family).copied().unwrap_or_default();
            Meter::new(key.limits, before, now)
        });
        let reserved = meter
            .reserve(tokens, unsure, now)
            .inspect_err(|refusal| metrics::limited(refusal.limit))?;
        let standing = meter.standing(now);
        Ok(Some(Reservation {
            meters: self.clone(),
            family: key.family.clone(),
            reserved,
            used: 0,
            standing,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.by_family.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's part of what its key may use; dropping it settles.
#[derive(Debug)]
pub struct Reservation {
    meters: Arc<Meters>,
    family: String,
    reserved: u64,
    used: u64,
    /// How the key stands with this reservation made.
    pub standing: Standing,
}

impl Reservation {
    /// What was used so far, in tokens; called again, the later count holds.
    pub fn used(&mut self, tokens: u64) {
        self.used = tokens;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(meter) = self.meters.lock().meters.get_mut(&self.family) {
            meter.settle(self.reserved, self.used, now());
        }
    }
}

/// About how many tokens a text of so many bytes has, where nobody has counted them.
pub fn estimate(bytes: usize) -> u64 {
    bytes as u64 / BYTES_PER_TOKEN
}

/// The day it is (UTC), in days since 1970.
pub fn today() -> i64 {
    crate::now_ms().div_euclid(DAY_MS)
}

fn now() -> Moment {
    let ms = crate::now_ms();
    Moment {
        instant: Instant::now(),
        day: ms.div_euclid(DAY_MS),
        day_left: Duration::from_millis((DAY_MS - ms.rem_euclid(DAY_MS)).unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(limits: KeyLimits) -> KeyView {
        KeyView {
            id: "b".into(),
            name: "k".into(),
            scopes: Vec::new(),
            owner: None,
            models: Vec::new(),
            limits,
            trusted: false,
            priority: wire::Priority::default(),
            labels: wire::Labels::new(),
            family: "a".into(),
            created_at_ms: 0,
            expires_at_ms: None,
            last_used_at_ms: None,
            revoked_at_ms: None,
        }
    }

    #[test]
    fn a_key_without_limits_has_no_meter() {
        let meters = Arc::new(Meters::default());
        assert!(
            meters
                .reserve(&key(KeyLimits::default()), u64::MAX, 0)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_meter_that_counts_nothing_any_more_is_let_go() {
        let meters = Arc::new(Meters::default());
        let limits = KeyLimits {
            concurrent_requests: Some(1),
            tokens_per_day: Some(10),
            ..KeyLimits::default()
        };
        let call = |family: String, tokens| {
            let key = KeyView { family, ..key(limits) };
            let mut reservation = meters.reserve(&key, tokens, 0).unwrap().unwrap();
            reservation.used(tokens);
            reservation
        };
        let running = call("running".into(), 0);
        drop(call("has used some today".into(), 1));
        for person in 0..3 * FEW {
            drop(call(person.to_string(), 0));
        }
        let held = meters.lock();
        assert!(held.meters.len() <= FEW, "{}", held.meters.len());
        assert!(held.meters.contains_key("running") && held.meters.contains_key("has used some today"));
        drop((held, running));
    }

    #[test]
    fn a_budget_goes_on_where_the_books_left_it_and_is_charged_what_was_used() {
        let used = Used {
            day: 0,
            tokens_that_day: 0,
            tokens: 60,
        };
        let meters = Arc::new(Meters::new([("a".to_owned(), used)].into()));
        let limits = KeyLimits {
            token_budget: Some(100),
            ..KeyLimits::default()
        };
        let mut first = meters.reserve(&key(limits), 30, 0).unwrap().unwrap();
        assert_eq!(
            meters.reserve(&key(limits), 11, 0).unwrap_err().limit,
            Limit::TokenBudget
        );
        first.used(39);
        drop(first);
        assert!(meters.reserve(&key(limits), 1, 0).is_ok());
        assert_eq!(meters.reserve(&key(limits), 2, 0).unwrap_err().left, 1);
    }
}
