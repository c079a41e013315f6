//! One key's counts against its limits: a pure thing, to which the time is told.
//!
//! It waits for nothing and knows no key's name.

use std::time::{Duration, Instant};

use wire::KeyLimits;

use super::Used;

/// The longest wait a refused caller is told of: SDKs ignore longer ones.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The time, on the clock that never steps and on the calendar.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Monotonic.
    pub instant: Instant,
    /// Days since 1970 (UTC).
    pub day: i64,
    /// How long that day still is.
    pub day_left: Duration,
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Requests in a minute.
    RequestsPerMinute,
    /// Tokens in a minute.
    TokensPerMinute,
    /// Tokens in a day.
    TokensPerDay,
    /// Requests at a time.
    ConcurrentRequests,
    /// Tokens in all.
    TokenBudget,
}

/// Why a request is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The limit it meets.
    pub limit: Limit,
    /// The limit's value.
    pub most: u64,
    /// What is left of it.
    pub left: u64,
    /// What the request asked for, in the limit's unit.
    pub asked: u64,
    /// When to try again; at most 60 s.
    pub retry_after: Duration,
    /// How the key stands.
    pub standing: Standing,
}

/// How a key stands with its limits, as `x-ratelimit-*` headers say it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Requests in a minute.
    pub requests: Option<Share>,
    /// Tokens, by the limit of which least is left: in a minute, in a day, or in all.
    pub tokens: Option<Share>,
}

/// What is left of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The limit.
    pub most: u64,
    /// What could be used now.
    pub left: u64,
    /// When all of it can be used again, if nothing is used until then; none if that is never.
    pub full_in: Option<Duration>,
}

/// One key's counts.
#[derive(Debug)]
pub struct Meter {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    limits: KeyLimits,
    running: u32,
    day: i64,
    tokens_today: u64,
    tokens_ever: u64,
    /// Reserved and not settled yet; counts against the day and the budget.
    pending: u64,
}

impl Meter {
    /// Counts that go on from `before`.
    pub fn new(limits: KeyLimits, before: Used, now: Moment) -> Self {
        Self {
            requests: limits
                .requests_per_minute
                .map(|most| Bucket::new(most.into(), now.instant)),
            tokens: limits.tokens_per_minute.map(|most| Bucket::new(most, now.instant)),
            limits,
            running: 0,
            day: before.day,
            tokens_today: before.tokens_that_day,
            tokens_ever: before.tokens,
            pending: 0,
        }
    }

    /// Reserves one request of so many tokens, of which the last `unsure` are a guess: of them, only as many as are
    /// left. What was reserved is to be settled.
    pub fn reserve(&mut self, tokens: u64, unsure: u64, now: Moment) -> Result<u64, Refusal> {
        if now.day > self.day {
            (self.day, self.tokens_today) = (now.day, 0);
        }
        let sure = tokens.saturating_sub(unsure);
        // A request that names no limit is not refused for a guess, unless nothing is left for an answer.
        let left = self
            .fixed()
            .into_iter()
            .filter_map(|(_, most, used)| Some(self.left_of(most?, used)));
        let tokens = left.fold(tokens, |tokens, left| tokens.min(left.max(sure + unsure.min(1))));
        self.check(tokens, now)?;
        if let Some(bucket) = &mut self.requests {
            bucket.take(1, now.instant);
        }
        if let Some(bucket) = &mut self.tokens {
            bucket.take(bucket.fitting(tokens), now.instant);
        }
        self.running += 1;
        self.pending = self.pending.saturating_add(tokens);
        Ok(tokens)
    }

    fn check(&mut self, tokens: u64, now: Moment) -> Result<(), Refusal> {
        let standing = self.standing(now);
        let refuse = |limit, most, left, asked, retry_after: Duration| {
            Err(Refusal {
                limit,
                most,
                left,
                asked,
                retry_after: retry_after.clamp(Duration::from_secs(1), LONGEST_WAIT),
                standing,
            })
        };
        for (limit, most, used) in self.fixed() {
            let Some(most) = most else { continue };
            let left = self.left_of(most, used);
            if tokens > left {
                return refuse(limit, most, left, tokens, LONGEST_WAIT);
            }
        }
        if let Some(most) = self.limits.concurrent_requests.filter(|&most| self.running >= most) {
            return refuse(Limit::ConcurrentRequests, most.into(), 0, 1, Duration::from_secs(1));
        }
        let minute = [
            (Limit::RequestsPerMinute, &self.requests, 1),
            (Limit::TokensPerMinute, &self.tokens, tokens),
        ];
        for (limit, bucket, asked) in minute {
            let Some(bucket) = bucket else { continue };
            let wait = bucket.wait_for(bucket.fitting(asked), now.instant);
            if wait > Duration::ZERO {
                return refuse(limit, bucket.most, bucket.left(now.instant), asked, wait);
            }
        }
        Ok(())
    }

    /// The limits that no minute fills up again, and what is used of them.
    fn fixed(&self) -> [(Limit, Option<u64>, u64); 2] {
        [
            (Limit::TokenBudget, self.limits.token_budget, self.tokens_ever),
            (Limit::TokensPerDay, self.limits.tokens_per_day, self.tokens_today),
        ]
    }

    fn left_of(&self, most: u64, used: u64) -> u64 {
        most.saturating_sub(used).saturating_sub(self.pending)
    }

    /// Puts what was used in the place of what was reserved.
    pub fn settle(&mut self, reserved: u64, used: u64, now: Moment) {
        self.running = self.running.saturating_sub(1);
        self.pending = self.pending.saturating_sub(reserved);
        self.tokens_ever = self.tokens_ever.saturating_add(used);
        // A request that began yesterday is charged to the day it ended on.
        if now.day > self.day {
            (self.day, self.tokens_today) = (now.day, 0);
        }
        self.tokens_today = self.tokens_today.saturating_add(used);
        if let Some(bucket) = &mut self.tokens {
            bucket.give_back(bucket.fitting(reserved), now.instant);
            bucket.take(used, now.instant);
        }
    }

    /// Whether a new meter would count the same from now on.
    pub fn is_at_rest(&self, now: Moment) -> bool {
        let is_full = |bucket: &Option<Bucket>| {
            bucket
                .as_ref()
                .is_none_or(|bucket| bucket.left(now.instant) == bucket.most)
        };
        let counts_today = self.limits.tokens_per_day.is_some() && self.day >= now.day && self.tokens_today > 0;
        let is_idle = self.running == 0 && !counts_today && self.limits.token_budget.is_none();
        is_idle && is_full(&self.requests) && is_full(&self.tokens)
    }

    /// How the key stands now.
    pub fn standing(&self, now: Moment) -> Standing {
        let share = |bucket: &Bucket| Share {
            most: bucket.most,
            left: bucket.left(now.instant),
            full_in: Some(bucket.wait_for(bucket.most, now.instant)),
        };
        let fixed = self.fixed().into_iter().filter_map(|(limit, most, used)| {
            Some(Share {
                most: most?,
                left: self.left_of(most?, used),
                full_in: (limit == Limit::TokensPerDay).then_some(now.day_left),
            })
        });
        let tokens = self.tokens.as_ref().map(share);
        Standing {
            requests: self.requests.as_ref().map(share),
            tokens: tokens.into_iter().chain(fixed).min_by_key(|share| share.left),
        }
    }
}

/// Fills by its size a minute. It may be overdrawn: who used more than was reserved waits longer afterwards.
#[derive(Debug)]
struct Bucket {
    most: u64,
    level: f64,
    at: Instant,
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "limits are far below 2^52, and levels are clamped before they become integers"
)]
impl Bucket {
    fn new(most: u64, now: Instant) -> Self {
        Self {
            most,
            level: most as f64,
            at: now,
        }
    }

    /// One request larger than the whole bucket takes all of it, or it could never go.
    fn fitting(&self, amount: u64) -> u64 {
        amount.min(self.most)
    }

    fn level(&self, now: Instant) -> f64 {
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * self.most as f64 / 60.0;
        (self.level + filled).min(self.most as f64)
    }

    fn left(&self, now: Instant) -> u64 {
        self.level(now).max(0.0) as u64
    }

    fn take(&mut self, amount: u64, now: Instant) {
        self.level = self.level(now) - amount as f64;
        self.at = now;
    }

    fn give_back(&mut self, amount: u64, now: Instant) {
        self.level = (self.level(now) + amount as f64).min(self.most as f64);
        self.at = now;
    }

    fn wait_for(&self, amount: u64, now: Instant) -> Duration {
        let missing = amount as f64 - self.level(now);
        // Less than a millionth of a request or token is rounding.
        if missing < 1e-6 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(missing * 60.0 / self.most as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Moment {
        Moment {
            instant: start + Duration::from_secs(seconds),
            day: i64::try_from(seconds / 86_400).unwrap(),
            day_left: Duration::from_secs(86_400 - seconds % 86_400),
        }
    }

    fn meter(limits: KeyLimits) -> (Meter, Instant) {
        let start = Instant::now();
        (Meter::new(limits, Used::default(), at(start, 0)), start)
    }

    #[test]
    fn requests_of_a_minute_come_back_evenly() {
        let (mut meter, start) = meter(KeyLimits {
            requests_per_minute: Some(2),
            ..KeyLimits::default()
        });
        assert!(meter.reserve(0, 0, at(start, 0)).is_ok());
        assert!(meter.reserve(0, 0, at(start, 0)).is_ok());
        let refusal = meter.reserve(0, 0, at(start, 0)).unwrap_err();
        assert_eq!((refusal.limit, refusal.left), (Limit::RequestsPerMinute, 0));
        assert_eq!(refusal.retry_after, Duration::from_secs(30));
        let share = refusal.standing.requests.unwrap();
        assert_eq!(
            (share.most, share.left, share.full_in),
            (2, 0, Some(Duration::from_secs(60)))
        );
        assert!(meter.reserve(0, 0, at(start, 29)).is_err());
        assert!(meter.reserve(0, 0, at(start, 30)).is_ok());
        assert!(meter.reserve(0, 0, at(start, 31)).is_err());
    }

    #[test]
    fn tokens_are_reserved_and_what_was_not_used_comes_back() {
        let (mut meter, start) = meter(KeyLimits {
            tokens_per_minute: Some(100),
            ..KeyLimits::default()
        });
        let reserved = meter.reserve(80, 0, at(start, 0)).unwrap();
        assert_eq!(
            meter.reserve(30, 0, at(start, 0)).unwrap_err().limit,
            Limit::TokensPerMinute
        );
        meter.settle(reserved, 10, at(start, 0));
        assert_eq!(meter.standing(at(start, 0)).tokens.unwrap().left, 90);
        assert!(meter.reserve(90, 0, at(start, 0)).is_ok());
    }

    #[test]
    fn who_uses_more_than_was_reserved_waits_longer() {
        let (mut meter, start) = meter(KeyLimits {
            tokens_per_minute: Some(60),
            ..KeyLimits::default()
        });
        let reserved = meter.reserve(10, 0, at(start, 0)).unwrap();
        meter.settle(reserved, 90, at(start, 0));
        let refusal = meter.reserve(1, 0, at(start, 0)).unwrap_err();
        assert_eq!((refusal.left, refusal.retry_after), (0, Duration::from_secs(31)));
    }

    #[test]
    fn a_request_larger_than_a_minute_s_limit_waits_for_a_full_bucket() {
        let (mut meter, start) = meter(KeyLimits {
            tokens_per_minute: Some(60),
            ..KeyLimits::default()
        });
        let reserved = meter.reserve(1000, 0, at(start, 0)).unwrap();
        meter.settle(reserved, 60, at(start, 0));
        assert!(meter.reserve(1000, 0, at(start, 59)).is_err());
        assert!(meter.reserve(1000, 0, at(start, 60)).is_ok());
    }

    #[test]
    fn a_day_s_tokens_are_new_the_next_day_and_a_budget_s_are_not() {
        let limits = KeyLimits {
            tokens_per_day: Some(50),
            token_budget: Some(70),
            ..KeyLimits::default()
        };
        let (mut meter, start) = meter(limits);
        let reserved = meter.reserve(50, 0, at(start, 0)).unwrap();
        meter.settle(reserved, 50, at(start, 10));
        let refusal = meter.reserve(1, 0, at(start, 20)).unwrap_err();
        assert_eq!(
            (refusal.limit, refusal.most, refusal.retry_after),
            (Limit::TokensPerDay, 50, LONGEST_WAIT)
        );
        let told = refusal.standing.tokens.unwrap();
        let rest_of_the_day = Some(Duration::from_secs(86_380));
        assert_eq!((told.most, told.left, told.full_in), (50, 0, rest_of_the_day));
        let tomorrow = at(start, 86_400);
        let refusal = meter.reserve(21, 0, tomorrow).unwrap_err();
        assert_eq!((refusal.limit, refusal.left), (Limit::TokenBudget, 20));
        assert_eq!(refusal.standing.tokens.unwrap().full_in, None);
        assert!(meter.reserve(20, 0, tomorrow).is_ok());
    }

    #[test]
    fn a_guess_is_cut_to_what_is_left_and_a_promise_is_not() {
        let (mut meter, start) = meter(KeyLimits {
            token_budget: Some(50),
            ..KeyLimits::default()
        });
        assert!(meter.reserve(60, 0, at(start, 0)).is_err(), "it may need so many");
        let reserved = meter.reserve(20 + 256, 256, at(start, 0)).unwrap();
        assert_eq!(reserved, 50);
        assert_eq!(meter.reserve(1 + 256, 256, at(start, 0)).unwrap_err().left, 0);
        meter.settle(reserved, 25, at(start, 1));
        assert!(
            meter.reserve(25 + 256, 256, at(start, 1)).is_err(),
            "nothing is left for an answer"
        );
        assert_eq!(meter.reserve(24 + 256, 256, at(start, 1)).unwrap(), 25);
    }

    #[test]
    fn only_so_many_requests_run_at_a_time() {
        let (mut meter, start) = meter(KeyLimits {
            concurrent_requests: Some(1),
            ..KeyLimits::default()
        });
        let reserved = meter.reserve(5, 0, at(start, 0)).unwrap();
        assert_eq!(
            meter.reserve(5, 0, at(start, 0)).unwrap_err().limit,
            Limit::ConcurrentRequests
        );
        meter.settle(reserved, 5, at(start, 1));
        assert!(meter.reserve(5, 0, at(start, 1)).is_ok());
    }

    #[test]
    fn a_refused_request_costs_nothing() {
        let limits = KeyLimits {
            requests_per_minute: Some(1),
            tokens_per_minute: Some(10),
            ..KeyLimits::default()
        };
        let (mut meter, start) = meter(limits);
        let reserved = meter.reserve(10, 0, at(start, 0)).unwrap();
        meter.settle(reserved, 10, at(start, 0));
        for _again in 0..100 {
            assert!(meter.reserve(1, 0, at(start, 1)).is_err());
        }
        assert!(meter.reserve(10, 0, at(start, 60)).is_ok());
    }
}
