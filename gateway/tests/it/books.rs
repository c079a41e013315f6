//! The books: every admitted request with its one outcome, its tokens and its times.

use serde_json::{Value, json};

use crate::{
    client::Reply,
    harness::Hive,
    script::{Gate, Script},
    shapes,
};

#[tokio::test]
async fn a_completed_request_has_its_key_model_worker_tokens_and_times() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let (id, key) = hive.key(&["infer"]).await;
    for ask in [hive.chat("m"), hive.chat("m").stream()] {
        let reply = ask.key(&key).send().await;
        let request_id = reply.header("x-request-id").to_owned();
        reply.text().await;
        let request = hive.requests().await.remove(0);
        let wanted = [
            "completion_tokens",
            "error",
            "id",
            "key_id",
            "model",
            "prompt_tokens",
            "started_at_ms",
            "state",
            "total_ms",
            "ttft_ms",
            "worker",
        ];
        assert_eq!(shapes::keys(&request), wanted);
        for (field, value) in [
            ("id", json!(request_id)),
            ("key_id", json!(id)),
            ("model", json!("m")),
            ("worker", json!("a")),
            ("state", json!("completed")),
            ("prompt_tokens", json!(7)),
            ("completion_tokens", json!(2)),
            ("error", Value::Null),
        ] {
            assert_eq!(request[field], value, "{field}");
        }
        let number = |field: &str| request[field].as_i64().unwrap();
        assert!(number("ttft_ms") <= number("total_ms"));
        assert!((gateway::now_ms() - number("started_at_ms")).abs() < 60_000);
    }
}

#[tokio::test]
async fn a_request_is_seen_queued_running_and_ended() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    hive.worker("a")
        .script([Script::begins(&["a"]).wait(&gate).ends(1)])
        .join()
        .await;
    let (first, second) = (hive.chat("m").spawn(), hive.chat("m").spawn());
    crate::harness::eventually("one runs, one waits", async || {
        let mut states: Vec<String> = hive
            .requests()
            .await
            .iter()
            .map(|r| r["state"].as_str().unwrap().to_owned())
            .collect();
        states.sort();
        (states == ["queued", "running"]).then_some(())
    })
    .await;
    gate.open();
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
    assert!(hive.requests().await.iter().all(|r| r["state"] == "completed"));
}

#[tokio::test]
async fn a_failed_request_has_its_code_and_what_was_generated() {
    let hive = Hive::start().await;
    hive.worker("a")
        .script([Script::begins(&["a", "b"]).fin()])
        .join()
        .await;
    hive.chat("m").stream().send().await.broken("worker_lost").await;
    hive.worker("b")
        .model("n")
        .script([Script::refuses(400, "context_length_exceeded", "too long")])
        .join()
        .await;
    hive.chat("n")
        .send()
        .await
        .refused(400, "context_length_exceeded")
        .await;
    let requests = hive.requests().await;
    let ends: Vec<_> = requests
        .iter()
        .map(|r| (&r["state"], &r["error"], &r["completion_tokens"]))
        .collect();
    assert_eq!(
        ends,
        [
            (&json!("failed"), &json!("context_length_exceeded"), &Value::Null),
            (&json!("failed"), &json!("worker_lost"), &json!(2)),
        ]
    );
}

#[tokio::test]
async fn the_latest_come_first_and_as_many_as_asked_for() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let mut ids = Vec::new();
    for _request in 0..3 {
        let reply = hive.chat("m").send().await;
        ids.insert(0, reply.header("x-request-id").to_owned());
        // Two in one millisecond have no order.
        let then = gateway::now_ms();
        crate::harness::eventually("the clock ticks", async || (gateway::now_ms() > then).then_some(())).await;
    }
    let listed = Reply::to(hive.on_control("GET", "/control/v1/requests?limit=2"))
        .await
        .json()
        .await;
    let listed: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["id"].as_str().unwrap())
        .collect();
    assert_eq!(listed, ids[..2]);
}

#[tokio::test]
async fn a_client_that_uses_one_request_id_twice_is_in_the_books_twice() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    for _request in 0..2 {
        let reply = hive.chat("m").header("x-request-id", "mine").send().await;
        assert_eq!((reply.status, reply.header("x-request-id")), (200, "mine"));
    }
    assert_eq!(hive.requests().await.len(), 2);
}

#[tokio::test]
async fn what_was_not_admitted_is_not_in_the_books() {
    let hive = Hive::start().await;
    hive.chat("m")
        .key("hvk_junk")
        .send()
        .await
        .refused(401, "invalid_api_key")
        .await;
    hive.chat("m")
        .with("messages", json!([]))
        .send()
        .await
        .refused(400, "invalid_request")
        .await;
    assert_eq!(hive.requests().await, Vec::<Value>::new());
}
