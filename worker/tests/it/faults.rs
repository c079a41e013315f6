//! Every scripted fault does what it says: what tests of the gateway rely on.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::worker::{Answer, Worker, streamed};

async fn faulty(worker: &Worker, kind: &str) -> Answer {
    let script = json!({"tokens": ["a", "b", "c"], "fault": {"at": 1, "kind": kind}});
    worker.ask(&streamed(script.to_string())).await
}

#[tokio::test]
async fn faults_on_the_wire_are_as_ordered() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;

    let closed = faulty(&worker, "close").await;
    assert!(!closed.broke && closed.events().len() == 2, "{}", closed.body());
    assert!(!closed.body().contains("finish_reason\":\"") && !closed.body().contains("[DONE]"));

    let cut = faulty(&worker, "truncate").await;
    assert!(cut.broke, "the connection ended properly");
    assert!(!cut.body().ends_with("\n\n"), "{}", cut.body());

    let giant = faulty(&worker, "giant").await;
    assert!(giant.events().iter().any(|event| event.len() > 256 * 1024));

    let garbage = faulty(&worker, "garbage").await;
    assert!(std::str::from_utf8(&garbage.bytes).is_err());

    let no_done = faulty(&worker, "no_done").await;
    assert!(no_done.body().contains(r#""finish_reason":"stop""#) && !no_done.body().contains("[DONE]"));
    assert!(!no_done.broke);

    let unfinished = faulty(&worker, "done_without_finish").await;
    assert!(unfinished.body().ends_with("data: [DONE]\n\n") && !unfinished.body().contains("finish_reason\":\""));

    let failed = faulty(&worker, "error_event").await;
    let last: Value = serde_json::from_str(failed.events().pop().unwrap()).unwrap();
    let keys: Vec<&str> = last["error"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.len(), 4);
    assert_eq!(
        (last["error"]["type"].as_str(), last["error"]["code"].as_str()),
        (Some("server_error"), Some("engine_failed"))
    );

    let refused = faulty(&worker, "http_500").await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::INTERNAL_SERVER_ERROR, "engine_failed".to_owned())
    );

    let elsewhere = faulty(&worker, "redirect").await;
    assert_eq!(elsewhere.status, StatusCode::TEMPORARY_REDIRECT);
    assert!(elsewhere.headers.contains_key("location"));

    assert_eq!(
        worker.ask(&streamed("fine")).await.text(),
        "fine",
        "the worker outlives all of them"
    );
}

#[tokio::test]
async fn a_panic_costs_its_request_and_nothing_else() {
    let worker = Worker::alone(json!({}), &["--slots", "1"]).await.ready().await;
    for _ in 0..2 {
        let panicked = faulty(&worker, "panic").await;
        let last: Value = serde_json::from_str(panicked.events().pop().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "engine_failed");
    }
    worker.says("a panic: the script panics").await;
    assert_eq!(worker.ask(&streamed("fine")).await.text(), "fine");
}

#[tokio::test]
async fn a_worker_that_dies_takes_the_connection_along() {
    let mut worker = Worker::alone(json!({"fault": {"at": 1, "kind": "die"}}), &[])
        .await
        .ready()
        .await;
    let answer = worker.ask(&streamed("a b c")).await;
    assert!(answer.broke);
    assert_eq!(answer.events().len(), 2, "{}", answer.body());
    assert_eq!(worker.end().await, None, "it was no exit but an abort");
}

#[tokio::test]
async fn a_script_sets_the_cadence() {
    let worker = Worker::alone(json!({"tokens": 3, "first_token_ms": 120, "interval_ms": 40}), &[])
        .await
        .ready()
        .await;
    let began = std::time::Instant::now();
    assert_eq!(worker.ask(&streamed("x")).await.text(), "t0 t1 t2 ");
    assert!(began.elapsed().as_millis() >= 240, "{:?}", began.elapsed());
}
