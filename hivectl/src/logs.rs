//! The logs of gateway, workers and supervisor under `$HIVE_HOME/logs`: appended to, rotated, and read back when a
//! start fails.
//!
//! Programs write to their file directly, so that they never depend on whoever started them; rotation therefore copies
//! and truncates.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// The size at which a log is rotated, in bytes.
pub const LIMIT: u64 = 10 * 1024 * 1024;
/// How many rotated logs are kept beside the current one.
const KEPT: usize = 3;
/// How much of a log's end is looked at for its last lines, in bytes.
const TAIL: u64 = 256 * 1024;

/// Opens a log for appending, only for its owner to read; rotates it first if it is full.
pub fn open(log: &Path) -> io::Result<File> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)?;
    }
    rotate(log, LIMIT)?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(log)
}

/// Rotates every log of a folder that is full.
pub fn rotate_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            rotate(&path, LIMIT)?;
        }
    }
    Ok(())
}

/// Moves a log's content to `<log>.1` once it has `limit` bytes, `.1` to `.2` and so on. The file itself stays, for
/// whoever is appending to it.
fn rotate(log: &Path, limit: u64) -> io::Result<()> {
    match fs::metadata(log) {
        Ok(metadata) if metadata.len() >= limit => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    for n in (1..KEPT).rev() {
        match fs::rename(rotated(log, n), rotated(log, n + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::copy(log, rotated(log, 1))?;
    OpenOptions::new().write(true).open(log)?.set_len(0)
}

fn rotated(log: &Path, n: usize) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// The last `count` lines of a log from byte `since` on, for reading: JSON lines become sentences.
pub fn last_words(log: &Path, since: u64, count: usize) -> Vec<String> {
    let Ok((_, text)) = end_of(log, since, TAIL) else {
        return Vec::new();
    };
    last(&String::from_utf8_lossy(&text), count).map(sentence).collect()
}

/// The last `count` whole lines of a log as they are, and where the log goes on after them.
pub fn tail(log: &Path, count: usize) -> io::Result<(Vec<String>, u64)> {
    let most = TAIL.max(u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(512));
    let (from, text) = end_of(log, 0, most)?;
    let text = whole_lines(&text);
    let lines = last(&String::from_utf8_lossy(text), count).map(str::to_owned).collect();
    Ok((lines, from + text.len() as u64))
}

/// The whole lines of a log from byte `since` on, and where the log goes on after them.
pub fn more(log: &Path, since: u64) -> io::Result<(Vec<String>, u64)> {
    let (from, text) = end_of(log, since, u64::MAX)?;
    let text = whole_lines(&text);
    Ok((
        String::from_utf8_lossy(text).lines().map(str::to_owned).collect(),
        from + text.len() as u64,
    ))
}

/// At most the last `most` bytes of a log from byte `since` on, beginning with a whole line, and where they begin.
fn end_of(log: &Path, since: u64, most: u64) -> io::Result<(u64, Vec<u8>)> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    // A log shorter than that was rotated in the meantime.
    let since = if since > length { 0 } else { since };
    let mut from = length.saturating_sub(most).max(since);
    let cut = from > since;
    // One byte earlier, so that a line that begins exactly here counts as whole.
    from -= u64::from(cut);
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::new(file.take(length - from));
    if cut {
        from += reader.skip_until(b'\n')? as u64;
    }
    let mut text = Vec::new();
    reader.read_to_end(&mut text)?;
    Ok((from, text))
}

fn whole_lines(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    &text[..end]
}

fn last(text: &str, count: usize) -> impl Iterator<Item = &str> {
    let skipped = text.lines().count().saturating_sub(count);
    text.lines().skip(skipped)
}

/// A log line for a person: the message of a JSON line with its other fields behind it, or the line as it is.
fn sentence(line: &str) -> String {
    let Ok(Value::Object(record)) = serde_json::from_str::<Value>(line) else {
        return line.to_owned();
    };
    let fields = record.get("fields").and_then(Value::as_object).unwrap_or(&record);
    let Some(message) = fields.get("message").and_then(Value::as_str) else {
        return line.to_owned();
    };
    let plumbing = ["message", "timestamp", "level", "target", "span", "spans"];
    let mut said = message.to_owned();
    for (name, value) in fields.iter().filter(|(name, _)| !plumbing.contains(&name.as_str())) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        said.extend([" ", name, "=", &value]);
    }
    said
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use super::*;

    #[test]
    fn a_full_log_is_rotated_under_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("worker.log");
        let mut writer = open(&log).unwrap();
        for round in 1..=5 {
            writeln!(writer, "round {round}").unwrap();
            rotate(&log, 4).unwrap();
        }
        writeln!(writer, "now").unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "now\n");
        for (n, round) in [(1, 5), (2, 4), (3, 3)] {
            assert_eq!(
                fs::read_to_string(rotated(&log, n)).unwrap(),
                format!("round {round}\n")
            );
        }
        assert!(!rotated(&log, 4).exists());
    }

    #[test]
    fn the_last_lines_are_whole_and_no_older_than_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("x.log");
        fs::write(&log, "old\nnew 1\nnew 2\nnew 3\n").unwrap();
        assert_eq!(last_words(&log, 4, 2), ["new 2", "new 3"]);
        assert_eq!(last_words(&log, 4, 9), ["new 1", "new 2", "new 3"]);
        assert_eq!(last_words(&log, 9_999, 1), ["new 3"]);
        assert_eq!(end_of(&log, 0, 6).unwrap(), (16, b"new 3\n".to_vec()));
        assert_eq!(end_of(&log, 0, 8).unwrap(), (16, b"new 3\n".to_vec()));
        assert!(last_words(&folder.path().join("none.log"), 0, 5).is_empty());
    }

    #[test]
    fn a_followed_log_gives_each_line_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("x.log");
        fs::write(&log, "one\ntwo\nthr").unwrap();
        let (lines, end) = tail(&log, 1).unwrap();
        assert_eq!(lines, ["two"]);
        fs::write(&log, "one\ntwo\nthree\n").unwrap();
        let (lines, end) = more(&log, end).unwrap();
        assert_eq!(lines, ["three"]);
        assert_eq!(more(&log, end).unwrap(), (vec![], end));
        fs::write(&log, "new\n").unwrap();
        assert_eq!(more(&log, end).unwrap().0, ["new"]);
    }

    #[test]
    fn json_lines_become_sentences() {
        let line = r#"{"timestamp":"t","level":"ERROR","fields":{"message":"cannot listen","addr":"127.0.0.1:1"},"target":"g"}"#;
        assert_eq!(sentence(line), "cannot listen addr=127.0.0.1:1");
        assert_eq!(sentence("plain {text}"), "plain {text}");
        assert_eq!(sentence(r#"{"a":1}"#), r#"{"a":1}"#);
    }
}
