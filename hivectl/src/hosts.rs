//! What two hivectls say to each other when a command is for another machine: one asks, the other does it there.
//!
//! The asking side sends an [`Ask`], hears [`Frame`]s until the last one, and may say a `Word` in between. Its end of
//! the line is the command's life: when it hangs up, the answering side stops as with Ctrl-C. No secret is in an
//! [`Ask`]; a join token is handed over when the other machine wants it, and is good for one worker.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines, Stdin},
    time::timeout,
};
use wire::{ModelDownload, ModelName, WorkerId};

use crate::{
    cli::{ModelsCommand, Spawn},
    error::Failure,
    output::Output,
    signals::Signals,
    ssh::{Route, Session},
};

/// How long the other side may take to stop after we have hung up.
const FAREWELL: Duration = Duration::from_secs(5);

/// What another machine is asked to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Whether results are wanted as JSON.
    pub json: bool,
    /// The deed.
    pub act: Act,
}

/// What can be done on another machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Act {
    /// `models …`.
    Models(ModelsCommand),
    /// Say which workers were started there.
    Workers,
    /// Start a worker: it asks for its join token when its model is there, and ends with the process running once
    /// it is released.
    Spawn {
        /// As typed, with its id.
        args: Box<Spawn>,
        /// The control plane it registers with.
        gateway: String,
    },
    /// Stop a worker and start it again as it was; goes on as a spawn.
    Restart {
        /// Its id.
        id: WorkerId,
        /// How long it may take, in seconds.
        timeout: u64,
    },
    /// `worker stop`.
    Stop {
        /// Its id.
        id: WorkerId,
        /// How long it may take to finish what it holds, in seconds.
        drain: u64,
    },
    /// Keep a checkpoint of the journal with this public key.
    Witness {
        /// The line in its `journal.pub`.
        key: String,
    },
    /// Print the checkpoints that were kept of it.
    Anchors {
        /// The line in its `journal.pub`.
        key: String,
    },
    /// `worker logs`.
    Logs {
        /// Its id.
        id: WorkerId,
        /// Whether to go on as it grows.
        follow: bool,
        /// How many lines to begin with.
        lines: usize,
    },
}

/// What the answering side says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// A piece of the result, for stdout.
    Out(String),
    /// A sentence about what is going on, for stderr.
    Note(String),
    /// The workers that were started there.
    Workers(Vec<Placed>),
    /// How many records the last checkpoint of the journal counts that was kept there; 0 if none was.
    Seen(u64),
    /// A checkpoint that was kept there.
    Kept(String),
    /// A model was downloaded there.
    Downloaded(ModelDownload),
    /// All is ready for a worker of this id; a join token is wanted.
    TokenWanted(WorkerId),
    /// The worker's process runs, with this id.
    Started(u32),
    /// It is done; the last frame.
    Done,
    /// It failed; the last frame.
    Failed {
        /// What failed.
        what: String,
        /// Why.
        why: Option<String>,
        /// What to do next.
        next: String,
        /// The exit code of its kind.
        exit_code: u8,
    },
}

/// A worker where it was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Its id.
    pub id: WorkerId,
    /// The model it serves.
    pub model: ModelName,
    /// Its process.
    pub pid: u32,
    /// Whether that lives.
    pub alive: bool,
    /// The control plane it was told to register with.
    pub gateway: String,
}

/// What the asking side may say after its [`Ask`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// The join token that was wanted.
    Token(String),
    /// The worker is ready: let it run.
    Release,
    /// A checkpoint to keep.
    Checkpoint(Checkpoint),
}

/// A checkpoint of a journal, and the proof that it grew out of the last one that was kept.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The signed note.
    pub note: String,
    /// The path between the two (RFC 6962, section 2.1.2), in hexadecimal.
    pub proof: Vec<String>,
}

impl Frame {
    /// The last frame of a command.
    pub fn last(outcome: &Result<(), Failure>) -> Self {
        match outcome {
            Ok(()) => Self::Done,
            Err(failure) => Self::Failed {
                what: failure.what().to_owned(),
                why: failure.why(),
                next: failure.next().to_owned(),
                exit_code: failure.exit_code(),
            },
        }
    }
}

/// Asks another machine, and follows the conversation to its end; on Ctrl-C the other side is stopped first.
pub async fn call<T>(
    route: &Route,
    ask: &Ask,
    output: &Output,
    signals: &mut Signals,
    conversation: impl AsyncFnOnce(&mut Call) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut call = signals.or(Call::place(route, ask)).await?;
    let wish = tokio::select! {
        outcome = conversation(&mut call) => return outcome,
        wish = signals.next() => wish,
    };
    let next = if call.end(output).await {
        "run the command again to go on".to_owned()
    } else {
        format!(
            "{} may still be at it for a moment; run the command again to go on",
            call.host
        )
    };
    Err(wish.failure(next))
}

/// The asking side's end of the line.
#[derive(Debug)]
pub struct Call {
    session: Session,
    host: String,
}

impl Call {
    /// Connects, and asks.
    async fn place(route: &Route, ask: &Ask) -> Result<Self, Failure> {
        let mut session = Session::open(route).await?;
        session.say(ask).await?;
        Ok(Self {
            session,
            host: route.address.to_string(),
        })
    }

    /// The next frame that is not only to be shown; `None` once it is done. Pieces of the result and notes are shown
    /// as they come.
    pub async fn next(&mut self, output: &Output) -> Result<Option<Frame>, Failure> {
        loop {
            match self.session.hear().await? {
                Frame::Out(text) => output.piece(&text),
                Frame::Note(note) => output.note(format_args!("{}: {note}", self.host)),
                Frame::Done => return Ok(None),
                Frame::Failed {
                    what,
                    why,
                    next,
                    exit_code,
                } => {
                    let on_host = |text: String| format!("on {}: {text}", self.host);
                    // A failure is never a success, whatever the other side calls it.
                    let failure = Failure::relayed(exit_code.max(1), on_host(what), on_host(next));
                    return Err(match why {
                        Some(why) => failure.because(why),
                        None => failure,
                    });
                }
                frame => return Ok(Some(frame)),
            }
            if output.reader_has_gone() {
                return Ok(None);
            }
        }
    }

    /// Hands over the join token that was wanted.
    pub async fn hand_over(&mut self, token: &SecretString) -> Result<(), Failure> {
        Ok(self.session.say(&Word::Token(token.expose_secret().to_owned())).await?)
    }

    /// Lets a started worker run on without us.
    pub async fn release(&mut self) -> Result<(), Failure> {
        Ok(self.session.say(&Word::Release).await?)
    }

    /// Shows a checkpoint to keep.
    pub async fn show(&mut self, checkpoint: Checkpoint) -> Result<(), Failure> {
        Ok(self.session.say(&Word::Checkpoint(checkpoint)).await?)
    }

    /// A frame that does not belong here.
    pub fn unexpected(&self, frame: &Frame) -> Failure {
        Failure::other_side(
            format!("{} said something out of turn", self.host),
            "run it again; if it stays, report it as a fault of hivectl",
        )
        .because(format!("{frame:?}"))
    }

    /// Hangs up, and waits until the other side has stopped too; false if it has not in time.
    async fn end(&mut self, output: &Output) -> bool {
        self.session.hang_up();
        let farewell = async {
            // Whatever it still says, its last frame means that it has stopped.
            while let Ok(Some(_)) = self.next(output).await {}
        };
        timeout(FAREWELL, farewell).await.is_ok()
    }
}

/// The answering side's ear: whoever asked, on our stdin.
#[derive(Debug)]
pub struct Caller {
    lines: Lines<BufReader<Stdin>>,
}

impl Caller {
    /// Listens to stdin.
    pub fn on_stdin() -> Self {
        Self {
            lines: BufReader::new(tokio::io::stdin()).lines(),
        }
    }

    /// What is asked.
    pub async fn ask(&mut self) -> Result<Ask, Failure> {
        let line = self.line().await?;
        serde_json::from_str(&line).map_err(|error| {
            Failure::usage(
                "what was asked cannot be read",
                "use `hivectl … --host` on another machine",
            )
            .because(error)
        })
    }

    /// The join token, once it has come.
    pub async fn token(&mut self) -> Result<SecretString, Failure> {
        match self.word().await? {
            Word::Token(token) => Ok(token.into()),
            _ => Err(out_of_turn()),
        }
    }

    /// Waits until the worker may run on without the caller.
    pub async fn released(&mut self) -> Result<(), Failure> {
        match self.word().await? {
            Word::Release => Ok(()),
            _ => Err(out_of_turn()),
        }
    }

    /// The checkpoint to keep.
    pub async fn checkpoint(&mut self) -> Result<Checkpoint, Failure> {
        match self.word().await? {
            Word::Checkpoint(checkpoint) => Ok(checkpoint),
            _ => Err(out_of_turn()),
        }
    }

    /// Works while the caller is there, and stops when they hang up.
    pub async fn while_there<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            outcome = work => outcome,
            said = self.word() => Err(said.map_or_else(|failure| failure, |_| out_of_turn())),
        }
    }

    async fn word(&mut self) -> Result<Word, Failure> {
        serde_json::from_str(&self.line().await?).map_err(|_| out_of_turn())
    }

    async fn line(&mut self) -> Result<String, Failure> {
        match self.lines.next_line().await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(Failure::interrupted("whoever asked has hung up", "ask again")),
            Err(error) => {
                Err(Failure::task("stdin cannot be read", "use `hivectl … --host` on another machine").because(error))
            }
        }
    }
}

fn out_of_turn() -> Failure {
    Failure::usage(
        "the caller said something out of turn",
        "use `hivectl … --host` on another machine",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_failure_keeps_its_sentence_and_its_exit_code_on_the_way() {
        let failure = Failure::task("the disk is full", "free some space").because("no space left");
        let text = serde_json::to_string(&Frame::last(&Err(failure))).unwrap();
        let Frame::Failed {
            what,
            why,
            next,
            exit_code,
        } = serde_json::from_str(&text).unwrap()
        else {
            panic!("{text}")
        };
        assert_eq!(
            (what.as_str(), next.as_str(), exit_code),
            ("the disk is full", "free some space", 1)
        );
        assert_eq!(why.as_deref(), Some("no space left"));
    }

    #[test]
    fn what_is_asked_is_read_exactly_or_not_at_all() {
        let ask = r#"{"json":true,"act":{"stop":{"id":"w-1","drain":5}}}"#;
        assert!(matches!(
            serde_json::from_str::<Ask>(ask).unwrap().act,
            Act::Stop { drain: 5, .. }
        ));
        for bad in [
            r#"{"json":true,"act":{"stop":{"id":"../w","drain":5}}}"#,
            r#"{"json":true,"act":{"stop":{"id":"w","drain":5,"now":true}}}"#,
            r#"{"json":true,"act":"reboot"}"#,
            r#"{"act":"workers"}"#,
        ] {
            assert!(serde_json::from_str::<Ask>(bad).is_err(), "{bad}");
        }
    }
}
