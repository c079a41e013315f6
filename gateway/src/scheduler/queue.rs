//! The queue of one model: three priorities, and in each the keys' turns by the tokens they ask for.
//!
//! Deficit round robin with a quantum of one token: the rounds in which nobody has saved enough are passed over at once.
//! It knows no worker and no clock; it is never touched without the dispatcher's lock.

use std::collections::VecDeque;

use wire::{Labels, ModelFacts, Priority, WorkerId};

use super::affinity::Home;

/// So many requests of other priorities go before one that is passed over; then it is its turn.
const PATIENCE: u32 = 8;

/// One who waits.
#[derive(Debug)]
pub struct Waiter<A> {
    /// Which of all that ever waited: a ticket of another time is nobody's here.
    number: u64,
    /// What it needs of a worker.
    pub wish: Wish,
    /// Where its slot goes.
    pub asker: A,
}

/// What one who waits needs of a worker.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Tokens it is expected to take.
    pub tokens: u64,
    /// Labels that the worker must have.
    pub labels: Labels,
    /// What is known of workers that cannot do what it asks.
    pub unfit: Vec<ModelFacts>,
    /// Workers it must not get.
    pub tried: Vec<WorkerId>,
    /// It has had a slot before, and is not to pay for what came of that: it goes first, and nobody takes its place.
    pub again: bool,
    /// Where its context lies.
    pub home: Option<Home>,
}

/// Proof of a place in the queue, to give it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    class: usize,
    key: String,
    number: u64,
}

/// Those who wait for one model.
#[derive(Debug)]
pub struct FairQueue<A> {
    classes: [Class<A>; 3],
}

#[derive(Debug)]
struct Class<A> {
    lines: VecDeque<Line<A>>,
    /// The round that the turns have come to.
    round: u64,
    /// Requests of other classes that were served while this one waited.
    passed_over: u32,
}

/// Those who wait with one key.
#[derive(Debug)]
struct Line<A> {
    key: String,
    /// The round up to which the key has used what it was given.
    paid_until: u64,
    waiters: VecDeque<Waiter<A>>,
}

impl<A> Line<A> {
    /// The round in which the key has saved enough for its next request.
    fn due(&self) -> u64 {
        let cost = self.waiters.front().map_or(0, |waiter| waiter.wish.tokens.max(1));
        self.paid_until.saturating_add(cost)
    }
}

impl<A> Class<A> {
    fn len(&self) -> usize {
        self.lines.iter().map(|line| line.waiters.len()).sum()
    }

    fn line(&mut self, key: &str) -> Option<&mut Line<A>> {
        self.lines.iter_mut().find(|line| line.key == key)
    }

    /// The keys in the order of their turns.
    fn turns(&self) -> Vec<usize> {
        let mut turns: Vec<usize> = (0..self.lines.len()).collect();
        turns.sort_by_key(|turn| self.lines[*turn].due());
        turns
    }

    /// Takes the one in this place of this line, whose turn it is.
    fn serve(&mut self, line: usize, place: usize) -> Option<Waiter<A>> {
        let mut served = self.lines.remove(line)?;
        let waiter = served.waiters.remove(place);
        let tokens = waiter.as_ref().map_or(0, |waiter| waiter.wish.tokens.max(1));
        served.paid_until = served.paid_until.saturating_add(tokens);
        self.round = self.round.max(served.paid_until);
        if !served.waiters.is_empty() {
            self.lines.push_back(served);
        }
        waiter
    }
}

impl<A> Default for FairQueue<A> {
    fn default() -> Self {
        let class = || Class {
            lines: VecDeque::new(),
            round: 0,
            passed_over: 0,
        };
        Self {
            classes: [class(), class(), class()],
        }
    }
}

impl<A> FairQueue<A> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.classes.iter().map(Class::len).sum()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(|class| class.lines.is_empty())
    }

    /// Takes a place behind the others of the same key, or before them if it has had a slot before.
    pub fn push(&mut self, number: u64, priority: Priority, key: &str, wish: Wish, asker: A) -> Ticket {
        let goes_first = wish.again;
        let waiter = Waiter { number, wish, asker };
        let of = class_of(priority);
        let class = &mut self.classes[of];
        match class.line(key) {
            Some(line) if goes_first => line.waiters.push_front(waiter),
            Some(line) => line.waiters.push_back(waiter),
            None => class.lines.push_back(Line {
                key: key.to_owned(),
                paid_until: class.round,
                waiters: VecDeque::from([waiter]),
            }),
        }
        Ticket {
            class: of,
            key: key.to_owned(),
            number,
        }
    }

    /// Makes room for a newcomer in a full queue: who has the most places gives up its latest one, in its own priority
    /// or a lower one. Every priority keeps an eighth of the places. None if nobody has more than the newcomer.
    pub fn make_room(&mut self, priority: Priority, key: &str, places: usize) -> Option<A> {
        let own = class_of(priority);
        let kept = (places / 8).max(1);
        let is_owed = self.classes[own].len() < kept;
        let mine = self.classes[own].line(key).map_or(0, |line| line.waiters.len());
        for class in (0..self.classes.len()).rev() {
            let held = self.classes[class].len();
            let lines = &mut self.classes[class].lines;
            let longest = lines.iter_mut().max_by_key(|line| line.waiters.len());
            let gives = match &longest {
                Some(line) if class == own => line.waiters.len() > mine + 1,
                Some(_) => (class > own || is_owed) && held > kept,
                None => false,
            };
            let latest = |line: &Line<A>| line.waiters.iter().rposition(|waiter| !waiter.wish.again);
            if let Some((line, place)) = longest
                .filter(|_| gives)
                .and_then(|line| latest(line).map(|at| (line, at)))
            {
                let waiter = line.waiters.remove(place);
                lines.retain(|line| !line.waiters.is_empty());
                return waiter.map(|waiter| waiter.asker);
            }
        }
        None
    }

    /// The first of those whose turn it is, and whom `takes` finds something for.
    pub fn serve<T>(&mut self, mut takes: impl FnMut(&Wish) -> Option<T>) -> Option<(Waiter<A>, T)> {
        let patient = |class: &Class<A>| class.passed_over < PATIENCE;
        let mut order = [0, 1, 2];
        order.sort_by_key(|class| (patient(&self.classes[*class]), *class));
        for class in order {
            for line in self.classes[class].turns() {
                // What is free may be of no use to the first of a key, and of use to one behind it.
                let mut waiters = self.classes[class].lines[line].waiters.iter().enumerate();
                let found = waiters.find_map(|(place, waiter)| Some((place, takes(&waiter.wish)?)));
                let Some((place, taken)) = found else { continue };
                let waiter = self.classes[class].serve(line, place)?;
                for (other, passed) in self.classes.iter_mut().enumerate() {
                    passed.passed_over = match other {
                        _ if other == class || passed.lines.is_empty() => 0,
                        _ => passed.passed_over + 1,
                    };
                }
                return Some((waiter, taken));
            }
        }
        None
    }

    /// Gives a place up; nothing happens if it was served already.
    pub fn remove(&mut self, ticket: &Ticket) {
        let class = &mut self.classes[ticket.class];
        if let Some(line) = class.line(&ticket.key) {
            line.waiters.retain(|waiter| waiter.number != ticket.number);
            class.lines.retain(|line| !line.waiters.is_empty());
        }
    }

    /// About how many are served up to and with this one; none if it waits no more.
    pub fn position(&self, ticket: &Ticket) -> Option<usize> {
        let class = &self.classes[ticket.class];
        let own = class.lines.iter().find(|line| line.key == ticket.key)?;
        let turn = own.waiters.iter().position(|waiter| waiter.number == ticket.number)? + 1;
        let before: usize = self.classes[..ticket.class].iter().map(Class::len).sum();
        let beside: usize = class.lines.iter().map(|line| line.waiters.len().min(turn)).sum();
        Some(before + beside)
    }
}

fn class_of(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
