//! Holders of tokens who were cut off: what was issued to them until then is not taken any more.
//!
//! No request waits for the database, of which this is a copy. It names nobody: a holder is known by the pseudonym that
//! log, books and record know them by. Whoever is erased from those is known to memory alone until the next start.

use std::collections::HashMap;

use arc_swap::ArcSwap;
use sqlx::SqlitePool;

use crate::{
    audit::{
        acts::Hand,
        record::{Event, Kind, Object},
    },
    db::{self, DbError},
};

/// Since when each of them is cut off, in Unix milliseconds.
#[derive(Debug, Default)]
pub struct Revoked(ArcSwap<HashMap<String, i64>>);

impl Revoked {
    /// Those in the database.
    pub async fn load(db: &SqlitePool) -> Result<Self, DbError> {
        let all: HashMap<_, _> = db::revoked_holders::all(db).await?.into_iter().collect();
        Ok(Self(ArcSwap::from_pointee(all)))
    }

    /// Cuts a holder off, at once and for what was issued by now; since when, in Unix milliseconds.
    pub async fn revoke(&self, db: &SqlitePool, id: &str, by: Hand<'_>) -> Result<i64, DbError> {
        let at_ms = crate::now_ms();
        let mut transaction = db.begin().await?;
        db::revoked_holders::revoke(&mut transaction, id, at_ms).await?;
        let revoked = Event::now(Kind::TokenRevoke).on(Object::key(id));
        by.sign(&mut transaction, revoked).await?;
        transaction.commit().await?;
        self.remember(id, at_ms);
        Ok(at_ms)
    }

    /// Takes one holder for cut off since another was, if they were; no file knows of it.
    pub fn carry_over(&self, from: &str, to: &str) {
        if let Some(at_ms) = self.since(from) {
            self.remember(to, at_ms);
        }
    }

    fn remember(&self, id: &str, at_ms: i64) {
        self.0.rcu(|held| {
            let mut held = HashMap::clone(held);
            held.insert(id.to_owned(), at_ms);
            held
        });
    }

    /// Since when a holder is cut off, in Unix milliseconds, if they are.
    pub fn since(&self, id: &str) -> Option<i64> {
        self.0.load().get(id).copied()
    }
}
