//! `POST /v1/embeddings`: reads what to embed, and writes vectors as OpenAI does.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Serialize;
use wire::{
    PROMPT_TOKENS_HEADER,
    openai::{EmbeddingRequest, Encoding},
};

use super::{order::check_model, prepare, ready, refusal::Refusal, take_slot};
use crate::state::Worker;

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the wire's names")]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

/// Answers with a vector for each input.
pub async fn embed(
    State(worker): State<Arc<Worker>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let engine = ready(&worker, &headers).await?;
    let asked = EmbeddingRequest::read(&body?)?;
    check_model(asked.model.as_ref(), &worker.model)?;
    let tokens = prepare(&worker, "input", engine.prepare_embedding(asked.inputs)).await?;
    let prompt_tokens = u32::try_from(tokens.iter().map(Vec::len).sum::<usize>()).unwrap_or(u32::MAX);
    let slot = take_slot(&worker).await?;
    let _client = slot.client();
    let _present = worker.answers.token();
    let vectors = tokio::select! {
        vectors = engine.embed(tokens, slot) => vectors.map_err(|error| Refusal::of(error, &worker.model, "input"))?,
        () = worker.stop.cancelled() => return Err(Refusal::ShuttingDown),
    };
    let mut data = Vec::with_capacity(vectors.len());
    for (index, vector) in vectors.into_iter().enumerate() {
        data.push(Embedding {
            object: "embedding",
            index,
            embedding: write(cut(vector, asked.dimensions)?, asked.encoding),
        });
    }
    let list = List {
        object: "list",
        data,
        model: worker.model.as_str(),
        usage: Usage {
            prompt_tokens,
            total_tokens: prompt_tokens,
        },
    };
    let mut response = Json(list).into_response();
    response
        .headers_mut()
        .insert(PROMPT_TOKENS_HEADER, prompt_tokens.into());
    Ok(response)
}

/// The first so many dimensions, scaled to length 1 again.
fn cut(mut vector: Vec<f32>, dimensions: Option<u32>) -> Result<Vec<f32>, Refusal> {
    let Some(wanted) = dimensions.map(|wanted| wanted as usize) else {
        return Ok(vector);
    };
    if wanted > vector.len() {
        let rule = format!("must not be above {}, which is how many the model has", vector.len());
        return Err(Refusal::invalid("dimensions", rule));
    }
    vector.truncate(wanted);
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        for x in &mut vector {
            *x /= length;
        }
    }
    Ok(vector)
}

fn write(vector: Vec<f32>, encoding: Encoding) -> Vector {
    match encoding {
        Encoding::Float => Vector::Numbers(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
            Vector::Base64(BASE64_STANDARD.encode(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fewer_dimensions_are_the_first_ones_at_length_one() {
        assert_eq!(cut(vec![3.0, 4.0, 12.0], Some(2)).unwrap(), [0.6, 0.8]);
        assert_eq!(
            cut(vec![3.0, 4.0], None).unwrap(),
            [3.0, 4.0],
            "as the model gives them"
        );
        assert_eq!(cut(vec![0.0, 0.0, 1.0], Some(2)).unwrap(), [0.0, 0.0]);
        let Err(Refusal::Invalid { param, message }) = cut(vec![1.0], Some(2)) else {
            panic!("one has no two")
        };
        assert_eq!(param, "dimensions");
        assert!(message.contains("above 1,"), "{message}");
    }

    #[test]
    fn base64_holds_little_endian_floats() {
        let Vector::Base64(text) = write(vec![1.0, -2.5], Encoding::Base64) else {
            panic!("text")
        };
        assert_eq!(text, "AACAPwAAIMA=");
    }
}
