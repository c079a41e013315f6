//! Whether a journal is as it was written: read as a stream, without the gateway, on any copy.
//!
//! Each line holds the hash of the one before, each checkpoint the root over all lines so far. A broken chain says
//! where; a wrong root says that, also when somebody has made the chain fit again. It changes nothing and trusts
//! nothing but the public key; what it cannot know (who edited, what was there) it does not say.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    canonical::is_canonical,
    note::{self, Checkpoint, PublicKey},
    rows::{Row, Rows},
    segment::{self, Head, PUBLIC_KEY, chained},
    tree::{Frontier, Hash, leaf},
};
use crate::auth::pepper::hex;

/// What to verify.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inquiry<'a> {
    /// The public key's file; none: the one beside the journal.
    pub public_key: Option<&'a Path>,
    /// Checkpoints that were kept elsewhere.
    pub anchors: Option<&'a Path>,
    /// The public key of the witness that must have signed each of them.
    pub witness: Option<&'a Path>,
    /// The first record to look at; none: the first there is.
    pub from: Option<u64>,
    /// The last record to look at; none: the last there is.
    pub to: Option<u64>,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All records are there as they were written.
    Intact,
    /// A record, a head or a checkpoint is not what was signed.
    Altered,
    /// Records are gone that a signed checkpoint counts.
    Missing,
    /// All that is signed is intact; what follows the last checkpoint may be anything.
    Unsigned,
    /// There is no journal, or it cannot be read.
    Unreadable,
}

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In one word.
    pub result: Verdict,
    /// The process's exit code for it.
    pub exit_code: u8,
    /// The journal's name, which is made from its key.
    pub origin: String,
    /// The first record looked at.
    pub first: u64,
    /// How many were looked at.
    pub records: u64,
    /// How many records are covered by a signature, from the very first on.
    pub signed: u64,
    /// The root over all records that were found in order, in hexadecimal.
    pub root: String,
    /// How many anchors agree.
    pub anchors: u64,
    /// How many anchors are about records that were pruned since, so that only their signature was checked.
    pub anchors_before: u64,
    /// The first bad record's `seq`, counted by its place.
    pub first_bad: Option<u64>,
    /// The last place that `first_bad` may stand for; it differs where the chain was made to fit again.
    pub through: Option<u64>,
    /// The file and line of the first bad record.
    pub place: Option<String>,
    /// What is wrong, in a sentence.
    pub reason: Option<String>,
}

impl Verdict {
    /// The exit code of `audit verify`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Intact => 0,
            Self::Altered => 1,
            Self::Missing => 2,
            Self::Unsigned => 3,
            Self::Unreadable => 4,
        }
    }
}

/// Verifies the journal in a folder.
pub fn verify(folder: &Path, inquiry: &Inquiry<'_>) -> Report {
    let mut reader = Reader::default();
    let found = reader.read(folder, inquiry).err();
    let (result, found) = match found {
        None => (Verdict::Intact, Finding::default()),
        Some((verdict, finding)) => (verdict, finding),
    };
    Report {
        result,
        exit_code: result.exit_code(),
        origin: reader.origin,
        first: reader.first,
        records: reader.frontier.size() - reader.first,
        signed: reader.signed,
        root: hex(&reader.frontier.root()),
        anchors: reader.agreed,
        anchors_before: reader.before,
        first_bad: found.at,
        through: found.through.or(found.at),
        place: found.place,
        reason: found.reason,
    }
}

/// The fields of a line that hold the journal together.
#[derive(Debug, Deserialize)]
struct Line {
    seq: u64,
    prev: String,
    kind: String,
    #[serde(default)]
    first: Option<u64>,
}

impl Line {
    fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()
    }
}

#[derive(Debug, Default)]
struct Finding {
    at: Option<u64>,
    through: Option<u64>,
    place: Option<String>,
    reason: Option<String>,
}

type Found<T = ()> = Result<T, (Verdict, Finding)>;

fn found<T>(verdict: Verdict, at: Option<u64>, reason: impl Into<String>) -> Found<T> {
    let reason = Some(reason.into());
    let finding = Finding {
        at,
        reason,
        ..Finding::default()
    };
    Err((verdict, finding))
}

fn altered<T>(at: u64, reason: impl Into<String>) -> Found<T> {
    found(Verdict::Altered, Some(at), reason)
}

fn unreadable<T>(path: &Path, error: impl std::fmt::Display) -> Found<T> {
    found(Verdict::Unreadable, None, format!("{}: {error}", path.display()))
}

/// How far it has read, and what it knows there.
#[derive(Debug, Default)]
struct Reader {
    origin: String,
    first: u64,
    segment_first: u64,
    frontier: Frontier,
    /// The hash of the last line, and of the one before it.
    prev: Hash,
    before_prev: Option<Hash>,
    /// Records that a good checkpoint covers.
    signed: u64,
    /// The journal's own checkpoints ahead, the nearest last.
    own: Vec<Checkpoint>,
    /// Those kept elsewhere, the nearest last.
    anchors: Vec<Checkpoint>,
    agreed: u64,
    before: u64,
    /// Records that an `audit.prune` says are gone.
    pruned: u64,
    /// Whether no segment follows.
    is_last: bool,
    /// A later segment, of which only the checkpoints are there.
    orphan: Option<u64>,
}

impl Reader {
    fn read(&mut self, folder: &Path, inquiry: &Inquiry<'_>) -> Found {
        let numbers = segment::numbers(folder).or_else(|error| unreadable(folder, error))?;
        let beside = folder.join(PUBLIC_KEY);
        let file = inquiry.public_key.unwrap_or(&beside);
        let text = fs::read_to_string(file).or_else(|error| unreadable(file, error))?;
        let key = PublicKey::parse(&text).or_else(|error| unreadable(file, error))?;
        key.name().clone_into(&mut self.origin);
        if let Some(file) = inquiry.anchors {
            self.anchors = anchors(file, &key, inquiry.witness)?;
        }
        let numbers = starting_at(folder, &numbers, inquiry.from);
        if numbers.is_empty() && self.anchors.is_empty() {
            return unreadable(folder, "there is no journal");
        }
        if let Some(last) = numbers.last() {
            self.orphan = orphan(folder, *last).or_else(|error| unreadable(folder, error))?;
        }
        for (place, number) in numbers.iter().enumerate() {
            if place > 0 && numbers[place - 1] + 1 != *number {
                let reason = format!("segment {:06} is not there", numbers[place - 1] + 1);
                return found(Verdict::Missing, Some(self.frontier.size()), reason);
            }
            self.begin(folder, *number, &key, place == 0)?;
            self.is_last = place + 1 == numbers.len();
            let mut rows = Rows::open(folder, &numbers[place..])
                .or_else(|error| unreadable(&segment::lines(folder, *number), error))?;
            while let Some(row) = rows.row().or_else(|error| unreadable(&rows.file(), error))? {
                if row.segment != *number {
                    break;
                }
                let file = segment::lines(folder, *number);
                let torn = !row.ended && self.is_last;
                if torn && rows.peek().or_else(|error| unreadable(&file, error))?.is_none() {
                    return self.end(row.bytes.len(), inquiry.from);
                }
                let judged = self.row(&row, &mut rows);
                judged.map_err(|(verdict, finding)| (verdict, finding.in_segment(*number, self.segment_first)))?;
                if inquiry.to.is_some_and(|to| self.signed > to) {
                    return Ok(());
                }
            }
        }
        self.end(0, inquiry.from)
    }

    /// A segment begins: its head must continue what was read, or be signed itself.
    fn begin(&mut self, folder: &Path, number: u64, key: &PublicKey, first: bool) -> Found {
        let at = self.frontier.size();
        let file = segment::head(folder, number);
        let head = match Head::read(folder, number) {
            Ok(head) => head,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return found(Verdict::Missing, Some(at), format!("{} is not there", file.display()));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return unreadable(&file, error),
            Err(error) => return altered(at, format!("{}: {error}", file.display())),
        };
        let Some((frontier, prev)) = head.state() else {
            return altered(at, format!("{} is malformed", file.display()));
        };
        if first {
            (self.first, self.signed) = (head.first, head.first);
            (self.frontier, self.prev) = (frontier, prev);
        } else if head.first > at {
            return altered(at, format!("the records up to {} are not there", head.first - 1));
        }
        let at = self.frontier.size();
        self.segment_first = at;
        if at > 0 {
            let checkpoint = key
                .open(&head.checkpoint)
                .or_else(|error| altered(at, format!("the checkpoint in {}: {error}", file.display())))?;
            if checkpoint.size != at {
                return altered(at, format!("the checkpoint in {} is of another place", file.display()));
            }
            self.covered(&checkpoint, None)?;
        }
        if head != Head::after(&self.frontier, &self.prev, head.checkpoint.clone()) {
            return altered(at, format!("{} does not fit what came before", file.display()));
        }
        self.notes(folder, number, key)?;
        if first {
            self.before = self.anchors.iter().filter(|anchor| anchor.size < at).count() as u64;
            self.anchors.retain(|anchor| anchor.size >= at);
        }
        // Checkpoints of the very beginning.
        self.checkpoints(None)
    }

    fn notes(&mut self, folder: &Path, number: u64, key: &PublicKey) -> Found {
        let at = self.frontier.size();
        let file = segment::notes(folder, number);
        let text = match fs::read(&file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return unreadable(&file, error),
        };
        // A checkpoint that was being written when the power went is none.
        for note in note::split(&text).0 {
            let checkpoint = key
                .open(note)
                .or_else(|error| altered(at, format!("a checkpoint in {}: {error}", file.display())))?;
            if checkpoint.size < at {
                return altered(at, format!("{} holds a checkpoint of another place", file.display()));
            }
            self.own.push(checkpoint);
        }
        self.own.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.size));
        Ok(())
    }

    /// One line: it must be in its place, and follow the one before.
    fn row(&mut self, row: &Row, rows: &mut Rows) -> Found {
        let at = self.frontier.size();
        // Of what follows the last checkpoint, nothing signed says that it was written so.
        let vouched = !self.is_last || !self.own.is_empty() || !self.anchors.is_empty();
        let Some(line) = Line::read(&row.bytes).filter(|_| row.ended && (vouched || is_canonical(&row.bytes))) else {
            return altered(at, "it is no record");
        };
        if line.seq != at || note::unhex(&line.prev) != Some(self.prev) {
            return self.broken(&line, row, rows);
        }
        if line.kind == "audit.prune" {
            self.pruned = self.pruned.max(line.first.unwrap_or(0));
        }
        self.before_prev = Some(self.prev);
        self.prev = chained(&row.bytes);
        self.frontier.push(leaf(&row.bytes));
        self.checkpoints(Some(rows))
    }

    /// Which of two neighbours that do not fit is the bad one.
    fn broken(&self, line: &Line, row: &Row, rows: &mut Rows) -> Found {
        let at = self.frontier.size();
        // What a good checkpoint covers is good.
        let may_be_before = at > self.signed;
        let hash = chained(&row.bytes);
        let prev = note::unhex(&line.prev);
        if line.seq != at {
            if hash != self.prev && may_be_before && line.seq + 1 == at && prev == self.before_prev {
                return altered(at - 1, "it was inserted");
            }
            return altered(at, format!("record {} stands in its place", line.seq));
        }
        let next = rows.peek().ok().flatten();
        let next = next.as_ref().and_then(|row| Line::read(&row.bytes));
        let next_prev = next.as_ref().and_then(|next| note::unhex(&next.prev));
        let good = match &next {
            Some(_) => next_prev == Some(hash),
            // The very last line: with the right hash put in, would it be what was signed?
            None => !self.is_signed(&mended(&row.bytes, &line.prev, &self.prev)),
        };
        if may_be_before && good {
            return altered(at - 1, "the next record holds another hash of it");
        }
        altered(at, "it does not hold the hash of the record before")
    }

    fn is_signed(&self, line: &[u8]) -> bool {
        let mut frontier = self.frontier.clone();
        frontier.push(leaf(line));
        let all = self.own.iter().chain(&self.anchors);
        let mut here = all.filter(|checkpoint| checkpoint.size == frontier.size());
        here.any(|checkpoint| checkpoint.root == frontier.root())
    }

    /// The checkpoints of this place.
    fn checkpoints(&mut self, mut rows: Option<&mut Rows>) -> Found {
        let at = self.frontier.size();
        while self.own.last().is_some_and(|checkpoint| checkpoint.size <= at) {
            if let Some(checkpoint) = self.own.pop() {
                self.covered(&checkpoint, rows.as_deref_mut())?;
            }
        }
        while self.anchors.last().is_some_and(|anchor| anchor.size <= at) {
            if let Some(anchor) = self.anchors.pop() {
                self.covered(&anchor, rows.as_deref_mut())
                    .map_err(|(verdict, finding)| (verdict, finding.against("an anchor")))?;
                self.agreed += 1;
            }
        }
        Ok(())
    }

    /// All records so far are those of this checkpoint, or which of them are not.
    fn covered(&mut self, checkpoint: &Checkpoint, rows: Option<&mut Rows>) -> Found {
        let at = self.frontier.size();
        if checkpoint.root == self.frontier.root() {
            self.signed = at;
            return Ok(());
        }
        let since = self.signed.min(at.saturating_sub(1));
        let next = rows.and_then(|rows| rows.peek().ok().flatten());
        let next = next.and_then(|row| Line::read(&row.bytes));
        let fits = next.is_some_and(|next| note::unhex(&next.prev) == Some(self.prev));
        let reason = if fits {
            "it was changed and the chain made to fit again: the root is not the signed one"
        } else {
            "the root over it and all before is not the signed one"
        };
        let (first, through) = if fits {
            (since, at.saturating_sub(1))
        } else {
            (at.saturating_sub(1), at.saturating_sub(1))
        };
        let finding = Finding {
            at: Some(first),
            through: Some(through),
            place: None,
            reason: Some(reason.to_owned()),
        };
        Err((Verdict::Altered, finding))
    }

    /// Nothing follows: everything that was signed must have come.
    fn end(&mut self, torn: usize, from: Option<u64>) -> Found {
        let at = self.frontier.size();
        let own = self.own.first().map(|checkpoint| checkpoint.size);
        if let Some(size) = own {
            return found(
                Verdict::Missing,
                Some(at),
                format!("{size} records were signed, {at} are there"),
            );
        }
        if let Some(anchor) = self.anchors.first() {
            let reason = format!("an anchor counts {} records, {at} are there", anchor.size);
            return found(Verdict::Missing, Some(at), reason);
        }
        if let Some(orphan) = self.orphan {
            let reason = format!("{orphan:06}.notes is there, and {orphan:06}.jsonl is not");
            return found(Verdict::Missing, Some(at), reason);
        }
        if let Some(from) = from.filter(|from| *from > at) {
            let reason = format!("record {from} was to be the first, {at} are there");
            return found(Verdict::Missing, Some(at), reason);
        }
        if from.is_none() && self.first > self.pruned {
            let reason = format!(
                "the records before {} are gone, and no record says that they expired",
                self.first
            );
            return found(Verdict::Missing, Some(self.pruned), reason);
        }
        if at > self.signed {
            let reason = format!("{} records follow the last checkpoint", at - self.signed);
            return found(Verdict::Unsigned, Some(self.signed), reason);
        }
        if torn > 0 {
            let reason = format!("{torn} bytes of a torn line follow the last record");
            return found(Verdict::Unsigned, Some(at), reason);
        }
        Ok(())
    }
}

impl Finding {
    /// Names the file and line, if the bad record is of this segment.
    fn in_segment(mut self, number: u64, first: u64) -> Self {
        let line = self
            .at
            .and_then(|at| (at + 1).checked_sub(first))
            .filter(|line| *line > 0);
        self.place = line.map(|line| format!("{number:06}.jsonl:{line}"));
        self
    }

    fn against(mut self, what: &str) -> Self {
        self.reason = self.reason.map(|reason| format!("{reason} (against {what})"));
        self
    }
}

/// The segments from the one on that holds this record.
fn starting_at(folder: &Path, numbers: &[u64], from: Option<u64>) -> Vec<u64> {
    let Some(from) = from else { return numbers.to_vec() };
    let holds =
        |number: &u64| Head::read(folder, *number).is_ok_and(|head| head.first <= from && head.state().is_some());
    let start = numbers.iter().rposition(holds).unwrap_or(0);
    numbers[start..].to_vec()
}

/// A segment behind the last one whose checkpoints are there and whose lines are gone.
fn orphan(folder: &Path, last: u64) -> io::Result<Option<u64>> {
    for number in segment::noted(folder)?.into_iter().filter(|number| *number > last) {
        let text = fs::read(segment::notes(folder, number))?;
        if !note::split(&String::from_utf8_lossy(&text)).0.is_empty() {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// The checkpoints in a file, the nearest last.
fn anchors(file: &Path, key: &PublicKey, witness: Option<&Path>) -> Found<Vec<Checkpoint>> {
    let read = |file: &Path| {
        let text = fs::read_to_string(file).or_else(|error| unreadable(file, error))?;
        PublicKey::parse_witness(&text).or_else(|error| unreadable(file, error))
    };
    let witness = witness.map(read).transpose()?;
    let text = fs::read_to_string(file).or_else(|error| unreadable(file, error))?;
    let (notes, rest) = note::split(&text);
    if notes.is_empty() || !rest.trim().is_empty() {
        return unreadable(file, "it must hold signed checkpoints and nothing else");
    }
    let mut anchors = Vec::new();
    for note in notes {
        let seen = witness.as_ref().map_or(Ok(0), |witness| witness.saw(note));
        match seen.and_then(|_| key.open(note)) {
            Ok(anchor) => anchors.push(anchor),
            Err(error) => {
                return found(
                    Verdict::Altered,
                    None,
                    format!("an anchor in {}: {error}", file.display()),
                );
            }
        }
    }
    anchors.sort_by_key(|anchor| std::cmp::Reverse(anchor.size));
    Ok(anchors)
}

/// A line with another hash as its `prev`.
fn mended(line: &[u8], wrong: &str, right: &Hash) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    text.replacen(
        &format!("\"prev\":\"{wrong}\""),
        &format!("\"prev\":\"{}\"", hex(right)),
        1,
    )
    .into_bytes()
}
