//! People as pseudonyms: each under a key of their own, which can be destroyed.
//!
//! `psub = HMAC-SHA-256(key of the subject, subject)`, 16 bytes of it. With the key, a person's records can be found;
//! without it, nobody can tell whose they are. Nobody's name is stored: the key is found by an HMAC under the
//! hive's pepper.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sqlx::SqlitePool;

use crate::{
    auth::pepper::{Pepper, hex, hmac_hex},
    db::{self, DbError},
};

/// Pseudonyms kept in memory.
const REMEMBERED: usize = 50_000;

/// Where pseudonyms are made, found and cut off.
#[derive(Debug, Clone)]
pub struct Subjects {
    db: SqlitePool,
    pepper: Pepper,
    known: Arc<Mutex<HashMap<String, String>>>,
    /// Held while one is made, so that a burst of one person's requests makes one.
    making: Arc<tokio::sync::Mutex<()>>,
}

impl Subjects {
    /// Opens `subjects.db`.
    pub async fn open(file: &Path, pepper: Pepper) -> Result<Self, DbError> {
        Ok(Self {
            db: db::subjects::open(file).await?,
            pepper,
            known: Arc::default(),
            making: Arc::default(),
        })
    }

    /// The pseudonym of a subject; a new one gets its key now.
    pub async fn pseudonym(&self, subject: &str) -> Result<String, DbError> {
        let id = self.id(subject);
        if let Some(known) = self.known(&id) {
            return Ok(known);
        }
        let _alone = self.making.lock().await;
        if let Some(known) = self.known(&id) {
            return Ok(known);
        }
        let fresh = hex(&rand::random::<[u8; 32]>());
        let key = db::subjects::find_or_insert(&self.db, &id, &fresh, crate::now_ms()).await?;
        let pseudonym = derive(&key, subject);
        let mut known = self.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(id, pseudonym.clone());
        Ok(pseudonym)
    }

    /// The pseudonym of a subject that has one.
    pub async fn find(&self, subject: &str) -> Result<Option<String>, DbError> {
        let key = db::subjects::find(&self.db, &self.id(subject)).await?;
        Ok(key.map(|key| derive(&key, subject)))
    }

    /// Destroys the key of a subject; false if it had none. Its next request gets a new one.
    pub async fn erase(&self, subject: &str) -> Result<bool, DbError> {
        let id = self.id(subject);
        let _alone = self.making.lock().await;
        let had = db::subjects::destroy(&self.db, &id).await?;
        self.lock().remove(&id);
        Ok(had)
    }

    /// Closes the file; what is asked later fails.
    pub async fn close(&self) {
        self.db.close().await;
    }

    /// A pseudonym of an address, for telling strangers apart; it cannot be turned back without the pepper.
    pub fn net(&self, address: std::net::IpAddr) -> String {
        self.pepper.hmac(&format!("audit net {address}"))[..16].to_owned()
    }

    fn known(&self, id: &str) -> Option<String> {
        self.lock().get(id).cloned()
    }

    fn id(&self, subject: &str) -> String {
        self.pepper.hmac(&format!("audit subject {subject}"))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn derive(key: &str, subject: &str) -> String {
    hmac_hex(key, subject)[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_erased_subject_is_nowhere_in_any_file() {
        let dir = tempfile::tempdir().unwrap();
        let pepper = Pepper::load_or_create(&dir.path().join("keys")).unwrap();
        let subjects = Subjects::open(&dir.path().join("subjects.db"), pepper).await.unwrap();
        let first = subjects.pseudonym("alice@example.org").await.unwrap();
        assert_eq!(subjects.pseudonym("alice@example.org").await.unwrap(), first);
        assert_ne!(subjects.pseudonym("bob").await.unwrap(), first);
        assert_eq!(subjects.find("carol").await.unwrap(), None);
        for file in ["subjects.db", "subjects.db-wal"] {
            let file = std::fs::metadata(dir.path().join(file)).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::mode(&file.permissions());
            assert_eq!(mode & 0o777, 0o600);
        }
        let id = subjects.id("alice@example.org");
        let key = db::subjects::find(&subjects.db, &id).await.unwrap().unwrap();
        let is_anywhere = |text: &str| {
            let files = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
            files.filter(|file| file.is_file()).any(|file| {
                let bytes = std::fs::read(file).unwrap();
                bytes.windows(text.len()).any(|part| part == text.as_bytes())
            })
        };
        assert!(is_anywhere(&key) && !is_anywhere("alice"));
        assert!(subjects.erase("alice@example.org").await.unwrap());
        assert!(!subjects.erase("alice@example.org").await.unwrap());
        assert!(!is_anywhere(&key) && !is_anywhere(&id));
        assert_ne!(subjects.pseudonym("alice@example.org").await.unwrap(), first);
        assert!(subjects.find("bob").await.unwrap().is_some());
        subjects.close().await;
        assert!(!dir.path().join("subjects.db-wal").exists());
    }
}
