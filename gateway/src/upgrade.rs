//! Upgrading: a running gateway starts its program anew and hands everything over to it, without a failed request.
//!
//! [`old`] is what the running one does, [`new`] what its successor does, and here is what they say to each other, a line
//! each, over the successor's standard input:
//!
//! ```text
//!  old: serving ──SIGUSR2──▶ waiting ──Prepared──▶ quiet ──Estate, Ready──▶ finishing ──▶ gone
//!                               │                    │     (Go)               (its records go on to the new one)
//!                               └──the new one fails─┴──▶ serving, as if nothing had been tried
//!  new: preparing ──Prepared──▶ waiting ──Estate──▶ opening ──Ready──▶ waiting ──Go──▶ serving
//! ```
//!
//! Listening sockets are inherited, never closed, so that no connection that waits in one is lost. While the old one is
//! quiet it serves inference and takes nothing else: no worker registers and no operator acts unseen by the new one. The
//! journal has one writer at any time. Nothing here decides what a request gets.

pub mod new;
pub mod old;

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{
    audit::{fold::Denial, record::Event},
    registry::members::Handed,
};

/// What both must speak; it grows when an older program could not follow.
const PROTOCOL: u32 = 1;

/// Why an upgrade did not come to pass.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The new program cannot be started.
    #[error("the new program cannot be started: {0}")]
    Start(#[source] io::Error),
    /// Process 1 of a container is the container.
    #[error("a gateway that is process 1 ends with its container; replace the container instead")]
    ProcessOne,
    /// The new program says why it cannot take over.
    #[error("the new gateway could not take over: {0}")]
    Refused(String),
    /// The new program has ended, or speaks otherwise.
    #[error("the new gateway ended before it took over ({0}); its last words are in the log")]
    Ended(String),
    /// The new program takes too long.
    #[error("the new gateway was not ready to take over within {0} s")]
    Late(u64),
    /// The old program is of another kind.
    #[error(
        "the two programs do not understand each other (protocol {0} and {PROTOCOL}); stop the old one and start the new one"
    )]
    Protocol(u32),
    /// The journal cannot be handed over.
    #[error("the journal cannot be handed over: {0}")]
    Journal(#[from] crate::audit::journal::Unavailable),
    /// Not started by a gateway.
    #[error(
        "--take-over is for a gateway that starts its successor; send SIGUSR2 to the one that runs, or use `hivectl upgrade`"
    )]
    NoPredecessor(#[source] io::Error),
    /// The configuration names other addresses than those handed over.
    #[error(
        "the configuration says to listen on {0}, but the running gateway listens on {1}; an upgrade keeps its addresses: stop and start instead"
    )]
    Elsewhere(std::net::SocketAddr, std::net::SocketAddr),
    /// This gateway is to end instead.
    #[error("a signal to end came first")]
    Stopped,
    /// The old one has changed its mind, or died.
    #[error("the old gateway went on alone")]
    Abandoned,
}

/// What the old process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Bequest {
    /// The workers, as they are known; the journal is closed.
    Estate(Vec<Handed>),
    /// You are the gateway.
    Go,
    /// To be recorded soon.
    Record(Box<Event>),
    /// To be recorded; say when it is on the disk, under this number.
    Durable(u64, Box<Event>),
    /// A refused credential.
    Denied(Denial),
    /// A signal came that was meant for the gateway, whichever that is.
    Stop,
    /// All that ran has ended, and all of it was said.
    Farewell,
}

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    /// All that needs nobody else is done; in this protocol.
    Prepared(u32),
    /// Everything is open.
    Ready,
    /// It will not take over.
    Failed(String),
    /// What became of the record of this number; why, if it is not on the disk.
    Recorded(u64, Option<String>),
    /// Time is up: end what still runs.
    Cut,
}

/// One's end of what they say to each other.
struct Line {
    heard: Lines<BufReader<OwnedReadHalf>>,
    said: OwnedWriteHalf,
}

impl Line {
    fn over(stream: UnixStream) -> Self {
        let (read, said) = stream.into_split();
        Self {
            heard: BufReader::new(read).lines(),
            said,
        }
    }

    async fn say(&mut self, word: &impl Serialize) -> io::Result<()> {
        say(&mut self.said, word).await
    }

    async fn hear<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        hear(&mut self.heard).await
    }
}

async fn say(said: &mut OwnedWriteHalf, word: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    said.write_all(&line).await
}

/// The next word; none once the other is gone. May be dropped before it ends without losing a word.
async fn hear<T: DeserializeOwned>(heard: &mut Lines<BufReader<OwnedReadHalf>>) -> io::Result<Option<T>> {
    let line = heard.next_line().await?;
    line.map(|line| serde_json::from_str(&line).map_err(io::Error::from))
        .transpose()
}
