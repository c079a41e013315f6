//! A caller that is strict: every answer is one of the outcomes that are promised, or a fault of ours.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use reqwest::Response;
use serde_json::{Value, json};

use crate::house::{House, MODEL};

/// An answer that takes longer is stuck.
const STUCK: Duration = Duration::from_secs(90);

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// How many tokens the worker says.
    pub tokens: usize,
    /// How long it waits before each, in milliseconds.
    pub interval_ms: u64,
    /// Whether a stream is wanted.
    pub stream: bool,
    /// Leaves after this time.
    pub leave_after: Option<Duration>,
    /// Takes this long over each read.
    pub dawdle: Option<Duration>,
}

/// How a request ended for its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Whole and well-formed, with as many tokens as were asked for.
    Done,
    /// A stream that ended with an error event of this code.
    Told(String),
    /// A status and code instead of an answer.
    Refused(u16, String),
    /// We left.
    Left,
    /// None of what is promised: a silent cut, a body that breaks, an answer that is not the one.
    Wrong(String),
}

/// How a request ended, and when.
#[derive(Debug)]
pub struct Outcome {
    /// How.
    pub end: End,
    /// From sending to the answer's head, or its failure.
    pub head: Duration,
    /// From sending to the end.
    pub total: Duration,
}

/// Asks with this key and reads the answer to its end.
pub async fn ask(house: &House, http: &reqwest::Client, key: &str, ask: Ask) -> Outcome {
    let began = Instant::now();
    let mut head = None;
    let whole = async {
        match request(house, http, key, ask).send().await {
            Err(error) => End::Wrong(format!("no answer: {}", chain(&error))),
            Ok(response) => {
                head = Some(began.elapsed());
                read(response, ask).await
            }
        }
    };
    let end = tokio::select! {
        end = whole => end,
        () = at(ask.leave_after) => End::Left,
        () = tokio::time::sleep(STUCK) => End::Wrong("stuck".to_owned()),
    };
    let total = began.elapsed();
    Outcome {
        end,
        head: head.unwrap_or(total),
        total,
    }
}

/// The request itself.
pub fn request(house: &House, http: &reqwest::Client, key: &str, ask: Ask) -> reqwest::RequestBuilder {
    let script = json!({ "tokens": ask.tokens, "interval_ms": ask.interval_ms }).to_string();
    let body = json!({ "model": MODEL, "stream": ask.stream, "messages": [{ "role": "user", "content": script }] });
    http.post(format!("{}/v1/chat/completions", house.data))
        .bearer_auth(key)
        .json(&body)
}

async fn at(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

async fn read(response: Response, ask: Ask) -> End {
    let status = response.status().as_u16();
    if status != 200 {
        return match response.json::<Value>().await {
            Ok(body) if body["error"]["code"].is_string() => {
                End::Refused(status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
            }
            other => End::Wrong(format!("{status} without an envelope: {other:?}")),
        };
    }
    if !ask.stream {
        return match response.json::<Value>().await {
            Ok(body) if body["usage"]["completion_tokens"] == ask.tokens => End::Done,
            Ok(body) => End::Wrong(format!("not {} tokens: {}", ask.tokens, body["usage"])),
            Err(error) => End::Wrong(format!("a broken body: {}", chain(&error))),
        };
    }
    let mut text = String::new();
    let mut body = response.bytes_stream();
    while let Some(bytes) = body.next().await {
        match bytes {
            Ok(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            Err(error) => return End::Wrong(format!("a broken body: {}", chain(&error))),
        }
        if let Some(time) = ask.dawdle {
            tokio::time::sleep(time).await;
        }
    }
    judge(&text, ask.tokens)
}

/// What a whole event stream amounts to.
fn judge(text: &str, wanted: usize) -> End {
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    if !text.ends_with("\n\n") {
        return End::Wrong("a stream that ends in half an event".to_owned());
    }
    let Some((last, before)) = events.split_last() else {
        return End::Wrong("an empty stream".to_owned());
    };
    let before: Vec<Value> = before
        .iter()
        .filter_map(|event| serde_json::from_str(event).ok())
        .collect();
    if *last != "[DONE]" {
        return match serde_json::from_str::<Value>(last) {
            Ok(event) if event["error"]["code"].is_string() => {
                End::Told(event["error"]["code"].as_str().unwrap_or_default().to_owned())
            }
            _ => End::Wrong("a silent cut".to_owned()),
        };
    }
    let choice = |event: &Value| event["choices"][0].clone();
    let finished = before.iter().any(|event| choice(event)["finish_reason"].is_string());
    let is_token = |event: &&Value| {
        choice(event)["delta"]["content"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    };
    let tokens = before.iter().filter(is_token).count();
    if finished && tokens == wanted {
        End::Done
    } else {
        End::Wrong(format!(
            "[DONE] after {tokens} of {wanted} tokens, finish_reason: {finished}"
        ))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
