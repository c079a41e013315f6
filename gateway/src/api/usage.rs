//! `GET /control/v1/usage`: requests and tokens by key, model and day, summed from the books.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use serde::Deserialize;
use utoipa::IntoParams;
use wire::UsageRow;

use crate::{auth::caller::Operator, db, error::ApiError, limits, state::AppState};

/// Whose usage, and since when.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Of this key alone, by its public id.
    key: Option<String>,
    /// Of this model alone.
    model: Option<String>,
    /// Of this many days, today included, 1 to 3660; 30 if not given.
    days: Option<u32>,
}

/// Sum up requests and tokens by key, model and day.
#[utoipa::path(get, path = "/control/v1/usage", tag = "usage", params(Wanted), responses(
    (status = 200, description = "Usage, the latest day first", body = Vec<UsageRow>),
    (status = 400, description = "The query is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 503, description = "The database cannot be read now", body = wire::ErrorEnvelope),
))]
pub async fn list(
    State(state): State<AppState>,
    _: Operator,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Vec<UsageRow>>, ApiError> {
    let Query(wanted) = wanted.map_err(|error| ApiError::Invalid {
        message: format!("{}. It takes `key`, `model` and `days`.", error.body_text()),
        param: None,
    })?;
    let days = wanted.days.unwrap_or(30);
    if !(1..=3660).contains(&days) {
        return Err(ApiError::invalid("days", "`days` must be a number from 1 to 3660."));
    }
    state.books.flush().await;
    let since = limits::today() - i64::from(days) + 1;
    let rows = db::requests::usage(&state.db, wanted.key.as_deref(), wanted.model.as_deref(), since).await?;
    Ok(Json(rows))
}
