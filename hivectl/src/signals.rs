//! Ctrl-C and its kin, as events: a command says what one means to it, or is simply ended by it.
//!
//! Either way it ends in order, and what it holds is given back.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Failure;

/// What somebody wants of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM, or the terminal has gone.
    Terminate,
}

impl Wish {
    /// A command that was ended by it before it was done.
    pub fn failure(self, next: impl Into<String>) -> Failure {
        match self {
            Self::Interrupt => Failure::interrupted("interrupted", next),
            Self::Terminate => Failure::task("stopped before the command's end", next),
        }
    }
}

/// The signals of this process; from its making on, they no longer end it by themselves.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals over.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Works until a signal comes, which ends the work.
    pub async fn or<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            outcome = work => outcome,
            wish = self.next() => Err(wish.failure("run the command again to go on")),
        }
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.interrupt.recv() => Wish::Interrupt,
            _ = self.terminate.recv() => Wish::Terminate,
            _ = self.hangup.recv() => Wish::Terminate,
        }
    }
}
