//! The gateway at its socket: the real binary over real HTTP, with workers that register themselves.
//!
//! [`harness`] starts hives, [`worker`], [`server`] and [`script`] are what is behind them, [`client`] the callers in
//! front; every other module is a list of facts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at the first surprise"
)]

mod certificate;
mod client;
#[path = "../../../bench/audit/crashes.rs"]
mod crashes;
mod harness;
mod issuer;
mod script;
mod server;
mod shapes;
mod worker;

mod addresses;
mod attach;
mod audit;
mod books;
mod cancel;
mod completions;
mod connections;
mod crowd;
mod deploy;
mod doors;
mod embeddings;
mod errors;
mod estimates;
mod explain;
mod garbage;
mod h2;
mod joining;
mod jwt;
mod keys;
mod limits;
mod log;
mod loss;
mod members;
mod metrics;
mod mixed;
mod models;
mod openapi;
mod parameters;
mod queue;
mod restart;
mod retry;
mod revoking;
mod routes;
mod scheduling;
mod secrets;
mod silence;
mod smuggling;
mod spans;
mod starting;
mod stopping;
mod storage;
mod strays;
mod streaming;
mod tidy;
mod tls;
mod upgrade;
