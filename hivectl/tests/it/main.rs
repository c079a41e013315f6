//! hivectl at the command line, with real processes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test, a panic is the report"
)]

mod attach;
mod audit;
mod build;
#[path = "../../../gateway/tests/it/certificate.rs"]
mod certificate;
mod chat;
mod down;
mod fake_hub;
mod house;
mod jobs;
mod keys;
mod models;
mod real;
mod sdks;
#[cfg(feature = "system-tests")]
mod ssh;
mod supervisor;
mod token;
mod up;
mod usage;
mod worker;
