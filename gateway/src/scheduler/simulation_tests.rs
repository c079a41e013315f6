//! The fleet under every fault at once, on simulated time: ten thousand histories, each from one number.
//!
//! Everything that decides is the real thing ([`Fleet`], [`Course`], [`Budget`], [`Memory`]); workers, clients and the
//! clock are played. A failure names its seed; `SEED=n cargo test -p gateway --lib simulation` plays that one alone.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
};

use wire::{WorkerKind, WorkerState};

use super::{
    retry::{Course, Fault, Next},
    *,
};
use crate::registry::members::{Member, Standing};

mod promises;

const SEEDS: u64 = 10_000;
const HOSTS: usize = 4;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const PLACES_PER_SLOT: u32 = 2;
/// The most that may wait: places for the slots of all hosts.
const PLACES: usize = 14;
pub(super) const LONGEST_WAIT: u64 = 10_000;
const FIRST_TOKEN: u64 = 20_000;

pub(super) const LIMITS: Limits = Limits {
    silence: Duration::from_secs(15),
    stall: Duration::from_millis(FIRST_TOKEN),
};

/// `SplitMix64`.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrival,
    Heartbeats,
    Sweep,
    Chaos,
    /// The attempt of this number of this request comes to its end.
    Attempt(usize, u32),
    /// This request has waited as long as it may, for its slot of this number.
    Timeout(usize, u32),
    Cancel(usize),
    /// The first of those who were answered comes to know it, and leaves the queue in which it is no more.
    Notice,
}

/// How a worker behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    Failing,
    Stalled,
    Dead,
}

/// A worker as it really is.
#[derive(Debug)]
struct Host {
    epoch: i64,
    mood: Mood,
    /// Its heartbeats arrive.
    heard: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Completed,
    Failed,
    Cancelled,
    Refused,
}

struct Client {
    key: &'static str,
    priority: Priority,
    tokens: u64,
    context: Context,
    course: Course,
    attempts: u32,
    ticket: Option<Ticket>,
    claim: Option<(Claim, Instant)>,
    permit: Option<retry::Permit>,
    end: Option<End>,
}

struct World {
    dice: Dice,
    start: Instant,
    /// Milliseconds since the start.
    now: u64,
    fleet: Fleet<usize>,
    memory: Memory,
    budget: Arc<Budget>,
    hosts: Vec<Host>,
    clients: Vec<Client>,
    future: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    planned: u64,
    /// Tickets of those who have been answered and do not know it yet.
    stale: VecDeque<Ticket>,
    ejections: u64,
}

pub(super) fn model() -> ModelName {
    "m".parse().unwrap()
}

pub(super) fn id(host: usize) -> WorkerId {
    format!("w{host}").parse().unwrap()
}

pub(super) fn worker(host: usize, epoch: i64, slots: u32, now: Instant) -> Member {
    let target = Target {
        id: id(host),
        epoch,
        kind: WorkerKind::Own,
        url: String::new(),
        bearer: None,
    };
    Member::new(target, vec![model()], slots, now)
}

impl World {
    fn new(seed: u64) -> Self {
        let host = || Host {
            epoch: 0,
            mood: Mood::Dead,
            heard: true,
        };
        let mut world = Self {
            dice: Dice(seed),
            start: Instant::now(),
            now: 0,
            fleet: Fleet::new(LIMITS, PLACES_PER_SLOT),
            memory: Memory::default(),
            budget: Arc::default(),
            hosts: (0..HOSTS).map(|_| host()).collect(),
            clients: Vec::new(),
            future: BinaryHeap::new(),
            planned: 0,
            stale: VecDeque::new(),
            ejections: 0,
        };
        world.fleet.remember_model(model(), 0, ModelFacts::default());
        for host in 0..HOSTS {
            world.join(host);
        }
        for happening in [
            Happening::Arrival,
            Happening::Heartbeats,
            Happening::Sweep,
            Happening::Chaos,
        ] {
            world.plan(0, happening);
        }
        world
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn plan(&mut self, after: u64, happening: Happening) {
        self.planned += 1;
        self.future.push(Reverse((self.now + after, self.planned, happening)));
    }

    fn apply(&mut self, event: Event) -> Result<bool, Refused> {
        let result = self.fleet.apply(event, self.instant());
        self.check_ejections();
        self.answer();
        self.check_waiting();
        result
    }

    /// A process of this worker starts and registers; whoever held the id is gone, or lingers on with what it has.
    fn join(&mut self, host: usize) {
        if self.dice.one_in(2) {
            self.dies(host);
        }
        self.hosts[host].epoch += 1;
        self.hosts[host].mood = Mood::Well;
        let slots = 1 + u32::try_from(host % 3).unwrap();
        let member = worker(host, self.hosts[host].epoch, slots, self.instant());
        self.apply(Event::Joined(Box::new(member))).unwrap();
    }

    fn dies(&mut self, host: usize) {
        self.hosts[host].mood = Mood::Dead;
        let epoch = self.hosts[host].epoch;
        let lost = |client: &Client| {
            let claim = client.claim.as_ref().map(|(claim, _)| &claim.target);
            claim.is_some_and(|target| target.id == id(host) && target.epoch == epoch)
        };
        let lost: Vec<usize> = (0..self.clients.len()).filter(|n| lost(&self.clients[*n])).collect();
        for client in lost {
            self.lost(client);
        }
    }

    /// The worker died with this request, before its first event or after it.
    fn lost(&mut self, client: usize) {
        if self.dice.one_in(2) {
            self.attempt_failed(client, Fault::Died);
        } else {
            self.report(client, Outcome::Broken);
            self.end(client, End::Failed);
        }
    }

    fn arrival(&mut self) {
        let key = KEYS[usize::try_from(self.dice.roll(KEYS.len() as u64)).unwrap()];
        let session = self.dice.roll(8).to_string();
        self.clients.push(Client {
            key,
            priority: Priority::ALL[usize::try_from(self.dice.roll(3)).unwrap()],
            tokens: 1 + self.dice.roll(1000),
            context: Context::default().in_session(key, Some(&session)),
            course: Course::default(),
            attempts: 0,
            ticket: None,
            claim: None,
            permit: None,
            end: None,
        });
        let client = self.clients.len() - 1;
        self.budget.request(self.instant());
        if self.dice.one_in(5) {
            let after = self.dice.roll(20_000);
            self.plan(after, Happening::Cancel(client));
        }
        self.ask(client);
    }

    fn ask(&mut self, client: usize) {
        let asking = &self.clients[client];
        let order = Order {
            need: Need {
                model: &model(),
                tokens: asking.tokens,
                labels: &Labels::new(),
                unfit: &[],
                tried: asking.course.tried(),
                home: self.memory.find(&asking.context),
            },
            key: asking.key,
            priority: asking.priority,
            again: asking.attempts > 0,
        };
        let admission = self
            .fleet
            .admit(&order, || client, self.start + Duration::from_millis(self.now));
        match admission {
            Ok(Admission::Granted(claim)) => self.granted(client, claim),
            Ok(Admission::Queued(ticket)) => {
                let attempt = self.clients[client].attempts;
                self.clients[client].ticket = Some(ticket);
                self.plan(LONGEST_WAIT, Happening::Timeout(client, attempt));
            }
            Err(NoSlot::UnknownModel) => panic!("the model is known"),
            Err(_) if asking.attempts > 0 => self.end(client, End::Failed),
            Err(_) => self.end(client, End::Refused),
        }
        // One whose worker failed keeps its place in a full queue; those are no more than there are slots.
        let waits = |client: &&Client| client.ticket.is_some() && client.attempts == 0;
        assert!(
            self.clients.iter().filter(waits).count() <= PLACES,
            "the queue is bounded"
        );
        self.answer();
    }

    /// Passes on what became of those who waited.
    fn answer(&mut self) {
        for (client, outcome) in self.fleet.take_grants() {
            let ticket = self.clients[client].ticket.take();
            self.stale.push_back(ticket.expect("nobody is answered twice"));
            let after = self.dice.roll(3);
            self.plan(after, Happening::Notice);
            match outcome {
                Ok(claim) => self.granted(client, claim),
                Err(NoSlot::QueueFull { .. }) => self.end(client, End::Refused),
                Err(other) => panic!("{other:?} is no reason to lose a place"),
            }
        }
    }

    fn granted(&mut self, client: usize, claim: Claim) {
        let now = self.instant();
        let members = self.fleet.members();
        let member = members.get(&claim.target.id).expect("a worker that is registered");
        assert_eq!(member.target.epoch, claim.target.epoch, "the epoch is the present one");
        assert!(
            !self.clients[client].course.tried().contains(&claim.target.id),
            "never the same worker twice"
        );
        match members.standing(member, now) {
            Standing::Open => assert!(member.in_flight <= member.slots),
            Standing::HalfOpen => assert_eq!((member.probes, claim.is_probe), (1, true), "one probe at a time"),
            other => panic!("{other:?} workers get nothing"),
        }
        self.memory.keep(&self.clients[client].context, claim.home);
        if let Some(permit) = self.clients[client].permit.take() {
            permit.spend(now);
        }
        let after = match self.host_of(&claim).map(|host| host.mood) {
            None | Some(Mood::Dead) => 2,
            Some(Mood::Stalled) => FIRST_TOKEN,
            Some(_) => 50 + self.dice.roll(8000),
        };
        let asking = &mut self.clients[client];
        asking.attempts += 1;
        asking.claim = Some((claim, now));
        let attempt = asking.attempts;
        self.plan(after, Happening::Attempt(client, attempt));
    }

    /// The process that a claim means, if it is still that one.
    fn host_of(&self, claim: &Claim) -> Option<&Host> {
        let named = (0..HOSTS).find(|host| id(*host) == claim.target.id)?;
        Some(&self.hosts[named]).filter(|host| host.epoch == claim.target.epoch)
    }

    fn attempt_ends(&mut self, client: usize, attempt: u32) {
        let asking = &self.clients[client];
        let Some((claim, _)) = asking.claim.as_ref().filter(|_| asking.attempts == attempt) else {
            return;
        };
        match self.host_of(claim).map(|host| host.mood) {
            None | Some(Mood::Dead) => self.attempt_failed(client, Fault::Unreachable),
            Some(Mood::Failing | Mood::Stalled) => self.attempt_failed(client, Fault::Bad),
            Some(Mood::Well) => {
                self.report(client, Outcome::Fine);
                self.end(client, End::Completed);
            }
        }
    }

    fn attempt_failed(&mut self, client: usize, fault: Fault) {
        let outcome = match fault {
            Fault::Unreachable | Fault::Died => Outcome::Broken,
            Fault::Garbled | Fault::Bad => Outcome::Failed,
        };
        let Some(worker) = self.report(client, outcome) else {
            return;
        };
        self.release(client);
        let next = self.clients[client].course.failed(worker, fault);
        let open = self.clients.iter().filter(|client| client.end.is_none()).count();
        let permit = match next {
            Next::Budgeted => self.budget.permit(open, self.instant()),
            _ => None,
        };
        if next == Next::Free || permit.is_some() {
            self.clients[client].permit = permit;
            self.ask(client);
        } else {
            self.end(client, End::Failed);
        }
    }

    fn report(&mut self, client: usize, outcome: Outcome) -> Option<WorkerId> {
        let claim = &self.clients[client].claim.as_ref()?.0;
        let (target, is_probe) = (claim.target.clone(), claim.is_probe);
        let ending = Ending {
            outcome,
            is_probe,
            reason: None,
        };
        // A worker that came back meanwhile is judged no more.
        let _ = self.apply(Event::Ended(target.id.clone(), target.epoch, ending));
        Some(target.id.clone())
    }

    fn release(&mut self, client: usize) {
        let Some((claim, taken)) = self.clients[client].claim.take() else {
            return;
        };
        let used = Use {
            held: self.instant() - taken,
            generated: claim.tokens,
            decoding: self.instant() - taken,
        };
        self.fleet.release(&claim, used, self.instant());
        self.answer();
        self.check_waiting();
    }

    fn end(&mut self, client: usize, end: End) {
        self.release(client);
        let ended = &mut self.clients[client];
        if let Some(ticket) = ended.ticket.take() {
            self.fleet.leave(&model(), &ticket);
        }
        ended.permit = None;
        let before = ended.end.replace(end);
        assert_eq!(before, None, "one outcome for each request");
    }

    fn chaos(&mut self) {
        let host = usize::try_from(self.dice.roll(HOSTS as u64)).unwrap();
        let epoch = self.hosts[host].epoch;
        match self.dice.roll(12) {
            0 | 1 => self.dies(host),
            2..=4 => self.join(host),
            5 => self.hosts[host].heard = !self.hosts[host].heard,
            6 if self.hosts[host].mood != Mood::Dead => self.hosts[host].mood = Mood::Failing,
            7 if self.hosts[host].mood != Mood::Dead => self.hosts[host].mood = Mood::Stalled,
            8 => {
                let _ = self.apply(Event::DrainWanted(id(host)));
            }
            9 => {
                self.dies(host);
                let _ = self.apply(Event::Left(id(host), epoch));
            }
            // A process of an earlier epoch that still speaks changes nothing.
            10 => {
                let stale = self.apply(Event::Beat(id(host), beat(epoch - 1)));
                assert!(matches!(stale, Err(Refused::Stale | Refused::Unknown)), "{stale:?}");
                assert!(self.apply(Event::Left(id(host), epoch - 1)).is_err());
            }
            // The machine was asleep.
            11 => self.now += self.dice.roll(30_000),
            _ => {}
        }
    }

    fn heartbeats(&mut self) {
        for host in 0..HOSTS {
            let Host { epoch, mood, heard } = self.hosts[host];
            if heard && mood != Mood::Dead {
                let held = u32::from(mood == Mood::Stalled);
                let beat = wire::Heartbeat {
                    in_flight: held,
                    ..beat(epoch)
                };
                let _ = self.apply(Event::Beat(id(host), beat));
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrival => {
                self.arrival();
                let after = self.dice.roll(1500);
                self.plan(after, Happening::Arrival);
            }
            Happening::Heartbeats => {
                self.heartbeats();
                self.plan(5000, Happening::Heartbeats);
            }
            Happening::Sweep => {
                let _ = self.apply(Event::Swept);
                self.plan(1000, Happening::Sweep);
            }
            Happening::Chaos => {
                self.chaos();
                let after = self.dice.roll(4000);
                self.plan(after, Happening::Chaos);
            }
            Happening::Attempt(client, attempt) => self.attempt_ends(client, attempt),
            Happening::Timeout(client, attempt) => {
                let waits = &self.clients[client];
                if waits.ticket.is_some() && waits.attempts == attempt {
                    let end = if attempt == 0 { End::Refused } else { End::Failed };
                    self.end(client, end);
                }
            }
            Happening::Cancel(client) if self.clients[client].end.is_none() => {
                // A client that leaves is no fault of the worker's.
                self.end(client, End::Cancelled);
            }
            Happening::Cancel(_) => {}
            Happening::Notice => {
                if let Some(ticket) = self.stale.pop_front() {
                    self.fleet.leave(&model(), &ticket);
                }
            }
        }
    }

    /// Plays on until this time, or until nothing is left to happen.
    fn play_until(&mut self, end: u64, wanted: fn(&Happening) -> bool) {
        while let Some(Reverse((at, _, happening))) = self.future.pop() {
            if at > end {
                self.future.push(Reverse((at, 0, happening)));
                break;
            }
            // It may have jumped ahead meanwhile.
            self.now = self.now.max(at);
            if wanted(&happening) {
                self.happen(happening);
                self.check_slots();
            }
        }
    }
}

pub(super) fn beat(epoch: i64) -> wire::Heartbeat {
    wire::Heartbeat::idle(epoch, WorkerState::Ready)
}

/// One history; how many of its requests were completed.
fn history(seed: u64) -> usize {
    let mut world = World::new(seed);
    world.play_until(40_000, |_| true);
    world.wind_up();
    let completed = |client: &&Client| client.end == Some(End::Completed);
    world.clients.iter().filter(completed).count()
}

#[test]
fn ten_thousand_histories_keep_every_promise() {
    let only = std::env::var("SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let (first, last) = only.map_or((0, SEEDS), |seed| (seed, seed + 1));
    let played = |part: u64| {
        let seeds = (first..last).filter(move |seed| seed % 4 == part);
        seeds
            .map(|seed| {
                let played = catch_unwind(AssertUnwindSafe(|| history(seed)));
                played.unwrap_or_else(|_| panic!("the history of SEED={seed} breaks a promise; it is told above"))
            })
            .sum::<usize>()
    };
    let completed: usize = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..4).map(|part| scope.spawn(move || played(part))).collect();
        parts.into_iter().map(|part| part.join().unwrap()).sum()
    });
    assert!(completed > 0, "something was completed");
}

#[test]
fn a_history_is_the_same_each_time() {
    for seed in 0..20 {
        assert_eq!(history(seed), history(seed));
    }
}
