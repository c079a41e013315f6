//! A witness to the audit journal of another machine: the checkpoints it was shown lie in `$HIVE_HOME/witness`, and the next
//! one is kept only with proof that the journal grew out of the last (RFC 6962; C2SP tlog-witness does the same over HTTP).
//!
//! It signs what it keeps, so that others need not have fetched it from here (C2SP tlog-cosignature). It believes the first
//! checkpoint of a journal it sees, and never sees a record.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
    time::SystemTime,
};

use gateway::audit::{
    note::{self, Checkpoint, NoteError, PublicKey, Signer},
    tree::{Hash, grew},
};

use crate::{config::Config, error::Failure};

/// Why a checkpoint is not kept.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("the checkpoint is not good: {0}")]
    NotSigned(#[from] NoteError),
    #[error("{seen} records were signed, and now there are {now}: it was cut off, or replaced by an older copy")]
    Shorter { seen: u64, now: u64 },
    #[error(
        "its first {seen} records are not those that were signed: they were changed, or it was begun anew from a copy"
    )]
    Other { seen: u64 },
}

/// What this machine has kept of one journal.
#[derive(Debug)]
pub struct Witness {
    key: PublicKey,
    file: PathBuf,
    /// Where the key lies with which it signs.
    own: PathBuf,
}

impl Witness {
    /// The witness to the journal with this public key.
    pub fn of(config: &Config, key: &str) -> Result<Self, Failure> {
        let named = |key: PublicKey| Some((key.made_name()?.to_owned(), key));
        let (name, key) = PublicKey::parse(key)
            .ok()
            .and_then(named)
            .ok_or_else(|| Failure::usage("this is no public key of a journal", "take the line in its journal.pub"))?;
        let file = config.home.join("witness").join(format!("{name}.anchors"));
        let own = config.home.join("keys/witness");
        Ok(Self { key, file, own })
    }

    /// The journal's name.
    pub fn journal(&self) -> &str {
        self.key.name()
    }

    /// How many records the last checkpoint counts; 0 if there is none.
    pub fn seen(&self) -> Result<u64, Failure> {
        let (_, last) = self.read()?;
        Ok(last.map_or(0, |last| last.size))
    }

    /// All checkpoints, the oldest first.
    pub fn kept(&self) -> Result<Vec<String>, Failure> {
        match self.read()? {
            (text, Some(_)) => Ok(note::split(&text).0.into_iter().map(str::to_owned).collect()),
            (_, None) => Err(Failure::task(
                format!("no checkpoint of {} was kept", self.journal()),
                "see that the name of the machine and the public key are right",
            )),
        }
    }

    /// Keeps a checkpoint that grew out of the last one, which counts `seen` records; how many it counts itself.
    pub fn take(&self, seen: u64, note: &str, proof: &[String]) -> Result<u64, Failure> {
        let mut file = self.lock().map_err(|error| self.broken(error))?;
        let (text, last) = self.read()?;
        if last.as_ref().map_or(0, |last| last.size) != seen {
            let what = format!("another checkpoint of {} came in between", self.journal());
            return Err(Failure::task(what, "run the command again"));
        }
        let checkpoint = judge(&self.key, last.as_ref(), note, proof).map_err(|refusal| {
            let what = format!("the journal {} is not the one that was seen here before", self.journal());
            let next = format!(
                "keep the journal's folder and {} as evidence, and find out who could write there; `hivectl audit verify --anchors` with it names the record",
                self.file.display()
            );
            Failure::task(what, next).because(refusal)
        })?;
        if last.is_none_or(|last| last.size < checkpoint.size) {
            // A crash may have torn the last one.
            let cut = file.set_len(text.len() as u64);
            let kept = cut
                .and_then(|()| file.write_all(self.cosign(note)?.as_bytes()))
                .and_then(|()| file.sync_all());
            kept.map_err(|error| self.broken(error))?;
        }
        Ok(checkpoint.size)
    }

    /// The note with this machine's signature, whose public key lies beside the file.
    fn cosign(&self, note: &str) -> io::Result<String> {
        let signer = Signer::load_or_create_witness(&self.own)?;
        fs::write(
            self.file.with_file_name("witness.pub"),
            format!("{}\n", signer.public()),
        )?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(signer.cosign(note, now.unwrap_or_default().as_secs()))
    }

    /// What is whole of the file, and its last checkpoint.
    fn read(&self) -> Result<(String, Option<Checkpoint>), Failure> {
        let mut text = String::new();
        match File::open(&self.file).and_then(|mut file| file.read_to_string(&mut text)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.broken(error)),
            _ => {}
        }
        let (notes, rest) = note::split(&text);
        let last = notes.last().map(|note| self.key.open(note)).transpose();
        let last = last.map_err(|error| self.broken(io::Error::other(error)))?;
        text.truncate(text.len() - rest.len());
        Ok((text, last))
    }

    fn lock(&self) -> io::Result<File> {
        let folder = self.file.parent().ok_or(io::ErrorKind::NotFound)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.file)?;
        file.lock()?;
        Ok(file)
    }

    fn broken(&self, error: io::Error) -> Failure {
        let what = format!("what is kept of {} cannot be used", self.journal());
        let next = format!("look at {}", self.file.display());
        Failure::disk(what, self.file.parent().unwrap_or(&self.file), next, error)
    }
}

/// Whether a checkpoint is the journal's own, and the journal grew out of the last one.
fn judge(key: &PublicKey, last: Option<&Checkpoint>, note: &str, proof: &[String]) -> Result<Checkpoint, Refusal> {
    if note::split(note) != (vec![note], "") {
        return Err(NoteError::Shape("it must be one note and nothing else").into());
    }
    let now = key.open(note)?;
    let Some(last) = last.filter(|last| last.size > 0) else {
        return Ok(now);
    };
    let seen = last.size;
    if now.size < seen {
        return Err(Refusal::Shorter { seen, now: now.size });
    }
    let path: Option<Vec<Hash>> = proof.iter().map(|hash| note::unhex(hash)).collect();
    let grown = path.is_some_and(|path| grew((seen, &last.root), (now.size, &now.root), &path));
    if grown { Ok(now) } else { Err(Refusal::Other { seen }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use gateway::{
        audit::{
            note::Signer,
            tree::{Frontier, Tree, leaf},
        },
        auth::pepper::hex,
    };

    use super::*;
    use crate::cli::Global;

    /// The checkpoint of so many records, and the proof that they grew out of the first `old`; `other` than the first.
    fn checkpoint(signer: &Signer, size: u64, old: u64, other: bool) -> (String, Vec<String>) {
        let (mut frontier, mut tree) = (Frontier::default(), Tree::default());
        for n in 0..size {
            let leaf = leaf(format!("{n}{}", if other && n == 2 { "!" } else { "" }).as_bytes());
            frontier.push(leaf);
            tree.push(leaf);
        }
        let root = frontier.root();
        let proof = tree.consistency(old, size).unwrap_or_default();
        (
            signer.sign(&Checkpoint { size, root }),
            proof.iter().map(|hash| hex(hash)).collect(),
        )
    }

    fn house() -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let flags = Global {
            state_dir: Some(folder.path().join("home")),
            ..Global::default()
        };
        let config = Config::load(&flags).unwrap();
        (folder, config)
    }

    #[test]
    fn a_journal_that_only_grows_is_kept_and_no_other() {
        let (_folder, config) = house();
        let signer = Signer::from_seed(&[1; 32]).unwrap();
        let witness = Witness::of(&config, &signer.public().to_string()).unwrap();
        assert_eq!(witness.seen().unwrap(), 0);
        assert!(witness.kept().is_err());
        let take = |size, old, other| {
            let (note, proof) = checkpoint(&signer, size, old, other);
            witness
                .take(old, &note, &proof)
                .map_err(|failure| failure.why().unwrap_or_default())
        };
        assert_eq!(take(5, 0, false), Ok(5));
        assert_eq!(take(9, 5, false), Ok(9));
        assert_eq!(take(9, 9, false), Ok(9), "nothing new is fine");
        assert!(take(9, 9, true).unwrap_err().contains("first 9 records are not"));
        assert!(take(12, 9, true).unwrap_err().contains("first 9 records are not"));
        assert!(take(8, 9, false).unwrap_err().contains("now there are 8"));
        assert!(take(12, 5, false).unwrap_err().is_empty(), "somebody was faster");
        let (note, _) = checkpoint(&signer, 12, 9, false);
        assert!(witness.take(9, &note, &[]).is_err(), "no proof");
        assert!(
            witness.take(9, &note.replacen("12", "13", 1), &[]).is_err(),
            "no signature"
        );
        let (note, proof) = checkpoint(&signer, 12, 9, false);
        for untidy in [note.trim_end().to_owned(), format!("{note}and more")] {
            assert!(witness.take(9, &untidy, &proof).is_err(), "{untidy:?}");
        }
        let public = fs::read_to_string(config.home.join("witness/witness.pub")).unwrap();
        let own = PublicKey::parse_witness(&public).unwrap();
        let kept = witness.kept().unwrap();
        assert_eq!(kept.len(), 2);
        assert!(kept.iter().all(|note| own.saw(note).unwrap() > 0));
        let other = Signer::from_seed(&[2; 32]).unwrap();
        let theirs = checkpoint(&other, 12, 9, false).0;
        assert!(witness.take(9, &theirs, &[]).is_err());
        assert_eq!(
            Witness::of(&config, &other.public().to_string())
                .unwrap()
                .seen()
                .unwrap(),
            0
        );
    }

    #[test]
    fn a_torn_checkpoint_is_forgotten_and_another_s_key_under_this_name_is_none() {
        let (_folder, config) = house();
        let signer = Signer::from_seed(&[1; 32]).unwrap();
        let witness = Witness::of(&config, &signer.public().to_string()).unwrap();
        let (note, _) = checkpoint(&signer, 5, 0, false);
        witness.take(0, &note, &[]).unwrap();
        let torn = format!("{}{}", witness.kept().unwrap()[0], &note[..note.len() - 9]);
        fs::write(&witness.file, torn).unwrap();
        let (next, proof) = checkpoint(&signer, 7, 5, false);
        witness.take(5, &next, &proof).unwrap();
        let kept = witness.kept().unwrap();
        assert!(
            kept.len() == 2 && kept[0].starts_with(&note) && kept[1].starts_with(&next),
            "{kept:?}"
        );
        for junk in ["", "a+b+c", "hive/audit/../../x+00000000+AA"] {
            assert!(Witness::of(&config, junk).is_err());
        }
    }
}
