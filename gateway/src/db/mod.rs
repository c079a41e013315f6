//! The registry's SQLite file: the only room with SQL, one file per table.
//!
//! It decides nothing; it stores what other rooms decided and reads it back.

pub mod attached;
pub mod join_tokens;
pub mod keys;
pub mod models;
pub mod requests;
pub mod workers;

use std::{path::Path, time::Duration};

use sqlx::{
    Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// The oldest SQLite whose WAL mode holds what we promise.
const OLDEST_SQLITE: (u32, u32, u32) = (3, 51, 3);

/// Why the database could not be opened or asked.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// SQLite itself refused.
    #[error("the registry database could not be used")]
    Sqlite(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the registry database's schema could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The file's pages do not fit together.
    #[error(
        "the registry database {path} is corrupt: {found}; move it aside and restore a copy, or recover with: sqlite3 {path} .recover | sqlite3 recovered.db"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// What SQLite found.
        found: String,
    },
    /// The SQLite in this program is too old.
    #[error("this program carries SQLite {0}, older than 3.51.3; build it with a newer libsqlite3-sys")]
    TooOld(String),
    /// A row does not read as what was written.
    #[error("a row of table {0} could not be read")]
    Row(&'static str),
}

/// Opens the database in WAL mode with durable commits, creating and migrating it as needed.
pub async fn open(path: &Path) -> Result<SqlitePool, DbError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5));
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options)
        .await
        .map_err(|error| corrupt(path, error))?;
    let version: String = sqlx::query("SELECT sqlite_version()").fetch_one(&pool).await?.get(0);
    if parse_version(&version).is_none_or(|v| v < OLDEST_SQLITE) {
        return Err(DbError::TooOld(version));
    }
    let check: String = sqlx::query("PRAGMA quick_check(1)")
        .fetch_one(&pool)
        .await
        .map_err(|error| corrupt(path, error))?
        .get(0);
    if check != "ok" {
        return Err(DbError::Corrupt {
            path: path.display().to_string(),
            found: check,
        });
    }
    sqlx::migrate!("../migrations").run(&pool).await?;
    Ok(pool)
}

fn corrupt(path: &Path, error: sqlx::Error) -> DbError {
    // 11 SQLITE_CORRUPT, 26 SQLITE_NOTADB (https://www.sqlite.org/rescode.html).
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .map(std::borrow::Cow::into_owned);
    match code.as_deref() {
        Some("11" | "26") => DbError::Corrupt {
            path: path.display().to_string(),
            found: error.to_string(),
        },
        _ => error.into(),
    }
}

fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_no_database_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hive.db");
        std::fs::write(&path, [b'x'; 8192]).unwrap();
        let error = open(&path).await.unwrap_err();
        assert!(matches!(error, DbError::Corrupt { .. }), "{error:?}");
        assert_eq!(std::fs::read(&path).unwrap(), [b'x'; 8192]);
    }

    #[tokio::test]
    async fn it_opens_twice_in_wal_mode_with_durable_commits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hive.db");
        drop(open(&path).await.unwrap());
        let pool = open(&path).await.unwrap();
        let mode: String = sqlx::query("PRAGMA journal_mode")
            .fetch_one(&pool)
            .await
            .unwrap()
            .get(0);
        let synchronous: i64 = sqlx::query("PRAGMA synchronous").fetch_one(&pool).await.unwrap().get(0);
        let keys: i64 = sqlx::query("PRAGMA foreign_keys")
            .fetch_one(&pool)
            .await
            .unwrap()
            .get(0);
        assert_eq!((mode.as_str(), synchronous, keys), ("wal", 2, 1));
    }
}
