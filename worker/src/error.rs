//! How a worker can end badly: the sentence for people and the exit code for programs.

use std::net::SocketAddr;

use crate::engine::LoadError;

/// Why the worker ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is wrong.
    #[error("{0}")]
    Usage(String),
    /// The model could not be loaded.
    #[error("the model could not be loaded")]
    Load(#[from] LoadError),
    /// The address is taken or not ours.
    #[error("cannot listen on {address} (choose another --listen address; port 0 takes any free port)")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The system refused something else.
    #[error("{what}")]
    System {
        /// What was tried, and what to do.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// No gateway answered in time.
    #[error("the gateway at {url} does not answer; start it, or correct --gateway (last try: {reason})")]
    Unreachable {
        /// Its URL.
        url: String,
        /// What the last try said.
        reason: String,
    },
    /// The gateway will not have this worker.
    #[error("the gateway refuses this worker: {0}")]
    Refused(String),
    /// The gateway has given this worker's id to another process.
    #[error("another process has registered as `{0}` and took over; choose another --id to run both")]
    Replaced(String),
    /// The engine is stuck, and a process cannot stop its own threads.
    #[error("{0}; start the worker anew, and if it happens again, take another file of this model")]
    Broken(String),
    /// It was told to stop a second time before all answers had ended.
    #[error("stopped at once, before running answers had ended")]
    Forced,
}

impl Error {
    /// 1: it failed; 2: wrong usage; 3: the gateway is not there or refuses.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unreachable { .. } | Self::Refused(_) => 3,
            Self::Load(_)
            | Self::Bind { .. }
            | Self::System { .. }
            | Self::Replaced(_)
            | Self::Broken(_)
            | Self::Forced => 1,
        }
    }

    /// The whole story in one line: what failed, why, and what to do next.
    pub fn sentence(&self) -> String {
        let mut sentence = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            sentence = format!("{sentence}: {cause}");
            source = cause.source();
        }
        sentence.replace(['\n', '\r'], " ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_tells_what_why_and_what_to_do_in_one_line() {
        let source = std::io::Error::other("no\nsuch file");
        let error = Error::from(LoadError::Unreadable {
            path: "m.gguf".into(),
            source,
        });
        assert_eq!(
            error.sentence(),
            "the model could not be loaded: cannot read m.gguf (check --model-path and its permissions): no such file"
        );
        assert_eq!(error.exit_code(), 1);
    }
}
