//! How the journal lies in its folder: segments of lines, their heads, their checkpoints.
//!
//! `NNNNNN.jsonl` holds records, one a line. `NNNNNN.head` says what came before, so that a segment can be read
//! without the ones before it: the frontier, the last line's hash and the checkpoint that proves both.
//! `NNNNNN.notes` holds the checkpoints made while it was written. It opens and names files and judges nothing.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    note,
    tree::{Frontier, Hash},
};
use crate::auth::pepper::hex;

/// The public key's file.
pub const PUBLIC_KEY: &str = "journal.pub";

/// What was before a segment, as `NNNNNN.head` holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// How many records came before.
    pub first: u64,
    /// The frontier's peaks in hexadecimal, the largest first.
    pub peaks: Vec<String>,
    /// SHA-256 of the last line before.
    pub prev: String,
    /// The signed checkpoint of exactly the records before; empty if there are none.
    pub checkpoint: String,
}

impl Head {
    /// The head of the first segment of all.
    pub fn start() -> Self {
        Self {
            first: 0,
            peaks: Vec::new(),
            prev: hex(&[0; 32]),
            checkpoint: String::new(),
        }
    }

    /// The head of a segment that follows on this state.
    pub fn after(frontier: &Frontier, prev: &Hash, checkpoint: String) -> Self {
        Self {
            first: frontier.size(),
            peaks: frontier.peaks().iter().map(|peak| hex(peak)).collect(),
            prev: hex(prev),
            checkpoint,
        }
    }

    /// Reads a segment's head, which has one spelling.
    pub fn read(folder: &Path, number: u64) -> io::Result<Self> {
        let text = std::fs::read_to_string(head(folder, number))?;
        let read: Self = serde_json::from_str(&text)?;
        if serde_json::to_string(&read)? == text {
            Ok(read)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not spelled as it was written",
            ))
        }
    }

    /// The frontier and the last line's hash; `None` if they are malformed.
    pub fn state(&self) -> Option<(Frontier, Hash)> {
        let peaks = self.peaks.iter().map(|peak| note::unhex(peak)).collect::<Option<_>>()?;
        Some((Frontier::new(self.first, peaks)?, note::unhex(&self.prev)?))
    }
}

/// The hash that the next line holds as `prev`.
pub fn chained(line: &[u8]) -> Hash {
    Sha256::digest(line).into()
}

/// A segment's records.
pub fn lines(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:06}.jsonl"))
}

/// A segment's head.
pub fn head(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:06}.head"))
}

/// A segment's checkpoints.
pub fn notes(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:06}.notes"))
}

/// The numbers of the segments in a folder, the oldest first.
pub fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    those_with(folder, ".jsonl")
}

/// The numbers of the segments that have checkpoints of their own, the oldest first.
pub fn noted(folder: &Path) -> io::Result<Vec<u64>> {
    those_with(folder, ".notes")
}

/// A name that we would spell otherwise is not ours.
fn those_with(folder: &Path, ending: &str) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(ending));
        let number = stem.and_then(|stem| Some((stem, stem.parse::<u64>().ok()?)));
        let ours = number.filter(|(stem, number)| format!("{number:06}") == *stem);
        numbers.extend(ours.map(|(_, number)| number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
