//! Table `requests`: the books; and `past_usage`, the sums that are left of their oldest rows.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use sqlx::{Row, SqliteConnection, SqlitePool};
use wire::{RequestState, RequestView, UsageRow};

use super::DbError;
use crate::limits::Used;

/// Writes a request as it stands; a later writing replaces an earlier one.
pub async fn write(db: &mut SqliteConnection, request: &RequestView) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO requests (id, key_id, model, worker, state, prompt_tokens, completion_tokens, started_at_ms, ttft_ms, total_ms, error, estimated) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
         ON CONFLICT (id) DO UPDATE SET worker = $4, state = $5, prompt_tokens = $6, completion_tokens = $7, ttft_ms = $9, total_ms = $10, error = $11, estimated = $12",
    )
    .bind(&request.id)
    .bind(&request.key_id)
    .bind(&request.model)
    .bind(request.worker.as_ref().map(wire::WorkerId::as_str))
    .bind(request.state.as_str())
    .bind(request.prompt_tokens)
    .bind(request.completion_tokens)
    .bind(request.started_at_ms)
    .bind(request.ttft_ms)
    .bind(request.total_ms)
    .bind(&request.error)
    .bind(i64::from(request.estimated))
    .execute(db)
    .await?;
    Ok(())
}

/// Closes what was open when an earlier gateway died; how many there were.
pub async fn abort_open(db: &SqlitePool) -> Result<u64, DbError> {
    let done = sqlx::query(
        "UPDATE requests SET state = 'aborted', error = 'gateway_died' WHERE state IN ('queued', 'running')",
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// The ids of what is open.
pub async fn open_ids(db: &SqlitePool) -> Result<Vec<String>, DbError> {
    let rows = sqlx::query("SELECT id FROM requests WHERE state IN ('queued', 'running')")
        .fetch_all(db)
        .await?;
    rows.iter()
        .map(|row| row.try_get("id").map_err(DbError::from))
        .collect()
}

/// Closes one request if it is still open: the gateway that ran it died.
pub async fn abort(db: &SqlitePool, id: &str) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE requests SET state = 'aborted', error = 'gateway_died' WHERE id = $1 AND state IN ('queued', 'running')",
    )
    .bind(id)
    .execute(db)
    .await?;
    Ok(())
}

/// Takes out at most so many requests that began before that time and have ended; what they used stays, by day. How many.
pub async fn retire(db: &SqlitePool, before_ms: i64, most: u32) -> Result<u64, DbError> {
    let mut transaction = db.begin().await?;
    sqlx::query(
        "INSERT INTO past_usage (key_id, model, day, requests, prompt_tokens, completion_tokens, estimated) \
         SELECT key_id, model, started_at_ms / 86400000 AS day, COUNT(*), SUM(COALESCE(prompt_tokens, 0)), \
                SUM(COALESCE(completion_tokens, 0)), SUM(estimated) \
         FROM (SELECT * FROM requests WHERE started_at_ms < $1 AND state NOT IN ('queued', 'running') \
               ORDER BY started_at_ms, id LIMIT $2) old \
         WHERE true GROUP BY key_id, model, day \
         ON CONFLICT (key_id, model, day) DO UPDATE SET requests = past_usage.requests + excluded.requests, \
             prompt_tokens = past_usage.prompt_tokens + excluded.prompt_tokens, \
             completion_tokens = past_usage.completion_tokens + excluded.completion_tokens, \
             estimated = past_usage.estimated + excluded.estimated",
    )
    .bind(before_ms)
    .bind(i64::from(most))
    .execute(&mut *transaction)
    .await?;
    let done = sqlx::query(
        "DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE started_at_ms < $1 \
         AND state NOT IN ('queued', 'running') ORDER BY started_at_ms, id LIMIT $2)",
    )
    .bind(before_ms)
    .bind(i64::from(most))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(done.rows_affected())
}

/// The latest requests, the newest first.
pub async fn latest(db: &SqlitePool, limit: u32) -> Result<Vec<RequestView>, DbError> {
    let rows = sqlx::query("SELECT * FROM requests ORDER BY started_at_ms DESC, id DESC LIMIT $1")
        .bind(i64::from(limit))
        .fetch_all(db)
        .await?;
    rows.iter().map(view).collect()
}

/// One request.
pub async fn find(db: &SqlitePool, id: &str) -> Result<Option<RequestView>, DbError> {
    let row = sqlx::query("SELECT * FROM requests WHERE id = $1")
        .bind(id)
        .fetch_optional(db)
        .await?;
    row.as_ref().map(view).transpose()
}

/// What each family of keys has used on that day (UTC, in days since 1970) and in all; holders of tokens, who are no
/// keys of ours, on that day alone.
pub async fn used(db: &SqlitePool, day: i64) -> Result<HashMap<String, Used>, DbError> {
    let rows = sqlx::query(
        "SELECT COALESCE(k.family, u.key_id) AS family, SUM(u.tokens) AS tokens, \
                SUM(CASE WHEN u.day >= $1 THEN u.tokens ELSE 0 END) AS that_day \
         FROM (SELECT key_id, started_at_ms / 86400000 AS day, \
                      COALESCE(prompt_tokens, 0) + COALESCE(completion_tokens, 0) AS tokens FROM requests \
               UNION ALL \
               SELECT key_id, day, prompt_tokens + completion_tokens AS tokens FROM past_usage) u \
              LEFT JOIN keys k ON k.id = u.key_id \
         WHERE k.id IS NOT NULL OR u.day >= $1 GROUP BY COALESCE(k.family, u.key_id)",
    )
    .bind(day)
    .fetch_all(db)
    .await?;
    let count = |row: &sqlx::sqlite::SqliteRow, column| row.get::<i64, _>(column).unsigned_abs();
    let used = |row: &sqlx::sqlite::SqliteRow| Used {
        day,
        tokens_that_day: count(row, "that_day"),
        tokens: count(row, "tokens"),
    };
    Ok(rows.iter().map(|row| (row.get("family"), used(row))).collect())
}

/// Requests and tokens by key, model and day, the latest day first, since a day (UTC, in days since 1970).
pub async fn usage(
    db: &SqlitePool,
    key_id: Option<&str>,
    model: Option<&str>,
    since_day: i64,
) -> Result<Vec<UsageRow>, DbError> {
    let rows = sqlx::query(
        "SELECT key_id, model, day, SUM(requests) AS requests, SUM(prompt_tokens) AS prompt_tokens, \
                SUM(completion_tokens) AS completion_tokens, SUM(estimated) AS estimated \
         FROM (SELECT key_id, model, started_at_ms / 86400000 AS day, 1 AS requests, \
                      COALESCE(prompt_tokens, 0) AS prompt_tokens, COALESCE(completion_tokens, 0) AS completion_tokens, \
                      estimated \
               FROM requests WHERE started_at_ms >= $1 * 86400000 \
               UNION ALL \
               SELECT key_id, model, day, requests, prompt_tokens, completion_tokens, estimated \
               FROM past_usage WHERE day >= $1) used \
         WHERE ($2 IS NULL OR key_id = $2) AND ($3 IS NULL OR model = $3) \
         GROUP BY key_id, model, day ORDER BY day DESC, key_id, model",
    )
    .bind(since_day)
    .bind(key_id)
    .bind(model)
    .fetch_all(db)
    .await?;
    let row = |row: &sqlx::sqlite::SqliteRow| UsageRow {
        key_id: row.get("key_id"),
        model: row.get("model"),
        day: date(row.get("day")),
        requests: row.get("requests"),
        prompt_tokens: row.get("prompt_tokens"),
        completion_tokens: row.get("completion_tokens"),
        estimated: row.get("estimated"),
    };
    Ok(rows.iter().map(row).collect())
}

/// A day (UTC, in days since 1970) as `2026-01-31`.
fn date(day: i64) -> String {
    let since = Duration::from_secs(u64::try_from(day).unwrap_or_default() * 86_400);
    let mut text = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string();
    text.truncate("2026-01-31".len());
    text
}

fn view(row: &sqlx::sqlite::SqliteRow) -> Result<RequestView, DbError> {
    let unreadable = || DbError::Row("requests");
    let worker: Option<String> = row.get("worker");
    Ok(RequestView {
        id: row.get("id"),
        key_id: row.get("key_id"),
        model: row.get("model"),
        worker: worker.map(|id| id.parse()).transpose().map_err(|_| unreadable())?,
        state: RequestState::parse(row.get("state")).ok_or_else(unreadable)?,
        prompt_tokens: row.get("prompt_tokens"),
        completion_tokens: row.get("completion_tokens"),
        estimated: row.get::<i64, _>("estimated") != 0,
        started_at_ms: row.get("started_at_ms"),
        ttft_ms: row.get("ttft_ms"),
        total_ms: row.get("total_ms"),
        error: row.get("error"),
    })
}
