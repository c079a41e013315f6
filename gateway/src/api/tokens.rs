//! Credentials looked at for an operator: what the gateway would make of one, and why. Nothing is done with it.

use axum::{Json, extract::State};
use wire::{TokenVerdict, VerifyToken};

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
