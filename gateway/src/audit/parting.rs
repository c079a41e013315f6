//! A writer that has closed its log, because another process is to have it: what may become of it, and what it passes on.
//!
//! It decides nothing: whoever made the writer part does.

use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::mpsc::UnboundedSender;

use super::{fold::Denial, journal::Answer, log::Log, record::Event};

/// What one process gives to another that has the log now.
#[derive(Debug)]
pub enum Passed {
    /// To be recorded soon.
    Event(Box<Event>),
    /// To be recorded, and somebody waits until it is on the disk.
    Durable(Box<Event>, Answer<()>),
    /// A refused credential.
    Denied(Denial),
}

/// A writer that has closed its log, with all that came before in it; it waits to hear what then.
#[derive(Debug)]
pub struct Parted(Sender<Then>);

/// What becomes of it.
#[derive(Debug)]
pub(super) enum Then {
    /// It writes again.
    Resume(Box<Log>),
    /// It gives all that comes to somebody else.
    PassOn(UnboundedSender<Passed>),
}

impl Parted {
    /// One, and where it hears what becomes of it.
    pub(super) fn new() -> (Self, Receiver<Then>) {
        let (then, decided) = channel();
        (Self(then), decided)
    }

    /// Lets it write again, into the log that was opened anew.
    pub fn resume(self, log: Log) {
        let _ = self.0.send(Then::Resume(Box::new(log)));
    }

    /// Lets it give all that comes to somebody who takes it to the log's new owner.
    pub fn pass_on(self, to: UnboundedSender<Passed>) {
        let _ = self.0.send(Then::PassOn(to));
    }
}
