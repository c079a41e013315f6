//! One request on its way through the engine: from the choices of its tokens to the events of its answer.
//!
//! It knows the engine only by two channels: the choices made for this request, and the engine's own responses, of
//! which only errors matter. When the choices end, the engine has let go of the request.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    Candidate, Event, FinishReason, TokenLogprob,
    sampling::Sampled,
    text::{Answer, Detokenizer},
};

/// What a token says.
pub struct Vocabulary {
    /// Text of several tokens in a row, without marks.
    pub decode: Box<dyn Fn(&[u32]) -> String + Send + Sync>,
    /// Bytes of a single token.
    pub bytes: Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>,
    /// The tokens that end an answer.
    pub ends: Vec<u32>,
}

/// A choice for a position. Where a grammar refuses it, a second one for the same position follows.
#[derive(Debug)]
pub struct Choice {
    /// How many tokens come before it.
    pub position: usize,
    /// What was chosen.
    pub sampled: Sampled,
}

/// One request on its way; `R` is the engine's response.
pub struct Run<R> {
    /// What its tokens say.
    pub vocabulary: Arc<Vocabulary>,
    /// The answer as it grows.
    pub answer: Answer,
    /// The choices, as they are made.
    pub chosen: mpsc::UnboundedReceiver<Choice>,
    /// The engine's own words. Dropping them cancels the request.
    pub responses: Option<mpsc::Receiver<R>>,
    /// What went wrong, if a response says that something did.
    pub reason: fn(R) -> Option<String>,
    /// The client wants log-probabilities.
    pub logprobs: bool,
    /// A grammar may refuse choices.
    pub with_grammar: bool,
    state: State,
}

#[derive(Default)]
struct State {
    detokenizer: Detokenizer,
    /// With a grammar, a choice is final only when the next position's is made.
    unsure: Option<Choice>,
    over: bool,
}

