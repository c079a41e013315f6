//! The log: one JSON object a line, one line a request, never a secret or a prompt.

use serde_json::{Value, json};

use crate::{client::Reply, harness::Hive, script::Script};

#[tokio::test]
async fn every_request_has_one_line_with_what_an_operator_looks_for() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let (id, key) = hive.key(&["infer"]).await;
    let reply = hive.chat("m").key(&key).stream().send().await;
    let request_id = reply.header("x-request-id").to_owned();
    let length: usize = reply.text().await.len();
    let line = hive
        .logged("the request's line", |line| line["request_id"] == request_id.as_str())
        .await;
    for (field, value) in [
        ("level", json!("INFO")),
        ("method", json!("POST")),
        ("path", json!("/v1/chat/completions")),
        ("status", json!(200)),
        ("bytes", json!(length)),
        ("key", json!(id)),
        ("model", json!("m")),
        ("worker", json!("a")),
        ("code", Value::Null),
        ("cut", Value::Null),
    ] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
    assert!(line["ms"].is_u64() && line["timestamp"].is_string());
    assert_eq!(hive.log().matches(&request_id).count(), 1);
}

#[tokio::test]
async fn a_failure_is_logged_with_its_cause_which_the_caller_does_not_see() {
    let hive = Hive::start().await;
    hive.worker("a")
        .script([Script::answers(500, "text/plain", "")])
        .join()
        .await;
    let reply = hive.chat("m").send().await;
    let id = reply.header("x-request-id").to_owned();
    let error = reply.refused(502, "worker_failed").await;
    assert!(!error["message"].as_str().unwrap().contains("500"));
    let line = hive
        .logged("the request's line", |line| {
            line["request_id"] == id.as_str() && line["status"] == 502
        })
        .await;
    assert_eq!(
        (&line["level"], &line["code"]),
        (&json!("WARN"), &json!("worker_failed"))
    );
    assert!(line["cause"].as_str().unwrap().contains("500"), "{line}");
}

#[tokio::test]
async fn a_client_that_leaves_is_seen_in_the_log() {
    let hive = Hive::start().await;
    hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let mut reply = hive.chat("m").stream().send().await;
    reply.until("a").await;
    let id = reply.header("x-request-id").to_owned();
    drop(reply);
    let line = hive
        .logged("the request's line", |line| line["request_id"] == id.as_str())
        .await;
    assert_eq!(line["cut"], true);
}

#[tokio::test]
async fn no_secret_prompt_or_answer_is_ever_logged() {
    let hive = Hive::with(&[("log.filter", "trace")]).await;
    let worker = hive.worker("a").script([Script::says(&["ANSWER-TEXT"])]).join().await;
    let (_, key) = hive.key(&["infer"]).await;
    let prompt = json!([{"role": "user", "content": "PROMPT-TEXT\n\u{1b}[2J"}]);
    hive.chat("m")
        .key(&key)
        .with("messages", prompt.clone())
        .stream()
        .send()
        .await
        .text()
        .await;
    hive.chat("m")
        .key(&key)
        .with("messages", prompt)
        .send()
        .await
        .json()
        .await;
    hive.chat("m")
        .key("hvk_wrongwrong")
        .send()
        .await
        .refused(401, "invalid_api_key")
        .await;
    let last = Reply::to(
        hive.stranger("GET", "/v1/models")
            .header("x-api-key", "sk-some-other-key"),
    )
    .await;
    let id = last.header("x-request-id").to_owned();
    hive.logged("the last line", |line| line["request_id"] == id.as_str())
        .await;
    let log = hive.log();
    let credential = worker.registered.credential.as_str();
    for secret in [
        &hive.admin[13..45],
        &key[13..45],
        credential,
        "dispatch-token-of-a",
        "hvk_wrongwrong",
        "sk-some-other-key",
        "PROMPT-TEXT",
        "ANSWER-TEXT",
    ] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn what_strangers_send_cannot_forge_or_break_a_line() {
    let hive = Hive::start().await;
    let odd = "/v1/%0a%1b%5b2J\u{202e}\"},{\"level\":\"ERROR";
    let reply = Reply::to(hive.on_data("GET", odd)).await;
    let id = reply.header("x-request-id").to_owned();
    reply.refused(404, "unknown_url").await;
    let line = hive
        .logged("the request's line", |line| line["request_id"] == id.as_str())
        .await;
    assert_eq!(line["level"], "INFO");
    assert!(hive.log().bytes().all(|byte| byte == b'\n' || !byte.is_ascii_control()));
}

#[tokio::test]
async fn probes_and_heartbeats_do_not_bury_the_rest() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let beat = worker.beat.lock().unwrap().clone();
    assert_eq!(
        hive.heartbeat("a", &worker.registered.credential, &beat).await.status,
        200
    );
    for path in ["/healthz", "/readyz", "/health"] {
        assert_eq!(Reply::to(hive.stranger("GET", path)).await.status, 200);
    }
    let last = Reply::to(hive.on_data("GET", "/v1/models"))
        .await
        .header("x-request-id")
        .to_owned();
    hive.logged("the last line", |line| line["request_id"] == last.as_str())
        .await;
    for quiet in ["/healthz", "/readyz", "/heartbeat"] {
        assert!(!hive.log().contains(quiet), "{quiet}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_has_a_line_too() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").script([Script::stream().hang()]).join().await;
    let asking = hive.chat("m").header("x-request-id", "impatient").spawn();
    worker.server.call(0).await;
    asking.abort();
    let line = hive
        .logged("the request's line", |line| line["request_id"] == "impatient")
        .await;
    assert_eq!(
        (&line["status"], &line["cut"], &line["worker"]),
        (&Value::Null, &json!(true), &json!("a"))
    );
}
