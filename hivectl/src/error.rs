//! How a command fails: what failed, why, what to do next, and the exit code that says which kind it was.
//!
//! It never prints; `output.rs` does.

use std::{error::Error, fmt, io, path::Path};

type Cause = Box<dyn Error + Send + Sync>;

/// A command that did not do what it was asked to.
#[derive(Debug)]
pub struct Failure(Box<Parts>);

#[derive(Debug)]
struct Parts {
    what: String,
    next: String,
    because: Option<Cause>,
    exit_code: u8,
}

impl Failure {
    /// The task failed: a port taken, a corrupt file, a full disk, a worker that died (exit 1).
    pub fn task(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(1, what, next)
    }

    /// The disk under `folder` refused something: with the remedy for a full one, else with `next` (exit 1).
    pub fn disk(what: impl Into<String>, folder: &Path, next: impl Into<String>, error: io::Error) -> Self {
        let failure = if is_full(&error) {
            let next = format!("free space in {}, then run the command again", folder.display());
            Self::task(what, next)
        } else {
            Self::task(what, next)
        };
        failure.because(error)
    }

    /// The command line is at fault: flags that contradict each other, an unknown name (exit 2).
    pub fn usage(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(2, what, next)
    }

    /// The other side could not be reached: hub, gateway or host (exit 3).
    pub fn other_side(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(3, what, next)
    }

    /// It took longer than allowed (exit 124).
    pub fn timeout(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(124, what, next)
    }

    /// Ctrl-C (exit 130).
    pub fn interrupted(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(130, what, next)
    }

    /// A failure that another process of ours met, with its exit code.
    pub fn relayed(exit_code: u8, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(exit_code, what, next)
    }

    /// Adds the cause, which is shown with all of its own causes after the sentence.
    #[must_use]
    pub fn because(mut self, source: impl Into<Cause>) -> Self {
        self.0.because = Some(source.into());
        self
    }

    /// What failed and why, without the next step, for a log line.
    pub fn in_one_line(&self) -> String {
        let said = self
            .why()
            .map_or_else(|| self.what().to_owned(), |why| format!("{}: {why}", self.what()));
        said.replace('\n', " ")
    }

    fn new(exit_code: u8, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            what: what.into(),
            next: next.into(),
            because: None,
            exit_code,
        }))
    }

    /// What failed, as one sentence without its cause.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// What to do next.
    pub fn next(&self) -> &str {
        &self.0.next
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        self.0.exit_code
    }

    /// Why it failed: the whole chain of causes, innermost last, if one is known.
    pub fn why(&self) -> Option<String> {
        let mut link: &dyn Error = self.0.because.as_deref()?;
        let mut said = vec![link.to_string()];
        while let Some(source) = link.source() {
            let text = source.to_string();
            // Some libraries repeat their source in their own text; once is enough.
            if !said.last().is_some_and(|last| last.ends_with(&text)) {
                said.push(text);
            }
            link = source;
        }
        Some(said.join(": "))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.because.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

/// Whether the disk or the user's share of it is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not write the part file")]
    struct Outer(#[source] io::Error);

    #[test]
    fn the_whole_chain_of_causes_is_told_once() {
        let failure =
            Failure::task("the download failed", "free some space").because(Outer(io::Error::other("disk full")));
        assert_eq!(
            failure.why().as_deref(),
            Some("could not write the part file: disk full")
        );
        assert_eq!(
            Failure::task("a", "b").because("a plain sentence").why().as_deref(),
            Some("a plain sentence")
        );
        assert_eq!(Failure::task("a", "b").why(), None);
    }

    #[test]
    fn a_full_disk_has_another_remedy_than_a_locked_one() {
        let next = |kind: io::ErrorKind| {
            let failure = Failure::disk("a", Path::new("/home/me"), "make it writable", kind.into());
            failure.next().to_owned()
        };
        assert!(next(io::ErrorKind::StorageFull).starts_with("free space in /home/me"));
        assert!(next(io::ErrorKind::QuotaExceeded).starts_with("free space in /home/me"));
        assert_eq!(next(io::ErrorKind::PermissionDenied), "make it writable");
    }

    #[test]
    fn each_kind_has_its_exit_code() {
        assert_eq!(Failure::task("a", "b").exit_code(), 1);
        assert_eq!(Failure::usage("a", "b").exit_code(), 2);
        assert_eq!(Failure::other_side("a", "b").exit_code(), 3);
        assert_eq!(Failure::timeout("a", "b").exit_code(), 124);
        assert_eq!(Failure::interrupted("a", "b").exit_code(), 130);
    }
}
