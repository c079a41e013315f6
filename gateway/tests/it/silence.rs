//! Silence: what a client hears while nothing comes, when it is too long, and when its own deadline passes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    client::{Reply, Sse, text_of},
    harness::{Hive, eventually},
    script::{Gate, Script, chunk},
    server::Server,
};

fn is_ping(sse: Option<&Sse>) -> bool {
    matches!(sse, Some(Sse::Comment(text)) if text == "ping")
}

#[tokio::test]
async fn comments_keep_a_silent_stream_open() {
    let hive = Hive::with(&[("relay.keepalive", "50ms")]).await;
    let gate = Gate::new();
    hive.worker("a")
        .script([Script::begins(&["a"]).wait(&gate).token("b").ends(2)])
        .join()
        .await;
    let mut reply = hive.chat("m").stream().send().await;
    reply.until("a").await;
    for _ping in 0..3 {
        assert!(is_ping(reply.next().await.as_ref()));
    }
    gate.open();
    assert_eq!(text_of(&reply.events().await), "b");
}

#[tokio::test]
async fn headers_wait_for_the_first_event_but_not_for_ever() {
    let hive = Hive::with(&[("relay.hold_headers", "100ms"), ("relay.keepalive", "50ms")]).await;
    let gate = Gate::new();
    hive.worker("a")
        .script([Script::stream().wait(&gate).fin()])
        .join()
        .await;
    let started = Instant::now();
    let mut reply = hive.chat("m").stream().send().await;
    assert!(started.elapsed() >= Duration::from_millis(100));
    assert_eq!(
        (reply.status, reply.header("x-hive-worker")),
        (200, ""),
        "nobody knows yet who will answer"
    );
    assert!(is_ping(reply.next().await.as_ref()));
    hive.worker("b").script([Script::says(&["b"])]).join().await;
    // The first worker dies, so the second one answers: headers and comments commit nothing.
    gate.open();
    assert_eq!(text_of(&reply.events().await), "b");
}

#[tokio::test]
async fn an_error_after_the_headers_goes_in_band() {
    let hive = Hive::with(&[("relay.hold_headers", "50ms"), ("relay.keepalive", "50ms")]).await;
    let gate = Gate::new();
    hive.worker("a")
        .script([Script::stream().wait(&gate).fin()])
        .join()
        .await;
    let mut reply = hive.chat("m").stream().send().await;
    assert_eq!(reply.status, 200);
    assert!(is_ping(reply.next().await.as_ref()));
    gate.open();
    let error = reply.broken("worker_failed").await;
    assert_eq!(error["type"], "upstream_error");
    assert_eq!(hive.requests().await[0]["state"], "failed");
}

#[tokio::test]
async fn a_worker_that_stalls_in_the_middle_is_an_error_event() {
    let hive = Hive::with(&[("relay.inter_token_timeout", "300ms"), ("relay.keepalive", "100ms")]).await;
    // Its own comments are no progress.
    let worker = hive
        .worker("a")
        .script([Script::begins(&["a"]).chunk(b": ping\n\n").hang()])
        .join()
        .await;
    let mut reply = hive.chat("m").stream().send().await;
    reply.until("a").await;
    let error = reply.broken("worker_stalled").await;
    assert_eq!(error["type"], "upstream_error");
    worker.server.call(0).await.gone().await;
    hive.until_in_flight("a", 0).await;
    hive.chat("m").send().await.refused(502, "worker_failed").await;
}

#[tokio::test]
async fn waiting_for_the_engines_turn_is_no_silence_of_our_own_worker() {
    let hive = Hive::with(&[("relay.first_token_timeout", "1s")]).await;
    let gate = Gate::new();
    let waits = Script::stream()
        .murmur(Duration::from_millis(200), &gate)
        .event(&chunk(&json!({"role": "assistant", "content": "at last"}), None))
        .ends(1);
    let worker = hive.worker("a").script([waits]).join().await;
    let waiting = hive.chat("m").spawn();
    eventually("twice the first token's time has passed", async || {
        (worker.server.babbled() >= 10).then_some(())
    })
    .await;
    gate.open();
    let answer = waiting.await.unwrap().json().await;
    assert_eq!(answer["choices"][0]["message"]["content"], "at last");
    assert_eq!(worker.server.calls(), 1);
}

#[tokio::test]
async fn comments_of_an_attached_server_prove_nothing() {
    let hive = Hive::with(&[("relay.first_token_timeout", "1s")]).await;
    let murmurs = Script::stream().murmur(Duration::from_millis(200), &Gate::new());
    let server = Server::to_attach(&["x"], None, vec![murmurs]).await;
    let attach = hive.on_control("POST", "/control/v1/workers");
    let attached = Reply::to(attach.json(&json!({"url": server.url()}))).await;
    assert_eq!(attached.status, 201);
    hive.chat("x").send().await.refused(502, "worker_failed").await;
}

#[tokio::test]
async fn a_deadline_ends_a_request_wherever_it_is() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let hasty = || hive.chat("m").header("x-hive-deadline-ms", "600");
    let mut streaming = hasty().stream().send().await;
    streaming.until("a").await;
    streaming.broken("deadline_exceeded").await;
    worker.server.call(0).await.gone().await;
    hasty().send().await.refused(504, "deadline_exceeded").await;
    worker.server.call(1).await.gone().await;
    hive.until_in_flight("a", 0).await;
    // And in the queue, without a worker.
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    hasty().send().await.refused(504, "deadline_exceeded").await;
    hasty().stream().send().await.refused(504, "deadline_exceeded").await;
    assert_eq!(worker.server.calls(), 3);
    drop(running);
}

#[tokio::test]
async fn a_deadline_that_is_no_number_of_milliseconds_is_refused() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    for deadline in ["", "0", "-1", "soon", "1.5", "99999999999"] {
        let error = hive
            .chat("m")
            .header("x-hive-deadline-ms", deadline)
            .send()
            .await
            .refused(400, "invalid_request")
            .await;
        assert_eq!(error["param"], "x-hive-deadline-ms");
    }
    let done = hive
        .chat("m")
        .header("x-hive-deadline-ms", "60000")
        .send()
        .await
        .json()
        .await;
    assert_eq!(done["choices"][0]["finish_reason"], "stop");
    assert_ne!(done["usage"], Value::Null);
    assert_eq!(done["object"], json!("chat.completion"));
}
