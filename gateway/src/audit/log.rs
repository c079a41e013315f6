//! The journal on disk, as its one writer sees it: open, append, sign, rotate, prune.
//!
//! Whatever fails leaves the segment as it was before, so that what is signed is always there and whole. It starts
//! no thread and knows no mode; what to do about a failure is the caller's business.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    mem,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{
    note::{Checkpoint, Signer},
    record::{Event, Kind, Object, Record, Settings, VERSION},
    rows::Rows,
    segment::{self, Head, PUBLIC_KEY, chained},
    tree::{Frontier, Hash, leaf},
    verify::{self, Inquiry, Verdict},
};

/// Why the journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The system refused.
    #[error("the audit journal in {0} cannot be used: {1}")]
    Io(PathBuf, io::Error),
    /// Somebody else writes it.
    #[error("another gateway writes the audit journal in {0}; stop it first")]
    InUse(PathBuf),
    /// The key that signed it is gone, or is another one.
    #[error(
        "the audit journal in {folder} was signed with another key than {key} holds; restore that file, or move the folder aside to begin a new journal"
    )]
    Key {
        /// The journal.
        folder: PathBuf,
        /// The signing key's file.
        key: PathBuf,
    },
    /// It is not as it was written.
    #[error(
        "the audit journal in {folder} is not as it was written: {reason}; look with `hivectl audit verify --dir {folder}`, keep the folder as evidence, and move it aside to begin a new journal"
    )]
    Broken {
        /// The journal.
        folder: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

/// When a segment is full.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// After this many bytes.
    pub bytes: u64,
    /// After this time.
    pub age: Duration,
}

/// What earlier runs left in the newest segments.
#[derive(Debug, Default)]
pub struct Left {
    /// Bytes of a torn last line that were cut off.
    pub torn: u64,
    /// Requests whose end is not recorded.
    pub open: Vec<Event>,
    /// Operator acts that are recorded, by their ids in the outbox.
    pub acts: HashSet<String>,
    /// The settings of the last start.
    pub settings: Option<Settings>,
}

/// What a start looks at in a record; there may be hundreds of thousands.
#[derive(Deserialize)]
struct Seen {
    ts: i64,
    kind: Kind,
    #[serde(default)]
    req: Option<String>,
    #[serde(default)]
    act: Option<String>,
    #[serde(default)]
    cfg: Option<Settings>,
}

/// The open journal.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    signer: Signer,
    boot: String,
    limits: Limits,
    segment: u64,
    file: File,
    notes: File,
    notes_bytes: u64,
    /// Behind the last record.
    end: End,
    /// Behind the last record that the disk has said it keeps.
    kept: End,
    /// The events between the two.
    unsure: Vec<Event>,
    /// Those that the disk did not keep.
    taken_back: Vec<Event>,
    /// The file may not end at `end`.
    in_doubt: bool,
    signed: u64,
    last_note: String,
    _lock: File,
}

/// Where records end, and what the next one needs of those before.
#[derive(Debug, Clone)]
struct End {
    /// Bytes of the segment.
    bytes: u64,
    /// When the segment's first record was made.
    began_ms: Option<i64>,
    frontier: Frontier,
    prev: Hash,
}

impl Log {
    /// Opens the journal in a folder, or begins one; the signing key is made on the first start.
    pub fn open(folder: &Path, key: &Path, boot: String, limits: Limits) -> Result<(Self, Left), LogError> {
        let io = |error| LogError::Io(folder.to_owned(), error);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(io)?;
        let lock = File::create(folder.join("lock")).map_err(io)?;
        lock.try_lock().map_err(|_| LogError::InUse(folder.to_owned()))?;
        let public_file = folder.join(PUBLIC_KEY);
        let wrong_key = || LogError::Key {
            folder: folder.to_owned(),
            key: key.to_owned(),
        };
        if public_file.exists() && !key.exists() {
            return Err(wrong_key());
        }
        let signer = Signer::load_or_create(key).map_err(|error| LogError::Io(key.to_owned(), error))?;
        let public = format!("{}\n", signer.public());
        match fs::read_to_string(&public_file) {
            Ok(text) if text == public => {}
            Ok(_) => return Err(wrong_key()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => durable(&public_file, &public).map_err(io)?,
            Err(error) => return Err(io(error)),
        }
        let numbers = segment::numbers(folder).map_err(io)?;
        let last = numbers.last().copied();
        if last.is_none() {
            begin(folder, 1, &Head::start()).map_err(io)?;
        }
        let segment = last.unwrap_or(1);
        check(folder, segment)?;
        let head = Head::read(folder, segment).map_err(io)?;
        let (frontier, prev) = head.state().ok_or_else(wrong_key)?;
        let file = grow(segment::lines(folder, segment)).map_err(io)?;
        let notes = grow(segment::notes(folder, segment)).map_err(io)?;
        let end = End {
            bytes: 0,
            began_ms: None,
            frontier,
            prev,
        };
        let mut log = Self {
            folder: folder.to_owned(),
            signer,
            boot,
            limits,
            segment,
            file,
            notes,
            notes_bytes: 0,
            kept: end.clone(),
            end,
            unsure: Vec::new(),
            taken_back: Vec::new(),
            in_doubt: false,
            signed: head.first,
            last_note: head.checkpoint,
            _lock: lock,
        };
        let left = log.recover(&numbers[numbers.len().saturating_sub(2)..]).map_err(io)?;
        log.file.sync_data().map_err(io)?;
        log.kept = log.end.clone();
        Ok((log, left))
    }

    /// Reads the last segment to its end, cuts off what a crash tore, and looks what the last runs left.
    fn recover(&mut self, newest: &[u64]) -> io::Result<Left> {
        let (mut left, mut open) = (Left::default(), HashMap::new());
        let mut rows = Rows::open(&self.folder, newest)?;
        while let Some(row) = rows.row()? {
            if !row.ended {
                left.torn = row.bytes.len() as u64;
                self.file.set_len(self.end.bytes)?;
                break;
            }
            let seen: Option<Seen> = serde_json::from_slice(&row.bytes).ok();
            if row.segment == self.segment {
                self.end.add(&row.bytes, seen.as_ref().map(|seen| seen.ts));
            }
            let Some(seen) = seen else { continue };
            left.acts.extend(seen.act);
            match (seen.kind, seen.req) {
                (Kind::RequestStart, Some(req)) => drop(open.insert(req, row.bytes)),
                (Kind::RequestEnd | Kind::RequestAborted, Some(req)) => drop(open.remove(&req)),
                (Kind::Start, _) => left.settings = seen.cfg,
                _ => {}
            }
        }
        left.open = open
            .into_values()
            .filter_map(|line| serde_json::from_slice::<Record>(&line).ok())
            .map(|record| record.event)
            .collect();
        left.open.sort_by_key(|event| event.at_ms);
        let bytes = fs::read(segment::notes(&self.folder, self.segment))?;
        // A crash may tear a character, too.
        let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        let (notes, torn) = super::note::split(text);
        self.notes_bytes = (text.len() - torn.len()) as u64;
        self.notes.set_len(self.notes_bytes)?;
        if let Some(checkpoint) = notes.last().and_then(|note| self.signer.public().open(note).ok()) {
            self.signed = checkpoint.size;
            self.last_note = notes.last().map(|note| (*note).to_owned()).unwrap_or_default();
        }
        Ok(left)
    }

    /// Adds records: all of them, or none and an error.
    pub fn append(&mut self, events: &[Event]) -> io::Result<()> {
        self.rewind()?;
        let (mut end, mut text) = (self.end.clone(), Vec::new());
        for event in events {
            let record = Record {
                v: VERSION,
                seq: end.frontier.size(),
                boot: self.boot.clone(),
                prev: crate::auth::pepper::hex(&end.prev),
                event: event.clone(),
            };
            let line = record.line().map_err(io::Error::other)?;
            end.add(line.as_bytes(), Some(event.at_ms));
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        if let Err(error) = self.file.write_all(&text) {
            // Some of it may be there.
            self.in_doubt = true;
            let _ = self.rewind();
            return Err(error);
        }
        self.end = end;
        self.unsure.extend_from_slice(events);
        Ok(())
    }

    /// Waits until all records are on the disk. Those that the disk did not keep are taken back: [`Log::taken_back`] has
    /// their events.
    pub fn sync(&mut self) -> io::Result<()> {
        self.rewind()?;
        if self.unsure.is_empty() { Ok(()) } else { self.keep() }
    }

    /// The events that a failed [`Log::sync`] took back, the oldest first; each is told once.
    pub fn taken_back(&mut self) -> Vec<Event> {
        mem::take(&mut self.taken_back)
    }

    fn keep(&mut self) -> io::Result<()> {
        if let Err(error) = self.file.sync_data() {
            // The kernel tells once, and may have dropped what it could not write: a second fsync that succeeds proves
            // nothing. So all since the last good one is cut off, and written anew by whoever still wants it.
            self.end = self.kept.clone();
            self.taken_back.append(&mut self.unsure);
            self.in_doubt = true;
            return Err(error);
        }
        self.kept = self.end.clone();
        self.unsure.clear();
        Ok(())
    }

    /// Makes the file end where the records do, before anything else is done with it.
    fn rewind(&mut self) -> io::Result<()> {
        if self.in_doubt {
            self.file.set_len(self.end.bytes)?;
            self.keep()?;
            self.in_doubt = false;
        }
        Ok(())
    }

    /// How many records there are, and how many of them no checkpoint covers yet.
    pub fn size(&self) -> (u64, u64) {
        let size = self.end.frontier.size();
        (size, size - self.signed)
    }

    /// Signs what is there; the note of the newest checkpoint.
    pub fn checkpoint(&mut self) -> io::Result<&str> {
        self.rewind()?;
        let size = self.end.frontier.size();
        if self.signed < size || self.last_note.is_empty() {
            // What is signed must never be gone after a power cut.
            self.sync()?;
            let root = self.end.frontier.root();
            let note = self.signer.sign(&Checkpoint { size, root });
            if let Err(error) = self.notes.write_all(note.as_bytes()) {
                self.notes.set_len(self.notes_bytes)?;
                return Err(error);
            }
            self.notes_bytes += note.len() as u64;
            (self.signed, self.last_note) = (size, note);
        }
        Ok(&self.last_note)
    }

    /// Whether the segment is full.
    pub fn is_full(&self, now_ms: i64) -> bool {
        let age = i64::try_from(self.limits.age.as_millis()).unwrap_or(i64::MAX);
        self.end.bytes >= self.limits.bytes
            || self
                .end
                .began_ms
                .is_some_and(|began| now_ms.saturating_sub(began) >= age)
    }

    /// Begins a new segment.
    pub fn rotate(&mut self) -> io::Result<()> {
        let checkpoint = self.checkpoint()?.to_owned();
        self.notes.sync_data()?;
        let next = self.segment + 1;
        let head = Head::after(&self.end.frontier, &self.end.prev, checkpoint);
        let opened = begin(&self.folder, next, &head).and_then(|()| {
            Ok((
                grow(segment::lines(&self.folder, next))?,
                grow(segment::notes(&self.folder, next))?,
            ))
        });
        let (file, notes) = opened.inspect_err(|_| {
            // The old segment goes on, so nothing may follow it.
            for file in [segment::lines, segment::notes, segment::head] {
                let _ = fs::remove_file(file(&self.folder, next));
            }
        })?;
        (self.file, self.notes) = (file, notes);
        (self.segment, self.notes_bytes) = (next, 0);
        (self.end.bytes, self.end.began_ms) = (0, None);
        self.kept = self.end.clone();
        let mut event = Event::now(Kind::Rotate);
        event.object = Some(Object {
            segment: Some(next),
            ..Object::default()
        });
        self.append(&[event])
    }

    /// Removes whole segments whose records are all older than this; the first record that is left, if any went.
    ///
    /// That they are gone is on record, and signed, before they go; so is the key of who wanted it, if anybody did.
    pub fn prune(&mut self, before_ms: i64, by: Option<&str>) -> io::Result<Option<u64>> {
        let mut expired = Vec::new();
        for number in segment::numbers(&self.folder)? {
            if number >= self.segment || last_time(&segment::lines(&self.folder, number))? >= before_ms {
                break;
            }
            expired.push(number);
        }
        let Some(last) = expired.last() else { return Ok(None) };
        let first = Head::read(&self.folder, last + 1)?.first;
        let mut event = Event::now(Kind::Prune);
        if let Some(key_id) = by {
            event = event.by(key_id);
        }
        event.first = Some(first);
        event.to = Some(before_ms.min(event.at_ms));
        self.append(&[event])?;
        self.checkpoint()?;
        for number in expired {
            fs::remove_file(segment::lines(&self.folder, number))?;
            for file in [
                segment::notes(&self.folder, number),
                segment::head(&self.folder, number),
            ] {
                let _ = fs::remove_file(file);
            }
        }
        Ok(Some(first))
    }
}

impl End {
    /// One more line, made at this time if that is known.
    fn add(&mut self, line: &[u8], at_ms: Option<i64>) {
        self.bytes += line.len() as u64 + 1;
        self.began_ms = self.began_ms.or(at_ms);
        self.frontier.push(leaf(line));
        self.prev = chained(line);
    }
}

/// The last segment must be as it was written; a torn last line and a missing last checkpoint are a crash's doing.
fn check(folder: &Path, segment: u64) -> Result<(), LogError> {
    let broken = |reason| LogError::Broken {
        folder: folder.to_owned(),
        reason,
    };
    let head = Head::read(folder, segment).map_err(|error| broken(format!("segment {segment:06}: {error}")))?;
    let report = verify::verify(
        folder,
        &Inquiry {
            from: Some(head.first),
            ..Inquiry::default()
        },
    );
    match report.result {
        Verdict::Intact | Verdict::Unsigned => Ok(()),
        Verdict::Altered | Verdict::Missing | Verdict::Unreadable => {
            let place = report.place.map(|place| format!(" at {place}")).unwrap_or_default();
            Err(broken(format!("{}{place}", report.reason.unwrap_or_default())))
        }
    }
}

/// Writes a segment's head, then its empty file: a segment is there once its lines are.
fn begin(folder: &Path, number: u64, head: &Head) -> io::Result<()> {
    durable(&segment::head(folder, number), &serde_json::to_string(head)?)?;
    grow(segment::lines(folder, number))?;
    File::open(folder)?.sync_all()
}

/// A file that is only ever appended to.
fn grow(path: PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Writes a small file whole or not at all.
fn durable(path: &Path, text: &str) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

/// When the last record of a segment was made; now, if that cannot be told, so that it stays.
fn last_time(path: &Path) -> io::Result<i64> {
    const ENOUGH: u64 = 1 << 16;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let record = end
        .split(|byte| *byte == b'\n')
        .rfind(|line| !line.is_empty())
        .and_then(|line| serde_json::from_slice::<Record>(line).ok());
    Ok(record.map_or(i64::MAX, |record| record.event.at_ms))
}

#[cfg(test)]
mod tests;
