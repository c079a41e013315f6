//! `POST /v1/completions`, read in full: the older API, which continues a text as it stands.

use super::{Body, Faults, Input, Sampling, chat::MOST_CHOICES, input, reading::Reading};
use crate::ModelName;

/// Texts to continue; checked for form, and for nothing that only a model can judge.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The model; none if it is a name that no model can have.
    pub model: Option<ModelName>,
    /// What to continue, each `n` times: choice `i` belongs to prompt `i / n`.
    pub prompts: Vec<Input>,
    /// Most tokens to generate for each choice; 0 only with `echo`.
    pub max_tokens: u32,
    /// How to choose among the tokens.
    pub sampling: Sampling,
    /// Texts that end the answer and are not part of it; at most 4, none empty.
    pub stop: Vec<String>,
    /// How many answers to each prompt; with the prompts at most 128 in all.
    pub n: u32,
    /// Report log-probabilities, and of that many alternatives (0 to 5).
    pub logprobs: Option<u32>,
    /// Whether the prompt comes back before its continuation.
    pub echo: bool,
    /// Whether the answer comes as a stream of events.
    pub stream: bool,
    /// Whether the stream ends with a chunk that tells the usage.
    pub include_usage: bool,
}

impl CompletionRequest {
    /// Reads a body; what our own engines cannot do is a fault too.
    pub fn read(bytes: &[u8]) -> Result<Self, Faults> {
        let (request, faults) = Self::examine(&Body::read(bytes)?);
        faults.unless(request)
    }

    /// What could be read of a body, and what is wrong with it.
    pub fn examine(body: &Body<'_>) -> (Self, Faults) {
        let mut reading = Reading::of(body);
        let model = reading.model();
        let prompts = input::read(&mut reading, "prompt", MOST_CHOICES as usize);
        let echo = reading.flag("echo").unwrap_or(false);
        let max_tokens = reading.count("max_tokens", 0, u32::MAX).unwrap_or(16);
        if max_tokens == 0 && !echo {
            reading
                .faults
                .invalid("max_tokens", "must be at least 1, unless `echo` is true");
        }
        let n = reading.count("n", 1, MOST_CHOICES).unwrap_or(1);
        if prompts.len() * n as usize > MOST_CHOICES as usize {
            reading.faults.invalid(
                "n",
                format!("times the number of prompts must not be above {MOST_CHOICES}"),
            );
        }
        if reading
            .count("best_of", 1, MOST_CHOICES)
            .is_some_and(|best| best > 1 && best != n)
        {
            let rule = "would generate more answers than it returns; send it equal to `n`, or leave it out";
            reading.faults.unsupported("best_of", rule);
        }
        let logprobs = reading.count("logprobs", 0, 5);
        let (stream, include_usage) = reading.stream();
        let request = Self {
            model,
            prompts,
            max_tokens,
            sampling: Sampling::read(&mut reading),
            stop: reading.stop(),
            n,
            logprobs,
            echo,
            stream,
            include_usage,
        };
        (request, reading.faults)
    }
}
