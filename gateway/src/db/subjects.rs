//! `subjects.db`: the keys of people's pseudonyms, in a file of their own, so that one can be destroyed.
//!
//! SQLite overwrites what is deleted here with zeros; nobody's name is in it, only an HMAC of it.

use std::{path::Path, time::Duration};

use sqlx::{
    Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{DbError, corrupt, create_private};

/// Opens the file, or makes it.
pub async fn open(path: &Path) -> Result<SqlitePool, DbError> {
    create_private(path).map_err(sqlx::Error::Io)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("secure_delete", "ON")
        .busy_timeout(Duration::from_secs(5));
    let db = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options)
        .await
        .map_err(|error| corrupt(path, error))?;
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS subjects (id TEXT PRIMARY KEY, key TEXT NOT NULL, made_at_ms BIGINT NOT NULL)",
    )
    .execute(&db)
    .await?;
    empty_log(&db).await?;
    Ok(db)
}

/// The key of a subject, if it has one.
pub async fn find(db: &SqlitePool, id: &str) -> Result<Option<String>, DbError> {
    let row = sqlx::query("SELECT key FROM subjects WHERE id = $1")
        .bind(id)
        .fetch_optional(db)
        .await?;
    Ok(row.map(|row| row.get("key")))
}

/// The key of a subject, which is this new one if it had none.
pub async fn find_or_insert(db: &SqlitePool, id: &str, fresh: &str, now_ms: i64) -> Result<String, DbError> {
    let row = sqlx::query(
        "INSERT INTO subjects (id, key, made_at_ms) VALUES ($1, $2, $3) \
         ON CONFLICT (id) DO UPDATE SET id = $1 RETURNING key",
    )
    .bind(id)
    .bind(fresh)
    .bind(now_ms)
    .fetch_one(db)
    .await?;
    Ok(row.get("key"))
}

/// Destroys the key of a subject, in the file and in its log; false if it had none.
pub async fn destroy(db: &SqlitePool, id: &str) -> Result<bool, DbError> {
    let done = sqlx::query("DELETE FROM subjects WHERE id = $1")
        .bind(id)
        .execute(db)
        .await?;
    empty_log(db).await?;
    Ok(done.rows_affected() == 1)
}

/// The old page of a row that was destroyed may still be in the write-ahead log, also after a crash.
async fn empty_log(db: &SqlitePool) -> Result<(), DbError> {
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(db).await?;
    Ok(())
}
