//! `GET /metrics`: what Prometheus reads.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};

use crate::{auth::caller::Scraper, metrics, state::AppState};

/// Read all metrics, in Prometheus' text form.
#[utoipa::path(get, path = "/metrics", tag = "metrics", responses(
    (status = 200, description = "The metrics", body = String, content_type = "text/plain"),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
))]
pub async fn read(State(state): State<AppState>, _: Scraper) -> Response {
    let form = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (form, metrics::render(&state)).into_response()
}
