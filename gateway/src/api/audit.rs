//! The audit journal over the control plane: read it, sign it, find or erase a person, remove what has expired.

use std::io;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use serde::Deserialize;
use utoipa::IntoParams;
use wire::{
    AuditCheckpoint, AuditPrune, AuditPruned, ModelDownload, SubjectErase, SubjectErased, SubjectExport, SubjectRecords,
};

use super::body;
use crate::{
    audit::{
        journal::Unavailable,
        note, reading,
        record::{Event, Kind, Object, Outcome},
        subjects::Subjects,
    },
    auth::caller::{self, Auditor, Operator},
    config::Mode,
    error::ApiError,
    state::AppState,
};

/// Which records.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// Those after this number; the latest, if not given.
    after: Option<u64>,
    /// At most this many, 1 to 1000; 50 if not given.
    limit: Option<usize>,
}

/// Read records, the oldest first.
#[utoipa::path(get, path = "/control/v1/audit", tag = "audit", params(Page), responses(
    (status = 200, description = "Records", body = Vec<serde_json::Value>),
    (status = 400, description = "The query is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 409, description = "The journal is off", body = wire::ErrorEnvelope),
    (status = 503, description = "It cannot be read now", body = wire::ErrorEnvelope),
))]
pub async fn list(
    State(state): State<AppState>,
    _: Auditor,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Vec<serde_json::Value>>, ApiError> {
    let page = page.ok().map(|Query(page)| (page.after, page.limit.unwrap_or(50)));
    let (after, limit) = page
        .filter(|(_, limit)| (1..=1000).contains(limit))
        .ok_or_else(|| ApiError::invalid("limit", "`after` must be a number, and `limit` one from 1 to 1000."))?;
    recorded(&state)?;
    let folder = state.audit.folder().to_owned();
    read(move || reading::latest(&folder, after, limit)).await.map(Json)
}

/// Sign what is recorded.
#[utoipa::path(get, path = "/control/v1/audit/checkpoint", tag = "audit", responses(
    (status = 200, description = "The checkpoint", body = AuditCheckpoint),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 409, description = "The journal is off", body = wire::ErrorEnvelope),
    (status = 503, description = "It cannot be written now", body = wire::ErrorEnvelope),
))]
pub async fn checkpoint(State(state): State<AppState>, _: Auditor) -> Result<Json<AuditCheckpoint>, ApiError> {
    recorded(&state)?;
    let checkpoint = state.audit.journal.checkpoint().await?;
    Ok(Json(AuditCheckpoint { checkpoint }))
}

/// Find all records of a person.
#[utoipa::path(post, path = "/control/v1/audit/export", tag = "audit", request_body = SubjectExport, responses(
    (status = 200, description = "The person's records", body = SubjectRecords),
    (status = 400, description = "The request is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 409, description = "The journal is off", body = wire::ErrorEnvelope),
    (status = 503, description = "It cannot be read now", body = wire::ErrorEnvelope),
))]
pub async fn export(
    State(state): State<AppState>,
    Operator(operator): Operator,
    body::Json(export): body::Json<SubjectExport>,
) -> Result<Json<SubjectRecords>, ApiError> {
    let pseudonym = recorded(&state)?.find(&export.subject).await?;
    let by = state.audit.acts.by(Some(&operator.id));
    by.sign_alone(&state.db, Event::now(Kind::SubjectExport)).await?;
    let keys = state.keyring.of(&export.subject);
    let records = if pseudonym.is_some() || !keys.is_empty() {
        let (folder, pseudonym) = (state.audit.folder().to_owned(), pseudonym.clone());
        read(move || reading::about(&folder, pseudonym.as_deref(), &keys)).await?
    } else {
        Vec::new()
    };
    Ok(Json(SubjectRecords { pseudonym, records }))
}

/// Destroy the key of a person's pseudonym, and take the person off the API keys they hold: the records stay, and nothing
/// says whose they are.
#[utoipa::path(post, path = "/control/v1/audit/erase", tag = "audit", request_body = SubjectErase, responses(
    (status = 200, description = "The person is erased, or was not known", body = SubjectErased),
    (status = 400, description = "The request is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 409, description = "The journal is off", body = wire::ErrorEnvelope),
    (status = 503, description = "The key cannot be destroyed now", body = wire::ErrorEnvelope),
))]
pub async fn erase(
    State(state): State<AppState>,
    Operator(operator): Operator,
    body::Json(erase): body::Json<SubjectErase>,
) -> Result<Json<SubjectErased>, ApiError> {
    let names_nobody = |text: &String| {
        let printable = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        printable && (1..=64).contains(&text.len()) && wire::secret_in(text).is_none()
    };
    if !erase.ticket.as_ref().is_none_or(names_nobody) {
        let message = "`ticket` must have 1 to 64 letters, digits or any of `._-`.";
        return Err(ApiError::invalid("ticket", message));
    }
    let subjects = recorded(&state)?;
    if let Some(pseudonym) = subjects.find(&erase.subject).await? {
        caller::outlasts_erasure(&erase.subject, &pseudonym, &state);
    }
    let had_key = subjects.erase(&erase.subject).await?;
    let told = |held_keys| {
        let mut event = Event::now(Kind::SubjectErase);
        event.ticket = erase.ticket;
        event.outcome = Some(Outcome {
            state: if had_key || held_keys { "erased" } else { "unknown" }.into(),
            code: None,
        });
        event
    };
    let by = state.audit.acts.by(Some(&operator.id));
    let held_keys = state.keyring.disown(&state.db, &erase.subject, by, told).await?;
    state.audit.acts.carried().await;
    let erased = had_key || held_keys;
    Ok(Json(SubjectErased { erased }))
}

/// Record that a model was downloaded; with the journal off, nothing is.
#[utoipa::path(post, path = "/control/v1/audit/downloads", tag = "audit", request_body = ModelDownload, responses(
    (status = 204, description = "It is on the record"),
    (status = 400, description = "The request is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 503, description = "It cannot be written now", body = wire::ErrorEnvelope),
))]
pub async fn downloaded(
    State(state): State<AppState>,
    Operator(operator): Operator,
    body::Json(download): body::Json<ModelDownload>,
) -> Result<StatusCode, ApiError> {
    if note::unhex(&download.sha256).is_none() {
        return Err(ApiError::invalid(
            "sha256",
            "`sha256` must have 64 hexadecimal digits in lower case.",
        ));
    }
    let event = Event::now(Kind::ModelDownload).on(Object {
        model: Some(download.model.to_string()),
        sha256: Some(download.sha256),
        ..Object::default()
    });
    let by = state.audit.acts.by(Some(&operator.id));
    by.sign_alone(&state.db, event).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove whole segments of expired records.
#[utoipa::path(post, path = "/control/v1/audit/prune", tag = "audit", request_body = AuditPrune, responses(
    (status = 200, description = "What is left", body = AuditPruned),
    (status = 400, description = "The request is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 409, description = "The journal is off", body = wire::ErrorEnvelope),
    (status = 503, description = "It cannot be written now", body = wire::ErrorEnvelope),
))]
pub async fn prune(
    State(state): State<AppState>,
    Operator(operator): Operator,
    body::Json(prune): body::Json<AuditPrune>,
) -> Result<Json<AuditPruned>, ApiError> {
    recorded(&state)?;
    let retention = state.config.audit.retention.as_secs();
    let older_than_s = prune.older_than_s.unwrap_or(retention);
    if state.audit.journal.mode() == Mode::EuStrict && older_than_s < retention {
        let message = format!("Mode eu-strict keeps records for `audit.retention`, {retention} s.");
        return Err(ApiError::invalid("older_than_s", message));
    }
    let age_ms = i64::try_from(older_than_s).unwrap_or(i64::MAX).saturating_mul(1000);
    let first = state
        .audit
        .journal
        .prune(crate::now_ms().saturating_sub(age_ms), &operator.id)
        .await?;
    Ok(Json(AuditPruned { first }))
}

/// The people in the record, if there is one.
fn recorded(state: &AppState) -> Result<&Subjects, ApiError> {
    state.audit.subjects().ok_or(ApiError::AuditOff)
}

/// Reading is for a thread that may wait.
async fn read<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, ApiError> {
    let result = tokio::task::spawn_blocking(read)
        .await
        .map_err(io::Error::other)
        .flatten();
    result.map_err(|error| Unavailable(error.to_string()).into())
}
