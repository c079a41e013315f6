//! `POST /v1/chat/completions`: checks the request in full, and keeps its bytes.

use axum::{extract::State, response::Response};
use wire::openai::{Body, ChatRequest, ability, parameters::Kind};

use super::{
    inference::{self, Asked, Order, Wish},
    schema,
};
use crate::{
    auth::{caller::Caller, keyring::Identity},
    error::ApiError,
    scheduler::affinity::Context,
    state::AppState,
};

/// What takes the place of a client's own wishes: our workers always stream, and tell the usage.
pub const STREAMED: [(&str, &str); 2] = [("stream", "true"), ("stream_options", r#"{"include_usage":true}"#)];

/// Bytes of an image that count, however large it is: as text they have about as many tokens as models make of one.
const IMAGE: usize = 4096;

/// Answer a conversation.
///
/// With `stream: true` the answer comes as server-sent events, one chunk a token, and ends with `[DONE]`;
/// a worker lost on the way is an event with an `error`, and then no `[DONE]`.
///
/// What becomes of each parameter depends on the engine; `GET /v1/models/{id}` tells it for each model. One that has no
/// effect is named in the header `x-hive-ignored-params`; one that would change the answer and is not supported is
/// refused with `unsupported_parameter`.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "chat",
    request_body(content = schema::chat::ChatRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The answer: one object, or with `stream` a stream of chunks", content(
            (schema::chat::ChatCompletion = "application/json"),
            (schema::chat::ChatChunk = "text/event-stream"),
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
    let (request, faults) = ChatRequest::examine(&body);
    let found = (request.model.clone(), faults);
    let sound = asked.judge(state, Kind::Chat, &body, found, |model, facts, faults| {
        ability::check_chat(&request, model, facts, faults);
    })?;
    let images = request
        .media()
        .map(|(_, part)| part.image_bytes().saturating_sub(IMAGE));
    let wish = Wish {
        body: body.with(&STREAMED),
        stream: request.stream,
        include_usage: request.include_usage,
        choices: request.n as usize,
        answer: request.max_tokens,
        images: images.sum(),
        context: Context::of_conversation(&caller.family, body.raw("tools"), &request.messages),
        stop: inference::stop(&body, request.stop),
    };
    asked.order(state, caller, sound, wish)
}
