//! Turns at an engine that takes one request at a time, and what those who wait for theirs are told.
//!
//! Whoever waits says so only as long as the engine gets on: an engine that hangs is silent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Event;

/// How often one who waits looks whether the engine gets on.
const LOOK: Duration = Duration::from_millis(500);

/// Whose turn it is.
#[derive(Debug, Clone)]
pub struct Turns {
    /// None: the engine takes as many as there are slots.
    one: Option<Arc<Semaphore>>,
    /// Tokens chosen and turns ended.
    steps: Arc<AtomicU64>,
}

/// A turn, which ends when it is dropped.
#[derive(Debug)]
pub struct Turn {
    steps: Arc<AtomicU64>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// Turns at an engine that takes one at a time, or as many as come.
    pub fn new(one_at_a_time: bool) -> Self {
        Self {
            one: one_at_a_time.then(|| Arc::new(Semaphore::new(1))),
            steps: Arc::default(),
        }
    }

    /// Whether one request at a time has its turn.
    pub fn is_one_at_a_time(&self) -> bool {
        self.one.is_some()
    }

    /// The next turn, in the order of asking.
    pub async fn take(self) -> Turn {
        let permit = match self.one {
            Some(one) => one.acquire_owned().await.ok(),
            None => None,
        };
        Turn {
            steps: self.steps,
            _permit: permit,
        }
    }

    /// What `begin` makes of a turn; until it comes a word now and then, while the engine gets on with others.
    pub fn begin(
        &self,
        begin: impl FnOnce(Turn) -> BoxStream<'static, Event> + Send + 'static,
    ) -> BoxStream<'static, Event> {
        let steps = self.steps.clone();
        let seen = steps.load(Ordering::Relaxed);
        let waiting = Some((Box::pin(self.clone().take()), begin, seen));
        let stages = stream::unfold(waiting, move |waiting| {
            let steps = steps.clone();
            async move {
                let (mut turn, begin, mut seen) = waiting?;
                loop {
                    if let Ok(turn) = tokio::time::timeout(LOOK, &mut turn).await {
                        return Some((begin(turn), None));
                    }
                    let now = steps.load(Ordering::Relaxed);
                    if now != seen {
                        seen = now;
                        let word = stream::iter([Event::Waiting]).boxed();
                        return Some((word, Some((turn, begin, seen))));
                    }
                }
            }
        });
        stages.flatten().boxed()
    }
}

impl Turn {
    /// The engine got on by a token.
    pub fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.step();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt;

    use super::*;

    fn said(turn: Turn) -> BoxStream<'static, Event> {
        stream::once(async move {
            drop(turn);
            Event::Failed("its turn".to_owned())
        })
        .boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_waits_hears_as_long_as_the_engine_gets_on() {
        let turns = Turns::new(true);
        let first = turns.clone().take().await;
        let mut second = turns.begin(said);
        for _token in 0..3 {
            first.step();
            assert_eq!(second.next().await, Some(Event::Waiting));
        }
        let silence = tokio::time::timeout(Duration::from_secs(600), second.next()).await;
        assert!(silence.is_err(), "an engine that hangs is silent");
        drop(first);
        assert_eq!(second.next().await, Some(Event::Failed("its turn".to_owned())));
        assert_eq!(second.next().await, None);
    }

    #[tokio::test]
    async fn an_engine_that_takes_many_lets_nobody_wait() {
        let turns = Turns::new(false);
        let _first = turns.clone().take().await;
        assert!(turns.begin(said).next().now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_who_leaves_gives_its_place_up() {
        let turns = Turns::new(true);
        let first = turns.clone().take().await;
        let mut leaving = turns.begin(said);
        assert!(leaving.next().now_or_never().is_none());
        drop((leaving, first));
        assert!(turns.clone().take().now_or_never().is_some());
    }
}
