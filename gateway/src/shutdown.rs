//! Going down: first *drain* (finish what runs, take nothing new), then *cut* (end what still runs).
//!
//! It closes nothing itself: the accept loops, the relay and `/readyz` look here.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::Config;

/// Where the program is between running and gone.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    /// Readiness is false and listeners are closed from here on.
    pub drain: CancellationToken,
    /// Running answers end with an in-band error from here on.
    pub cut: CancellationToken,
    /// Every open connection.
    pub connections: TaskTracker,
}

/// SIGTERM and SIGINT, heard from the moment this is made.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on; before, either signal ends the program as the system would.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

impl Lifecycle {
    /// Whether we are going down.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Waits for a signal, then until all connections ended, the drain time is over or a second signal comes.
    pub async fn run(&self, config: &Config, mut signals: Signals) {
        signals.next().await;
        tracing::info!(drain_s = config.server.drain_timeout.as_secs(), "draining");
        self.drain.cancel();
        self.connections.close();
        tokio::select! {
            () = self.connections.wait() => return,
            () = tokio::time::sleep(config.server.drain_timeout) => tracing::warn!("the drain time is over; running answers are cut"),
            () = signals.next() => tracing::warn!("a second signal; running answers are cut"),
        }
        self.end().await;
    }

    /// Closes what is open, now.
    pub async fn end(&self) {
        self.drain.cancel();
        self.connections.close();
        self.cut.cancel();
        // Long enough for every stream to write its last event.
        let last = std::time::Duration::from_millis(500);
        let _ = tokio::time::timeout(last, self.connections.wait()).await;
    }
}
