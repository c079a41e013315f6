//! Our choice of tokens, in the engine's terms.
//!
//! The engine's own types come through [`super`], which alone names their crate.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use super::{CustomLogitsProcessor, EngineResult, Slot, Tensor};
use crate::engine::{
    grammar::Guide,
    run::{Choice, Chosen},
    sampling::Sampler,
    turns::Turn,
};

/// What chooses the tokens of one request.
pub struct Choose {
    pub sampler: Sampler,
    pub guide: Mutex<Option<Guide>>,
    /// Tokens that are never chosen.
    pub never: Vec<u32>,
    /// Tokens that the engine should have before the next choice.
    pub expected: AtomicUsize,
    pub choices: mpsc::UnboundedSender<Choice>,
    /// Over when the engine drops the request.
    pub turn: Turn,
    pub _slot: Slot,
}

impl Choose {
    /// Most choices fit the grammar unasked, and looking at one token is cheaper than looking at all.
    fn choose(&self, logits: &mut [f32], context: &[u32]) -> Choice {
        let expected = self.expected.fetch_add(1, Ordering::Relaxed);
        if context.len() != expected {
            let counted = context.len();
            return Err(format!("it has {counted} tokens where {expected} were counted"));
        }
        for token in &self.never {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let mut sampled = self.sampler.sample(logits, context);
        let mut is_last = false;
        let mut guide = self.guide.lock().map_err(|error| error.to_string())?;
        if let Some(guide) = &mut *guide {
            if !guide.allows(sampled.token)? {
                let mut left = logits.to_vec();
                guide.rule_out(&mut left)?;
                sampled = self.sampler.sample_again(logits, left, context);
            }
            is_last = guide.take(sampled.token)?;
        }
        Ok(Chosen { sampled, is_last })
    }
}

impl CustomLogitsProcessor for Choose {
    fn apply(&self, logits: &Tensor, context: &[u32]) -> EngineResult<Tensor> {
        let device = logits.device();
        let mut logits: Vec<f32> = logits.to_vec1()?;
        let choice = self.choose(&mut logits, context);
        self.turn.step();
        let mut only = vec![f32::NEG_INFINITY; logits.len()];
        let token = choice.as_ref().map_or(0, |chosen| chosen.sampled.token);
        if let Some(logit) = only.get_mut(token as usize) {
            *logit = 1.0;
        }
        // A closed channel is a client that left. It must not become an error here: the engine would break off the
        // step for every request in the batch. It finds its own channel closed a moment later.
        let _ = self.choices.send(choice);
        Tensor::from_vec(only, logits.len(), device)
    }
}
