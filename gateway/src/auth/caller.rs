//! Extractors that are locks: a handler that asks for a [`Caller`] or an [`Operator`] is never reached by anyone else.
//!
//! One function reads the credential of every header, so that no header has rules of its own.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};
use wire::{KeyView, Scope};

use super::{jwt, keyring::Identity};
use crate::{error::ApiError, metrics, state::AppState};

/// How the id of a token's holder begins.
const HOLDER: &str = "jwt_";
const NO_KEY: ApiError = ApiError::Unauthenticated(
    "Incorrect API key provided. Use one that `hivectl keys create` printed; it may have been revoked, or expired.",
);

/// Extractors that let in whoever has a scope.
macro_rules! locks {
    ($($(#[$doc:meta])* $name:ident: $scope:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(pub Identity);

        impl FromRequestParts<AppState> for $name {
            type Rejection = ApiError;
            async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
                authorise(parts, state, Scope::$scope).await.map(Self)
            }
        }
    )*};
}

locks! {
    /// One who may call models.
    Caller: Infer;
    /// One who may list models.
    Reader: ModelsRead;
    /// One who may run the hive.
    Operator: Admin;
    /// One who may read the metrics.
    Scraper: MetricsRead;
    /// One who may read the audit journal.
    Auditor: AuditRead;
    /// One who may make join tokens for workers.
    Inviter: WorkerJoin;
}

/// One who shows some bearer token that is not an API key: a worker that joins or is a member already.
#[derive(Debug, Clone)]
pub struct Worker(pub String);

impl FromRequestParts<AppState> for Worker {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        credential(&parts.headers).map(Self)
    }
}

/// Who calls, if they may do this; the router asks first, and each handler's lock finds whom it let in.
pub async fn authorise(parts: &mut Parts, state: &AppState, needed: Scope) -> Result<Identity, ApiError> {
    if let Some(identity) = parts
        .extensions
        .get::<Identity>()
        .filter(|identity| identity.allows(needed))
    {
        return Ok(identity.clone());
    }
    let found = match credential(&parts.headers) {
        Ok(credential) => recognise(&credential, state).await,
        Err(error) => Err(error),
    };
    let identity = found.inspect_err(|_| metrics::refused_login())?;
    if let Some(log) = parts.extensions.get::<crate::telemetry::AccessLog>() {
        log.key(&identity.id);
    }
    if identity.allows(needed) {
        parts.extensions.insert(identity.clone());
        Ok(identity)
    } else {
        metrics::refused_login();
        Err(ApiError::Forbidden(needed))
    }
}

/// Whose credential this is: a key of ours, or a token of the identity provider if any are taken.
pub async fn recognise(credential: &str, state: &AppState) -> Result<Identity, ApiError> {
    if let Some(tokens) = state.tokens.as_ref().filter(|_| jwt::is_token(credential)) {
        return holder(credential, tokens, state).await;
    }
    let identity = state.keyring.identify(credential, crate::now_ms());
    identity.ok_or(NO_KEY)
}

/// Whether one who was let in may still go on: a body takes its time, and meanwhile a key may be revoked.
pub fn still_good(identity: &Identity, state: &AppState) -> Result<(), ApiError> {
    match &state.tokens {
        Some(tokens) if is_holder(&identity.id) => {
            let subject = identity.owner.as_deref().unwrap_or_default();
            if !are_taken(tokens, (&identity.id, subject), identity.created_at_ms, state) {
                return Err(ApiError::TokenRefused(jwt::Refused::Revoked));
            }
        }
        _ => {
            if !state.keyring.is_live(&identity.id, crate::now_ms()) {
                return Err(NO_KEY);
            }
        }
    }
    Ok(())
}

/// Whether this is the id of a token's holder rather than of a key.
pub fn is_holder(id: &str) -> bool {
    let digits = id.strip_prefix(HOLDER);
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// What log, books and record call a holder of tokens, who is named as the issuer does: the pseudonym that the record
/// knows the person by.
pub async fn holder_id(subject: &str, state: &AppState) -> Result<String, ApiError> {
    match state.audit.subjects() {
        Some(subjects) => Ok(called(&subjects.pseudonym(subject).await?)),
        None => Ok(lasting_id(subject, state)),
    }
}

/// Keeps somebody who was cut off cut off when their pseudonym, which is theirs until now, is destroyed. Only memory knows
/// of it, and only until the next start; by then their tokens are mostly over.
pub fn outlasts_erasure(subject: &str, pseudonym: &str, state: &AppState) {
    if let Some(tokens) = &state.tokens {
        tokens
            .revoked
            .carry_over(&called(pseudonym), &lasting_id(subject, state));
    }
}

/// What a holder is called where nothing is recorded. It can be made anew as long as there is the pepper, so no file may
/// hold it of whom the record knows.
fn lasting_id(subject: &str, state: &AppState) -> String {
    called(&state.keyring.hmac(&format!("token of {subject}")))
}

fn called(pseudonym: &str) -> String {
    format!("{HOLDER}{}", &pseudonym[..16])
}

/// Whether a holder's token is still taken, by what the holder is called and the subject's name.
fn are_taken(tokens: &jwt::Tokens, (id, subject): (&str, &str), issued_at_ms: i64, state: &AppState) -> bool {
    let lasting = lasting_id(subject, state);
    [id, &lasting].iter().all(|id| tokens.are_taken(id, issued_at_ms))
}

/// The holder of a good token, in the terms of a key. Its id is the pseudonym that the record knows the person by: log
/// and books hold no more, and whoever is erased from the record is erased from them.
async fn holder(token: &str, tokens: &jwt::Tokens, state: &AppState) -> Result<Identity, ApiError> {
    let holder = tokens.verify(token).await.map_err(ApiError::TokenRefused)?;
    let id = holder_id(&holder.subject, state).await?;
    if !are_taken(tokens, (&id, &holder.subject), holder.issued_at_ms, state) {
        return Err(ApiError::TokenRefused(jwt::Refused::Revoked));
    }
    Ok(Identity::of(KeyView {
        family: id.clone(),
        id,
        name: "token".into(),
        scopes: holder.scopes,
        owner: Some(holder.subject),
        models: holder.models,
        limits: tokens.limits(),
        trusted: false,
        priority: wire::Priority::default(),
        labels: wire::Labels::new(),
        created_at_ms: holder.issued_at_ms,
        expires_at_ms: Some(holder.expires_at_ms),
        last_used_at_ms: None,
        revoked_at_ms: None,
    }))
}

/// The one credential of a request, from `Authorization: Bearer` or `x-api-key`.
fn credential(headers: &HeaderMap) -> Result<String, ApiError> {
    let mut found: Option<&str> = None;
    for (name, bearer) in [("authorization", true), ("x-api-key", false)] {
        for value in headers.get_all(name) {
            let text = value.to_str().map_err(|_| {
                ApiError::Unauthenticated("The credential is not plain ASCII. Send `Authorization: Bearer KEY`.")
            })?;
            let secret = if bearer { strip_bearer(text)? } else { text.trim() };
            if secret.is_empty() {
                continue;
            }
            match found {
                Some(other) if other != secret => {
                    return Err(ApiError::Invalid {
                        message: "Two different credentials were sent. Send one.".into(),
                        param: Some(name.to_owned()),
                    });
                }
                _ => found = Some(secret),
            }
        }
    }
    found.map(ToOwned::to_owned).ok_or(ApiError::Unauthenticated(
        "You did not provide an API key. Send it as `Authorization: Bearer KEY`.",
    ))
}

/// The scheme is case-insensitive (RFC 9110, section 11.1).
fn strip_bearer(text: &str) -> Result<&str, ApiError> {
    let text = text.trim();
    match text.split_once(' ') {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => Ok(secret.trim()),
        None if text.is_empty() || text.eq_ignore_ascii_case("bearer") => Ok(""),
        _ => Err(ApiError::Unauthenticated(
            "Only the Bearer scheme is known. Send `Authorization: Bearer KEY`.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&'static str, &'static str)]) -> Result<String, &'static str> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        credential(&headers).map_err(|error| if error.status() == 400 { "400" } else { "401" })
    }

    #[test]
    fn every_header_is_read_by_the_same_rules() {
        assert_eq!(from(&[("authorization", "Bearer k")]).unwrap(), "k");
        assert_eq!(from(&[("authorization", "bEaReR  k ")]).unwrap(), "k");
        assert_eq!(from(&[("x-api-key", "k")]).unwrap(), "k");
        assert_eq!(from(&[("authorization", "Bearer k"), ("x-api-key", "k")]).unwrap(), "k");
        assert_eq!(from(&[("authorization", "Bearer k"), ("x-api-key", "l")]), Err("400"));
        assert_eq!(from(&[("authorization", ""), ("x-api-key", "k")]).unwrap(), "k");
        for none in [
            &[][..],
            &[("authorization", "")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Basic k")],
            &[("x-api-key", "")],
        ] {
            assert_eq!(from(none), Err("401"), "{none:?}");
        }
    }
}
