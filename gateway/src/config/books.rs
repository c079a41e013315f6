//! `[books]`: what is kept of requests that have ended.

use std::time::Duration;

use serde::Deserialize;

use super::duration;

/// `[books]`: requests that have ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Books {
    /// How long each has a row of its own; what it used is kept by key, model and day.
    #[serde(deserialize_with = "duration")]
    pub retention: Duration,
}

impl Default for Books {
    fn default() -> Self {
        Self {
            retention: Duration::from_hours(90 * 24),
        }
    }
}

impl Books {
    /// Every value that makes no sense.
    pub(super) fn faults(&self) -> Vec<&'static str> {
        let is_long = self.retention >= Duration::from_hours(24);
        Some("books.retention: must be at least 1day")
            .filter(|_| !is_long)
            .into_iter()
            .collect()
    }
}
