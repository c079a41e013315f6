//! The keys in memory: what the data plane asks on every request, without touching the database.
//!
//! It never holds a secret, only HMACs; the database is the truth and this is its copy.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use arc_swap::ArcSwap;
use sqlx::SqlitePool;
use subtle::ConstantTimeEq;
use wire::{KeyView, NewKey, Scope};

use super::{api_key, pepper::Pepper};
use crate::{
    audit::{
        acts::Hand,
        record::{Event, Kind, Object},
    },
    db::{self, DbError, keys::KeyRow},
};

/// How much later than the last note a use is noted, in milliseconds.
const USE_STEP_MS: i64 = 60_000;

/// What the key of an unknown id is compared with: as long as an HMAC, and none.
const NOBODYS: &str = "----------------------------------------------------------------";

/// Who calls: a key and what it may do, or the holder of a token in the same terms.
#[derive(Debug, Clone)]
pub struct Identity(Arc<KeyView>);

impl Identity {
    /// One whose credential has been checked.
    pub fn of(view: KeyView) -> Self {
        Self(view.into())
    }
}

impl Deref for Identity {
    type Target = KeyView;
    fn deref(&self) -> &KeyView {
        &self.0
    }
}

/// All keys of the hive.
#[derive(Debug)]
pub struct Keyring {
    pepper: Pepper,
    by_id: ArcSwap<HashMap<String, Held>>,
    /// Held while the database is read again: an older reading must not replace a newer one.
    reloading: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Held {
    view: Arc<KeyView>,
    hmac: String,
    /// When it was last used, in Unix milliseconds; 0: not since the start.
    used_ms: AtomicI64,
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

    /// Reads the database again, after a key was made or changed.
    pub async fn reload(&self, db: &SqlitePool) -> Result<(), DbError> {
        let _alone = self.reloading.lock().await;
        let rows = db::keys::all(db).await?;
        let before = self.by_id.load();
        let held = |row: KeyRow| {
            let used_ms = before
                .get(&row.view.id)
                .map_or(0, |held| held.used_ms.load(Ordering::Relaxed));
            let held = Held {
                view: Arc::new(row.view),
                hmac: row.hmac,
                used_ms: used_ms.into(),
            };
            (held.view.id.clone(), held)
        };
        self.by_id.store(Arc::new(rows.into_iter().map(held).collect()));
        Ok(())
    }

    /// Whether there is no key at all yet.
    pub fn is_empty(&self) -> bool {
        self.by_id.load().is_empty()
    }

    /// Whether anybody can run the hive with a key.
    pub fn has_operator(&self, now_ms: i64) -> bool {
        let keys = self.by_id.load();
        keys.values()
            .any(|held| held.view.is_live(now_ms) && held.view.allows(Scope::Admin))
    }

    /// Whose key this is; `None` if it is malformed, unknown, revoked or expired.
    pub fn identify(&self, key: &str, now_ms: i64) -> Option<Identity> {
        let id = api_key::public_id(key)?;
        let keys = self.by_id.load();
        let held = keys.get(id);
        // An unknown id is compared too, so that it costs the same.
        let stored = held.map_or(NOBODYS, |held| held.hmac.as_str());
        let same = is_same(self.pepper.hmac(key).as_bytes(), stored.as_bytes());
        let held = held.filter(|held| same && held.view.is_live(now_ms))?;
        held.used_ms.store(now_ms, Ordering::Relaxed);
        Some(Identity(held.view.clone()))
    }

    /// Whether there is a key of this public id, neither revoked nor expired.
    pub fn is_live(&self, id: &str, now_ms: i64) -> bool {
        self.by_id.load().get(id).is_some_and(|held| held.view.is_live(now_ms))
    }

    /// Makes a key; its text is in no other place afterwards.
    pub async fn create(&self, db: &SqlitePool, new: NewKey, by: Hand<'_>) -> Result<(String, KeyView), DbError> {
        let key = api_key::generate();
        let view = self.add(db, &key, new, by).await?;
        Ok((key, view))
    }

    /// Adds a well-formed key that somebody holds already.
    pub async fn add(&self, db: &SqlitePool, key: &str, new: NewKey, by: Hand<'_>) -> Result<KeyView, DbError> {
        let id = api_key::public_id(key).unwrap_or_default().to_owned();
        let now_ms = crate::now_ms();
        let mut scopes = new.scopes;
        scopes.sort_unstable();
        scopes.dedup();
        let view = KeyView {
            family: id.clone(),
            id,
            name: new.name,
            scopes,
            owner: new.owner,
            models: new.models,
            limits: new.limits,
            trusted: new.trusted,
            priority: new.priority,
            labels: new.labels,
            created_at_ms: now_ms,
            expires_at_ms: new.expires_in_s.map(|s| later(now_ms, s)),
            last_used_at_ms: None,
            revoked_at_ms: None,
        };
        let hmac = self.pepper.hmac(key);
        let row = KeyRow { view, hmac };
        let mut transaction = db.begin().await?;
        db::keys::insert(&mut transaction, &row).await?;
        by.sign(&mut transaction, about(Kind::KeyCreate, &row.view)).await?;
        transaction.commit().await?;
        self.reload(db).await?;
        Ok(row.view)
    }

    /// Makes a second key on the terms of a live one, which expires after `grace_s` seconds; `None` if there is no such
    /// live key.
    pub async fn rotate(
        &self,
        db: &SqlitePool,
        id: &str,
        grace_s: u64,
        by: Hand<'_>,
    ) -> Result<Option<(String, KeyView)>, DbError> {
        let now_ms = crate::now_ms();
        let held = self.by_id.load().get(id).map(|held| held.view.clone());
        let Some(old) = held.filter(|view| view.is_live(now_ms)) else {
            return Ok(None);
        };
        let key = api_key::generate();
        let view = KeyView {
            id: api_key::public_id(&key).unwrap_or_default().to_owned(),
            created_at_ms: now_ms,
            last_used_at_ms: None,
            ..(*old).clone()
        };
        let hmac = self.pepper.hmac(&key);
        let row = KeyRow { view, hmac };
        let mut transaction = db.begin().await?;
        db::keys::insert(&mut transaction, &row).await?;
        db::keys::expire(&mut transaction, id, later(now_ms, grace_s)).await?;
        by.sign(&mut transaction, about(Kind::KeyRotate, &row.view)).await?;
        transaction.commit().await?;
        self.reload(db).await?;
        Ok(Some((key, row.view)))
    }

    /// Revokes a key at once; false if there is no such key.
    pub async fn revoke(&self, db: &SqlitePool, id: &str, by: Hand<'_>) -> Result<bool, DbError> {
        let mut transaction = db.begin().await?;
        let known = db::keys::revoke(&mut transaction, id, crate::now_ms()).await?;
        if known {
            let revoked = Event::now(Kind::KeyRevoke).on(Object::key(id));
            by.sign(&mut transaction, revoked).await?;
        }
        transaction.commit().await?;
        self.reload(db).await?;
        Ok(known)
    }

    /// Takes a person off the keys they hold, which stay as they are otherwise; whether there was any. The act is told
    /// by `told`, once that is known.
    pub async fn disown(
        &self,
        db: &SqlitePool,
        owner: &str,
        by: Hand<'_>,
        told: impl FnOnce(bool) -> Event,
    ) -> Result<bool, DbError> {
        let mut transaction = db.begin().await?;
        let held_any = db::keys::disown(&mut transaction, owner).await? > 0;
        by.sign(&mut transaction, told(held_any)).await?;
        transaction.commit().await?;
        db::empty_log(db).await?;
        self.reload(db).await?;
        Ok(held_any)
    }

    /// All keys, the oldest first, without secrets.
    pub fn list(&self) -> Vec<KeyView> {
        let keys = self.by_id.load();
        let mut views: Vec<_> = keys.values().map(Held::shown).collect();
        views.sort_by(|a, b| (a.created_at_ms, &a.id).cmp(&(b.created_at_ms, &b.id)));
        views
    }

    /// The public ids of the keys that somebody holds, revoked and expired ones among them: by the name of their owner, or
    /// by the key's own id where it has none.
    pub fn of(&self, subject: &str) -> Vec<String> {
        let keys = self.by_id.load();
        let held = keys.values().map(|held| &held.view);
        let theirs = held.filter(|view| view.owner.as_deref().unwrap_or(&view.id) == subject);
        theirs.map(|view| view.id.clone()).collect()
    }

    /// One key without its secret.
    pub fn show(&self, id: &str) -> Option<KeyView> {
        self.by_id.load().get(id).map(Held::shown)
    }

    /// Writes down when keys were last used, those that a minute or more has passed for.
    pub async fn note_uses(&self, db: &SqlitePool) -> Result<(), DbError> {
        let uses: Vec<_> = self.by_id.load().values().filter_map(Held::unnoted_use).collect();
        if uses.is_empty() {
            return Ok(());
        }
        db::keys::used(db, &uses).await?;
        self.reload(db).await
    }

    /// The HMAC of another secret of the hive: a join token, a worker's credential.
    pub fn hmac(&self, secret: &str) -> String {
        self.pepper.hmac(secret)
    }
}

/// Whether two digests are the same, at the same cost wherever they differ.
pub fn is_same<T: ConstantTimeEq>(one: &[T], other: &[T]) -> bool {
    one.ct_eq(other).into()
}

/// What is recorded of a key that was made.
fn about(kind: Kind, view: &KeyView) -> Event {
    Event::now(kind).on(Object {
        scopes: Some(view.scopes.iter().map(|scope| scope.as_str().to_owned()).collect()),
        ..Object::key(&view.id)
    })
}

impl Held {
    fn shown(&self) -> KeyView {
        let mut view = (*self.view).clone();
        view.last_used_at_ms = view.last_used_at_ms.max(self.unnoted_use().map(|(_, at_ms)| at_ms));
        view
    }

    fn unnoted_use(&self) -> Option<(String, i64)> {
        let (used_ms, noted_ms) = (
            self.used_ms.load(Ordering::Relaxed),
            self.view.last_used_at_ms.unwrap_or(0),
        );
        (used_ms >= noted_ms + USE_STEP_MS).then(|| (self.view.id.clone(), used_ms))
    }
}

fn later(now_ms: i64, seconds: u64) -> i64 {
    now_ms.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use subtle::Choice;

    use super::*;

    thread_local!(static COMPARED: Cell<usize> = const { Cell::new(0) });

    /// A byte that counts how often it is looked at.
    #[derive(Clone, Copy)]
    struct Counted(u8);

    impl ConstantTimeEq for Counted {
        fn ct_eq(&self, other: &Self) -> Choice {
            COMPARED.set(COMPARED.get() + 1);
            self.0.ct_eq(&other.0)
        }
    }

    fn compared(one: &str, other: &str) -> (bool, usize) {
        let counted = |text: &str| text.bytes().map(Counted).collect::<Vec<_>>();
        COMPARED.set(0);
        (is_same(&counted(one), &counted(other)), COMPARED.get())
    }

    #[test]
    fn comparing_keys_costs_the_same_work_wherever_they_differ() {
        let dir = tempfile::tempdir().unwrap();
        let pepper = Pepper::load_or_create(dir.path()).unwrap();
        let stored = pepper.hmac(&api_key::generate());
        assert_eq!(compared(&stored, &stored), (true, 64));
        for place in 0..stored.len() {
            let mut other = stored.clone().into_bytes();
            other[place] ^= 1;
            assert_eq!(
                compared(&stored, std::str::from_utf8(&other).unwrap()),
                (false, 64),
                "at {place}"
            );
        }
        // Nobody's key is compared as far as somebody's.
        assert_eq!(compared(&stored, NOBODYS), (false, 64));
    }
}
