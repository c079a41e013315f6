//! A worker made for measuring: a few lines of HTTP in this process, which cost little and stamp every token.
//!
//! It registers as one of Hive's own, and answers anybody. `max_tokens` says how many tokens, `seed` how many
//! milliseconds lie between them.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::house::{House, MODEL};

const ID: &str = "upstream";
const TOKEN: &str = "dispatch-token-of-the-upstream";

/// What stamps are counted from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Now, in nanoseconds.
pub fn stamp() -> u128 {
    EPOCH.elapsed().as_nanos()
}

/// Starts it on a thread of its own and registers it with this many slots.
pub async fn start(house: &Arc<House>, slots: u32) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream));
            }
        });
    });
    let token = house.post("join-tokens", &json!({})).await.unwrap();
    let registration = json!({
        "id": ID, "model": MODEL, "url": format!("http://{address}"), "dispatch_token": TOKEN, "device": "scripted",
        "slots": slots, "pid": std::process::id(), "host": "here", "version": "0.0.0", "state": "ready",
    });
    let url = format!("{}/control/v1/workers", house.control);
    let made = house
        .http
        .post(format!("{url}/register"))
        .bearer_auth(token["token"].as_str().unwrap());
    let made: wire::Registered = made.json(&registration).send().await.unwrap().json().await.unwrap();
    let beat = wire::Heartbeat::idle(made.epoch, wire::WorkerState::Ready);
    let beat = house
        .http
        .post(format!("{url}/{ID}/heartbeat"))
        .bearer_auth(made.credential)
        .json(&beat);
    tokio::spawn(async move {
        loop {
            let _ = beat.try_clone().unwrap().send().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
    address
}

async fn serve(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break String::from_utf8_lossy(&buffer[..end + 4]).to_ascii_lowercase();
            }
            more(&mut stream, &mut buffer).await?;
        };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while buffer.len() < head.len() + length {
            more(&mut stream, &mut buffer).await?;
        }
        let body: Vec<u8> = buffer.drain(..head.len() + length).skip(head.len()).collect();
        if let Some((_, nonce)) = head.lines().next()?.split_once("nonce=") {
            let answer = json!({ "proof": proof(nonce.split(' ').next()?) }).to_string();
            whole(&mut stream, &answer).await?;
            continue;
        }
        let body: Value = serde_json::from_slice(&body).ok()?;
        let (tokens, pace) = (body["max_tokens"].as_u64()?, body["seed"].as_u64().unwrap_or(0));
        if body["stream"] == true {
            answer(&mut stream, tokens, Duration::from_millis(pace)).await?;
        } else {
            let message = json!({ "role": "assistant", "content": "x ".repeat(usize::try_from(tokens).ok()?) });
            let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": "stop" });
            let usage = json!({ "prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": tokens + 7 });
            let answer = json!({ "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
                "choices": [choice], "usage": usage });
            whole(&mut stream, &answer.to_string()).await?;
        }
    }
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    (stream.read_buf(buffer).await.ok()? > 0).then_some(())
}

async fn whole(stream: &mut TcpStream, json: &str) -> Option<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        json.len()
    );
    stream.write_all(format!("{head}{json}").as_bytes()).await.ok()
}

/// Role, tokens, finish, usage and `[DONE]`; a write for each token if there is a pace, else one for all.
async fn answer(stream: &mut TcpStream, tokens: u64, pace: Duration) -> Option<()> {
    let chunk = |delta: Value, finish: Option<&str>| {
        let choice = json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish });
        let event = json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
            "choices": [choice] });
        frame(&event.to_string())
    };
    let mut out =
        String::from("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    out += &chunk(json!({ "role": "assistant", "content": "" }), None);
    let mut next = tokio::time::Instant::now();
    for _token in 0..tokens {
        if !pace.is_zero() {
            stream.write_all(out.as_bytes()).await.ok()?;
            out.clear();
            next += pace;
            tokio::time::sleep_until(next).await;
        }
        out += &chunk(json!({ "content": format!("t={} ", stamp()) }), None);
    }
    out += &chunk(json!({}), Some("stop"));
    let usage = json!({ "prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": tokens + 7 });
    out += &frame(
        &json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
        "choices": [], "usage": usage })
        .to_string(),
    );
    out += &frame("[DONE]");
    out += "0\r\n\r\n";
    stream.write_all(out.as_bytes()).await.ok()
}

fn frame(data: &str) -> String {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}

fn proof(nonce: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(TOKEN.as_bytes()).unwrap();
    mac.update(format!("{ID}\n{nonce}").as_bytes());
    gateway::auth::pepper::hex(&mac.finalize().into_bytes())
}
