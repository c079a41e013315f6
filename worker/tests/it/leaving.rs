//! How a worker goes.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reqwest::StatusCode;
use serde_json::{Value, json};
use wire::WorkerState;

use super::{
    gateway::Gateway,
    worker::{Answer, Worker, eventually, streamed},
};

/// An answer of 20 tokens in one second.
fn slow() -> Value {
    streamed(json!({"tokens": 20, "interval_ms": 50}).to_string())
}

#[tokio::test]
async fn a_terminated_worker_finishes_what_it_holds_and_takes_nothing_new() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(json!({}), &[]).await.ready().await;
    let running = worker.chat(&slow()).send().await.unwrap();
    worker.signal(Signal::SIGTERM);
    let draining = |seen: &super::gateway::Seen| {
        seen.heartbeats
            .iter()
            .find(|beat| beat.state == WorkerState::Draining)
            .map(|beat| beat.in_flight)
    };
    assert_eq!(gateway.sees("a draining worker", draining).await, 1);
    let refused = worker.ask(&streamed("one more")).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::SERVICE_UNAVAILABLE, "shutting_down".to_owned())
    );
    let answer = Answer::of(running).await;
    assert_eq!(answer.usage()[1], 20);
    assert_eq!(worker.end().await, Some(0));
    assert_eq!(
        gateway
            .sees("a leave", |seen| seen.leaves.first().cloned())
            .await
            .reason,
        "SIGTERM"
    );
    assert!(
        !worker.folder.path().join("state.json").exists(),
        "the state file is still there"
    );
}

#[tokio::test]
async fn a_gateway_can_send_a_worker_away() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(json!({}), &[]).await.ready().await;
    gateway.mood(|moods| moods.drain = true);
    assert_eq!(worker.end().await, Some(0));
    assert_eq!(
        gateway
            .sees("a leave", |seen| seen.leaves.first().cloned())
            .await
            .reason,
        "drained by the gateway"
    );
}

#[tokio::test]
async fn the_end_of_the_time_to_drain_is_told_to_running_answers() {
    let mut worker = Worker::alone(json!({}), &["--drain-timeout", "200ms"])
        .await
        .ready()
        .await;
    let stalled = json!({"tokens": 5, "fault": {"at": 2, "kind": "stall"}}).to_string();
    let running = worker.chat(&streamed(stalled)).send().await.unwrap();
    worker.signal(Signal::SIGINT);
    let answer = Answer::of(running).await;
    assert!(!answer.broke);
    let last: Value = serde_json::from_str(answer.events().pop().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down");
    assert_eq!(worker.end().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_means_now() {
    let mut worker = Worker::alone(json!({}), &[]).await.ready().await;
    let stalled = streamed(json!({"fault": {"at": 0, "kind": "stall"}}).to_string());
    let _running = worker.chat(&stalled).send().await.unwrap();
    worker.signal(Signal::SIGTERM);
    worker
        .state_file("it drains", |state| state["state"] == "draining")
        .await;
    let second = Instant::now();
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.end().await, Some(1));
    assert!(
        second.elapsed() < Duration::from_secs(5),
        "{:?}, and the drain would take 120 s",
        second.elapsed()
    );
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_work_within_two_tokens_and_frees_its_slot() {
    let worker = Worker::alone(json!({}), &["--slots", "1"]).await.ready().await;
    let endless = streamed(json!({"tokens": 1_000_000, "interval_ms": 300}).to_string());
    let mut running = worker.chat(&endless).send().await.unwrap();
    running.chunk().await.unwrap().expect("a token");
    drop(running);
    let line: Value = serde_json::from_str(&worker.says(r#""outcome":"cancelled""#).await).unwrap();
    assert!(line["completion_tokens"].as_u64().unwrap() <= 3, "{line}");
    eventually("the slot is free", async || {
        (worker.in_flight().await == 0).then_some(())
    })
    .await;
    assert_eq!(worker.ask(&streamed("next")).await.text(), "next");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_frees_its_slot() {
    let worker = Worker::alone(json!({}), &["--slots", "1"]).await.ready().await;
    let asking = tokio::spawn(worker.chat(&streamed(with_fault("stall"))).send());
    eventually("the slot is taken", async || {
        (worker.in_flight().await == 1).then_some(())
    })
    .await;
    asking.abort();
    let _ = asking.await;
    eventually("the slot is free", async || {
        (worker.in_flight().await == 0).then_some(())
    })
    .await;
}

fn with_fault(kind: &str) -> String {
    json!({"fault": {"at": 0, "kind": kind}}).to_string()
}
