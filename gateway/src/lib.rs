//! The one door of a hive: an OpenAI-compatible endpoint over workers and attached servers.
//!
//! The story of a request, room by room: [`server`] accepts the connection; [`router`] gives the request an
//! id and a log line and finds its handler in [`api`], whose arguments are its locks, answered by [`auth`];
//! the handler reads what it needs of the body, reserves it with the key's [`limits`] and opens an entry in the [`books`]; [`scheduler`] gives a
//! lease on a slot of a worker that [`registry`] knows to be alive; [`relay`] takes lease and body there
//! and the events back. When the client leaves, dropping the response closes the upstream connection, gives
//! the slot back and settles the entry.

pub mod api;
pub mod audit;
pub mod auth;
pub mod books;
pub mod config;
pub mod db;
pub mod error;
pub mod leftover;
pub mod limits;
pub mod metrics;
pub mod outside;
pub mod registry;
pub mod relay;
pub mod router;
pub mod run;
pub mod scheduler;
pub mod secret_file;
pub mod server;
pub mod shutdown;
pub mod spans;
pub mod state;
pub mod telemetry;
pub mod tls;
pub mod upgrade;

/// Now, in Unix milliseconds; for records only, never for deciding who is alive.
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
