//! The worker's slots: which are free, and which the engine still holds though the client has left.
//!
//! It gives slots out and counts them. It never decides who gets one, and never takes one back: a slot is free when the
//! last who works in it has let go.

use std::{
    future::Future,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Most engines let go at the next token; a slot is worth a word when it is still busy after this.
const WORTH_A_WORD: Duration = Duration::from_millis(100);

/// All slots of a worker.
pub struct Slots {
    most: u32,
    free: Arc<Semaphore>,
    ledger: Arc<Ledger>,
}

/// What is known of slots beyond those that are free.
#[derive(Debug, Default)]
struct Ledger {
    /// Slots whose clients have left before the engine let go.
    still_busy: watch::Sender<u32>,
    /// Slots given back since the start.
    ended: AtomicU64,
}

/// A slot that is taken. Whoever does the work holds it, and when the last of them drops it, the slot is free.
#[derive(Debug, Clone)]
pub struct Slot(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    ledger: Arc<Ledger>,
    is_left: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

/// The client of a slot. Dropped while the engine holds the slot, it leaves the slot *cancelled, still busy*.
#[derive(Debug)]
pub struct Client(Weak<Taken>);

impl Slots {
    /// So many free slots.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            free: Arc::new(Semaphore::new(most as usize)),
            ledger: Arc::default(),
        }
    }

    /// Takes a slot. Waits a moment for one whose client has just left: the engine lets go at the next token.
    pub fn take(&self) -> impl Future<Output = Option<Slot>> + Send + use<> {
        let (free, ledger) = (self.free.clone(), self.ledger.clone());
        async move {
            let permit = tokio::time::timeout(Duration::from_secs(1), free.acquire_owned()).await;
            Some(Slot(Arc::new(Taken {
                ledger,
                is_left: AtomicBool::new(false),
                _permit: permit.ok()?.ok()?,
            })))
        }
    }

    /// Ends when all slots are taken a second from now, or any number of seconds.
    pub async fn stay_full(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.free.available_permits() == 0 {
                return;
            }
        }
    }

    /// All there are.
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Slots that are taken, those that are still busy among them.
    pub fn in_flight(&self) -> u32 {
        self.most
            .saturating_sub(u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX))
    }

    /// Slots whose clients have left, while the engine cannot let go of the work.
    pub fn still_busy(&self) -> u32 {
        *self.ledger.still_busy.borrow()
    }

    /// Slots given back since the start: requests the engine has let go of, however they ended.
    pub fn ended(&self) -> u64 {
        self.ledger.ended.load(Ordering::Relaxed)
    }

    /// Ends when another number of slots than `told` is still busy, for longer than a token takes.
    pub async fn news(&self, told: u32) {
        let mut still_busy = self.ledger.still_busy.subscribe();
        loop {
            let is_more = still_busy
                .wait_for(|now| *now != told)
                .await
                .is_ok_and(|now| *now > told);
            if is_more {
                tokio::time::sleep(WORTH_A_WORD).await;
            }
            if *still_busy.borrow_and_update() != told {
                return;
            }
        }
    }
}

impl Slot {
    /// The client that the work in this slot is for.
    pub fn client(&self) -> Client {
        Client(Arc::downgrade(&self.0))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(slot) = self.0.upgrade() {
            slot.is_left.store(true, Ordering::Relaxed);
            slot.ledger.still_busy.send_modify(|count| *count += 1);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.ledger.ended.fetch_add(1, Ordering::Relaxed);
        if *self.is_left.get_mut() {
            self.ledger.still_busy.send_modify(|count| *count -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_slot_whose_client_has_left_is_still_busy_until_the_engine_lets_go() {
        let slots = Slots::new(2);
        let work = slots.take().await.unwrap();
        let client = work.client();
        assert_eq!((slots.in_flight(), slots.still_busy(), slots.ended()), (1, 0, 0));
        drop(client);
        assert_eq!((slots.in_flight(), slots.still_busy(), slots.ended()), (1, 1, 0));
        drop(work);
        assert_eq!((slots.in_flight(), slots.still_busy(), slots.ended()), (0, 0, 1));
    }

    #[tokio::test]
    async fn a_client_that_stays_to_the_end_leaves_nothing_behind() {
        let slots = Slots::new(1);
        let work = slots.take().await.unwrap();
        let client = work.client();
        drop(work);
        drop(client);
        assert_eq!((slots.in_flight(), slots.still_busy(), slots.ended()), (0, 0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_worker_says_so_after_a_moment() {
        let slots = Slots::new(1);
        let _work = slots.take().await.unwrap();
        assert!(slots.take().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_slot_that_stays_busy_is_news() {
        let slots = Slots::new(2);
        let (brief, long) = (slots.take().await.unwrap(), slots.take().await.unwrap());
        let began = tokio::time::Instant::now();
        drop(brief.client());
        let lets_go = async {
            tokio::time::sleep(WORTH_A_WORD / 2).await;
            drop(brief);
            tokio::time::sleep(WORTH_A_WORD * 4).await;
            drop(long.client());
            pending::<()>().await;
        };
        tokio::select! {
            () = slots.news(0) => {}
            () = lets_go => {}
        }
        assert!(began.elapsed() >= WORTH_A_WORD * 5, "the brief one was news");
        assert_eq!(slots.still_busy(), 1);
        let waiting = tokio::time::Instant::now();
        drop(long);
        slots.news(1).await;
        assert_eq!(
            waiting.elapsed(),
            Duration::ZERO,
            "a slot that comes free is news at once"
        );
    }
}
