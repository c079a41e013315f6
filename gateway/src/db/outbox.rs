//! Table `audit_outbox`: operator acts that are done and not yet in the audit journal.

use sqlx::{Row, SqliteConnection, SqlitePool};

use super::DbError;

/// Adds an act, inside the transaction that does it; `body` is the record to be.
pub async fn insert(db: &mut SqliteConnection, id: &str, at_ms: i64, body: &str) -> Result<(), DbError> {
    sqlx::query("INSERT INTO audit_outbox (id, at_ms, body) VALUES ($1, $2, $3)")
        .bind(id)
        .bind(at_ms)
        .bind(body)
        .execute(db)
        .await?;
    Ok(())
}

/// All acts in the order in which they were done: id and body.
pub async fn all(db: &SqlitePool) -> Result<Vec<(String, String)>, DbError> {
    let rows = sqlx::query("SELECT id, body FROM audit_outbox ORDER BY at_ms, id")
        .fetch_all(db)
        .await?;
    Ok(rows.iter().map(|row| (row.get("id"), row.get("body"))).collect())
}

/// Removes an act that is in the journal.
pub async fn delete(db: &SqlitePool, id: &str) -> Result<(), DbError> {
    sqlx::query("DELETE FROM audit_outbox WHERE id = $1")
        .bind(id)
        .execute(db)
        .await?;
    Ok(())
}
