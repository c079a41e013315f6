//! The keys in memory: what the data plane asks on every request, without touching the database.
//!
//! It never holds a secret, only HMACs; the database is the truth and this is its copy.

use std::collections::HashMap;

use arc_swap::ArcSwap;
use sqlx::SqlitePool;
use subtle::ConstantTimeEq;
use wire::{KeyView, Scope};

use super::{api_key, pepper::Pepper};
use crate::db::{self, DbError, keys::KeyRow};

/// Who a key belongs to and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The key's public id.
    pub key_id: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
}

/// All keys of the hive.
#[derive(Debug)]
pub struct Keyring {
    pepper: Pepper,
    by_id: ArcSwap<HashMap<String, KeyRow>>,
    /// Held while the database is read again: an older reading must not replace a newer one.
    reloading: tokio::sync::Mutex<()>,
}

impl Keyring {
    /// The keys in the database.
    pub async fn load(pepper: Pepper, db: &SqlitePool) -> Result<Self, DbError> {
        let ring = Self {
            pepper,
            by_id: ArcSwap::default(),
            reloading: tokio::sync::Mutex::default(),
        };
        ring.reload(db).await?;
        Ok(ring)
    }

    /// Reads the database again, after a key was made or revoked.
    pub async fn reload(&self, db: &SqlitePool) -> Result<(), DbError> {
        let _alone = self.reloading.lock().await;
        let rows = db::keys::all(db).await?;
        self.by_id.store(
            rows.into_iter()
                .map(|row| (row.view.id.clone(), row))
                .collect::<HashMap<_, _>>()
                .into(),
        );
        Ok(())
    }

    /// Whether there is no key at all yet.
    pub fn is_empty(&self) -> bool {
        self.by_id.load().is_empty()
    }

    /// Whose key this is; `None` if it is malformed, unknown or revoked.
    pub fn identify(&self, key: &str) -> Option<Identity> {
        let id = api_key::public_id(key)?;
        let keys = self.by_id.load();
        let row = keys.get(id);
        // An unknown id is compared too, so that it costs the same.
        let stored = row.map_or("", |row| row.hmac.as_str());
        let same: bool = self.pepper.hmac(key).as_bytes().ct_eq(stored.as_bytes()).into();
        let row = row.filter(|row| same && row.view.revoked_at_ms.is_none())?;
        Some(Identity {
            key_id: row.view.id.clone(),
            scopes: row.view.scopes.clone(),
        })
    }

    /// Makes a key; its text is in no other place afterwards.
    pub async fn create(&self, db: &SqlitePool, name: &str, scopes: &[Scope]) -> Result<(String, KeyView), DbError> {
        let key = api_key::generate();
        let view = self.add(db, &key, name, scopes).await?;
        Ok((key, view))
    }

    /// Adds a well-formed key that somebody holds already.
    pub async fn add(&self, db: &SqlitePool, key: &str, name: &str, scopes: &[Scope]) -> Result<KeyView, DbError> {
        let id = api_key::public_id(key).unwrap_or_default().to_owned();
        let mut scopes = scopes.to_vec();
        scopes.sort_unstable();
        scopes.dedup();
        let view = KeyView {
            id,
            name: name.to_owned(),
            scopes,
            created_at_ms: crate::now_ms(),
            revoked_at_ms: None,
        };
        db::keys::insert(
            db,
            &KeyRow {
                view: view.clone(),
                hmac: self.pepper.hmac(key),
            },
        )
        .await?;
        self.reload(db).await?;
        Ok(view)
    }

    /// All keys, the oldest first, without secrets.
    pub fn list(&self) -> Vec<KeyView> {
        let mut views: Vec<_> = self.by_id.load().values().map(|row| row.view.clone()).collect();
        views.sort_by(|a, b| (a.created_at_ms, &a.id).cmp(&(b.created_at_ms, &b.id)));
        views
    }

    /// The HMAC of another secret of the hive: a join token, a worker's credential.
    pub fn hmac(&self, secret: &str) -> String {
        self.pepper.hmac(secret)
    }
}
