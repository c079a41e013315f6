//! Table `keys`: API keys without their secrets.

use sqlx::{Row, SqliteConnection, SqlitePool};
use wire::{KeyView, Priority, Scope};

use super::DbError;

/// One key as it is stored.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// What may be shown.
    pub view: KeyView,
    /// HMAC-SHA-256 of the whole key under the pepper, in hexadecimal.
    pub hmac: String,
}

/// All keys, the oldest first.
pub async fn all(db: &SqlitePool) -> Result<Vec<KeyRow>, DbError> {
    let rows = sqlx::query("SELECT * FROM keys ORDER BY created_at_ms, id")
        .fetch_all(db)
        .await?;
    rows.iter().map(row).collect()
}

fn row(row: &sqlx::sqlite::SqliteRow) -> Result<KeyRow, DbError> {
    let unreadable = || DbError::Row("keys");
    let (scopes, models, limits): (String, String, String) = (row.get("scopes"), row.get("models"), row.get("limits"));
    let labels: String = row.get("labels");
    let scopes: Option<Vec<Scope>> = scopes.split(' ').filter(|s| !s.is_empty()).map(Scope::parse).collect();
    let view = KeyView {
        id: row.get("id"),
        name: row.get("name"),
        scopes: scopes.ok_or_else(unreadable)?,
        owner: row.get("owner"),
        models: serde_json::from_str(&models).map_err(|_| unreadable())?,
        limits: serde_json::from_str(&limits).map_err(|_| unreadable())?,
        trusted: row.get::<i64, _>("trusted") != 0,
        priority: Priority::parse(row.get("priority")).ok_or_else(unreadable)?,
        labels: serde_json::from_str(&labels).map_err(|_| unreadable())?,
        family: row.get("family"),
        created_at_ms: row.get("created_at_ms"),
        expires_at_ms: row.get("expires_at_ms"),
        last_used_at_ms: row.get("last_used_at_ms"),
        revoked_at_ms: row.get("revoked_at_ms"),
    };
    let hmac = row.get("hmac");
    Ok(KeyRow { view, hmac })
}

/// Adds a key.
pub async fn insert(db: &mut SqliteConnection, key: &KeyRow) -> Result<(), DbError> {
    let view = &key.view;
    let scopes: Vec<&str> = view.scopes.iter().map(|scope| scope.as_str()).collect();
    let json = |error: serde_json::Error| sqlx::Error::Encode(error.into());
    sqlx::query(
        "INSERT INTO keys (id, name, scopes, hmac, owner, models, limits, trusted, family, created_at_ms, expires_at_ms, priority, labels) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(&view.id)
    .bind(&view.name)
    .bind(scopes.join(" "))
    .bind(&key.hmac)
    .bind(&view.owner)
    .bind(serde_json::to_string(&view.models).map_err(json)?)
    .bind(serde_json::to_string(&view.limits).map_err(json)?)
    .bind(i64::from(view.trusted))
    .bind(&view.family)
    .bind(view.created_at_ms)
    .bind(view.expires_at_ms)
    .bind(view.priority.as_str())
    .bind(serde_json::to_string(&view.labels).map_err(json)?)
    .execute(db)
    .await?;
    Ok(())
}

/// Revokes a key; the first revocation's time stays. False if there is no such key.
pub async fn revoke(db: &mut SqliteConnection, id: &str, now_ms: i64) -> Result<bool, DbError> {
    let done = sqlx::query("UPDATE keys SET revoked_at_ms = COALESCE(revoked_at_ms, $2) WHERE id = $1")
        .bind(id)
        .bind(now_ms)
        .execute(db)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets a key expire at this time, unless it does so sooner.
pub async fn expire(db: &mut SqliteConnection, id: &str, at_ms: i64) -> Result<(), DbError> {
    sqlx::query("UPDATE keys SET expires_at_ms = $2 WHERE id = $1 AND (expires_at_ms IS NULL OR expires_at_ms > $2)")
        .bind(id)
        .bind(at_ms)
        .execute(db)
        .await?;
    Ok(())
}

/// Takes a person off the keys they hold; how many there were.
pub async fn disown(db: &mut SqliteConnection, owner: &str) -> Result<u64, DbError> {
    let done = sqlx::query("UPDATE keys SET owner = NULL WHERE owner = $1")
        .bind(owner)
        .execute(db)
        .await?;
    Ok(done.rows_affected())
}

/// Notes when keys were last used.
pub async fn used(db: &SqlitePool, uses: &[(String, i64)]) -> Result<(), DbError> {
    let mut transaction = db.begin().await?;
    for (id, at_ms) in uses {
        sqlx::query("UPDATE keys SET last_used_at_ms = $2 WHERE id = $1")
            .bind(id)
            .bind(at_ms)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}
