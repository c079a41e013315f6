//! `POST /v1/embeddings`: texts or tokens to vectors, in one piece.

use axum::{extract::State, response::Response};
use wire::openai::{Body, EmbeddingRequest, parameters::Kind};

use super::{
    inference::{Asked, Order, Wish},
    schema,
};
use crate::{
    auth::{caller::Caller, keyring::Identity},
    error::ApiError,
    scheduler::affinity::Context,
    state::AppState,
};

/// Turn texts into vectors.
///
/// `input` is a string, a list of strings, a list of token ids or a list of such lists; `data` keeps its order.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "embeddings",
    request_body(content = schema::embeddings::EmbeddingRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The vectors", body = schema::embeddings::EmbeddingList),
        schema::Refusals,
    ),
)]
pub async fn create(State(state): State<AppState>, Caller(caller): Caller, asked: Asked) -> Result<Response, ApiError> {
    read(asked, &state, &caller)?.answer(state).await
}

fn read(asked: Asked, state: &AppState, caller: &Identity) -> Result<Order, ApiError> {
    let bytes = asked.bytes.clone();
    let body = Body::read(&bytes).map_err(ApiError::Faulty)?;
    let (request, faults) = EmbeddingRequest::examine(&body);
    let sound = asked.judge(state, Kind::Embeddings, &body, (request.model, faults), |_, _, _| {})?;
    let wish = Wish {
        body: body.with(&[]),
        stream: false,
        include_usage: false,
        choices: 1,
        stop: Vec::new(),
        answer: Some(0),
        images: 0,
        context: Context::default(),
    };
    asked.order(state, caller, sound, wish)
}
