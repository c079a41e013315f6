//! Table `revoked_holders`: since when tokens of a holder are taken only if they were issued later.

use sqlx::{Row, SqliteConnection, SqlitePool};

use super::DbError;

/// All of them, each with its moment in Unix milliseconds.
pub async fn all(db: &SqlitePool) -> Result<Vec<(String, i64)>, DbError> {
    let rows = sqlx::query("SELECT id, at_ms FROM revoked_holders")
        .fetch_all(db)
        .await?;
    Ok(rows.iter().map(|row| (row.get("id"), row.get("at_ms"))).collect())
}

/// Cuts a holder off at this moment, once more if need be.
pub async fn revoke(db: &mut SqliteConnection, id: &str, at_ms: i64) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO revoked_holders (id, at_ms) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET at_ms = excluded.at_ms",
    )
    .bind(id)
    .bind(at_ms)
    .execute(db)
    .await?;
    Ok(())
}
