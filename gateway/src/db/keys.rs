//! Table `keys`: API keys without their secrets.

use sqlx::{Row, SqlitePool};
use wire::{KeyView, Scope};

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
    let rows =
        sqlx::query("SELECT id, name, scopes, hmac, created_at_ms, revoked_at_ms FROM keys ORDER BY created_at_ms, id")
            .fetch_all(db)
            .await?;
    rows.iter()
        .map(|row| {
            let scopes: String = row.get("scopes");
            let scopes: Option<Vec<Scope>> = scopes.split(' ').filter(|s| !s.is_empty()).map(Scope::parse).collect();
            let view = KeyView {
                id: row.get("id"),
                name: row.get("name"),
                scopes: scopes.ok_or(DbError::Row("keys"))?,
                created_at_ms: row.get("created_at_ms"),
                revoked_at_ms: row.get("revoked_at_ms"),
            };
            Ok(KeyRow {
                view,
                hmac: row.get("hmac"),
            })
        })
        .collect()
}

/// Adds a key.
pub async fn insert(db: &SqlitePool, key: &KeyRow) -> Result<(), DbError> {
    let scopes: Vec<&str> = key.view.scopes.iter().map(|scope| scope.as_str()).collect();
    sqlx::query("INSERT INTO keys (id, name, scopes, hmac, created_at_ms) VALUES ($1, $2, $3, $4, $5)")
        .bind(&key.view.id)
        .bind(&key.view.name)
        .bind(scopes.join(" "))
        .bind(&key.hmac)
        .bind(key.view.created_at_ms)
        .execute(db)
        .await?;
    Ok(())
}

/// Revokes a key; the first revocation's time stays. False if there is no such key.
pub async fn revoke(db: &SqlitePool, id: &str, now_ms: i64) -> Result<bool, DbError> {
    let done = sqlx::query("UPDATE keys SET revoked_at_ms = COALESCE(revoked_at_ms, $2) WHERE id = $1")
        .bind(id)
        .bind(now_ms)
        .execute(db)
        .await?;
    Ok(done.rows_affected() == 1)
}
