//! Table `workers`: epochs and credentials of workers that have registered.

use sqlx::{Row, SqliteConnection, SqlitePool};
use wire::WorkerId;

use super::{DbError, join_tokens};

/// With what a worker asks to be registered.
#[derive(Debug)]
pub enum Admission<'a> {
    /// The HMAC of a join token, which is used up.
    Token(&'a str),
    /// The HMAC of the worker's own credential.
    Credential(&'a str),
}

/// Registers a worker in one transaction: uses up the token or checks the credential, and gives the next
/// epoch. `None` if the token or credential is not good any more.
pub async fn register(
    db: &SqlitePool,
    id: &WorkerId,
    admission: &Admission<'_>,
    credential_hmac: &str,
    now_ms: i64,
) -> Result<Option<i64>, DbError> {
    let mut transaction = db.begin_with("BEGIN IMMEDIATE").await?;
    let admitted = match admission {
        Admission::Token(hmac) => join_tokens::take(&mut transaction, hmac, now_ms).await?,
        Admission::Credential(hmac) => credential(&mut transaction, id)
            .await?
            .is_some_and(|stored| stored == *hmac),
    };
    if !admitted {
        return Ok(None);
    }
    let row = sqlx::query(
        "INSERT INTO workers (id, epoch, credential_hmac, registered_at_ms) VALUES ($1, 1, $2, $3) \
         ON CONFLICT (id) DO UPDATE SET epoch = workers.epoch + 1, credential_hmac = $2, registered_at_ms = $3 \
         RETURNING epoch",
    )
    .bind(id.as_str())
    .bind(credential_hmac)
    .bind(now_ms)
    .fetch_one(&mut *transaction)
    .await?;
    let epoch = row.get("epoch");
    transaction.commit().await?;
    Ok(Some(epoch))
}

/// Makes a worker's credential good for nothing; its epoch stays, so that the next one is greater.
pub async fn shut_out(db: &mut SqliteConnection, id: &WorkerId) -> Result<(), DbError> {
    sqlx::query("UPDATE workers SET credential_hmac = '' WHERE id = $1")
        .bind(id.as_str())
        .execute(db)
        .await?;
    Ok(())
}

/// The HMAC of a worker's credential.
pub async fn credential(db: &mut SqliteConnection, id: &WorkerId) -> Result<Option<String>, DbError> {
    let row = sqlx::query("SELECT credential_hmac FROM workers WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(db)
        .await?;
    Ok(row.map(|row| row.get("credential_hmac")))
}

/// Every worker's id and the HMAC of its credential.
pub async fn credentials(db: &SqlitePool) -> Result<Vec<(String, String)>, DbError> {
    let rows = sqlx::query("SELECT id, credential_hmac FROM workers")
        .fetch_all(db)
        .await?;
    Ok(rows
        .iter()
        .map(|row| (row.get("id"), row.get("credential_hmac")))
        .collect())
}
