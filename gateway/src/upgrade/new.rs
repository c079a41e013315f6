//! What a gateway does that takes over from a running one: prepares, comes into what it is handed, and from then on
//! records what the old one still has to say.
//!
//! Until it is told to go it accepts nothing, and when the old one hangs up before that, it ends.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use listenfd::ListenFd;
use tokio::sync::mpsc::unbounded_channel;
use tokio_util::sync::CancellationToken;

use super::{Bequest, Line, PROTOCOL, Reply, UpgradeError, hear, say};
use crate::{
    audit::record::{Event, Kind},
    config::Config,
    db::{self, DbError},
    registry::members::Handed,
    state::Hive,
};

/// What the old one hands over.
pub struct Inheritance {
    data: Vec<TcpListener>,
    control: Vec<TcpListener>,
    stream: UnixStream,
    line: Option<Line>,
    running: Vec<Event>,
}

/// The old gateway, as the new one sees it.
#[derive(Debug, Clone)]
pub struct Predecessor {
    /// It has finished, or died.
    pub gone: CancellationToken,
    /// It asks us to stop.
    pub asks: CancellationToken,
    cut: CancellationToken,
}

impl Inheritance {
    /// Takes what this process was started with.
    pub fn receive(mut sockets: ListenFd, config: &Config) -> Result<Self, UpgradeError> {
        let none = UpgradeError::NoPredecessor;
        let mut taken = Vec::with_capacity(sockets.len());
        for number in 0..sockets.len() {
            taken.extend(sockets.take_tcp_listener(number).map_err(none)?);
        }
        let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(none)?;
        let stream = UnixStream::from(stdin);
        stream.set_nonblocking(true).map_err(none)?;
        stream.peer_addr().map_err(none)?;
        let control = taken.pop().ok_or_else(|| none(io::ErrorKind::NotFound.into()))?;
        for (wanted, has) in [
            (config.server.listen, taken.first()),
            (config.control.listen, Some(&control)),
        ] {
            let has = has.ok_or_else(|| none(io::ErrorKind::NotFound.into()))?;
            is_same(wanted, has.local_addr().map_err(none)?)?;
        }
        Ok(Self {
            data: taken,
            control: vec![control],
            stream,
            line: None,
            running: Vec::new(),
        })
    }

    /// The listening sockets of the data plane, one for each of its threads, and those of the control plane.
    pub fn take_sockets(&mut self) -> (Vec<TcpListener>, Vec<TcpListener>) {
        (std::mem::take(&mut self.data), std::mem::take(&mut self.control))
    }

    /// The lock on the state folder, which the old one holds with us.
    pub fn lock(&self) -> io::Result<File> {
        let lock: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(File::from(lock))
    }

    /// Says that all is prepared, and waits for the old one to give up the journal; the workers it knows.
    pub async fn estate(&mut self) -> Result<Vec<Handed>, UpgradeError> {
        let line = self.line()?;
        line.say(&Reply::Prepared(PROTOCOL)).await.map_err(gone)?;
        match line.hear().await.map_err(gone)? {
            Some(Bequest::Estate(workers)) => Ok(workers),
            _ => Err(UpgradeError::Abandoned),
        }
    }

    /// The requests whose ends the old one will say.
    pub fn runs(&mut self, running: Vec<Event>) {
        self.running = running;
    }

    /// Says that everything is open, and waits to be told to go; what the old one says from then on is recorded.
    pub async fn settle(mut self, hive: Arc<Hive>) -> Result<Predecessor, UpgradeError> {
        let line = self.line()?;
        line.say(&Reply::Ready).await.map_err(gone)?;
        let Some(Bequest::Go) = line.hear().await.map_err(gone)? else {
            return Err(UpgradeError::Abandoned);
        };
        let line = self.line.take().ok_or(UpgradeError::Abandoned)?;
        let predecessor = Predecessor {
            gone: CancellationToken::new(),
            asks: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        tokio::spawn(attend(line, hive, self.running, predecessor.clone()));
        Ok(predecessor)
    }

    /// Says why it will not take over.
    pub async fn refuse(&mut self, why: &str) {
        if let Ok(line) = self.line() {
            let _ = line.say(&Reply::Failed(why.to_owned())).await;
        }
    }

    fn line(&mut self) -> Result<&mut Line, UpgradeError> {
        if self.line.is_none() {
            let stream = self.stream.try_clone().and_then(tokio::net::UnixStream::from_std);
            self.line = Some(Line::over(stream.map_err(UpgradeError::NoPredecessor)?));
        }
        self.line.as_mut().ok_or(UpgradeError::Abandoned)
    }
}

impl Predecessor {
    /// Has it end what still runs, and waits for its last words.
    pub async fn cut(&self) {
        self.cut.cancel();
        let last = std::time::Duration::from_secs(1);
        let _ = tokio::time::timeout(last, self.gone.cancelled()).await;
    }
}

fn gone(_: io::Error) -> UpgradeError {
    UpgradeError::Abandoned
}

/// A configuration that lets the system choose the port fits any.
fn is_same(wanted: SocketAddr, has: SocketAddr) -> Result<(), UpgradeError> {
    if wanted.ip() == has.ip() && (wanted.port() == 0 || wanted.port() == has.port()) {
        Ok(())
    } else {
        Err(UpgradeError::Elsewhere(wanted, has))
    }
}

/// Records what the old one says until it is gone; what it did not end by then is closed as aborted.
async fn attend(line: Line, hive: Arc<Hive>, running: Vec<Event>, predecessor: Predecessor) {
    let Line { mut heard, mut said } = line;
    let (replies, mut to_say) = unbounded_channel();
    let mut running: HashMap<String, Event> = running
        .into_iter()
        .filter_map(|event| Some((event.req.clone()?, event)))
        .collect();
    let mut is_told = false;
    let finished = loop {
        let word = tokio::select! {
            word = hear(&mut heard) => word,
            Some(reply) = to_say.recv() => {
                let _ = say(&mut said, &reply).await;
                continue;
            }
            () = predecessor.cut.cancelled(), if !is_told => {
                is_told = true;
                let _ = say(&mut said, &Reply::Cut).await;
                continue;
            }
        };
        match word {
            Ok(Some(Bequest::Record(event))) => {
                note(&mut running, &event);
                hive.audit.journal.record(*event);
            }
            Ok(Some(Bequest::Durable(number, event))) => {
                note(&mut running, &event);
                let (journal, replies) = (hive.audit.journal.clone(), replies.clone());
                tokio::spawn(async move {
                    let why = journal.durable(*event).await.err().map(|error| error.0);
                    let _ = replies.send(Reply::Recorded(number, why));
                });
            }
            Ok(Some(Bequest::Denied(denial))) => hive.audit.journal.denied(denial),
            Ok(Some(Bequest::Stop)) => predecessor.asks.cancel(),
            Ok(Some(Bequest::Farewell)) => break true,
            Ok(Some(Bequest::Estate(_) | Bequest::Go)) => {}
            Ok(None) | Err(_) => break false,
        }
    };
    if finished {
        tracing::info!("the old gateway has finished");
    } else {
        tracing::warn!(
            requests = running.len(),
            "the old gateway died; what it still ran is closed as aborted"
        );
        for started in running.into_values() {
            hive.audit.journal.record(started.aborted());
        }
        if let Err(error) = abort_all_but_ours(&hive).await {
            tracing::error!(
                cause = crate::error::chain(&error),
                "what the old gateway ran could not be closed as aborted"
            );
        }
    }
    predecessor.gone.cancel();
}

async fn abort_all_but_ours(hive: &Hive) -> Result<(), DbError> {
    let open = db::requests::open_ids(&hive.db).await?;
    // Asked later, so that none of ours is missing.
    let ours = hive.books.open_ids();
    for id in open.iter().filter(|id| !ours.contains(*id)) {
        db::requests::abort(&hive.db, id).await?;
    }
    Ok(())
}

/// Keeps track of what runs in the old one.
fn note(running: &mut HashMap<String, Event>, event: &Event) {
    let Some(request) = &event.req else { return };
    match event.kind {
        Kind::RequestStart => drop(running.insert(request.clone(), event.clone())),
        Kind::RequestEnd | Kind::RequestAborted => drop(running.remove(request)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_keeps_its_addresses() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(is_same(at("127.0.0.1:0"), at("127.0.0.1:4321")).is_ok());
        assert!(is_same(at("127.0.0.1:4321"), at("127.0.0.1:4321")).is_ok());
        for other in ["127.0.0.1:7411", "0.0.0.0:4321", "[::1]:4321"] {
            let refused = is_same(at(other), at("127.0.0.1:4321")).unwrap_err();
            assert!(refused.to_string().contains("stop and start instead"), "{refused}");
        }
    }
}
