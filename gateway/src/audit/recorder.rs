//! What other rooms hold of the record: one handle for events, operator acts, refusals and people.
//!
//! It opens everything that belongs to the record and closes it again, and decides what a start has to say.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use sqlx::SqlitePool;
use tokio::sync::{Mutex, mpsc::UnboundedSender};

use super::{
    acts::Acts,
    anchor::Anchors,
    fold::Denial,
    journal::{Journal, Unavailable},
    log::{Left, Limits, Log, LogError},
    parting::{Parted, Passed},
    reading,
    record::{Actor, Event, Kind, Settings},
    segment::PUBLIC_KEY,
    subjects::Subjects,
};
use crate::{
    auth::{
        api_key,
        pepper::{Pepper, hex},
    },
    config::{Config, Mode},
    db::{self, DbError},
};

/// Why the record cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The journal cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The keys of pseudonyms or the outbox cannot be used.
    #[error("the keys of pseudonyms in subjects.db, or the outbox in hive.db, cannot be used")]
    Subjects(#[from] DbError),
    /// The writer cannot be started, or cannot write.
    #[error("the audit journal's writer cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    /// Strict mode, and no anchor takes checkpoints.
    #[error("mode eu-strict needs its anchor, and {0}; mend it, or name another in [audit]")]
    Anchor(String),
}

/// The record as other rooms see it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    /// The journal.
    pub journal: Journal,
    /// Operator acts on their way into it.
    pub acts: Acts,
    subjects: Option<Subjects>,
    anchors: Arc<Mutex<Anchors>>,
    folder: PathBuf,
    reopening: Arc<Reopening>,
}

/// What it takes to open the log again.
#[derive(Debug)]
struct Reopening {
    limits: Limits,
    key: PathBuf,
}

impl Recorder {
    /// Opens the journal in `home/audit`, and says in it what starts and what the last run left. The requests that still
    /// run elsewhere, if `inherits`: their ends will come.
    pub async fn open(
        config: &Config,
        home: &Path,
        pepper: &Pepper,
        db: &SqlitePool,
        inherits: bool,
    ) -> Result<(Self, Vec<Event>), RecorderError> {
        let settings = &config.audit;
        let folder = home.join("audit");
        let anchors = Arc::new(Mutex::new(Anchors::new(settings.clone())));
        let reopening = Arc::new(Reopening {
            limits: limits(config),
            key: home.join("keys/audit"),
        });
        if settings.mode == Mode::Off {
            tracing::warn!("the audit journal is off: nothing of what happens is recorded");
            if let Err(error) = say_off(config, home, &folder) {
                tracing::warn!(cause = %error, "that the audit journal is off could not be recorded in it");
            }
            let recorder = Self {
                journal: Journal::off(),
                acts: Acts::off(),
                subjects: None,
                anchors,
                folder,
                reopening,
            };
            return Ok((recorder, Vec::new()));
        }
        let (log, mut left) = log(config, home, &folder)?;
        let waiting = db::outbox::all(db).await?;
        if waiting.iter().any(|(id, _)| !left.acts.contains(id)) {
            // It may have been recorded long ago, and never taken out of the outbox.
            left.acts = reading::acts(&folder)?;
        }
        let running = if inherits {
            std::mem::take(&mut left.open)
        } else {
            Vec::new()
        };
        let first = first_records(config, &left);
        let journal = Journal::start(log, settings.mode, settings.retention, first)?;
        let subjects = Subjects::open(&home.join("subjects.db"), pepper.clone()).await?;
        let recorder = Self {
            acts: Acts::start(db.clone(), journal.clone(), left.acts),
            journal,
            subjects: Some(subjects),
            anchors,
            folder,
            reopening,
        };
        recorder.anchor_from_now_on(config, inherits).await?;
        tracing::info!(mode = settings.mode.as_str(), "the audit journal is open");
        Ok((recorder, running))
    }

    async fn anchor_from_now_on(&self, config: &Config, inherits: bool) -> Result<(), RecorderError> {
        if !self.anchors.lock().await.is_set() {
            return Ok(());
        }
        // Until the first one, the age of the last anchor is ours.
        self.journal.anchored();
        // Requests wait for one who inherits, and its predecessor has shown that the anchor holds.
        let first = if inherits {
            Ok(())
        } else {
            self.anchors.lock().await.keep(&self.journal).await
        };
        match first {
            Err(why) if config.audit.mode == Mode::EuStrict => return Err(RecorderError::Anchor(why)),
            Err(why) => tracing::error!(why, "the audit journal could not be anchored"),
            Ok(()) => {}
        }
        let (anchors, journal, interval) = (self.anchors.clone(), self.journal.clone(), config.audit.anchor_interval);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                if journal.passes_on() {
                    return;
                }
                if let Err(why) = anchors.lock().await.keep(&journal).await {
                    tracing::error!(why, "the audit journal could not be anchored");
                }
            }
        });
        Ok(())
    }

    /// Where the journal lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The people in it; none if nothing is recorded.
    pub fn subjects(&self) -> Option<&Subjects> {
        self.subjects.as_ref()
    }

    /// Counts a refused credential.
    pub fn denied(&self, code: &str, route: &str, key_id: Option<String>, address: Option<IpAddr>) {
        if let Some(subjects) = &self.subjects {
            self.journal.denied(Denial {
                code: code.to_owned(),
                route: route.to_owned(),
                key_id,
                net: address.map(|address| subjects.net(address)),
            });
        }
    }

    /// Who sends a request: a key, and a person under a pseudonym; in `eu-strict` none goes without.
    pub async fn actor(&self, key_id: &str, subject: &str) -> Result<Actor, Unavailable> {
        let mut actor = Actor {
            key_id: Some(key_id.to_owned()),
            psub: None,
        };
        let Some(subjects) = &self.subjects else {
            return Ok(actor);
        };
        match subjects.pseudonym(subject).await {
            Ok(pseudonym) => actor.psub = Some(pseudonym),
            Err(error) if self.journal.mode() == Mode::EuStrict => {
                return Err(Unavailable(crate::error::chain(&error)));
            }
            Err(error) => tracing::warn!(
                cause = crate::error::chain(&error),
                "a request is recorded without a person"
            ),
        }
        Ok(actor)
    }

    /// Closes the log, for another process to open it; none if nothing is recorded. No operator may act meanwhile.
    pub async fn part(&self, db: &SqlitePool) -> Result<Option<Parted>, Unavailable> {
        if !self.journal.is_on() {
            return Ok(None);
        }
        self.acts.carried().await;
        // What waits in the outbox must not be carried by two.
        let waiting = db::outbox::all(db).await;
        if !waiting.is_ok_and(|acts| acts.is_empty()) {
            return Err(Unavailable("operator acts wait for it".into()));
        }
        self.journal.part().await.map(Some)
    }

    /// Takes the log back; records wait as long as it cannot be opened.
    pub async fn resume(&self, parted: Option<Parted>) {
        let Some(parted) = parted else { return };
        loop {
            let (folder, by) = (self.folder.clone(), self.reopening.clone());
            let open = move || Log::open(&folder, &by.key, api_key::random(12), by.limits);
            match tokio::task::spawn_blocking(open).await {
                Ok(Ok((log, _))) => return parted.resume(log),
                Ok(Err(error)) => {
                    tracing::error!(cause = %error, "the audit journal cannot be taken back; trying again");
                }
                Err(_) => return,
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }

    /// Gives all records from here on to somebody who takes them to the log's new owner.
    pub fn pass_on(parted: Option<Parted>, to: UnboundedSender<Passed>) {
        if let Some(parted) = parted {
            parted.pass_on(to);
        }
    }

    /// Writes, signs and anchors all that is left, and ends the writer.
    pub async fn close(&self) {
        if !self.journal.passes_on() {
            self.acts.carried().await;
        }
        let journal = self.journal.clone();
        let last = tokio::task::spawn_blocking(move || journal.stop()).await;
        let anchors = self.anchors.lock().await;
        if let Ok(Some(note)) = last
            && anchors.is_set()
            && let Err(why) = anchors.send(&note).await
        {
            tracing::error!(why, "the end of the audit journal could not be anchored");
        }
        if let Some(subjects) = &self.subjects {
            subjects.close().await;
        }
    }
}

fn log(config: &Config, home: &Path, folder: &Path) -> Result<(Log, Left), LogError> {
    Log::open(folder, &home.join("keys/audit"), api_key::random(12), limits(config))
}

fn limits(config: &Config) -> Limits {
    Limits {
        bytes: config.audit.segment_bytes,
        age: config.audit.segment_age,
    }
}

/// The last word of a journal that was kept until now: from here on it is not.
fn say_off(config: &Config, home: &Path, folder: &Path) -> Result<(), RecorderError> {
    if !folder.join(PUBLIC_KEY).exists() {
        return Ok(());
    }
    let (mut log, left) = log(config, home, folder)?;
    let off = Mode::Off.as_str();
    if left.settings.as_ref().is_none_or(|before| before.mode != off) {
        let mut events = first_records(config, &left);
        events.push(Event::now(Kind::Stop));
        log.append(&events)?;
        log.checkpoint()?;
    }
    Ok(())
}

/// What a start has to say: what a crash tore, under which settings it runs, and which requests never ended.
fn first_records(config: &Config, left: &Left) -> Vec<Event> {
    let mut events = Vec::new();
    if left.torn > 0 {
        let mut event = Event::now(Kind::RecoveredTail);
        event.count = Some(left.torn);
        events.push(event);
    }
    let settings = Settings {
        mode: config.audit.mode.as_str().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sha256: hex(&Sha256::digest(format!("{config:?}"))),
    };
    let changed = left.settings.as_ref().is_some_and(|before| *before != settings);
    let mut event = Event::now(Kind::Start);
    event.cfg = Some(settings.clone());
    events.push(event);
    if changed {
        let mut event = Event::now(Kind::ConfigChange);
        event.cfg = Some(settings);
        events.push(event);
    }
    events.extend(left.open.iter().cloned().map(Event::aborted));
    events
}
