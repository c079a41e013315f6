//! The registry's SQLite file: the only room with SQL, one file per table.
//!
//! It decides nothing; it stores what other rooms decided and reads it back.

pub mod attached;
pub mod join_tokens;
pub mod keys;
pub mod models;
pub mod outbox;
pub mod requests;
pub mod revoked_holders;
pub mod subjects;
pub mod workers;

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use sqlx::{
    ConnectOptions as _, Connection as _, Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// The oldest SQLite whose WAL mode holds what we promise.
const OLDEST_SQLITE: (u32, u32, u32) = (3, 51, 3);

/// Connections to the file; SQLite has one writer whatever their number.
const CONNECTIONS: u32 = 4;

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
///
/// While the file is away, or another one is in its place, nothing can be written: what goes to a file that nobody finds
/// again is lost. All connections are made now and kept, for a connection to another file would mix the two.
pub async fn open(path: &Path) -> Result<SqlitePool, DbError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // What is taken out is overwritten: an owner who was erased is in no free page.
        .pragma("secure_delete", "ON")
        .busy_timeout(Duration::from_secs(5));
    create_private(path).map_err(sqlx::Error::Io)?;
    // Before the others are made: a connection that remembers an older schema reads rows by it.
    let mut first = options.connect().await.map_err(|error| corrupt(path, error))?;
    let version: String = sqlx::query("SELECT sqlite_version()")
        .fetch_one(&mut first)
        .await?
        .get(0);
    if parse_version(&version).is_none_or(|v| v < OLDEST_SQLITE) {
        return Err(DbError::TooOld(version));
    }
    let check: String = sqlx::query("PRAGMA quick_check(1)")
        .fetch_one(&mut first)
        .await
        .map_err(|error| corrupt(path, error))?
        .get(0);
    if check != "ok" {
        return Err(DbError::Corrupt {
            path: path.display().to_string(),
            found: check,
        });
    }
    sqlx::migrate!("../migrations").run(&mut first).await?;
    first.close().await?;
    let file = Arc::new(OpenFile::at(path).map_err(sqlx::Error::Io)?);
    let pool = SqlitePoolOptions::new()
        .min_connections(CONNECTIONS)
        .max_connections(CONNECTIONS)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(Duration::from_secs(5))
        .before_acquire(move |connection, _| {
            let file = file.clone();
            async move { file.guard(connection).await.map(|()| true) }.boxed()
        })
        .connect_with(options)
        .await
        .map_err(|error| corrupt(path, error))?;
    Ok(pool)
}

/// Empties the write-ahead log, where what was overwritten in the file may still stand.
pub async fn empty_log(db: &SqlitePool) -> Result<(), DbError> {
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(db).await?;
    Ok(())
}

/// An empty file is a new database; SQLite would make one that others may read.
fn create_private(path: &Path) -> io::Result<()> {
    match fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Which file was opened, so that another one in its place is noticed.
#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
    /// Whether some connection may have been closed to writes.
    is_guarded: AtomicBool,
}

impl OpenFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            device_and_inode: identity(path)?,
            is_guarded: false.into(),
        })
    }

    /// Closes a connection to writes as long as the file is not in its place.
    async fn guard(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let is_there = identity(&self.path).is_ok_and(|found| found == self.device_and_inode);
        if is_there && !self.is_guarded.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !is_there && !self.is_guarded.swap(true, Ordering::Relaxed) {
            tracing::error!(
                file = %self.path.display(),
                "the registry database was removed or replaced; nothing can be written until it is back in its place, or the gateway is restarted"
            );
        }
        let pragma = if is_there {
            "PRAGMA query_only = 0"
        } else {
            "PRAGMA query_only = 1"
        };
        sqlx::query(pragma).execute(connection).await.map(drop)
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
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
