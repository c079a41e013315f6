//! API keys: make, list, rotate, revoke. A key's text is in the one answer that made it and nowhere else.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use wire::{CreatedKey, KeyView, NewKey, RotateKey, Scope};

use super::{body, workers::labels_fit};
use crate::{auth::caller::Operator, error::ApiError, state::AppState};

/// The longest name of a key or of its owner, in characters.
const LONGEST_LABEL: usize = 100;
/// The longest that a key may be good for if it is to end at all, in seconds.
const LONGEST_LIFE_S: u64 = 100 * 365 * 24 * 3600;
/// How long a rotated key stays good if nobody says otherwise, in seconds.
const GRACE_S: u64 = 24 * 3600;

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
    Operator(operator): Operator,
    body::Json(new): body::Json<NewKey>,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    check(&new)?;
    let by = state.audit.acts.by(Some(&operator.id));
    let (key, view) = state.keyring.create(&state.db, new, by).await?;
    state.audit.acts.carried().await;
    tracing::info!(key = view.id, "a key was made");
    Ok((StatusCode::CREATED, Json(CreatedKey { key, view })))
}

fn check(new: &NewKey) -> Result<(), ApiError> {
    let is_label = |text: &str| {
        let printable = !text.trim().is_empty() && !text.chars().any(char::is_control);
        printable && text.chars().count() <= LONGEST_LABEL && wire::secret_in(text).is_none()
    };
    if !is_label(&new.name) {
        let message = format!("`name` must have 1 to {LONGEST_LABEL} printable characters, and no key among them.");
        return Err(ApiError::invalid("name", message));
    }
    if new.owner.as_deref().is_some_and(|owner| !is_label(owner)) {
        let message = format!("`owner` must have 1 to {LONGEST_LABEL} printable characters, and no key among them.");
        return Err(ApiError::invalid("owner", message));
    }
    if new.scopes.is_empty() {
        let message = format!(
            "`scopes` is empty. Name at least one: {}.",
            Scope::ALL.map(Scope::as_str).join(", ")
        );
        return Err(ApiError::invalid("scopes", message));
    }
    labels_fit(&new.labels, None)?;
    if !new
        .expires_in_s
        .is_none_or(|seconds| (1..=LONGEST_LIFE_S).contains(&seconds))
    {
        let message =
            format!("`expires_in_s` must be from 1 to {LONGEST_LIFE_S}, a hundred years; leave it out for no end.");
        return Err(ApiError::invalid("expires_in_s", message));
    }
    let limits = &new.limits;
    let zeros = [
        ("requests_per_minute", limits.requests_per_minute == Some(0)),
        ("tokens_per_minute", limits.tokens_per_minute == Some(0)),
        ("tokens_per_day", limits.tokens_per_day == Some(0)),
        ("concurrent_requests", limits.concurrent_requests == Some(0)),
        ("token_budget", limits.token_budget == Some(0)),
    ];
    match zeros.iter().find(|(_, is_zero)| *is_zero) {
        Some((name, _)) => Err(ApiError::invalid(
            &format!("limits.{name}"),
            format!("`limits.{name}` must be above 0; leave it out for no limit."),
        )),
        None => Ok(()),
    }
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

/// Look at one key, without its secret.
#[utoipa::path(get, path = "/control/v1/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "The key's public id")),
    responses(
        (status = 200, description = "The key", body = KeyView),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
        (status = 404, description = "There is no such key", body = wire::ErrorEnvelope),
    ))]
pub async fn show(
    State(state): State<AppState>,
    _: Operator,
    Path(id): Path<String>,
) -> Result<Json<KeyView>, ApiError> {
    state.keyring.show(&id).map(Json).ok_or_else(unknown)
}

/// Make a second key on the terms of this one, which stays good for a while.
#[utoipa::path(post, path = "/control/v1/keys/{id}/rotate", tag = "keys", request_body = RotateKey,
    params(("id" = String, Path, description = "The key's public id")),
    responses(
        (status = 201, description = "The new key, shown once", body = CreatedKey),
        (status = 400, description = "The request is at fault", body = wire::ErrorEnvelope),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
        (status = 404, description = "There is no such live key", body = wire::ErrorEnvelope),
        (status = 503, description = "The database cannot be written now", body = wire::ErrorEnvelope),
    ))]
pub async fn rotate(
    State(state): State<AppState>,
    Operator(operator): Operator,
    Path(id): Path<String>,
    body::Json(rotate): body::Json<RotateKey>,
) -> Result<(StatusCode, Json<CreatedKey>), ApiError> {
    let grace_s = rotate.grace_s.unwrap_or(GRACE_S);
    if grace_s > LONGEST_LIFE_S {
        let message = format!("`grace_s` must be at most {LONGEST_LIFE_S}, a hundred years.");
        return Err(ApiError::invalid("grace_s", message));
    }
    let by = state.audit.acts.by(Some(&operator.id));
    let rotated = state.keyring.rotate(&state.db, &id, grace_s, by).await?;
    let (key, view) = rotated.ok_or_else(unknown)?;
    state.audit.acts.carried().await;
    tracing::info!(key = id, successor = view.id, grace_s, "a key was rotated");
    Ok((StatusCode::CREATED, Json(CreatedKey { key, view })))
}

/// Revoke a key, at once and for good; its running requests are cancelled.
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
    Operator(operator): Operator,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let by = state.audit.acts.by(Some(&operator.id));
    if !state.keyring.revoke(&state.db, &id, by).await? {
        return Err(unknown());
    }
    state.audit.acts.carried().await;
    let cancelled = state.books.cancel_all_of(&id);
    tracing::info!(key = id, cancelled, "a key was revoked");
    Ok(StatusCode::NO_CONTENT)
}

fn unknown() -> ApiError {
    ApiError::NotFound("such key; `hivectl keys list` shows those there are".into())
}
