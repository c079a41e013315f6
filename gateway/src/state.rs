//! The handles a handler may hold.

use std::{
    collections::HashMap,
    ops::Deref,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::SqlitePool;
use wire::WorkerId;

use crate::{
    audit::recorder::Recorder,
    auth::{
        jwt::Tokens,
        keyring::{Keyring, is_same},
    },
    books::Books,
    config::Config,
    limits::Meters,
    registry::resolver::Resolver,
    relay::upstream::Upstream,
    scheduler::Dispatcher,
    shutdown::Lifecycle,
    spans::Spans,
};

/// What one thread's handlers share: the hive, and this thread's own connections to workers.
#[derive(Debug, Clone)]
pub struct AppState {
    hive: Arc<Hive>,
    /// Connections to workers; their sockets live on this thread's reactor.
    pub upstream: Arc<Upstream>,
}

/// What all threads share.
#[derive(Debug)]
pub struct Hive {
    /// Every setting.
    pub config: Config,
    /// The state folder.
    pub home: PathBuf,
    /// The registry database; the data plane never waits for it.
    pub db: SqlitePool,
    /// API keys.
    pub keyring: Keyring,
    /// Tokens of an identity provider, if any are taken.
    pub tokens: Option<Tokens>,
    /// What Prometheus reads.
    pub metrics: PrometheusHandle,
    /// What keys have used of their limits.
    pub meters: Arc<Meters>,
    /// Workers, slots and queues.
    pub dispatcher: Arc<Dispatcher>,
    /// The record of requests.
    pub books: Books,
    /// What OpenTelemetry is told.
    pub spans: Spans,
    /// The audit journal.
    pub audit: Recorder,
    /// HMACs of the workers' own credentials.
    pub credentials: Credentials,
    /// The addresses of attached servers that are known by name.
    pub resolver: Arc<Resolver>,
    /// Whether we are going down.
    pub lifecycle: Lifecycle,
    /// Held as long as we run: one gateway to a state folder.
    pub lock: std::fs::File,
}

impl AppState {
    /// Handles for the thread that owns `upstream`.
    pub fn new(hive: Arc<Hive>, upstream: Upstream) -> Self {
        let upstream = Arc::new(upstream);
        Self { hive, upstream }
    }
}

impl Deref for AppState {
    type Target = Hive;
    fn deref(&self) -> &Hive {
        &self.hive
    }
}

/// The HMACs of the workers' credentials, so that heartbeats need no database.
#[derive(Debug)]
pub struct Credentials(Mutex<HashMap<String, String>>);

impl Credentials {
    /// Those the database holds.
    pub fn new(stored: Vec<(String, String)>) -> Self {
        Self(Mutex::new(stored.into_iter().collect()))
    }

    /// A worker has got a new one.
    pub fn set(&self, id: &WorkerId, hmac: String) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.as_str().to_owned(), hmac);
    }

    /// A worker's is good no more.
    pub fn forget(&self, id: &WorkerId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id.as_str());
    }

    /// Whether this is the credential of any worker.
    pub fn knows(&self, hmac: &str) -> bool {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.values().any(|stored| is_same(stored.as_bytes(), hmac.as_bytes()))
    }

    /// Whether this is the worker's credential.
    pub fn fits(&self, id: &WorkerId, hmac: &str) -> bool {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(id.as_str())
            .is_some_and(|stored| is_same(stored.as_bytes(), hmac.as_bytes()))
    }
}
