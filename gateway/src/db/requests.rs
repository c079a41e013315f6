//! Table `requests`: the books.

use sqlx::{Row, SqliteConnection, SqlitePool};
use wire::{RequestState, RequestView};

use super::DbError;

/// Writes a request as it stands; a later writing replaces an earlier one.
pub async fn write(db: &mut SqliteConnection, request: &RequestView) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO requests (id, key_id, model, worker, state, prompt_tokens, completion_tokens, started_at_ms, ttft_ms, total_ms, error) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
         ON CONFLICT (id) DO UPDATE SET worker = $4, state = $5, prompt_tokens = $6, completion_tokens = $7, ttft_ms = $9, total_ms = $10, error = $11",
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
    .execute(db)
    .await?;
    Ok(())
}

/// Closes what was open when an earlier gateway died; how many there were.
pub async fn abort_open(db: &SqlitePool) -> Result<u64, DbError> {
    let done = sqlx::query("UPDATE requests SET state = 'aborted' WHERE state IN ('queued', 'running')")
        .execute(db)
        .await?;
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
        started_at_ms: row.get("started_at_ms"),
        ttft_ms: row.get("ttft_ms"),
        total_ms: row.get("total_ms"),
        error: row.get("error"),
    })
}
