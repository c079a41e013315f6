//! Table `models`: every model the registry has heard of.

use sqlx::{Row, SqlitePool};
use wire::{ModelFacts, ModelName};

use super::DbError;

/// All models, with when they were first heard of (Unix milliseconds) and what is known about them.
pub async fn all(db: &SqlitePool) -> Result<Vec<(ModelName, i64, ModelFacts)>, DbError> {
    let rows = sqlx::query("SELECT id, facts, created_at_ms FROM models")
        .fetch_all(db)
        .await?;
    rows.iter()
        .map(|row| {
            let unreadable = || DbError::Row("models");
            let (id, facts): (String, String) = (row.get("id"), row.get("facts"));
            let facts = serde_json::from_str(&facts).map_err(|_| unreadable())?;
            Ok((id.parse().map_err(|_| unreadable())?, row.get("created_at_ms"), facts))
        })
        .collect()
}

/// Adds a model, or renews what is known about it.
pub async fn upsert(db: &SqlitePool, id: &ModelName, facts: &ModelFacts, now_ms: i64) -> Result<(), DbError> {
    let facts = serde_json::to_string(facts).map_err(|_| DbError::Row("models"))?;
    sqlx::query(
        "INSERT INTO models (id, facts, created_at_ms) VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET facts = $2",
    )
    .bind(id.as_str())
    .bind(facts)
    .bind(now_ms)
    .execute(db)
    .await?;
    Ok(())
}
