//! How long a request has a row of its own; what it used is kept, by key, model and day, for usage and budgets.
//!
//! It never touches what runs, and takes a few rows at a time, so that nobody waits for the database because of it.

use std::time::Duration;

use sqlx::SqlitePool;

use crate::db;

/// Rows taken out in one transaction.
const BATCH: u32 = 500;
/// What the database is left to others between two of them.
const PAUSE: Duration = Duration::from_millis(200);
/// How often there may be something to take out.
const INTERVAL: Duration = Duration::from_secs(60);

/// Takes out what is older than that, for ever.
pub async fn keep(db: SqlitePool, retention: Duration) {
    let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        let before = crate::now_ms().saturating_sub(retention);
        loop {
            match db::requests::retire(&db, before, BATCH).await {
                Ok(count) if count < u64::from(BATCH) => break,
                Ok(_) => tokio::time::sleep(PAUSE).await,
                Err(error) => {
                    tracing::warn!(
                        cause = crate::error::chain(&error),
                        "old requests could not be taken out of the books"
                    );
                    break;
                }
            }
        }
    }
}
