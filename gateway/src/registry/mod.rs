//! The registry: who is alive now (memory) and how a newcomer proves who it is.
//!
//! What must survive a restart is in `db/`; what is only true now is here. It never routes.

pub mod address;
pub mod challenge;
mod health;
pub mod members;
pub mod probe;
pub mod resolver;
