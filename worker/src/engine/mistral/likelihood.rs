//! How likely a prompt's tokens are: one pass over it that keeps the logits of every place.
//!
//! The engine's own types come through [`super`], which alone names their crate.

use tokio::sync::mpsc;

use super::{
    EngineError, Mistral, NormalRequest, Prepared, RequestMessage, Response, SamplingParams, Slot, Tensor, reason,
};
use crate::engine::{TokenLogprob, sampling::Sampled};

/// The most logits of one prompt: half a GiB of memory.
const MOST: usize = 1 << 27;

/// The prompt's tokens with their log-probabilities. A mark that the tokenizer put before the text is none of them.
pub async fn of_prompt(engine: &Mistral, prepared: &Prepared, slot: Slot) -> Result<Vec<TokenLogprob>, EngineError> {
    let refused = |why: String| EngineError::Unsupported {
        param: "logprobs",
        message: format!("`logprobs` of an echoed prompt {why}; leave out `echo` or `logprobs`."),
    };
    let failed = |why: &str| EngineError::Failed(why.to_owned());
    let speech = engine.speech.clone().ok_or_else(|| failed("it makes embeddings"))?;
    // The engine panics over a batch of which only some want all logits.
    if !engine.turns.is_one_at_a_time() {
        return Err(refused("are computed on a CPU only".to_owned()));
    }
    let vocabulary = speech.grounds.factory.tok_env().tok_trie().vocab_size();
    let most = MOST / vocabulary.max(1);
    if prepared.prompt.len() > most {
        return Err(refused(format!("are computed for at most {most} tokens")));
    }
    let held = (slot, engine.turns.clone().take().await);
    let (response, mut responses) = mpsc::channel(8);
    engine
        .send(NormalRequest {
            return_raw_logits: true,
            ..NormalRequest::new_simple(
                RequestMessage::CompletionTokens(prepared.prompt.to_vec()),
                SamplingParams {
                    max_len: Some(1),
                    ..SamplingParams::neutral()
                },
                response,
                0,
                None,
                None,
            )
        })
        .map_err(EngineError::Failed)?;
    let (prompt, request, written) = (
        prepared.prompt.clone(),
        prepared.request.clone(),
        prepared.written.clone(),
    );
    // A task of its own: whoever leaves meanwhile, the engine is taken until it has answered.
    let work = tokio::spawn(async move {
        let logits = loop {
            match responses.recv().await {
                Some(Response::Raw { logits_chunks, .. }) => break logits_chunks,
                Some(other) => {
                    if let Some(reason) = reason(other) {
                        return Err(reason);
                    }
                }
                None => return Err("it lost the request".to_owned()),
            }
        };
        drop(held);
        let weigh = move || {
            let rows = rows(&logits).map_err(|error| error.to_string())?;
            let said = |token: &u32| written.as_bytes().starts_with(&(speech.vocabulary.bytes)(*token));
            let begun = usize::from(!prompt.first().is_some_and(said));
            let weighed = prompt.iter().enumerate().skip(begun).map(|(at, token)| {
                let before = at.checked_sub(1).and_then(|before| rows.get(before));
                let first = Sampled {
                    token: *token,
                    logprob: f32::NAN,
                    top: Vec::new(),
                };
                let rivals = request.logprobs.unwrap_or(0);
                let sampled = before.map_or(first, |logits| Sampled::weighed(*token, logits, rivals));
                speech.vocabulary.tell(&sampled)
            });
            Ok(weighed.collect())
        };
        tokio::task::spawn_blocking(weigh)
            .await
            .map_err(|error| error.to_string())?
    });
    work.await
        .map_err(|error| failed(&error.to_string()))?
        .map_err(EngineError::Failed)
}

/// The logits after each token.
fn rows(chunks: &[Tensor]) -> super::EngineResult<Vec<Vec<f32>>> {
    let mut rows = Vec::new();
    for chunk in chunks {
        rows.extend(chunk.to_dtype(super::DType::F32)?.to_vec2::<f32>()?);
    }
    Ok(rows)
}
