//! Table `attached`: OpenAI-compatible servers that an operator attached.

use sqlx::{Row, SqliteConnection, SqlitePool};
use wire::{Labels, ModelName, WorkerId};

use super::DbError;

/// One attached server as it is stored.
#[derive(Debug, Clone)]
pub struct AttachedRow {
    /// Its id.
    pub id: WorkerId,
    /// Grows with every attachment of the id.
    pub epoch: i64,
    /// Base URL without `/v1`.
    pub url: String,
    /// The models routed to it.
    pub models: Vec<ModelName>,
    /// How many requests it takes at once.
    pub slots: u32,
    /// What an operator calls it.
    pub labels: Labels,
    /// How much more than its speed says it is to get.
    pub weight: f32,
}

/// All attached servers.
pub async fn all(db: &SqlitePool) -> Result<Vec<AttachedRow>, DbError> {
    let rows = sqlx::query("SELECT id, epoch, url, models, slots, labels, weight FROM attached")
        .fetch_all(db)
        .await?;
    rows.iter()
        .map(|row| {
            let unreadable = || DbError::Row("attached");
            let (id, models, labels): (String, String, String) = (row.get("id"), row.get("models"), row.get("labels"));
            Ok(AttachedRow {
                id: id.parse().map_err(|_| unreadable())?,
                epoch: row.get("epoch"),
                url: row.get("url"),
                models: serde_json::from_str(&models).map_err(|_| unreadable())?,
                slots: u32::try_from(row.get::<i64, _>("slots")).map_err(|_| unreadable())?,
                labels: serde_json::from_str(&labels).map_err(|_| unreadable())?,
                weight: row.get("weight"),
            })
        })
        .collect()
}

/// Adds or replaces an attached server; its new epoch.
pub async fn upsert(db: &mut SqliteConnection, row: &AttachedRow, now_ms: i64) -> Result<i64, DbError> {
    let models = serde_json::to_string(&row.models).map_err(|_| DbError::Row("attached"))?;
    let labels = serde_json::to_string(&row.labels).map_err(|_| DbError::Row("attached"))?;
    let written = sqlx::query(
        "INSERT INTO attached (id, epoch, url, models, slots, attached_at_ms, labels, weight) \
         VALUES ($1, 1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (id) DO UPDATE SET epoch = attached.epoch + 1, url = $2, models = $3, slots = $4, attached_at_ms = $5, \
         labels = $6, weight = $7 \
         RETURNING epoch",
    )
    .bind(row.id.as_str())
    .bind(&row.url)
    .bind(models)
    .bind(i64::from(row.slots))
    .bind(now_ms)
    .bind(labels)
    .bind(row.weight)
    .fetch_one(db)
    .await?;
    Ok(written.get("epoch"))
}

/// Removes an attached server; false if there was none of that id.
pub async fn delete(db: &mut SqliteConnection, id: &WorkerId) -> Result<bool, DbError> {
    let done = sqlx::query("DELETE FROM attached WHERE id = $1")
        .bind(id.as_str())
        .execute(db)
        .await?;
    Ok(done.rows_affected() == 1)
}
