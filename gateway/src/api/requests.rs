//! The books as operators read them, and the one thing they may do there: cancel.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use serde::Deserialize;
use utoipa::IntoParams;
use wire::RequestView;

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
            return Err(ApiError::NotFound(
                "request of that id; `hivectl jobs list` shows them".into(),
            ));
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
