//! Many streams at once: what each costs the gateway while its client reads, and while it does not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::{
    Report, gauges,
    house::{House, MODEL},
};

/// What a stream may cost beyond the event in hand.
const MOST_KIB: f64 = 64.0;

#[derive(Debug, Args)]
pub struct Plan {
    /// Streams at once
    #[arg(long, default_value_t = 2000)]
    streams: usize,
    /// Seconds that they last
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

pub async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    // Long answers fill every buffer on the way.
    let long = json!({ "tokens": vec!["x".repeat(8000) + " "; 64] });
    let slow = json!({ "tokens": plan.seconds * 4, "interval_ms": 1000 });
    let crowds = [
        Crowd {
            what: "whose clients read a token a second",
            script: slow,
            ask: "Say it.".to_owned(),
            event_kib: 0.0,
            reads: true,
        },
        Crowd {
            what: "whose clients read nothing",
            script: long.clone(),
            ask: "Say it.".to_owned(),
            event_kib: 8.0,
            reads: false,
        },
        Crowd {
            what: "with 64 KiB of prompt whose clients read nothing",
            script: long,
            ask: "why ".repeat(16 * 1024),
            event_kib: 8.0,
            reads: false,
        },
    ];
    for crowd in crowds {
        phase(&plan, &mut report, crowd).await;
    }
    report
}

/// Who comes, and what for.
struct Crowd {
    what: &'static str,
    /// What the workers answer.
    script: Value,
    /// What each client asks.
    ask: String,
    /// The event that each has in hand.
    event_kib: f64,
    /// Whether they read the answer.
    reads: bool,
}

/// A gateway of its own, since what one crowd has left free the next would use.
async fn phase(plan: &Plan, report: &mut Report, crowd: Crowd) {
    let slots = u32::try_from(plan.streams).unwrap().div_ceil(3) + 1;
    let house = House::open(&[
        ("server.max_connections", "20000"),
        // What they hold is to be seen, not how they are dropped.
        ("relay.slow_client", "10m"),
        ("relay.inter_token_timeout", "10m"),
    ])
    .await;
    house.play(&crowd.script);
    let mut workers = Vec::new();
    for number in 1..=3 {
        workers.push(house.worker(&format!("w{number}"), slots, false).await);
    }
    house.until_ready(3).await;
    // Some before, so that what is made once is not counted.
    drop(begin(&house, 50, r#"{"tokens":3}"#).await);
    gauges::at_rest(&house).await;
    let before = gauges::held(&house);
    let began = Instant::now();
    let streams = begin(&house, plan.streams, &crowd.ask).await;
    report.note(
        &format!("{} streams begun in", streams.len()),
        format!("{:?}", began.elapsed()),
    );
    let readers: Vec<_> = streams
        .into_iter()
        .map(|stream| tokio::spawn(read(stream, crowd.reads)))
        .collect();
    tokio::time::sleep(Duration::from_secs(plan.seconds)).await;
    let during = gauges::held(&house);
    let what = crowd.what;
    let ended = readers.iter().filter(|reader| reader.is_finished()).count();
    report.check(ended == 0, &format!("streams {what} that ended early"), ended);
    report.note("memory of all TCP sockets of this machine, KiB", sockets_kib());
    let each = gauges::to_float(during.memory_kib.saturating_sub(before.memory_kib)) / gauges::to_float(plan.streams);
    let figure = format!("{each:.1} ({} and {} in all)", before.memory_kib, during.memory_kib);
    report.check(
        each <= MOST_KIB + crowd.event_kib,
        &format!(
            "KiB for each stream {what}, at most {MOST_KIB} beyond an event of {}",
            crowd.event_kib
        ),
        figure,
    );
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    gauges::at_rest(&house).await;
    let after = gauges::held(&house);
    report.note(
        "KiB and descriptors afterwards",
        format!("{} and {}", after.memory_kib, after.fds),
    );
}

/// Streams that have begun: connected first, then asked.
async fn begin(house: &Arc<House>, count: usize, ask: &str) -> Vec<TcpStream> {
    let address = house.data.strip_prefix("http://").unwrap();
    let body = json!({ "model": MODEL, "stream": true, "messages": [{ "role": "user", "content": ask }] }).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        house.admin,
        body.len()
    );
    let mut streams = Vec::new();
    for _stream in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        // Little room on our side, so that what is not read stays on the other.
        socket.set_recv_buffer_size(4096).unwrap();
        streams.push(socket.connect(address.parse().unwrap()).await.unwrap());
    }
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).await.unwrap();
    }
    for stream in &mut streams {
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
    }
    streams
}

/// Returns when the stream ends, or never if nobody reads.
async fn read(mut stream: TcpStream, reads: bool) {
    if !reads {
        std::future::pending::<()>().await;
    }
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

/// What the kernel holds in TCP sockets, both ends of each on this machine (`/proc/net/sockstat`, in pages of 4 KiB).
fn sockets_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: "));
    let pages = line.and_then(|line| line.rsplit_once("mem ")?.1.trim().parse::<u64>().ok());
    pages.unwrap_or(0) * 4
}
