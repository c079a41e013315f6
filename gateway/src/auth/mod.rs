//! The lock of both planes: who calls, and what they may do.
//!
//! It never logs or returns a secret; only a key's public id leaves this room.

pub mod access;
pub mod api_key;
pub mod caller;
pub mod claims;
pub mod jwks;
pub mod jwt;
pub mod keyring;
pub mod pepper;
pub mod revoked;
