//! Ten times more load than there is capacity, and one key that wants a hundred times its share.
//!
//! Callers of the overload do not wait for one another: requests come at their rate, whatever becomes of them.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;

use crate::{
    Report,
    caller::{self, Ask, End},
    gauges::{self, Tally, to_float},
    house::House,
};

/// One request: 10 tokens in 200 ms.
const ASK: Ask = Ask {
    tokens: 10,
    interval_ms: 20,
    stream: false,
    leave_after: None,
    dawdle: None,
};
/// Slots of all workers.
const SLOTS: u32 = 12;

#[derive(Debug, Args)]
pub struct Plan {
    /// Seconds of each phase
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

pub async fn run(plan: Plan) -> Report {
    let house = House::open(&[]).await;
    let mut workers = Vec::new();
    for number in 1..=3 {
        workers.push(house.worker(&format!("w{number}"), SLOTS / 3, false).await);
    }
    house.until_ready(3).await;
    let time = Duration::from_secs(plan.seconds);
    let mut report = Report::default();
    let mut all = Tally::default();

    let capacity = closed(&house, SLOTS, time, &mut all).await;
    report.note("capacity, answers a second", format!("{capacity:.1}"));
    let calm = open(&house, &[(house.admin.clone(), capacity * 0.5)], time / 4, &mut all)
        .await
        .remove(0);
    let flood = open(&house, &[(house.admin.clone(), capacity * 10.0)], time, &mut all)
        .await
        .remove(0);
    let share = flood.goodput / capacity;
    report.note("at ten times that", &flood.tally);
    report.check(
        share >= 0.95,
        "goodput at ten times the load, of capacity, at least 0.95",
        format!("{share:.3}"),
    );
    let refusal = gauges::percentile(&mut flood.refusals.clone(), 50);
    report.note("a refusal takes, median", format!("{refusal:?}"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = open(&house, &[(house.admin.clone(), capacity * 0.5)], time / 4, &mut all)
        .await
        .remove(0);
    let [before, now] = [&calm, &after].map(|phase| gauges::percentile(&mut phase.times.clone(), 50));
    report.note(
        "time of an answer at half the load, before and 5 s after",
        format!("{before:?} and {now:?}"),
    );
    let normal = after.tally.count("done") == after.sent && now <= before.mul_f64(1.2);
    report.check(
        normal,
        "normal 5 s after",
        format!("{} of {} done", after.tally.count("done"), after.sent),
    );

    greedy(&house, capacity, time, &mut report, &mut all).await;
    let untrue = all.count("503 no_worker");
    report.check(untrue == 0, "nobody is told that there is no worker", untrue);
    gauges::settle(&house, &mut report, &all, false).await;
    report
}

/// Nine keys that want half of the capacity together, alone and beside a tenth that wants a hundred times as much as each.
async fn greedy(house: &Arc<House>, capacity: f64, time: Duration, report: &mut Report, all: &mut Tally) {
    let mut keys = Vec::new();
    for number in 0..10 {
        let made = house
            .post("keys", &json!({ "name": format!("key {number}"), "scopes": ["infer"] }))
            .await
            .unwrap();
        keys.push(made["key"].as_str().unwrap().to_owned());
    }
    let each = capacity * 0.5 / 9.0;
    let mut loads: Vec<(String, f64)> = keys.iter().take(9).map(|key| (key.clone(), each)).collect();
    let alone = open(house, &loads, time, all).await;
    loads.push((keys.remove(9), each * 100.0));
    let beside = open(house, &loads, time, all).await;
    let shares: Vec<f64> = alone
        .iter()
        .zip(&beside)
        .map(|(alone, beside)| beside.goodput / alone.goodput)
        .collect();
    let worst = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = shares.iter().sum::<f64>() / 9.0;
    report.note("the greedy key", &beside[9].tally);
    let figure = format!("{mean:.3} (the worst of nine {worst:.3})");
    report.check(
        mean >= 0.95,
        "goodput of nine modest keys beside it, of that alone, at least 0.95",
        figure,
    );
}

/// So many callers, each asking again when it has been answered; answers a second.
async fn closed(house: &Arc<House>, callers: u32, time: Duration, all: &mut Tally) -> f64 {
    let until = Instant::now() + time;
    let ended = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (house, ended) = (house.clone(), ended.clone());
            tokio::spawn(async move {
                while Instant::now() < until {
                    let outcome = caller::ask(&house, &house.http, &house.admin, ASK).await;
                    ended.lock().unwrap().push((outcome, Instant::now()));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let ended = ended.lock().unwrap();
    ended.iter().for_each(|(outcome, _)| all.add(&outcome.end));
    let done = ended
        .iter()
        .filter(|(outcome, when)| outcome.end == End::Done && *when < until)
        .count();
    to_float(done) / time.as_secs_f64()
}

/// What became of one key's requests.
#[derive(Debug)]
struct Phase {
    sent: usize,
    tally: Tally,
    /// Successes a second, counted when they came.
    goodput: f64,
    times: Vec<Duration>,
    refusals: Vec<Duration>,
}

/// Requests of these keys at these rates a second, for so long.
async fn open(house: &Arc<House>, loads: &[(String, f64)], time: Duration, all: &mut Tally) -> Vec<Phase> {
    let phases = loads
        .iter()
        .map(|(key, rate)| one(house.clone(), key.clone(), *rate, time));
    let phases = futures_util::future::join_all(phases).await;
    let mut found = Vec::new();
    for outcomes in phases {
        let mut tally = Tally::default();
        let (mut times, mut refusals, mut timely) = (Vec::new(), Vec::new(), 0);
        for (outcome, in_time) in &outcomes {
            tally.add(&outcome.end);
            all.add(&outcome.end);
            match outcome.end {
                End::Done => {
                    times.push(outcome.total);
                    timely += usize::from(*in_time);
                }
                End::Refused(..) => refusals.push(outcome.head),
                _ => {}
            }
        }
        let goodput = to_float(timely) / time.as_secs_f64();
        found.push(Phase {
            sent: outcomes.len(),
            tally,
            goodput,
            times,
            refusals,
        });
    }
    found
}

async fn one(house: Arc<House>, key: String, rate: f64, time: Duration) -> Vec<(caller::Outcome, bool)> {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let mut sent = 0_u32;
    let mut ended = Vec::new();
    while began.elapsed() < time {
        // As many as are due by now: a busy machine delays some, but loses none.
        while f64::from(sent) <= began.elapsed().as_secs_f64() * rate {
            let (house, key) = (house.clone(), key.clone());
            tasks.spawn(async move {
                let outcome = caller::ask(&house, &house.http, &key, ASK).await;
                (outcome, began.elapsed() <= time)
            });
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        while let Some(outcome) = tasks.try_join_next() {
            ended.push(outcome.unwrap());
        }
    }
    while let Some(outcome) = tasks.join_next().await {
        ended.push(outcome.unwrap());
    }
    ended
}
