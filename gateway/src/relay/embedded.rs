//! A worker's answer to a request for embeddings: one JSON object, which passes as it came.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use wire::{
    WorkerKind,
    openai::{Body, EmbeddingRequest, Encoding, parameters::Kind},
};

use super::{
    Call, Reply, mend, refusal,
    upstream::{Failure, Patience, content_type},
};
use crate::{books::Tokens, registry::members::Target};

/// The largest answer, in bytes: 2048 long vectors as text.
const LARGEST: usize = 128 * 1024 * 1024;

/// An answer with embeddings.
#[derive(Debug)]
pub struct Embedded {
    /// The JSON text.
    pub json: Bytes,
    /// Tokens of all texts.
    pub tokens: Tokens,
}

#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    usage: Option<super::chunk::Usage>,
}

impl Reply for Embedded {
    async fn read(
        response: reqwest::Response,
        call: &Call,
        target: &Target,
        _: &str,
        patience: Patience,
    ) -> Result<Self, Failure> {
        debug_assert_eq!(call.kind, Kind::Embeddings);
        let kind = content_type(&response);
        if !kind.starts_with("application/json") {
            return Err(Failure::Bad(format!("it answered {kind} instead of JSON")));
        }
        let mut json = patience.with(read_all(response, LARGEST)).await?;
        if target.kind == WorkerKind::Attached {
            let value: Value = serde_json::from_slice(&json).map_err(|error| no_json(&error))?;
            let (encoding, count) = asked(call);
            let mended = mend::embeddings(value, &call.model, encoding, count).map_err(Failure::Bad)?;
            json = serde_json::to_vec(&mended).unwrap_or_default().into();
        }
        let counted: Counted = serde_json::from_slice(&json).map_err(|error| no_json(&error))?;
        let prompt = counted.usage.and_then(|usage| usage.prompt_tokens);
        // No text has no tokens: a server that says so has counted none.
        let prompt = prompt.filter(|count| target.kind == WorkerKind::Own || *count > 0);
        let tokens = Tokens {
            prompt,
            completion: Some(0),
            estimated: target.kind == WorkerKind::Attached && prompt.is_none(),
        };
        Ok(Self { json, tokens })
    }
}

/// How the client reads vectors, and how many it waits for; the body was sound when it was admitted.
fn asked(call: &Call) -> (Encoding, usize) {
    let request = Body::read(&call.body).map(|body| EmbeddingRequest::examine(&body).0);
    request.map_or_else(
        |_| Default::default(),
        |request| (request.encoding, request.inputs.len()),
    )
}

fn no_json(error: &serde_json::Error) -> Failure {
    Failure::Bad(format!("it answered what is no JSON: {error}"))
}

/// The whole body of a response, if it is not too large.
pub async fn read_all(response: reqwest::Response, most: usize) -> Result<Bytes, Failure> {
    match refusal::read_body(response, most).await {
        Ok(Some(body)) => Ok(body.into()),
        Ok(None) => Err(Failure::Bad(format!("it answered more than {most} bytes"))),
        Err(cause) => Err(Failure::Lost(cause)),
    }
}
