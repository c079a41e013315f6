//! Counted requests while one of three workers is killed every few seconds and started again by its keeper.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    Report,
    caller::{self, Ask},
    gauges::{self, Tally},
    house::{House, Worker},
};

#[derive(Debug, Args)]
pub struct Plan {
    /// Requests of each kind: whole answers, then streams
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    /// Seconds from kill to kill
    #[arg(long, default_value_t = 5.0)]
    every: f64,
    /// Callers at once
    #[arg(long, default_value_t = 12)]
    callers: usize,
}

pub async fn run(plan: Plan, seed: u64) -> Report {
    let house = House::open(&[]).await;
    let mut workers = Vec::new();
    for number in 1..=3 {
        workers.push(house.worker(&format!("w{number}"), 8, false).await);
    }
    house.until_ready(3).await;
    let mut report = Report::default();
    let mut all = Tally::default();
    for stream in [false, true] {
        let began = Instant::now();
        let killing = kill(&workers, plan.every, StdRng::seed_from_u64(seed));
        let (tally, mut times) = tokio::select! {
            done = load(&house, &plan, stream, &mut all) => done,
            () = killing => unreachable!("it kills for ever"),
        };
        let kind = if stream { "streams" } else { "whole answers" };
        let took = began.elapsed().as_secs_f64();
        report.note(
            kind,
            format!("{tally}, in {took:.0} s with a kill every {} s", plan.every),
        );
        let median = gauges::percentile(&mut times, 50);
        let slow = gauges::percentile(&mut times, 99);
        report.note("time of an answer", format!("median {median:?}, 99 % within {slow:?}"));
        if stream {
            report.check(tally.count("WRONG") == 0, "silent cuts", tally.count("WRONG"));
            let ended = tally.count("done") + tally.count("told worker_lost");
            report.check(
                ended == plan.requests,
                "whole, or told of the loss",
                format!("{ended} of {}", plan.requests),
            );
        } else {
            let done = tally.count("done");
            report.check(
                done == plan.requests,
                "succeeded",
                format!("{done} of {}", plan.requests),
            );
        }
    }
    house.until_ready(3).await;
    gauges::settle(&house, &mut report, &all, false).await;
    report
}

async fn kill(workers: &[Worker], every: f64, mut random: StdRng) {
    loop {
        tokio::time::sleep(Duration::from_secs_f64(every)).await;
        workers[random.random_range(0..workers.len())].kill();
    }
}

async fn load(house: &Arc<House>, plan: &Plan, stream: bool, all: &mut Tally) -> (Tally, Vec<Duration>) {
    let left = Arc::new(AtomicUsize::new(plan.requests));
    let ended = Arc::new(Mutex::new(Vec::new()));
    let callers: Vec<_> = (0..plan.callers)
        .map(|_| {
            let (house, left, ended) = (house.clone(), left.clone(), ended.clone());
            tokio::spawn(async move {
                let http = reqwest::Client::builder().no_proxy().build().unwrap();
                let ask = Ask {
                    tokens: 20,
                    interval_ms: 2,
                    stream,
                    leave_after: None,
                    dawdle: None,
                };
                let take = || {
                    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                        .is_ok()
                };
                while take() {
                    let outcome = caller::ask(&house, &http, &house.admin, ask).await;
                    ended.lock().unwrap().push(outcome);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let mut tally = Tally::default();
    let mut times = Vec::new();
    for outcome in ended.lock().unwrap().drain(..) {
        tally.add(&outcome.end);
        all.add(&outcome.end);
        times.push(outcome.total);
    }
    (tally, times)
}
