//! A worker's health by what its requests came to: ejected as an outlier, tried again with one, forgiven by time.
//!
//! Pure, with `now` as an argument. It never sees heartbeats or probes: a worker that answers those and fails requests
//! is not well.

use std::time::{Duration, Instant};

use super::members::Outcome;

/// Failures in a row after which a worker is an outlier.
const FAILURES_IN_A_ROW: u32 = 3;
/// Failures among the latest sixteen requests after which it is one too.
const FAILURES_OF_SIXTEEN: u32 = 8;
/// The first ejection; each further one is twice as long (Envoy's outlier detection).
const FIRST_EJECTION: Duration = Duration::from_secs(30);
/// The longest ejection, and how long after one a worker must go without another to be forgiven.
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// What is held against a worker.
#[derive(Debug, Clone, Default)]
pub struct Health {
    in_a_row: u32,
    /// The latest outcomes, one bit each; 1 is a failure.
    latest: u16,
    ejections: u32,
    ejected_until: Option<Instant>,
    /// When its ejections so far are forgotten.
    forgiven_at: Option<Instant>,
    /// It failed the one request with which it was tried again.
    relapsed: bool,
    /// A connection to it broke; a later heartbeat proves it lives.
    pub broken: bool,
}

impl Health {
    /// Takes note of what a request came to; `is_probe` if it was given to the worker to see whether it has recovered.
    pub fn note(&mut self, outcome: Outcome, is_probe: bool, now: Instant) {
        let failed = outcome != Outcome::Fine;
        let decides = is_probe && self.is_half_open(now);
        self.latest = self.latest << 1 | u16::from(failed);
        if failed {
            self.in_a_row += 1;
            self.broken |= outcome == Outcome::Broken;
            self.relapsed |= decides;
        } else if decides {
            *self = Self {
                ejections: self.ejections,
                forgiven_at: Some(now + LONGEST_EJECTION),
                broken: self.broken,
                ..Self::default()
            };
        } else {
            // While it is set aside this clears nothing else: what ends well now began before.
            self.in_a_row = 0;
        }
    }

    /// Whether it should be ejected now.
    pub fn is_outlier(&self, now: Instant) -> bool {
        let fails = self.in_a_row >= FAILURES_IN_A_ROW || self.latest.count_ones() >= FAILURES_OF_SIXTEEN;
        !self.is_ejected(now) && (fails || self.relapsed)
    }

    /// Ejects it, for twice as long as the last time unless that is forgiven.
    pub fn eject(&mut self, now: Instant) {
        let is_forgiven = self.forgiven_at.is_some_and(|at| now >= at);
        let ejections = if is_forgiven { 0 } else { self.ejections };
        let doubled = FIRST_EJECTION.saturating_mul(1 << ejections.min(8));
        *self = Self {
            ejections: ejections + 1,
            ejected_until: Some(now + doubled.min(LONGEST_EJECTION)),
            broken: self.broken,
            ..Self::default()
        };
    }

    /// It gets a request all the same, since nobody else is left: that one shows whether it has recovered.
    pub fn try_again(&mut self, now: Instant) {
        self.ejected_until = self.ejected_until.map(|until| until.min(now));
    }

    /// Whether it gets nothing.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    /// Whether it gets one request, to see.
    pub fn is_half_open(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now >= until)
    }
}
