//! The record: an append-only journal that an auditor can verify without trusting us.
//!
//! In reading order: [`record`] says what is recorded and, by having no place for it, what never is; [`canonical`]
//! gives a record its one spelling; [`tree`] and [`note`] are the Merkle tree over the lines and the signed
//! checkpoints of its root; [`segment`] is how all of it lies in the state folder's `audit/`; [`verify`] reads it
//! back.

pub mod acts;
pub mod anchor;
pub mod canonical;
pub mod evictions;
pub mod fold;
pub mod journal;
pub mod log;
pub mod note;
pub mod parting;
pub mod reading;
pub mod record;
pub mod recorder;
pub mod rows;
pub mod segment;
pub mod subjects;
pub mod tree;
pub mod verify;

#[cfg(test)]
mod verify_tests;
