//! Operator acts: put into the outbox by the very transaction that does them, carried from there into the journal.
//!
//! An act that is done is recorded, one that is not is not, and each is recorded once, wherever the gateway dies in
//! between: the journal itself says which acts it holds.

use std::{collections::HashSet, time::Duration};

use sqlx::{SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};

use super::{journal::Journal, record::Event};
use crate::{
    auth::api_key,
    db::{self, DbError},
};

/// How long an answer waits for its act to be in the journal; it will be, also later.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often what could not be recorded is tried again.
const RETRY: Duration = Duration::from_millis(500);

type Asker = oneshot::Sender<()>;

/// Where handlers put their acts.
#[derive(Debug, Clone)]
pub struct Acts {
    asks: Option<mpsc::UnboundedSender<Asker>>,
}

impl Acts {
    /// Acts of a hive that records nothing.
    pub fn off() -> Self {
        Self { asks: None }
    }

    /// Starts to carry acts over; `recorded` are the ids of those that the journal holds already.
    pub fn start(db: SqlitePool, journal: Journal, recorded: HashSet<String>) -> Self {
        let (asks, asked) = mpsc::unbounded_channel();
        tokio::spawn(carry(db, journal, recorded, asked));
        Self { asks: Some(asks) }
    }

    /// Puts an act into the outbox, inside the transaction that does it.
    async fn put(&self, transaction: &mut SqliteConnection, event: &Event) -> Result<(), DbError> {
        if self.asks.is_none() {
            return Ok(());
        }
        let body = serde_json::to_string(event).map_err(|_| DbError::Row("audit_outbox"))?;
        db::outbox::insert(transaction, &api_key::random(22), event.at_ms, &body).await
    }

    /// One who acts: the holder of a key, or the gateway itself.
    pub fn by<'a>(&'a self, key_id: Option<&'a str>) -> Hand<'a> {
        Hand { acts: self, key_id }
    }

    /// Waits until what is done is also in the journal, but not for long: it is in the outbox in any case.
    pub async fn carried(&self) {
        let (done, all) = oneshot::channel();
        if self.asks.as_ref().is_some_and(|asks| asks.send(done).is_ok()) {
            let _ = tokio::time::timeout(PATIENCE, all).await;
        }
    }
}

/// Somebody who acts; what they do is signed with the public id of their key.
#[derive(Debug, Clone, Copy)]
pub struct Hand<'a> {
    acts: &'a Acts,
    key_id: Option<&'a str>,
}

impl Hand<'_> {
    /// Puts an act of theirs into the outbox, inside the transaction that does it.
    pub async fn sign(&self, transaction: &mut SqliteConnection, mut event: Event) -> Result<(), DbError> {
        if let Some(key_id) = self.key_id {
            event = event.by(key_id);
        }
        self.acts.put(transaction, &event).await
    }

    /// Records an act that changes no table.
    pub async fn sign_alone(&self, db: &SqlitePool, event: Event) -> Result<(), DbError> {
        if self.acts.asks.is_some() {
            let mut transaction = db.begin().await?;
            self.sign(&mut transaction, event).await?;
            transaction.commit().await?;
            self.acts.carried().await;
        }
        Ok(())
    }
}

async fn carry(
    db: SqlitePool,
    journal: Journal,
    mut recorded: HashSet<String>,
    mut asked: mpsc::UnboundedReceiver<Asker>,
) {
    let mut left = true;
    let mut askers: Vec<Asker> = Vec::new();
    loop {
        if left {
            match carry_all(&db, &journal, &mut recorded).await {
                Ok(()) => left = false,
                Err(why) => tracing::debug!(why, "operator acts wait in the outbox"),
            }
        }
        if !left {
            for asker in askers.drain(..) {
                let _ = asker.send(());
            }
        }
        let next = if left {
            tokio::time::timeout(RETRY, asked.recv()).await.unwrap_or(None)
        } else {
            let next = asked.recv().await;
            if next.is_none() {
                return;
            }
            next
        };
        if let Some(asker) = next {
            askers.push(asker);
            left = true;
        } else if asked.is_closed() {
            return;
        }
    }
}

async fn carry_all(db: &SqlitePool, journal: &Journal, recorded: &mut HashSet<String>) -> Result<(), String> {
    let told = |error: DbError| crate::error::chain(&error);
    for (id, body) in db::outbox::all(db).await.map_err(told)? {
        if !recorded.contains(&id) {
            let mut event: Event = serde_json::from_str(&body).map_err(|error| error.to_string())?;
            event.act = Some(id.clone());
            journal.durable(event).await.map_err(|error| error.to_string())?;
            recorded.insert(id.clone());
        }
        db::outbox::delete(db, &id).await.map_err(told)?;
        recorded.remove(&id);
    }
    Ok(())
}
