//! The soak: mixed load on three workers behind fault proxies, a random fault every few seconds, then the invariants.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    Report,
    caller::{self, Ask, End},
    gauges::{self, Held, Tally},
    house::{House, Worker},
    proxy::{Fault, Spoil},
};

/// Slots of each worker.
const SLOTS: u32 = 4;

/// Of the default interval.
const TWO_HEARTBEATS: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct Plan {
    /// How long
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seconds from fault to fault
    #[arg(long, default_value_t = 5.0)]
    every: f64,
    /// Callers at once
    #[arg(long, default_value_t = 24)]
    callers: usize,
    /// Kill the gateway, too, now and then
    #[arg(long)]
    kill_gateway: bool,
    /// Kill the gateway, and nothing else
    #[arg(long)]
    only_gateway: bool,
}

/// After a kill of the gateway: how long until it was ready, and until all workers were routable again.
struct Restart {
    ready: Duration,
    routable: Duration,
}

/// What can happen.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Spoiled(Fault),
    Killed,
    Frozen(Duration),
    GatewayKilled,
}

impl Happening {
    fn random(random: &mut StdRng, plan: &Plan) -> Self {
        if plan.only_gateway {
            return Self::GatewayKilled;
        }
        match random.random_range(0..20) {
            0..3 => Self::Killed,
            3..5 => Self::Frozen(Duration::from_secs(random.random_range(1..8))),
            5 if plan.kill_gateway => Self::GatewayKilled,
            _ => Self::Spoiled(Fault {
                spoil: *Spoil::ALL.choose(random).unwrap(),
                after: random.random_range(0..6),
            }),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Spoiled(fault) => format!("{:?}", fault.spoil),
            Self::Killed => "kill -9".to_owned(),
            Self::Frozen(_) => "SIGSTOP".to_owned(),
            Self::GatewayKilled => "kill -9 of the gateway".to_owned(),
        }
    }
}

pub async fn run(plan: Plan, seed: u64) -> Report {
    // Silence and slow clients are over sooner than in life, so that a short run sees many.
    let house = House::open(&[
        ("relay.first_token_timeout", "5s"),
        ("relay.inter_token_timeout", "3s"),
        ("relay.slow_client", "3s"),
    ])
    .await;
    let mut workers = Vec::new();
    for number in 1..=3 {
        workers.push(house.worker(&format!("w{number}"), SLOTS, true).await);
    }
    house.until_ready(3).await;
    let over = Arc::new(AtomicBool::new(false));
    let tally = Arc::new(Mutex::new(Tally::default()));
    let callers: Vec<_> = (0..plan.callers)
        .map(|number| {
            let random = StdRng::seed_from_u64(seed.wrapping_mul(1000) + u64::try_from(number).unwrap());
            tokio::spawn(call(house.clone(), random, over.clone(), tally.clone()))
        })
        .collect();
    let (happened, samples, restarts) = afflict(&plan, &house, &workers, StdRng::seed_from_u64(seed)).await;
    over.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }

    let mut report = Report::default();
    report.note("seed", seed);
    let happened: Vec<String> = happened.iter().map(|(name, count)| format!("{count} {name}")).collect();
    report.note("faults", happened.join(" · "));
    let tally = Arc::into_inner(tally).unwrap().into_inner().unwrap();
    report.note("requests", &tally);
    report.check(
        tally.count("WRONG") == 0,
        "silent cuts, stuck or broken answers",
        tally.count("WRONG"),
    );
    let slowest = |of: fn(&Restart) -> Duration| restarts.iter().map(of).max();
    if let (Some(ready), Some(routable)) = (slowest(|it| it.ready), slowest(|it| it.routable)) {
        report.check(
            ready <= Duration::from_secs(3),
            "ready again after kill -9 of the gateway, at most 3 s",
            format!("{ready:?}, the slowest of {}", restarts.len()),
        );
        // Nothing else happens then; otherwise a worker may be dead, too.
        let good = routable <= TWO_HEARTBEATS || !plan.only_gateway;
        report.check(
            good,
            "all workers routable again, within two heartbeats",
            format!("{routable:?}"),
        );
    }
    report.note(
        "all workers ready again after",
        format!("{:?}", house.until_ready(3).await),
    );
    gauges::settle(&house, &mut report, &tally, !restarts.is_empty()).await;
    flat(&mut report, &samples);
    // Kept connections to workers end after 20 s.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let at_rest = gauges::held(&house);
    // Among them the listening sockets, each once more: they are kept for a successor.
    report.check(at_rest.fds <= 72, "file descriptors at rest, at most 72", at_rest.fds);
    report
}

/// One caller: asks, reads to the end, asks again.
async fn call(house: Arc<House>, mut random: StdRng, over: Arc<AtomicBool>, tally: Arc<Mutex<Tally>>) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    while !over.load(Ordering::SeqCst) {
        let ask = Ask {
            tokens: random.random_range(1..60),
            interval_ms: random.random_range(1..20),
            stream: random.random_bool(0.6),
            leave_after: random
                .random_bool(0.15)
                .then(|| Duration::from_millis(random.random_range(1..600))),
            dawdle: random.random_bool(0.03).then_some(Duration::from_millis(200)),
        };
        let before = house.upheavals();
        let mut end = caller::ask(&house, &http, &house.admin, ask).await.end;
        // A gateway that is killed cannot say anything any more.
        if matches!(end, End::Wrong(_)) && (before % 2 == 1 || house.upheavals() != before) {
            end = End::Left;
        }
        if matches!(end, End::Refused(..) | End::Left) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tally.lock().unwrap().add(&end);
    }
}

type Happened = BTreeMap<String, usize>;

/// Lets things happen until the time is over; what did, what the gateway held meanwhile, and how it came back after
/// each kill.
async fn afflict(
    plan: &Plan,
    house: &Arc<House>,
    workers: &[Worker],
    mut random: StdRng,
) -> (Happened, Vec<Held>, Vec<Restart>) {
    let (mut happened, mut samples, mut restarts) = (Happened::new(), Vec::new(), Vec::new());
    let until = Instant::now() + Duration::from_secs_f64(plan.minutes * 60.0);
    let mut tick = tokio::time::interval(Duration::from_secs_f64(plan.every));
    while Instant::now() < until {
        tick.tick().await;
        samples.push(gauges::held(house));
        let happening = Happening::random(&mut random, plan);
        let worker = workers.choose(&mut random).unwrap();
        match happening {
            Happening::Spoiled(fault) => worker.proxy.iter().for_each(|proxy| proxy.arm(fault)),
            Happening::Killed => worker.kill(),
            Happening::Frozen(time) => worker.freeze(time).await,
            Happening::GatewayKilled => {
                let ready = house.kill_gateway().await;
                let routable = ready + house.until_ready(workers.len()).await;
                restarts.push(Restart { ready, routable });
                samples.clear();
            }
        }
        *happened.entry(happening.name()).or_default() += 1;
    }
    (happened, samples, restarts)
}

/// Memory and descriptors of the last third of the run against those of the second: the first is warm-up.
fn flat(report: &mut Report, samples: &[Held]) {
    let third = samples.len() / 3;
    if third < 4 {
        report.note("memory and descriptors", "too short a run to say");
        return;
    }
    let median = |samples: &[Held], of: fn(&Held) -> u64| {
        let mut values: Vec<u64> = samples.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    let (middle, last) = (&samples[third..2 * third], &samples[2 * third..]);
    let memory = [middle, last].map(|part| median(part, |held| held.memory_kib));
    let good = memory[1] <= memory[0] + memory[0] / 10 + 2048;
    report.check(
        good,
        "memory of the second and the last third, KiB",
        format!("{} and {}", memory[0], memory[1]),
    );
    let fds = [middle, last].map(|part| median(part, |held| u64::try_from(held.fds).unwrap()));
    report.check(
        fds[1] <= fds[0] + 16,
        "descriptors likewise",
        format!("{} and {}", fds[0], fds[1]),
    );
}
