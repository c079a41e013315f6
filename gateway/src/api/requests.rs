//! The books as operators read them, and the one thing they may do there: cancel.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use serde::Deserialize;
use utoipa::IntoParams;
use wire::{Explanation, RequestView};

use crate::{
    audit::record::{Event, Kind},
    auth::caller::Operator,
    db,
    error::ApiError,
    state::AppState,
};

/// How many to list.
#[derive(Debug, Deserialize, IntoParams)]
pub struct Page {
    /// At most this many, 1 to 1000; 50 if not given.
    limit: Option<u32>,
}

/// List the latest requests, the newest first.
#[utoipa::path(get, path = "/control/v1/requests", tag = "requests", params(Page), responses(
    (status = 200, description = "The latest requests", body = Vec<RequestView>),
    (status = 400, description = "The limit is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 503, description = "The database cannot be read now", body = wire::ErrorEnvelope),
))]
pub async fn list(
    State(state): State<AppState>,
    _: Operator,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<RequestView>>, ApiError> {
    let limit = page
        .ok()
        .map(|Query(page)| page.limit.unwrap_or(50))
        .filter(|limit| (1..=1000).contains(limit));
    let limit = limit.ok_or_else(|| ApiError::invalid("limit", "`limit` must be a number from 1 to 1000."))?;
    state.books.flush().await;
    Ok(Json(db::requests::latest(&state.db, limit).await?))
}

/// Explain a request: which workers there were, why it went where it did, what failed, and how long each part took.
///
/// Decisions are remembered for the latest 4,096 requests since the gateway's start, also while they wait or run; of
/// older ones there is what the books say. The id may be the client's own `x-request-id`.
#[utoipa::path(get, path = "/control/v1/requests/{id}/explain", tag = "requests",
    params(("id" = String, Path, description = "The request's id")),
    responses(
        (status = 200, description = "What was decided, and what came of it", body = Explanation),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
        (status = 404, description = "There is no such request", body = wire::ErrorEnvelope),
        (status = 503, description = "The database cannot be read now", body = wire::ErrorEnvelope),
    ))]
pub async fn explain(
    State(state): State<AppState>,
    _: Operator,
    Path(id): Path<String>,
) -> Result<Json<Explanation>, ApiError> {
    let trace = state.dispatcher.traces.find(&id);
    let in_books = trace.as_ref().map_or(id.as_str(), |trace| trace.id());
    state.books.flush().await;
    let request = db::requests::find(&state.db, in_books).await?.ok_or_else(unknown)?;
    Ok(Json(Explanation {
        decision: trace.map(|trace| trace.decision(&state.dispatcher)),
        tokens_per_second: pace(&request),
        request,
    }))
}

/// Tokens per second of an answer, after its first.
#[expect(clippy::cast_precision_loss, reason = "a speed needs no more precision")]
fn pace(request: &RequestView) -> Option<f64> {
    let (tokens, ttft, total) = (request.completion_tokens?, request.ttft_ms?, request.total_ms?);
    (tokens > 1 && total > ttft).then(|| (tokens - 1) as f64 * 1000.0 / (total - ttft) as f64)
}

fn unknown() -> ApiError {
    ApiError::NotFound("request of that id; `hivectl jobs list` shows them".into())
}

/// Cancel a request; one that has ended already stays as it is.
#[utoipa::path(post, path = "/control/v1/requests/{id}/cancel", tag = "requests",
    params(("id" = String, Path, description = "The request's id")),
    responses(
        (status = 202, description = "It is being cancelled, or has ended"),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
        (status = 404, description = "There is no such request", body = wire::ErrorEnvelope),
        (status = 503, description = "The database cannot be read now", body = wire::ErrorEnvelope),
    ))]
pub async fn cancel(
    State(state): State<AppState>,
    Operator(operator): Operator,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    if !state.books.cancel(&id) {
        state.books.flush().await;
        if db::requests::find(&state.db, &id).await?.is_none() {
            return Err(unknown());
        }
    }
    let mut cancelled = Event::now(Kind::RequestCancel);
    cancelled.req = Some(id);
    state
        .audit
        .acts
        .by(Some(&operator.id))
        .sign_alone(&state.db, cancelled)
        .await?;
    Ok(StatusCode::ACCEPTED)
}
