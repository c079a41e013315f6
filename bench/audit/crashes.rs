//! Journals that were only ever written and crashed: no verifier may find fault with one.
//!
//! A kill leaves what was written, but for the end of the last write; a power cut may take back all that no fsync has
//! made sure of, down to the last byte, and leave a rotation or a removal of expired segments half done.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use gateway::audit::{
    log::{Limits, Log, LogError},
    record::{Event, Kind, Object},
    segment,
    verify::{Inquiry, Report, Verdict, verify},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// What a verifier said that it should not have, and of which state.
pub type Alarm = (u64, &'static str, String);

/// Lets so many journals live, each through several crashes; `also` is asked about each state that is left.
pub fn clean_journals(journals: u64, mut also: impl FnMut(u64, &Path, &Path, &Report) -> Option<String>) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for number in 0..journals {
        let mut life = Life::new(number);
        for _ in 0..life.rng.random_range(1..5) {
            life.run();
            let report = life.verify();
            let fine = matches!(report.result, Verdict::Intact | Verdict::Unsigned);
            let other = also(number, &life.folder(), &life.anchors(), &report);
            alarms.extend((!fine).then(|| (number, "crashed", format!("{report:?}"))));
            alarms.extend(other.map(|told| (number, "crashed", told)));
        }
        let mut log = life.open();
        log.checkpoint().unwrap();
        drop(log);
        let report = life.verify();
        let other = also(number, &life.folder(), &life.anchors(), &report);
        alarms.extend((report.result != Verdict::Intact).then(|| (number, "gone on", format!("{report:?}"))));
        alarms.extend(other.map(|told| (number, "gone on", told)));
    }
    alarms
}

/// One journal, and what was anchored of it.
struct Life {
    home: tempfile::TempDir,
    rng: StdRng,
    /// The segment, and how much of it a power cut leaves.
    kept: (u64, u64),
}

impl Life {
    fn new(seed: u64) -> Self {
        let home = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let life = Self {
            home: home.unwrap(),
            rng: StdRng::seed_from_u64(seed),
            kept: (0, 0),
        };
        let mut log = life.open();
        fs::write(life.anchors(), log.checkpoint().unwrap()).unwrap();
        life
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("audit")
    }

    fn anchors(&self) -> PathBuf {
        self.home.path().join("anchors")
    }

    fn verify(&self) -> Report {
        let anchors = self.anchors();
        let inquiry = Inquiry {
            anchors: Some(&anchors),
            ..Inquiry::default()
        };
        verify(&self.folder(), &inquiry)
    }

    /// A start of the gateway.
    fn open(&self) -> Log {
        let limits = Limits {
            bytes: u64::MAX,
            age: Duration::MAX,
        };
        let (mut log, left) = loop {
            match Log::open(&self.folder(), &self.home.path().join("key"), "boot".into(), limits) {
                // A program that another test starts has our lock until it has become that program.
                Err(LogError::InUse(_)) => std::thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        let mut events = vec![Event::now(Kind::Start)];
        if left.torn > 0 {
            events.insert(0, Event::now(Kind::RecoveredTail));
        }
        log.append(&events).unwrap();
        log
    }

    /// A start, some work, and a crash.
    fn run(&mut self) {
        let mut log = self.open();
        self.keep();
        for _ in 0..self.rng.random_range(0..12) {
            match self.rng.random_range(0..10) {
                0 => log.sync().unwrap(),
                1 | 2 => {
                    let note = log.checkpoint().unwrap().to_owned();
                    if self.rng.random() {
                        // An anchor is only sent once what it counts is on the disk.
                        fs::write(self.anchors(), fs::read_to_string(self.anchors()).unwrap() + &note).unwrap();
                    }
                }
                3 => {
                    log.rotate().unwrap();
                    self.kept = (self.newest(), 0);
                    if self.rng.random_range(0..4) == 0 {
                        return self.half_rotated();
                    }
                    continue;
                }
                4 => {
                    let before = self.files();
                    log.prune(i64::MAX, None).unwrap();
                    if self.rng.random_range(0..2) == 0 {
                        return self.half_pruned(&before);
                    }
                }
                _ => {
                    let events: Vec<_> = (0..self.rng.random_range(1..6)).map(|_| self.event()).collect();
                    log.append(&events).unwrap();
                    continue;
                }
            }
            self.keep();
        }
        let power_cut = self.rng.random();
        self.crash(power_cut);
    }

    /// Something of any length at any time: a clock may go backwards.
    fn event(&mut self) -> Event {
        let mut event = Event::now(Kind::RequestEnd).on(Object {
            model: Some("m\u{e9}\n".repeat(self.rng.random_range(1..40))),
            ..Object::default()
        });
        event.at_ms = self.rng.random_range(0..4_000_000_000_000);
        event
    }

    fn newest(&self) -> u64 {
        *segment::numbers(&self.folder()).unwrap().last().unwrap()
    }

    fn keep(&mut self) {
        let newest = self.newest();
        self.kept = (newest, length(&segment::lines(&self.folder(), newest)));
    }

    fn crash(&mut self, power_cut: bool) {
        let newest = self.newest();
        let lines = segment::lines(&self.folder(), newest);
        let written = length(&lines);
        let kept = if self.kept.0 == newest { self.kept.1 } else { 0 };
        let whole = fs::read(&lines).unwrap();
        let last_write = whole[..whole.len().saturating_sub(1)]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end as u64 + 1);
        let safe = if power_cut { kept } else { last_write.max(kept) };
        cut(&lines, self.rng.random_range(safe..=written));
        if power_cut {
            let notes = segment::notes(&self.folder(), newest);
            let some = self.rng.random_range(0..=length(&notes));
            cut(&notes, some);
        }
    }

    /// A new segment is made file by file: its head, its lines, its checkpoints.
    fn half_rotated(&mut self) {
        let (folder, newest) = (self.folder(), self.newest());
        let files = [segment::notes, segment::lines, segment::head].map(|file| file(&folder, newest));
        for file in &files[..self.rng.random_range(0..=files.len())] {
            fs::remove_file(file).unwrap();
        }
        if files[1].exists() {
            cut(&files[1], 0);
        } else {
            fs::write(folder.join("000099.head.new"), "{\"fir").unwrap();
        }
    }

    /// Expired segments go one after the other, each file by file.
    fn half_pruned(&mut self, before: &BTreeMap<PathBuf, Vec<u8>>) {
        let newest = self.newest();
        let mut gone: Vec<_> = before.iter().filter(|(file, _)| !file.exists()).collect();
        // Lines first, then checkpoints, then the head; the oldest segment first.
        let order = |file: &Path| {
            ["jsonl", "notes", "head"]
                .iter()
                .position(|end| file.extension().is_some_and(|e| e == *end))
        };
        gone.sort_by_key(|(file, _)| (file.file_stem().map(ToOwned::to_owned), order(file)));
        let done = self.rng.random_range(0..=gone.len());
        for (file, bytes) in &gone[done..] {
            fs::write(file, bytes).unwrap();
        }
        assert_eq!(self.newest(), newest);
    }

    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|file| (file.clone(), fs::read(file).unwrap())).collect()
    }
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |file| file.len())
}

fn cut(file: &Path, length: u64) {
    if let Ok(file) = fs::File::options().write(true).open(file) {
        file.set_len(length).unwrap();
    }
}
