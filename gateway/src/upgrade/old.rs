//! What a running gateway does to be succeeded: starts the new one, is quiet for a moment, and finishes what it began.
//!
//! Until the new one has said that it is ready nothing is given away for good: whatever fails, it serves on.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixStream},
    pin::Pin,
    process::Command,
    time::Duration,
};

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::{
    process::Child,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{Bequest, Line, PROTOCOL, Reply, UpgradeError, hear, say};
use crate::{
    audit::{
        journal::{Answer, Unavailable},
        parting::Passed,
        recorder::Recorder,
    },
    server::Plane,
    state::Hive,
};

/// The flag by which a successor knows that it is one.
pub const FLAG: &str = "--take-over";
/// How long the new one may prepare, while nothing stands still.
const PREPARATION: Duration = Duration::from_secs(30);
/// How long it may take to open what was handed over, while records and operators wait.
const OPENING: Duration = Duration::from_secs(10);
/// How long control-plane requests that run may take to end.
const QUIET: Duration = Duration::from_secs(5);
/// The first descriptor that is handed over (`sd_listen_fds(3)`).
const FIRST: i32 = 3;

/// The new gateway, as the old one sees it.
#[derive(Debug)]
pub struct Successor {
    /// Its process id.
    pub pid: u32,
    /// It has ended, or wants us to: nobody takes our records any more.
    pub gone: CancellationToken,
    stop: UnboundedSender<Bequest>,
    speaking: JoinHandle<()>,
}

/// Starts the program anew and hands everything over to it; after an error everything is as it was. Once `told` that this
/// process is to end, the new one is not waited for.
///
/// `data` are the listening sockets of the data plane; the caller stops accepting on them.
pub async fn hand_over(
    hive: &Hive,
    data: &[TcpListener],
    control: &mut Plane,
    mut told: Pin<&mut impl Future<Output = ()>>,
) -> Result<Successor, UpgradeError> {
    let mut heir = Heir::start(data, control.sockets(), &hive.lock)?;
    if let Err(error) = unless(told.as_mut(), heir.prepares()).await {
        return Err(heir.dismissed(error).await);
    }
    let quiet = async {
        control.close(QUIET).await;
        Ok(())
    };
    if let Err(error) = unless(told.as_mut(), quiet).await {
        open_again(control);
        return Err(heir.dismissed(error).await);
    }
    let parted = match hive.audit.part(&hive.db).await {
        Ok(parted) => parted,
        Err(error) => {
            open_again(control);
            return Err(heir.dismissed(error.into()).await);
        }
    };
    let opens = async {
        // What the new one counts of limits it reads there.
        hive.books.flush().await;
        heir.opens(hive).await
    };
    let succeeded = match unless(told, opens).await {
        Ok(()) => heir.succeeds().await,
        Err(error) => Err(error),
    };
    if let Err(error) = succeeded {
        let error = heir.dismissed(error).await;
        hive.audit.resume(parted).await;
        open_again(control);
        return Err(error);
    }
    let (passed, records) = unbounded_channel();
    Recorder::pass_on(parted, passed);
    Ok(heir.installed(records))
}

/// What that comes to, unless this process is told to end.
async fn unless<T>(
    told: Pin<&mut impl Future<Output = ()>>,
    work: impl Future<Output = Result<T, UpgradeError>>,
) -> Result<T, UpgradeError> {
    tokio::select! {
        () = told => Err(UpgradeError::Stopped),
        done = work => done,
    }
}

fn open_again(control: &mut Plane) {
    match control.prepare() {
        Ok(()) => control.open(),
        Err(error) => {
            tracing::error!(cause = %error, "the control plane cannot be opened again; restart the gateway");
        }
    }
}

impl Successor {
    /// Tells it that a signal came which was meant for it.
    pub fn stop(&self) {
        let _ = self.stop.send(Bequest::Stop);
    }

    /// Says the last records; the journal must have been closed. Bounded in time: it may be stuck.
    pub async fn farewell(self) {
        drop(self.stop);
        let _ = tokio::time::timeout(QUIET, self.speaking).await;
    }
}

/// The new process while it is not the gateway yet.
struct Heir {
    child: Child,
    pid: u32,
    line: Line,
}

impl Heir {
    fn start(data: &[TcpListener], control: &[TcpListener], lock: &File) -> Result<Self, UpgradeError> {
        if std::process::id() == 1 {
            return Err(UpgradeError::ProcessOne);
        }
        let start = || {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            let mut arguments = std::env::args_os();
            let program = arguments.next().ok_or(io::ErrorKind::NotFound)?;
            let sockets = data.iter().chain(control).zip(FIRST..);
            let sockets: Vec<_> = sockets
                .map(|(socket, child_fd)| {
                    let parent_fd = socket.try_clone()?.into();
                    Ok::<_, io::Error>(FdMapping { parent_fd, child_fd })
                })
                .collect::<Result<_, _>>()?;
            let mut command = Command::new(program);
            command
                .args(arguments.filter(|argument| argument != FLAG))
                .arg(FLAG)
                .env("LISTEN_FDS", sockets.len().to_string())
                .env_remove("LISTEN_PID")
                .stdin(OwnedFd::from(theirs))
                // It prints nothing there. The lock is held as long as one of us has it open.
                .stdout(lock.try_clone()?)
                .fd_mappings(sockets)
                .map_err(io::Error::other)?;
            let child = tokio::process::Command::from(command).spawn()?;
            let line = Line::over(tokio::net::UnixStream::from_std(ours)?);
            Ok((child.id().unwrap_or_default(), child, line))
        };
        let (pid, child, line) = start().map_err(UpgradeError::Start)?;
        Ok(Self { child, pid, line })
    }

    /// Its next word, within this time.
    async fn expected(&mut self, patience: Duration) -> Result<Reply, UpgradeError> {
        match tokio::time::timeout(patience, self.line.hear()).await {
            Err(_) => Err(UpgradeError::Late(patience.as_secs())),
            Ok(Ok(Some(Reply::Failed(why)))) => Err(UpgradeError::Refused(why)),
            Ok(Ok(Some(reply))) => Ok(reply),
            Ok(Ok(None)) => Err(UpgradeError::Ended("it hung up".into())),
            Ok(Err(error)) => Err(UpgradeError::Ended(error.to_string())),
        }
    }

    /// Waits until it has done all that needs nobody else.
    async fn prepares(&mut self) -> Result<(), UpgradeError> {
        match self.expected(PREPARATION).await? {
            Reply::Prepared(PROTOCOL) => Ok(()),
            Reply::Prepared(other) => Err(UpgradeError::Protocol(other)),
            _ => Err(UpgradeError::Ended("it spoke out of turn".into())),
        }
    }

    /// Gives it what it needs, and waits until it is ready.
    async fn opens(&mut self, hive: &Hive) -> Result<(), UpgradeError> {
        self.says(&Bequest::Estate(hive.dispatcher.hand())).await?;
        match self.expected(OPENING).await? {
            Reply::Ready => Ok(()),
            _ => Err(UpgradeError::Ended("it spoke out of turn".into())),
        }
    }

    /// Makes it the gateway; from the first byte of this word on nothing can be taken back.
    async fn succeeds(&mut self) -> Result<(), UpgradeError> {
        self.says(&Bequest::Go).await
    }

    async fn says(&mut self, word: &Bequest) -> Result<(), UpgradeError> {
        let said = self.line.say(word).await;
        said.map_err(|error| UpgradeError::Ended(error.to_string()))
    }

    /// Ends it, and waits until it is gone, with all it holds.
    async fn dismissed(mut self, error: UpgradeError) -> UpgradeError {
        drop(self.line);
        // It ends by itself when nobody speaks to it any more, and says why in the log.
        let patience = match &error {
            UpgradeError::Stopped => Duration::ZERO,
            _ => Duration::from_secs(1),
        };
        match (tokio::time::timeout(patience, self.child.wait()).await, error) {
            (Ok(Ok(status)), UpgradeError::Ended(_)) => UpgradeError::Ended(status.to_string()),
            (Ok(_), error) => error,
            (Err(_), error) => {
                let _ = self.child.kill().await;
                error
            }
        }
    }

    fn installed(self, records: UnboundedReceiver<Passed>) -> Successor {
        let gone = CancellationToken::new();
        let (stop, words) = unbounded_channel();
        Successor {
            pid: self.pid,
            gone: gone.clone(),
            stop,
            speaking: tokio::spawn(speak(self.line, records, words, gone)),
        }
    }
}

/// Takes our records to the new one, and its answers to whoever waits for them, until there are no more or it is gone.
async fn speak(
    line: Line,
    mut records: UnboundedReceiver<Passed>,
    mut words: UnboundedReceiver<Bequest>,
    gone: CancellationToken,
) {
    let Line { mut heard, mut said } = line;
    let (mut waiting, mut number) = (HashMap::<u64, Answer<()>>::new(), 0);
    let (mut more_records, mut more_words) = (true, true);
    while more_records || more_words {
        let word = tokio::select! {
            passed = records.recv(), if more_records => match passed {
                Some(Passed::Event(event)) => Bequest::Record(event),
                Some(Passed::Denied(denial)) => Bequest::Denied(denial),
                Some(Passed::Durable(event, answer)) => {
                    number += 1;
                    waiting.insert(number, answer);
                    Bequest::Durable(number, event)
                }
                None => {
                    more_records = false;
                    continue;
                }
            },
            word = words.recv(), if more_words => {
                let Some(word) = word else {
                    more_words = false;
                    continue;
                };
                word
            }
            reply = hear(&mut heard) => match reply {
                Ok(Some(Reply::Recorded(number, why))) => {
                    if let Some(answer) = waiting.remove(&number) {
                        let _ = answer.send(why.map_or(Ok(()), |why| Err(Unavailable(why))));
                    }
                    continue;
                }
                Ok(Some(Reply::Cut)) => {
                    gone.cancel();
                    continue;
                }
                Ok(Some(_)) => continue,
                Ok(None) | Err(_) => break,
            },
        };
        if say(&mut said, &word).await.is_err() {
            break;
        }
    }
    let _ = say(&mut said, &Bequest::Farewell).await;
    gone.cancel();
}
