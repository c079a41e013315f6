//! `POST /v1/completions`: the older API, which continues a text as it stands.

use axum::{extract::State, response::Response};
use wire::openai::{Body, CompletionRequest, Input, parameters::Kind};

use super::{
    chat::STREAMED,
    inference::{self, Asked, Order, Wish},
    schema,
};
use crate::{
    auth::{caller::Caller, keyring::Identity},
    error::ApiError,
    scheduler::affinity::Context,
    state::AppState,
};

/// Continue a text.
///
/// Of several prompts, each gets `n` choices, in the prompts' order. `suffix` is refused, and so is `best_of` unless it
/// equals `n`. With `stream: true` the answer comes as server-sent events and ends with `[DONE]`.
#[utoipa::path(
    post, path = "/v1/completions", tag = "completions",
    request_body(content = schema::completions::CompletionRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The continuations: one object, or with `stream` a stream of such objects", content(
            (schema::completions::Completion = "application/json"),
            (schema::completions::Completion = "text/event-stream"),
        )),
        schema::Refusals,
    ),
)]
pub async fn create(State(state): State<AppState>, Caller(caller): Caller, asked: Asked) -> Result<Response, ApiError> {
    read(asked, &state, &caller)?.answer(state).await
}

fn read(asked: Asked, state: &AppState, caller: &Identity) -> Result<Order, ApiError> {
    let bytes = asked.bytes.clone();
    let body = Body::read(&bytes).map_err(ApiError::Faulty)?;
    let (request, faults) = CompletionRequest::examine(&body);
    let context = match request.prompts.first() {
        Some(Input::Text(text)) => Context::of_text(&caller.family, text),
        _ => Context::default(),
    };
    let sound = asked.judge(state, Kind::Completions, &body, (request.model, faults), |_, _, _| {})?;
    let wish = Wish {
        body: body.with(&STREAMED),
        stream: request.stream,
        include_usage: request.include_usage,
        choices: request.prompts.len() * request.n as usize,
        stop: inference::stop(&body, request.stop),
        answer: Some(request.max_tokens),
        images: 0,
        context,
    };
    asked.order(state, caller, sound, wish)
}
