//! Thin handlers, one file per resource. Their arguments are their locks; the work is done in other rooms.

pub mod admission;
pub mod audit;
pub mod body;
pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod health;
pub mod inference;
pub mod join_tokens;
pub mod keys;
pub mod members;
pub mod metrics;
pub mod models;
pub mod requests;
pub mod schema;
pub mod tokens;
pub mod usage;
pub mod workers;
