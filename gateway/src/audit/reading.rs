//! Reading the journal for people: its latest records, one person's records, the proof of one record.
//!
//! It believes what it reads; whether the journal is as it was written is the verifier's question.

use std::{
    collections::{HashSet, VecDeque},
    fs, io,
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    note::{self, NoteError, PublicKey},
    rows::Rows,
    segment::{self, Head, PUBLIC_KEY},
    tree::{Hash, Tree, includes, leaf},
};
use crate::auth::{caller, pepper::hex};

/// One record and the path from it to a signed root: enough to prove it without showing another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The record's line.
    pub record: String,
    /// Its number.
    pub seq: u64,
    /// The hashes beside its way to the root, in hexadecimal, the nearest first.
    pub path: Vec<String>,
    /// The signed checkpoint.
    pub checkpoint: String,
}

/// Which record to prove.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// The one of this number.
    Seq(u64),
    /// The last one about this request.
    Request(&'a str),
}

/// Why there is no proof, or none to believe.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The journal cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is no such record under a checkpoint.
    #[error("no such record is in the journal, or it is not signed yet")]
    NotFound,
    /// The checkpoint is not believed.
    #[error("its checkpoint is not good: {0}")]
    Checkpoint(#[from] NoteError),
    /// The path does not lead from the record to the signed root.
    #[error("the record is not under the signed root: it was changed, or never written")]
    Forged,
}

/// The latest records, or those after a number, at most so many; the oldest first.
pub fn latest(folder: &Path, after: Option<u64>, limit: usize) -> io::Result<Vec<Value>> {
    let numbers = segment::numbers(folder)?;
    // The last two segments, or all from the one with the next record on.
    let start = match after {
        Some(after) => numbers
            .iter()
            .rposition(|number| Head::read(folder, *number).is_ok_and(|head| head.first <= after + 1))
            .unwrap_or(0),
        None => numbers.len().saturating_sub(2),
    };
    let mut found = VecDeque::new();
    let mut rows = Rows::open(folder, &numbers[start..])?;
    while let Some(row) = rows.row()?.filter(|row| row.ended) {
        let Ok(record) = serde_json::from_slice::<Value>(&row.bytes) else {
            continue;
        };
        match after {
            Some(after) if record["seq"].as_u64().is_none_or(|seq| seq <= after) => continue,
            Some(_) if found.len() == limit => break,
            None if found.len() == limit => drop(found.pop_front()),
            _ => {}
        }
        found.push_back(record);
    }
    Ok(found.into())
}

/// All records of somebody: those under their pseudonym, and what was done with their keys and names no person (operator
/// acts, refusals).
pub fn about(folder: &Path, pseudonym: Option<&str>, keys: &[String]) -> io::Result<Vec<Value>> {
    let mut found = Vec::new();
    let mut rows = Rows::open(folder, &segment::numbers(folder)?)?;
    while let Some(row) = rows.row()?.filter(|row| row.ended) {
        let record = serde_json::from_slice::<Value>(&row.bytes).unwrap_or_default();
        let actor = |name: &str| record["actor"][name].as_str();
        let theirs = match (actor("psub"), actor("key_id")) {
            // A trusted key asks for other people, too.
            (Some(person), _) => pseudonym == Some(person),
            (None, Some(key)) => {
                keys.iter().any(|id| id == key) || pseudonym.is_some_and(|person| is_holder(key, person))
            }
            (None, None) => false,
        };
        if theirs {
            found.push(record);
        }
    }
    Ok(found)
}

/// Whether this is what log and record call the person with this pseudonym as a holder of tokens.
fn is_holder(id: &str, pseudonym: &str) -> bool {
    caller::is_holder(id) && pseudonym.get(..16).is_some_and(|half| id.ends_with(half))
}

/// The operator acts that are recorded, by their ids in the outbox.
pub fn acts(folder: &Path) -> io::Result<HashSet<String>> {
    let mut found = HashSet::new();
    let mut rows = Rows::open(folder, &segment::numbers(folder)?)?;
    while let Some(row) = rows.row()?.filter(|row| row.ended) {
        let record = serde_json::from_slice::<Value>(&row.bytes).unwrap_or_default();
        found.extend(record["act"].as_str().map(ToOwned::to_owned));
    }
    Ok(found)
}

/// The public key in a file, or the one beside the journal.
pub fn public_key(folder: &Path, file: Option<&Path>) -> Result<PublicKey, ProofError> {
    let beside = folder.join(PUBLIC_KEY);
    Ok(PublicKey::parse(&fs::read_to_string(file.unwrap_or(&beside))?)?)
}

/// Proves a record by the newest checkpoint.
pub fn prove(folder: &Path, wanted: Wanted<'_>) -> Result<Proof, ProofError> {
    let key = public_key(folder, None)?;
    let numbers = segment::numbers(folder)?;
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
        return Err(ProofError::NotFound);
    };
    let notes = fs::read_to_string(segment::notes(folder, *last))?;
    let checkpoint = match note::split(&notes).0.last() {
        Some(note) => (*note).to_owned(),
        None => Head::read(folder, *last)?.checkpoint,
    };
    let size = key.open(&checkpoint)?.size;
    let (before, _) = Head::read(folder, *first)?.state().ok_or(ProofError::NotFound)?;
    let (mut seq, mut tree, mut found) = (before.size(), Tree::after(before), None);
    let mut rows = Rows::open(folder, &numbers)?;
    while seq < size
        && let Some(row) = rows.row()?
    {
        tree.push(leaf(&row.bytes));
        let is_it = match wanted {
            Wanted::Seq(wanted) => seq == wanted,
            Wanted::Request(id) => serde_json::from_slice::<Value>(&row.bytes).is_ok_and(|record| record["req"] == id),
        };
        if is_it {
            found = Some((seq, row.bytes));
        }
        seq += 1;
    }
    let (seq, line) = found.ok_or(ProofError::NotFound)?;
    let path = tree.inclusion(seq, size).ok_or(ProofError::NotFound)?;
    Ok(Proof {
        record: String::from_utf8_lossy(&line).into_owned(),
        seq,
        path: path.iter().map(|hash| hex(hash)).collect(),
        checkpoint,
    })
}

/// The proof that the first `size` records grew out of the first `old` (RFC 6962, section 2.1.2), read from the segment
/// on that holds the next one; none if it is not there, or fewer records are.
pub fn consistency(folder: &Path, old: u64, size: u64) -> io::Result<Option<Vec<Hash>>> {
    let numbers = segment::numbers(folder)?;
    let holds = |number: &u64| Head::read(folder, *number).is_ok_and(|head| head.first <= old);
    let Some(start) = numbers.iter().rposition(holds) else {
        return Ok(None);
    };
    let Some((before, _)) = Head::read(folder, numbers[start])?.state() else {
        return Ok(None);
    };
    let (mut at, mut tree) = (before.size(), Tree::after(before));
    let mut rows = Rows::open(folder, &numbers[start..])?;
    while at < size
        && let Some(row) = rows.row()?.filter(|row| row.ended)
    {
        tree.push(leaf(&row.bytes));
        at += 1;
    }
    let path = if at == size { tree.consistency(old, size) } else { None };
    Ok(path)
}

impl Proof {
    /// Whether the record is under a root that this key signed.
    pub fn check(&self, key: &PublicKey) -> Result<(), ProofError> {
        let checkpoint = key.open(&self.checkpoint)?;
        let path: Option<Vec<_>> = self.path.iter().map(|hash| note::unhex(hash)).collect();
        let leaf = leaf(self.record.as_bytes());
        let leads = path.is_some_and(|path| includes(self.seq, checkpoint.size, &leaf, &path, &checkpoint.root));
        leads.then_some(()).ok_or(ProofError::Forged)
    }
}
