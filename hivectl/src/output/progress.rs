//! Progress: a bar's label where bars are drawn, and notes that stand in for a bar where none can be.

use std::{
    fmt,
    time::{Duration, Instant},
};

use indicatif::{ProgressState, style::ProgressTracker};

use super::Output;

/// A bar's label as a template key, because a message or prefix belongs to the bar's owner.
pub struct Label(pub String);

impl ProgressTracker for Label {
    fn clone_box(&self) -> Box<dyn ProgressTracker> {
        Box::new(Self(self.0.clone()))
    }
    fn tick(&mut self, _: &ProgressState, _: Instant) {}
    fn reset(&mut self, _: &ProgressState, _: Instant) {}
    fn write(&self, _: &ProgressState, w: &mut dyn fmt::Write) {
        // The writer is a string that indicatif draws from later.
        let _ = w.write_str(&self.0);
    }
}

/// Stands in for a bar where none can be drawn: a note at each tenth of the way, at most one every two seconds.
pub struct Announcer {
    output: Output,
    label: String,
    told: u64,
    told_at: Instant,
}

impl Announcer {
    /// An announcer that has told of nothing yet.
    pub fn new(output: Output, label: String) -> Self {
        Self {
            output,
            label,
            told: 0,
            told_at: Instant::now(),
        }
    }
}

impl ProgressTracker for Announcer {
    fn clone_box(&self) -> Box<dyn ProgressTracker> {
        Box::new(Self {
            output: self.output.clone(),
            label: self.label.clone(),
            told: self.told,
            told_at: self.told_at,
        })
    }
    fn tick(&mut self, state: &ProgressState, now: Instant) {
        let tenths = worth_telling(
            self.told,
            state.pos(),
            state.len().unwrap_or(0),
            now.duration_since(self.told_at),
        );
        if let Some(tenths) = tenths {
            (self.told, self.told_at) = (tenths, now);
            self.output.note(format_args!("{}: {} %", self.label, tenths * 10));
        }
    }
    fn reset(&mut self, _: &ProgressState, _: Instant) {
        self.told = 0;
    }
    fn write(&self, _: &ProgressState, _: &mut dyn fmt::Write) {}
}

/// How many tenths of the way to tell of now, if that is news: the end at once, a tenth in between after two seconds.
fn worth_telling(told: u64, position: u64, total: u64, since: Duration) -> Option<u64> {
    let tenths = (position.min(total) * 10).checked_div(total)?;
    (tenths > told && (tenths == 10 || since >= Duration::from_secs(2))).then_some(tenths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_bar_each_tenth_is_told_once_and_not_too_often() {
        let (soon, later) = (Duration::from_millis(100), Duration::from_secs(3));
        assert_eq!(worth_telling(0, 50, 1000, later), None);
        assert_eq!(worth_telling(0, 350, 1000, soon), None);
        assert_eq!(worth_telling(0, 350, 1000, later), Some(3));
        assert_eq!(worth_telling(3, 399, 1000, later), None);
        assert_eq!(worth_telling(3, 1000, 1000, soon), Some(10));
        assert_eq!(worth_telling(10, 1000, 1000, later), None);
        assert_eq!(worth_telling(0, 5, 0, later), None);
    }
}
