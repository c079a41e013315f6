//! The queue of one model: first come, first served within a key, and the keys take turns.
//!
//! It knows no worker and no clock; it is never touched without the dispatcher's lock.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use wire::WorkerId;

use super::Lease;

/// One who waits.
#[derive(Debug)]
pub struct Waiter {
    number: u64,
    /// Workers it must not get.
    pub tried: Vec<WorkerId>,
    /// Where its lease goes.
    pub asker: oneshot::Sender<Lease>,
}

/// Proof of a place in the queue, to give it up.
#[derive(Debug)]
pub struct Ticket {
    key: String,
    number: u64,
}

/// Those who wait for one model.
#[derive(Debug, Default)]
pub struct FairQueue {
    /// Keys in the order of their turns, each with its waiters.
    turns: VecDeque<(String, VecDeque<Waiter>)>,
    len: usize,
    next: u64,
}

impl FairQueue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes a place behind the others of the same key.
    pub fn push(&mut self, key: &str, tried: Vec<WorkerId>, asker: oneshot::Sender<Lease>) -> Ticket {
        let number = self.next;
        self.next += 1;
        self.len += 1;
        let waiter = Waiter { number, tried, asker };
        match self.turns.iter_mut().find(|(k, _)| k == key) {
            Some((_, waiters)) => waiters.push_back(waiter),
            None => self.turns.push_back((key.to_owned(), VecDeque::from([waiter]))),
        }
        Ticket {
            key: key.to_owned(),
            number,
        }
    }

    /// Offers slots to one waiter of each key in turn; `grant` gives a waiter back if there is none for it.
    pub fn serve(&mut self, mut grant: impl FnMut(Waiter) -> Option<Waiter>) {
        let mut refused = 0;
        while refused < self.turns.len() {
            let Some((key, mut waiters)) = self.turns.pop_front() else {
                return;
            };
            if let Some(Some(waiter)) = waiters.pop_front().map(&mut grant) {
                waiters.push_front(waiter);
                // It keeps its turn for the next slot, so the order is as before once all were refused.
                self.turns.push_back((key, waiters));
                refused += 1;
            } else {
                self.len -= 1;
                refused = 0;
                if !waiters.is_empty() {
                    self.turns.push_back((key, waiters));
                }
            }
        }
    }

    /// Gives a place up; nothing happens if it was served already.
    pub fn remove(&mut self, ticket: &Ticket) {
        let Some(turn) = self.turns.iter().position(|(key, _)| *key == ticket.key) else {
            return;
        };
        let waiters = &mut self.turns[turn].1;
        if let Some(place) = waiters.iter().position(|w| w.number == ticket.number) {
            waiters.remove(place);
            self.len -= 1;
        }
        if waiters.is_empty() {
            self.turns.remove(turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(keys: &[&str]) -> (FairQueue, Vec<Ticket>) {
        let mut queue = FairQueue::default();
        let tickets = keys
            .iter()
            .map(|key| queue.push(key, Vec::new(), oneshot::channel().0))
            .collect();
        (queue, tickets)
    }

    fn served(queue: &mut FairQueue, mut slots: usize) -> Vec<u64> {
        let mut order = Vec::new();
        queue.serve(|waiter| {
            if slots == 0 {
                return Some(waiter);
            }
            slots -= 1;
            order.push(waiter.number);
            None
        });
        order
    }

    #[test]
    fn keys_take_turns_however_many_requests_one_of_them_has() {
        let (mut queue, _) = queue(&["greedy", "greedy", "greedy", "modest", "other"]);
        assert_eq!(served(&mut queue, 1), [0]);
        assert_eq!(served(&mut queue, 1), [3]);
        assert_eq!(served(&mut queue, 3), [4, 1, 2]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_place_given_up_is_nobodys() {
        let (mut queue, tickets) = queue(&["a", "b", "a"]);
        queue.remove(&tickets[0]);
        queue.remove(&tickets[0]);
        assert_eq!(queue.len(), 2);
        assert_eq!(served(&mut queue, 9), [2, 1]);
        queue.remove(&tickets[1]);
        assert!(queue.is_empty());
    }

    #[test]
    fn when_nothing_is_free_the_order_stays() {
        let (mut queue, _) = queue(&["a", "b", "c"]);
        assert_eq!(served(&mut queue, 0), [0; 0]);
        assert_eq!(served(&mut queue, 3), [0, 1, 2]);
    }
}
