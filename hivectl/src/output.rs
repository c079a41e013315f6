//! What a person or a program gets to see: results on stdout, everything else on stderr.
//!
//! The only file that prints. It never fails a command half-way: a reader that has gone (`| head`) is noticed, and a
//! stdout that cannot be written becomes the command's failure at its end.

mod progress;

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::progress::{Announcer, Label};
use crate::{error::Failure, hosts::Frame};

/// The way out for everything a command says; cheap to clone.
#[derive(Debug, Clone)]
pub struct Output {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    json: bool,
    /// Whether progress bars are drawn.
    draws: bool,
    stdout: Stdout,
    notes: Notes,
    bars: MultiProgress,
    broken: Mutex<Option<io::Error>>,
}

/// Who reads the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stdout {
    Program,
    /// A hivectl on another machine: everything that is said goes there, frame by frame.
    Elsewhere,
    Person {
        likes_colour: bool,
    },
}

/// How notes look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notes {
    Sentences,
    /// One JSON object a line, with its time.
    Journal,
}

/// How a check or a state is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Broken.
    Bad,
}

impl Output {
    /// An output for a command; with `json`, text results and progress bars are left out.
    pub fn new(json: bool, colour: bool) -> Self {
        let draws = io::stderr().is_terminal() && !json;
        let likes_colour = colour;
        let target = if draws {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            inner: Arc::new(Inner {
                json,
                draws,
                stdout: if io::stdout().is_terminal() {
                    Stdout::Person { likes_colour }
                } else {
                    Stdout::Program
                },
                notes: Notes::Sentences,
                bars: MultiProgress::with_draw_target(target),
                broken: Mutex::new(None),
            }),
        }
    }

    /// An output for a process without a terminal, whose notes are a log.
    pub fn journal() -> Self {
        Self {
            inner: Arc::new(Inner {
                json: true,
                draws: false,
                stdout: Stdout::Program,
                notes: Notes::Journal,
                bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
                broken: Mutex::new(None),
            }),
        }
    }

    /// An output that goes to the hivectl of another machine, which shows it there.
    pub fn elsewhere(json: bool) -> Self {
        Self {
            inner: Arc::new(Inner {
                json,
                draws: false,
                stdout: Stdout::Elsewhere,
                notes: Notes::Sentences,
                bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
                broken: Mutex::new(None),
            }),
        }
    }

    /// One line of a conversation with another program, on stdout.
    pub fn frame(&self, frame: &impl Serialize) {
        match serde_json::to_string(frame) {
            Ok(text) => self.bytes(format!("{text}\n").as_bytes()),
            Err(error) => self.broke(io::Error::other(error)),
        }
    }

    /// Whether results are asked for as JSON.
    pub fn is_json(&self) -> bool {
        self.inner.json
    }

    /// Whether whoever asked is on another machine.
    pub fn is_elsewhere(&self) -> bool {
        self.inner.stdout == Stdout::Elsewhere
    }

    /// Whether a person sits before stdout.
    pub fn is_terminal(&self) -> bool {
        matches!(self.inner.stdout, Stdout::Person { .. })
    }

    /// One line of the result, on stdout.
    pub fn line(&self, text: impl fmt::Display) {
        self.stdout(&format!("{text}\n"));
    }

    /// A piece of the result as it comes, on stdout, without a line end.
    pub fn piece(&self, text: &str) {
        self.stdout(text);
    }

    /// Bytes of the result as they are, on stdout: a script, not prose.
    pub fn raw(&self, bytes: &[u8]) {
        self.write(bytes);
    }

    /// One line about what is going on, on stderr.
    pub fn note(&self, text: impl fmt::Display) {
        if self.inner.stdout == Stdout::Elsewhere {
            return self.frame(&Frame::Note(text.to_string()));
        }
        let text = match self.inner.notes {
            Notes::Sentences => printable(&text.to_string()),
            Notes::Journal => journal_line(&text.to_string(), SystemTime::now()),
        };
        // Nothing sensible is left to do when stderr cannot be written.
        let _ = self.inner.bars.suspend(|| writeln!(io::stderr().lock(), "{text}"));
    }

    /// Asks for input on stderr, without a line end.
    pub fn prompt(&self, text: &str) {
        let _ = write!(io::stderr().lock(), "{text}");
    }

    /// The result as one JSON document, on stdout.
    pub fn json(&self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.write(format!("{text}\n").as_bytes()),
            Err(error) => self.broke(io::Error::other(error)),
        }
    }

    /// What was done, for commands without any other result: with `--json` as a document on stdout, else as a note.
    pub fn done(&self, json: &impl Serialize, note: impl fmt::Display) {
        if self.is_json() {
            self.json(json);
        } else {
            self.note(note);
        }
    }

    /// Rows below their headers, on stdout, each column as wide as its widest cell.
    pub fn table(&self, headers: &[&str], rows: &[Vec<String>]) {
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| flat(cell)).collect())
            .collect();
        let widths: Vec<usize> = headers
            .iter()
            .enumerate()
            .map(|(i, header)| {
                let widest = cells
                    .iter()
                    .filter_map(|row| row.get(i))
                    .map(|cell| cell.chars().count())
                    .max();
                widest.unwrap_or(0).max(header.chars().count())
            })
            .collect();
        let row = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<String> = cells
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            padded.join("  ").trim_end().to_owned()
        };
        self.line(row(&mut headers.iter().copied()));
        for cells in &cells {
            self.line(row(&mut cells.iter().map(String::as_str)));
        }
    }

    /// One line of the result that begins with how something stands, coloured where colour is welcome.
    pub fn marked(&self, mark: Mark, word: &str, text: impl fmt::Display) {
        let colour = match mark {
            Mark::Good => 32,
            Mark::Warning => 33,
            Mark::Bad => 31,
        };
        if self.inner.stdout == (Stdout::Person { likes_colour: true }) {
            self.write(format!("\u{1b}[{colour}m{word}\u{1b}[0m {}\n", printable(&text.to_string())).as_bytes());
        } else {
            self.line(format_args!("{word} {text}"));
        }
    }

    /// A progress bar over `total` bytes, on stderr. Where none can be drawn, a note says that `label` began, and one
    /// more about every tenth of the way how far it is.
    pub fn bar(&self, total: Option<u64>, label: &str) -> ProgressBar {
        let template = "{label} {bar:28} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        self.progress(
            total,
            label,
            if total.is_some() {
                template
            } else {
                "{spinner} {label} {bytes} {bytes_per_sec}"
            },
        )
    }

    /// A progress bar over `total` pieces of work, otherwise as [`Output::bar`].
    pub fn steps(&self, total: u64, label: &str) -> ProgressBar {
        self.progress(Some(total), label, "{label} {bar:28} {pos}/{len} {wide_msg}")
    }

    /// A progress bar from 0 to 100 percent, otherwise as [`Output::bar`].
    pub fn percent(&self, label: &str) -> ProgressBar {
        self.progress(Some(100), label, "{label} {bar:28} {percent} % {wide_msg}")
    }

    /// Whether the reader of stdout has gone, so that nothing more is worth doing for it.
    pub fn reader_has_gone(&self) -> bool {
        self.broken()
            .as_ref()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Ends the program's output: flushes it, tells a failure on stderr or to whoever asked, and gives the exit code.
    pub fn finish(&self, outcome: Result<(), Failure>) -> ExitCode {
        if self.inner.stdout == Stdout::Elsewhere {
            self.frame(&Frame::last(&outcome));
            return outcome.map_or_else(|failure| ExitCode::from(failure.exit_code()), |()| ExitCode::SUCCESS);
        }
        if let Err(error) = io::stdout().lock().flush() {
            self.broke(error);
        }
        let unwritten = self
            .broken()
            .take()
            .filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
        let outcome = match (outcome, unwritten) {
            (Ok(()), Some(error)) => Err(Failure::task(
                "the result could not be written to stdout",
                "free space where stdout goes, and run the command again",
            )
            .because(error)),
            (outcome, _) => outcome,
        };
        let Err(failure) = outcome else {
            return ExitCode::SUCCESS;
        };
        self.failure(&failure);
        ExitCode::from(failure.exit_code())
    }

    /// Tells a failure on stderr: what, why, and what to do next.
    pub fn failure(&self, failure: &Failure) {
        match failure.why() {
            Some(why) => self.note(format_args!("hivectl: {}: {why}", failure.what())),
            None => self.note(format_args!("hivectl: {}", failure.what())),
        }
        self.note(format_args!("  next: {}", failure.next()));
    }

    fn progress(&self, total: Option<u64>, label: &str, template: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        let label = printable(label);
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        if self.inner.draws {
            bar.set_style(style.with_key("label", Label(label)));
            self.inner.bars.add(bar)
        } else {
            self.note(&label);
            bar.set_style(style.with_key("label", Announcer::new(self.clone(), label)));
            bar
        }
    }

    fn stdout(&self, text: &str) {
        if self.is_terminal() {
            self.write(printable(text).as_bytes());
        } else {
            self.write(text.as_bytes());
        }
    }

    fn write(&self, bytes: &[u8]) {
        if self.inner.stdout == Stdout::Elsewhere {
            self.frame(&Frame::Out(String::from_utf8_lossy(bytes).into_owned()));
        } else {
            self.bytes(bytes);
        }
    }

    fn bytes(&self, bytes: &[u8]) {
        let written = self.inner.bars.suspend(|| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        });
        if let Err(error) = written {
            self.broke(error);
        }
    }

    fn broke(&self, error: io::Error) {
        self.broken().get_or_insert(error);
    }

    fn broken(&self) -> std::sync::MutexGuard<'_, Option<io::Error>> {
        self.inner.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn journal_line(message: &str, now: SystemTime) -> String {
    let time = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    serde_json::json!({ "time_ms": time_ms, "message": message }).to_string()
}

/// The text with control characters shown instead of obeyed, except line ends and tabs: names, logs and answers come
/// from elsewhere and must not steer a terminal.
fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The text on one line, in the order in which it is written: what turns the direction of writing is shown, too.
fn flat(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let line = printable(text).replace(['\n', '\t'], " ");
    line.chars().fold(String::with_capacity(line.len()), |mut flat, c| {
        if turns(c) {
            flat.extend(c.escape_unicode());
        } else {
            flat.push(c);
        }
        flat
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_never_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\n\tc"), "a\\u{1b}[2Jb\\r\n\tc");
        assert_eq!(flat("a\nb"), "a b");
        assert_eq!(flat("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn a_note_in_a_log_is_one_json_object_whatever_it_says() {
        let line = journal_line(
            "a\nb\u{1b}",
            SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(7),
        );
        assert_eq!(line.lines().count(), 1);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read, serde_json::json!({ "message": "a\nb\u{1b}", "time_ms": 7 }));
    }
}
