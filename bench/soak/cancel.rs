//! Clients that leave: how soon their slot or their place in the queue is free again, wherever the request was.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    Report,
    gauges::{percentile, sum},
    house::{House, MODEL, eventually},
};

/// What it may take.
const MOST: Duration = Duration::from_secs(1);
const SLOTS: &str = "hive_slots_taken";
const QUEUE: &str = "hive_queue_length";

#[derive(Debug, Args)]
pub struct Plan {
    /// Clients that leave in each state
    #[arg(long, default_value_t = 50)]
    rounds: usize,
}

pub async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    let house = House::open(&[]).await;
    let _worker = house.worker("w1", 1, false).await;
    house.until_ready(1).await;
    let talks = json!({ "tokens": 100_000, "interval_ms": 20 });
    let thinks = json!({ "tokens": 3, "first_token_ms": 600_000 });
    for (what, script, stream) in [
        ("in a stream", &talks, true),
        ("before a whole answer", &talks, false),
        ("in the prefill", &thinks, true),
    ] {
        let mut times = Vec::new();
        for _round in 0..plan.rounds {
            let mut client = ask(&house, script, stream).await;
            until(&house, SLOTS, 1.0).await;
            if what == "in a stream" {
                client.read_exact(&mut [0; 512]).await.unwrap();
            }
            times.push(leave(&house, client, SLOTS).await);
        }
        tell(
            &mut report,
            &format!("a client left {what}: its slot was free after"),
            times,
        );
    }
    let mut times = Vec::new();
    let _occupied = ask(&house, &talks, true).await;
    until(&house, SLOTS, 1.0).await;
    for _round in 0..plan.rounds {
        let client = ask(&house, &talks, true).await;
        until(&house, QUEUE, 1.0).await;
        times.push(leave(&house, client, QUEUE).await);
    }
    tell(&mut report, "a client left the queue: its place was free after", times);
    report
}

async fn ask(house: &Arc<House>, script: &serde_json::Value, stream: bool) -> TcpStream {
    let address = house.data.strip_prefix("http://").unwrap();
    let messages = [json!({ "role": "user", "content": script.to_string() })];
    let body = json!({ "model": MODEL, "stream": stream, "messages": messages }).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        house.admin,
        body.len()
    );
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

/// How long it takes from a client's leaving until nothing of it is left; each look costs about a millisecond.
async fn leave(house: &House, client: TcpStream, gauge: &str) -> Duration {
    let began = Instant::now();
    drop(client);
    while sum(&house.get("/metrics").await.unwrap(), gauge, "") > 0.0 {
        assert!(began.elapsed() < 60 * MOST, "{gauge} does not become 0");
    }
    began.elapsed()
}

async fn until(house: &House, gauge: &str, value: f64) {
    eventually(gauge, async || {
        let now = sum(&house.get("/metrics").await?, gauge, "");
        ((now - value).abs() < 0.5).then_some(())
    })
    .await;
}

fn tell(report: &mut Report, what: &str, mut times: Vec<Duration>) {
    let worst = percentile(&mut times, 100);
    let figure = format!("{:?}, at most {worst:?}", percentile(&mut times, 50));
    report.check(worst <= MOST, what, figure);
}
