//! Going down: first *drain* (finish what runs, take nothing new), then *cut* (end what still runs). One who has *handed
//! over* finishes what runs, too, but on connections that stay open takes what comes once more.
//!
//! It closes nothing itself: the accept loops, the relay and `/readyz` look here.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::Config;

/// Where the program is between running and gone.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    /// Nothing is accepted before this.
    pub opened: CancellationToken,
    /// Another process accepts from here on: what comes on open connections is served, and told that it is the last.
    pub handed_over: CancellationToken,
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
    heard: usize,
}

impl Signals {
    /// Listens from now on; before, either signal ends the program as the system would.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            heard: 0,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
        self.heard += 1;
    }

    /// Waits until `farewells` are over, but after a second signal not for long; whether they are.
    pub async fn allow(&mut self, farewells: impl Future<Output = ()>) -> bool {
        let too_late = async {
            while self.heard < 2 {
                self.next().await;
            }
            // The streams' last events had half of the second that is promised.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        };
        tokio::select! {
            () = farewells => true,
            () = too_late => false,
        }
    }
}

impl Lifecycle {
    /// Waits until nothing is to be accepted any more.
    pub async fn closed(&self) {
        tokio::select! {
            () = self.drain.cancelled() => (),
            () = self.handed_over.cancelled() => (),
        }
    }

    /// Whether we are going down.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Takes nothing new, and waits until all connections and `rest` have ended, the drain time is over or a signal comes.
    pub async fn drain(&self, config: &Config, signals: &mut Signals, rest: impl Future<Output = ()>) {
        let limit = config.server.drain_timeout;
        tracing::info!(drain_s = limit.as_secs(), "draining");
        self.drain.cancel();
        self.connections.close();
        tokio::select! {
            _ = futures_util::future::join(self.connections.wait(), rest) => return,
            () = tokio::time::sleep(limit) => tracing::warn!("the drain time is over; running answers are cut"),
            () = signals.next() => tracing::warn!("a second signal; running answers are cut"),
        }
        self.end().await;
    }

    /// Lets a successor take what is new, and waits until all connections and `rest` have ended; after a signal, the drain
    /// time or the end of the successor, not for long.
    pub async fn finish(
        &self,
        config: &Config,
        signals: &mut Signals,
        rest: impl Future<Output = ()>,
        abandoned: impl Future<Output = ()>,
    ) {
        self.handed_over.cancel();
        self.connections.close();
        let mut all = std::pin::pin!(futures_util::future::join(self.connections.wait(), rest));
        tokio::select! {
            _ = &mut all => return,
            () = tokio::time::sleep(config.server.drain_timeout) => tracing::warn!("the drain time is over; running answers are cut"),
            () = abandoned => tracing::warn!("the new gateway ends or is gone; running answers are cut"),
            () = signals.next() => return self.drain(config, signals, async { let ((), ()) = all.await; }).await,
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
