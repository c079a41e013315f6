//! Tokens of the identity provider, for an operator: what the gateway makes of one and why, and an end to a holder's.

use axum::{Json, extract::State};
use wire::{RevokeTokens, RevokedTokens, TokenVerdict, VerifyToken};

use super::body;
use crate::{
    auth::{caller, caller::Operator, jwt},
    error::ApiError,
    state::AppState,
};

/// Say what the gateway makes of a token or an API key.
#[utoipa::path(post, path = "/control/v1/tokens/verify", tag = "keys", request_body = VerifyToken, responses(
    (status = 200, description = "What it makes of it", body = TokenVerdict),
    (status = 400, description = "The request is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 503, description = "The database cannot be read now", body = wire::ErrorEnvelope),
))]
pub async fn verify(
    State(state): State<AppState>,
    _: Operator,
    body::Json(VerifyToken { token }): body::Json<VerifyToken>,
) -> Result<Json<TokenVerdict>, ApiError> {
    let token = token.trim();
    let is_token = jwt::is_token(token);
    let said = jwt::said(token).ok().filter(|_| is_token);
    let (header, claims) = said.map(|said| (said.header.into(), said.claims.into())).unzip();
    let mut verdict = TokenVerdict {
        accepted: false,
        reason: None,
        signed: None,
        id: None,
        scopes: Vec::new(),
        models: Vec::new(),
        expires_at_ms: None,
        header,
        claims,
    };
    match caller::recognise(token, &state).await {
        Ok(identity) => {
            verdict.accepted = true;
            verdict.signed = is_token.then_some(true);
            verdict.id = Some(identity.id.clone());
            verdict.scopes = identity.scopes.clone();
            verdict.models = identity.models.clone();
            verdict.expires_at_ms = identity.expires_at_ms;
        }
        Err(ApiError::TokenRefused(why)) => {
            verdict.signed = Some(why.is_signed());
            verdict.reason = Some(why.to_string());
        }
        Err(ApiError::Unauthenticated(_)) => {
            let why = if is_token {
                "no tokens are taken here: jwt.issuer is not set"
            } else {
                "it is no key of this gateway, or was revoked, or has expired"
            };
            verdict.reason = Some(why.into());
        }
        Err(other) => return Err(other),
    }
    Ok(Json(verdict))
}

/// Revoke all tokens that a holder has by now, at once and for good, and cancel what runs with them. One that the issuer
/// gives out later is taken again; one that does not say when it was issued (`iat`) is not.
#[utoipa::path(post, path = "/control/v1/tokens/revoke", tag = "keys", request_body = RevokeTokens, responses(
    (status = 200, description = "They are revoked", body = RevokedTokens),
    (status = 400, description = "The request is at fault, or no tokens are taken here", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 503, description = "The database cannot be written now", body = wire::ErrorEnvelope),
))]
pub async fn revoke_holder(
    State(state): State<AppState>,
    Operator(operator): Operator,
    body::Json(RevokeTokens { id, subject }): body::Json<RevokeTokens>,
) -> Result<Json<RevokedTokens>, ApiError> {
    let Some(tokens) = &state.tokens else {
        let message = "No tokens are taken here: jwt.issuer is not set.".into();
        return Err(ApiError::Invalid { message, param: None });
    };
    let id = match (id, subject) {
        (Some(id), None) if caller::is_holder(&id) => id,
        (Some(_), None) => {
            let message =
                "`id` must be what the log and `hivectl usage` call a holder of tokens: `jwt_` and 16 digits.";
            return Err(ApiError::invalid("id", message));
        }
        (None, Some(subject)) => caller::holder_id(&subject, &state).await?,
        _ => return Err(ApiError::invalid("id", "Name the holder, by either `id` or `subject`.")),
    };
    let by = state.audit.acts.by(Some(&operator.id));
    let since_ms = tokens.revoked.revoke(&state.db, &id, by).await?;
    state.audit.acts.carried().await;
    let cancelled = state.books.cancel_all_of(&id);
    tracing::info!(key = id, cancelled, "a holder's tokens were revoked");
    Ok(Json(RevokedTokens {
        id,
        since_ms,
        cancelled,
    }))
}
