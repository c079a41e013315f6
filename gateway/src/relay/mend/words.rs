//! One choice's text up to the first of `stop`, wherever the server itself ends it, if it does.
//!
//! It knows a text and its log-probabilities, and no chunk.

use serde_json::Value;
use wire::openai::Stops;

use super::super::aggregate::append;

/// A text as it comes.
#[derive(Debug, Default)]
pub struct Words {
    stops: Stops,
    /// Log-probabilities of what is held back.
    logprobs: Option<Value>,
    /// A text of `stop` has ended it.
    pub is_cut: bool,
}

impl Words {
    /// None yet, of a text that any of these ends.
    pub fn until(stop: &[String]) -> Self {
        Self {
            stops: Stops::new(stop.to_vec()),
            ..Self::default()
        }
    }

    /// What may be shown now that this piece has come, which may be the last.
    pub fn push(&mut self, piece: &str, is_last: bool) -> String {
        let (mut text, is_cut) = self.stops.push(piece);
        self.is_cut |= is_cut;
        if is_last {
            text += &self.stops.rest();
        }
        text
    }

    /// The log-probabilities that may be told now that these have come: none before their text, none of what is cut off.
    pub fn logprobs(&mut self, more: Option<Value>) -> Option<Value> {
        if let Some(more) = more {
            append(self.logprobs.get_or_insert_default(), more);
        }
        let told = self.logprobs.take_if(|_| !self.stops.holds());
        told.filter(|_| !self.is_cut)
    }
}
