//! Clients that leave while the engine cannot be stopped, and clients that wait for its turn.

use serde_json::json;

use super::{
    gateway::{Gateway, Seen},
    worker::{Answer, Worker, eventually, streamed},
};

/// The latest heartbeat's slots: in flight, still busy, and given back so far.
fn told(seen: &Seen) -> Option<(u32, u32, u64)> {
    let beat = seen.heartbeats.last()?;
    Some((beat.in_flight, beat.still_busy, beat.requests_ended))
}

#[tokio::test]
async fn a_slot_whose_client_left_in_a_prefill_is_told_to_be_still_busy_until_the_step_ends() {
    let gateway = Gateway::start().await;
    gateway.mood(|moods| moods.interval_ms = 60_000);
    let worker = gateway
        .worker(json!({"prefill_ms": 3000}), &["--slots", "1"])
        .await
        .ready()
        .await;
    drop(worker.chat(&streamed("never mind")).send().await.unwrap());
    let still_busy = |seen: &Seen| told(seen).filter(|told| *told == (1, 1, 0));
    gateway.sees("a slot that is still busy", still_busy).await;
    assert_eq!(worker.ask(&streamed("x")).await.code(), "busy");
    let free = |seen: &Seen| told(seen).filter(|told| *told == (0, 0, 1));
    gateway.sees("a free slot", free).await;
    assert_eq!(worker.ask(&streamed("x")).await.text(), "x");
}

#[tokio::test]
async fn a_slot_that_comes_free_at_the_next_token_is_not_worth_a_word() {
    let gateway = Gateway::start().await;
    gateway.mood(|moods| moods.interval_ms = 60_000);
    let mut worker = gateway.worker(json!({}), &[]).await.ready().await;
    let endless = json!({"tokens": 1000, "interval_ms": 5}).to_string();
    let mut running = worker.chat(&streamed(endless)).send().await.unwrap();
    running.chunk().await.unwrap().expect("a token");
    drop(running);
    eventually("the slot is free", async || {
        (worker.in_flight().await == 0).then_some(())
    })
    .await;
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(worker.end().await, Some(0));
    let told = |seen: &Seen| Some(seen.heartbeats.iter().map(|beat| beat.still_busy).max());
    assert_eq!(gateway.sees("heartbeats", told).await, Some(0));
}

#[tokio::test]
async fn one_who_waits_for_its_turn_hears_so_while_the_engine_gets_on() {
    let worker = Worker::alone(json!({"one_at_a_time": true}), &["--slots", "2"])
        .await
        .ready()
        .await;
    let slow = json!({"tokens": 30, "interval_ms": 50}).to_string();
    let mut first = worker.chat(&streamed(slow)).send().await.unwrap();
    first.chunk().await.unwrap().expect("a token");
    let second = Answer::of(worker.chat(&streamed("my turn")).send().await.unwrap()).await;
    let words = second.body().matches(": waiting for the engine\n\n").count();
    assert!((1..=4).contains(&words), "{}", second.body());
    assert!(second.body().starts_with(": waiting"), "{}", second.body());
    assert_eq!(second.text(), "my turn");
    assert_eq!(Answer::of(first).await.finish(), "stop");
}

#[tokio::test]
async fn one_who_waits_behind_an_engine_that_hangs_hears_nothing_and_leaves_at_once() {
    let worker = Worker::alone(json!({"one_at_a_time": true}), &["--slots", "2"])
        .await
        .ready()
        .await;
    let hangs = json!({"tokens": 3, "fault": {"at": 1, "kind": "stall"}}).to_string();
    let mut first = worker.chat(&streamed(hangs)).send().await.unwrap();
    first.chunk().await.unwrap().expect("a token");
    let mut second = worker.chat(&streamed("never")).send().await.unwrap();
    eventually("both have a slot", async || {
        (worker.in_flight().await == 2).then_some(())
    })
    .await;
    let word = tokio::time::timeout(std::time::Duration::from_millis(1200), second.chunk()).await;
    assert!(word.is_err(), "{word:?}");
    drop(second);
    eventually("its slot is free", async || {
        (worker.in_flight().await == 1).then_some(())
    })
    .await;
}
