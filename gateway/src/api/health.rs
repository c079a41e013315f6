//! `/healthz` (the process lives) and `/readyz` (it takes requests); no key needed.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{audit::journal::Unavailable, error::ApiError, state::AppState};

/// The answer of both probes.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    status: &'static str,
    /// The gateway's version.
    version: &'static str,
    /// How much is recorded: `off`, `metadata` or `eu-strict`.
    audit: &'static str,
}

fn well(state: &AppState) -> Json<Health> {
    Json(Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        audit: state.audit.journal.mode().as_str(),
    })
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()), responses((status = 200, description = "It lives", body = Health)))]
pub async fn live(State(state): State<AppState>) -> Json<Health> {
    well(&state)
}

/// Whether it takes requests: the registry is open and it is not draining; no worker is needed.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()), responses(
    (status = 200, description = "It takes requests", body = Health),
    (status = 503, description = "It is going down", body = wire::ErrorEnvelope),
))]
pub async fn ready(State(state): State<AppState>) -> Result<Json<Health>, ApiError> {
    if state.lifecycle.is_draining() {
        Err(ApiError::ShuttingDown)
    } else if !state.audit.journal.serves() {
        Err(ApiError::AuditUnavailable(Unavailable("it failed lately".into())))
    } else {
        Ok(well(&state))
    }
}
