//! Checkpoints kept where this machine's owner cannot rewrite them: a file elsewhere, or whatever a command does.
//!
//! It detects a rewritten or rolled-back journal, not a lie told in the first place: whoever holds the signing key can
//! forge what is newer than the last anchor.

use std::{io::Write as _, path::Path, process::Stdio, time::Duration};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    journal::Journal,
    record::{Event, Kind, Outcome},
};
use crate::config;

/// How many bytes are read of what an anchor's command says of a failure.
const WORDS: u64 = 4096;
/// How long an anchor's command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where checkpoints go, and the last that went there.
#[derive(Debug)]
pub struct Anchors {
    settings: config::Audit,
    last: u64,
}

impl Anchors {
    /// Anchors by these settings.
    pub fn new(settings: config::Audit) -> Self {
        Self { settings, last: 0 }
    }

    /// Whether there is any place to send checkpoints to.
    pub fn is_set(&self) -> bool {
        self.settings.anchor_file.is_some() || !self.settings.anchor_command.is_empty()
    }

    /// Signs what there is and anchors it, if anything is new; that it was done, or could not be, is recorded.
    pub async fn keep(&mut self, journal: &Journal) -> Result<(), String> {
        let note = journal.checkpoint().await.map_err(|error| error.to_string())?;
        let size = size(&note);
        // The record of the last anchor alone is no news.
        if size <= self.last + 1 && self.last > 0 {
            journal.anchored();
            return Ok(());
        }
        let sent = self.send(&note).await;
        let mut event = Event::now(Kind::Anchor);
        event.count = Some(size);
        let state = if sent.is_ok() { "kept" } else { "failed" }.into();
        event.outcome = Some(Outcome { state, code: None });
        journal.record(event);
        if sent.is_ok() {
            self.last = size;
            journal.anchored();
        }
        sent
    }

    /// Sends a checkpoint to every place that is set.
    pub async fn send(&self, note: &str) -> Result<(), String> {
        if let Some(file) = self.settings.anchor_file.clone() {
            let (text, path) = (note.to_owned(), file.clone());
            let written = tokio::task::spawn_blocking(move || append(&path, &text)).await;
            written
                .map_err(std::io::Error::other)
                .flatten()
                .map_err(|error| format!("{}: {error}", file.display()))?;
        }
        if let Some((program, arguments)) = self.settings.anchor_command.split_first() {
            tokio::time::timeout(PATIENCE, pipe(program, arguments, note))
                .await
                .unwrap_or_else(|_| Err(std::io::Error::other("it took longer than 60 s")))
                .map_err(|error| format!("{program}: {error}"))?;
        }
        Ok(())
    }
}

fn append(file: &Path, note: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file)?;
    file.write_all(note.as_bytes())?;
    file.sync_all()
}

async fn pipe(program: &str, arguments: &[String], note: &str) -> std::io::Result<()> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not want to read says why.
        let _ = stdin.write_all(note.as_bytes()).await;
    }
    let (mut words, mut rest) = (Vec::new(), tokio::io::sink());
    if let Some(mut stderr) = child.stderr.take() {
        (&mut stderr).take(WORDS).read_to_end(&mut words).await?;
        tokio::io::copy(&mut stderr, &mut rest).await?;
    }
    let status = child.wait().await?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words);
    let words: Vec<_> = words.split_whitespace().collect();
    Err(std::io::Error::other(format!(
        "it ended with {status}: {}",
        words.join(" ")
    )))
}

/// How many records a note counts.
fn size(note: &str) -> u64 {
    note.lines().nth(1).and_then(|size| size.parse().ok()).unwrap_or(0)
}
