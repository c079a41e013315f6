//! API keys: make, list, revoke. A key's text is in the one answer that made it and nowhere else.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use wire::{CreatedKey, KeyView, NewKey};

use super::body;
use crate::{auth::caller::Operator, db, error::ApiError, state::AppState};

/// Make a key.
#[utoipa::path(post, path = "/control/v1/keys", tag = "keys", request_body = NewKey, responses(
    (status = 201, description = "The key, shown once", body = CreatedKey),
    (status = 400, description = "The request is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 503, description = "The database cannot be written now", body = wire::ErrorEnvelope),
))]
pub async fn create(
    State(state): State<AppState>,
    _: Operator,
    body::Json(new): body::Json<NewKey>,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    if new.name.trim().is_empty() || new.name.chars().count() > 100 || new.name.chars().any(char::is_control) {
        return Err(ApiError::invalid(
            "name",
            "`name` must have 1 to 100 printable characters.",
        ));
    }
    if new.scopes.is_empty() {
        return Err(ApiError::invalid(
            "scopes",
            "`scopes` is empty. Name at least one: infer, models:read, metrics:read, admin.",
        ));
    }
    let (key, view) = state.keyring.create(&state.db, &new.name, &new.scopes).await?;
    tracing::info!(key = view.id, "a key was made");
    Ok((StatusCode::CREATED, Json(CreatedKey { key, view })))
}

/// List all keys, without their secrets.
#[utoipa::path(get, path = "/control/v1/keys", tag = "keys", responses(
    (status = 200, description = "All keys", body = Vec<KeyView>),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
))]
pub async fn list(State(state): State<AppState>, _: Operator) -> Json<Vec<KeyView>> {
    Json(state.keyring.list())
}

/// Revoke a key, at once and for good.
#[utoipa::path(delete, path = "/control/v1/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "The key's public id")),
    responses(
        (status = 204, description = "It is revoked"),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
        (status = 404, description = "There is no such key", body = wire::ErrorEnvelope),
        (status = 503, description = "The database cannot be written now", body = wire::ErrorEnvelope),
    ))]
pub async fn revoke(
    State(state): State<AppState>,
    _: Operator,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    if !db::keys::revoke(&state.db, &id, crate::now_ms()).await? {
        return Err(ApiError::NotFound(
            "key of that id; `hivectl keys list` shows them".into(),
        ));
    }
    state.keyring.reload(&state.db).await?;
    tracing::info!(key = id, "a key was revoked");
    Ok(StatusCode::NO_CONTENT)
}
