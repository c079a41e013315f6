//! What a request and a chunk cost on their way through the gateway, beside nginx before the same upstream.
//!
//! Direct, nginx and gateway take turns in every round, so that whatever else the machine does meets all three;
//! figures are medians over the rounds. Processor time is the kernel's own (`/proc/PID/task/*/schedstat`).

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
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
    gauges::percentile,
    house::{House, MODEL, eventually},
    upstream,
};

#[derive(Debug, Args)]
pub struct Plan {
    /// Rounds, in each of which everybody has a turn
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// Somebody to ask.
struct Target {
    name: &'static str,
    address: SocketAddr,
    pid: Option<u32>,
    key: String,
}

/// What is asked of a target in its turn.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    callers: usize,
    requests: usize,
    stream: bool,
    tokens: u64,
    pace_ms: u64,
}

const LOADS: [Load; 4] = [
    Load {
        name: "whole answers, one caller",
        callers: 1,
        requests: 300,
        stream: false,
        tokens: 16,
        pace_ms: 0,
    },
    Load {
        name: "whole answers, 16 callers",
        callers: 16,
        requests: 125,
        stream: false,
        tokens: 16,
        pace_ms: 0,
    },
    Load {
        name: "streams of 32 tokens, 5 ms apart, one caller",
        callers: 1,
        requests: 6,
        stream: true,
        tokens: 32,
        pace_ms: 5,
    },
    Load {
        name: "streams of 32 tokens, 20 ms apart, 32 callers",
        callers: 32,
        requests: 2,
        stream: true,
        tokens: 32,
        pace_ms: 20,
    },
];

/// One turn's figures.
#[derive(Default, Clone)]
struct Turn {
    /// To the first event, or to the whole answer.
    first: Duration,
    /// From the upstream's stamp to the caller.
    relay: Duration,
    /// Processor time for each request and each token.
    cpu_request: Duration,
    cpu_token: Duration,
}

pub async fn run(plan: Plan) -> Report {
    let house = House::open(&[("log.filter", "warn")]).await;
    let worker = upstream::start(&house, 1024).await;
    let (_folder, nginx, nginx_address) = nginx(worker).await;
    let targets = [
        Target {
            name: "direct",
            address: worker,
            pid: None,
            key: String::new(),
        },
        Target {
            name: "nginx",
            address: nginx_address,
            pid: Some(nginx.id()),
            key: String::new(),
        },
        Target {
            name: "hive",
            address: house.data.strip_prefix("http://").unwrap().parse().unwrap(),
            pid: Some(house.pid()),
            key: house.admin.clone(),
        },
    ];
    let report = Report::default();
    for load in LOADS {
        println!("{}", load.name);
        for target in &targets {
            turn(target, load).await;
        }
        let mut turns: Vec<[Turn; 3]> = Vec::new();
        for round in 0..plan.rounds {
            let mut this: [Turn; 3] = Default::default();
            let order = if round % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] };
            for number in order {
                this[number] = turn(&targets[number], load).await;
            }
            turns.push(this);
        }
        tell(&report, load, &targets, &turns);
    }
    report
}

fn tell(report: &Report, load: Load, targets: &[Target; 3], turns: &[[Turn; 3]]) {
    let median = |of: &dyn Fn(&[Turn; 3]) -> Duration| percentile(&mut turns.iter().map(of).collect::<Vec<_>>(), 50);
    let what = if load.stream { "first event" } else { "answer" };
    for (number, target) in targets.iter().enumerate() {
        let first = median(&|turn| turn[number].first);
        let added = median(&|turn| turn[number].first.saturating_sub(turn[0].first));
        let mut parts = vec![format!("{what} {first:?}, added {added:?}")];
        if load.stream {
            parts.push(format!(
                "each token {:?} on its way",
                median(&|turn| turn[number].relay)
            ));
        }
        if target.pid.is_some() {
            let (request, token) = (
                median(&|turn| turn[number].cpu_request),
                median(&|turn| turn[number].cpu_token),
            );
            parts.push(format!("processor {request:?} a request"));
            if load.stream {
                parts.push(format!("{token:?} a token"));
            }
        }
        report.note(target.name, parts.join(", "));
    }
    let mut ratios: Vec<f64> = turns
        .iter()
        .map(|turn| turn[2].cpu_request.as_secs_f64() / turn[1].cpu_request.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    let spread = format!(
        "{:.2} ({:.2} to {:.2})",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1]
    );
    report.note("processor time, hive to nginx", spread);
}

async fn turn(target: &Target, load: Load) -> Turn {
    let before = target.pid.map_or(Duration::ZERO, on_processor);
    let callers = (0..load.callers).map(|_| {
        let (address, key) = (target.address, target.key.clone());
        tokio::spawn(async move {
            let mut caller = Caller {
                stream: TcpStream::connect(address).await.unwrap(),
                text: Vec::new(),
            };
            caller.stream.set_nodelay(true).unwrap();
            let mut found = (Vec::new(), Vec::new());
            for _request in 0..load.requests {
                caller.ask(address, &key, load, &mut found).await;
            }
            found
        })
    });
    let callers: Vec<_> = callers.collect();
    let (mut first, mut relay) = (Vec::new(), Vec::new());
    for caller in callers {
        let found = caller.await.unwrap();
        first.extend(found.0);
        relay.extend(found.1);
    }
    let spent = target.pid.map_or(Duration::ZERO, on_processor).saturating_sub(before);
    let requests = u32::try_from(load.callers * load.requests).unwrap();
    Turn {
        first: percentile(&mut first, 50),
        relay: percentile(&mut relay, 50),
        cpu_request: spent / requests,
        cpu_token: spent / requests / u32::try_from(load.tokens).unwrap(),
    }
}

/// A caller that costs little: one connection, and only the looks it needs.
struct Caller {
    stream: TcpStream,
    text: Vec<u8>,
}

impl Caller {
    async fn ask(&mut self, to: SocketAddr, key: &str, load: Load, found: &mut (Vec<Duration>, Vec<Duration>)) {
        let body = json!({ "model": MODEL, "stream": load.stream, "max_tokens": load.tokens, "seed": load.pace_ms,
            "messages": [{ "role": "user", "content": "Why is the sky blue?" }] })
        .to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {to}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let began = Instant::now();
        self.stream.write_all(request.as_bytes()).await.unwrap();
        self.text.clear();
        let (mut seen, mut first) = (0, None);
        loop {
            assert!(
                self.stream.read_buf(&mut self.text).await.unwrap() > 0,
                "{}",
                String::from_utf8_lossy(&self.text)
            );
            let now = upstream::stamp();
            let text = String::from_utf8_lossy(&self.text);
            if first.is_none() && text.contains(if load.stream { "data: " } else { "\r\n\r\n" }) {
                assert!(text.starts_with("HTTP/1.1 200"), "{text}");
                first = Some(began.elapsed());
            }
            if load.stream {
                // Not in the head, where a charset would look like a stamp.
                let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                for mark in body.match_indices("t=").skip(seen) {
                    let digits: String = body[mark.0 + 2..].chars().take_while(char::is_ascii_digit).collect();
                    // Half a number is read again with its other half.
                    let Ok(sent) = digits.parse::<u128>() else { break };
                    found.1.push(Duration::from_nanos(u64::try_from(now - sent).unwrap()));
                    seen += 1;
                }
                if text.ends_with("0\r\n\r\n") {
                    break;
                }
            } else if is_whole(&text) {
                break;
            }
        }
        found.0.push(first.unwrap());
    }
}

fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_some_and(|length| body.len() >= length.parse::<usize>().unwrap())
}

/// Time that all threads of a process, and of those it has started, were on a processor.
fn on_processor(pid: u32) -> Duration {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let time = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanos += time
            .split(' ')
            .next()
            .and_then(|nanos| nanos.parse::<u64>().ok())
            .unwrap_or(0);
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        nanos += children
            .map(|child| u64::try_from(on_processor(child).as_nanos()).unwrap())
            .sum::<u64>();
    }
    Duration::from_nanos(nanos)
}

/// Ends with whoever holds it.
struct Running(Child);

impl Running {
    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap()),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.0.wait();
    }
}

/// nginx as a plain reverse proxy with one process, as it is set up for streams.
async fn nginx(upstream: SocketAddr) -> (tempfile::TempDir, Arc<Running>, SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let config = format!(
        "daemon off; pid nginx.pid; worker_processes 1; error_log stderr crit; events {{ worker_connections 8192; }}
         http {{ access_log off; tcp_nodelay on; keepalive_requests 1000000; client_body_buffer_size 1m;
           client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
           scgi_temp_path scgi; upstream u {{ server {upstream}; keepalive 1024; keepalive_requests 10000000; }}
           server {{ listen {address} backlog=4096; location / {{ proxy_pass http://u; proxy_http_version 1.1;
             proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}"
    );
    std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
    let child = Command::new("nginx")
        .args(["-e", "stderr", "-p", ".", "-c", "nginx.conf"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("nginx: {error}; apt install nginx-light"));
    let running = Arc::new(Running(child));
    eventually("nginx listens", async || TcpStream::connect(address).await.ok()).await;
    (folder, running, address)
}
