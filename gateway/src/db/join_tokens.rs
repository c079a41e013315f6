//! Table `join_tokens`: single-use tokens with which workers join.

use sqlx::{Row, SqliteConnection, SqlitePool};

use super::DbError;

/// Adds a token, and forgets those that expired long ago.
pub async fn insert(
    db: &mut SqliteConnection,
    hmac: &str,
    worker_id: Option<&str>,
    expires_at_ms: i64,
    now_ms: i64,
) -> Result<(), DbError> {
    const KEPT_MS: i64 = 24 * 3_600_000;
    sqlx::query("DELETE FROM join_tokens WHERE expires_at_ms < $1")
        .bind(now_ms - KEPT_MS)
        .execute(&mut *db)
        .await?;
    sqlx::query("INSERT INTO join_tokens (hmac, worker_id, expires_at_ms) VALUES ($1, $2, $3)")
        .bind(hmac)
        .bind(worker_id)
        .bind(expires_at_ms)
        .execute(db)
        .await?;
    Ok(())
}

/// A token that is still good: the worker id it is bound to, if any; `None` if there is no such token.
pub async fn find(db: &SqlitePool, hmac: &str, now_ms: i64) -> Result<Option<Option<String>>, DbError> {
    let row =
        sqlx::query("SELECT worker_id FROM join_tokens WHERE hmac = $1 AND used_at_ms IS NULL AND expires_at_ms > $2")
            .bind(hmac)
            .bind(now_ms)
            .fetch_optional(db)
            .await?;
    Ok(row.map(|row| row.get("worker_id")))
}

/// Uses a token up; false if another worker was faster or its time is over.
pub async fn take(db: &mut SqliteConnection, hmac: &str, now_ms: i64) -> Result<bool, DbError> {
    let done = sqlx::query(
        "UPDATE join_tokens SET used_at_ms = $2 WHERE hmac = $1 AND used_at_ms IS NULL AND expires_at_ms > $2",
    )
    .bind(hmac)
    .bind(now_ms)
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
