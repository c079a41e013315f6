//! Join tokens: single use, at most 15 minutes, exchanged by a worker for a credential of its own.

use axum::{Json, extract::State, http::StatusCode};
use wire::{JoinToken, NewJoinToken, Scope};

use super::body;
use crate::{
    audit::record::{Event, Kind, Object},
    auth::{api_key, caller::Inviter},
    db::{self, DbError},
    error::ApiError,
    state::AppState,
};

/// The longest a token is good for, in seconds.
const LONGEST_S: u32 = 900;

/// Make a join token.
#[utoipa::path(post, path = "/control/v1/join-tokens", tag = "workers", request_body = NewJoinToken, responses(
    (status = 201, description = "The token, shown once", body = JoinToken),
    (status = 400, description = "The request is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 503, description = "The database cannot be written now", body = wire::ErrorEnvelope),
))]
pub async fn create(
    State(state): State<AppState>,
    Inviter(inviter): Inviter,
    body::Json(new): body::Json<NewJoinToken>,
) -> Result<(StatusCode, Json<JoinToken>), ApiError> {
    let ttl = new.ttl_s.unwrap_or(LONGEST_S);
    if !(1..=LONGEST_S).contains(&ttl) {
        return Err(ApiError::invalid("ttl_s", "`ttl_s` must be between 1 and 900 seconds."));
    }
    // A bound token takes an id over from a live worker: that is running the hive, not joining it.
    if new.worker_id.is_some() && !inviter.allows(Scope::Admin) {
        return Err(ApiError::Forbidden(Scope::Admin));
    }
    let token = api_key::join_token();
    let now = crate::now_ms();
    let expires_at_ms = now + i64::from(ttl) * 1000;
    let bound_to = new.worker_id.as_ref().map(wire::WorkerId::as_str);
    let mut transaction = state.db.begin().await.map_err(DbError::from)?;
    db::join_tokens::insert(
        &mut transaction,
        &state.keyring.hmac(&token),
        bound_to,
        expires_at_ms,
        now,
    )
    .await?;
    let by = state.audit.acts.by(Some(&inviter.id));
    let made = Event::now(Kind::JoinTokenCreate).on(new.worker_id.as_ref().map(Object::worker).unwrap_or_default());
    by.sign(&mut transaction, made).await?;
    transaction.commit().await.map_err(DbError::from)?;
    state.audit.acts.carried().await;
    tracing::info!(worker = bound_to, ttl_s = ttl, "a join token was made");
    let gateway_url = state.config.control.advertise_url.clone();
    Ok((
        StatusCode::CREATED,
        Json(JoinToken {
            token,
            expires_at_ms,
            gateway_url,
        }),
    ))
}
