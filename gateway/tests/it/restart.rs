//! `kill -9` and a new start on the same state folder and ports: nothing acknowledged is lost.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wire::Heartbeat;

use crate::{client::Reply, harness::Hive, script::Script, server::Server, worker::registration};

#[tokio::test]
async fn keys_models_and_tokens_outlive_a_kill() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").model("org/m").join().await;
    worker.says(|beat| beat.facts.context_length = Some(4096));
    crate::harness::eventually("its facts are known", async || {
        let models = Reply::to(hive.on_control("GET", "/control/v1/models"))
            .await
            .json()
            .await;
        (models[0]["facts"]["context_length"] == 4096).then_some(())
    })
    .await;
    let (_, key) = hive.key(&["infer"]).await;
    let (revoked, dead) = hive.key(&["infer"]).await;
    assert_eq!(
        Reply::to(hive.on_control("DELETE", &format!("/control/v1/keys/{revoked}")))
            .await
            .status,
        204
    );
    let unused = hive.join_token(None).await;
    let used = hive.join_token(Some("b")).await;
    let server = Server::unregistered("b").await;
    assert_eq!(hive.register(&used, &registration("b", &server)).await.status, 200);
    worker.falls_silent();

    let started = Instant::now();
    let hive = hive.again(&[]).await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    hive.chat("org/m")
        .key(&key)
        .send()
        .await
        .refused(503, "no_worker")
        .await;
    hive.chat("nope")
        .key(&key)
        .send()
        .await
        .refused(404, "model_not_found")
        .await;
    hive.chat("org/m")
        .key(&dead)
        .send()
        .await
        .refused(401, "invalid_api_key")
        .await;
    let models = Reply::to(hive.on_control("GET", "/control/v1/models"))
        .await
        .json()
        .await;
    assert_eq!(
        (&models[1]["id"], &models[1]["facts"]["context_length"]),
        (&json!("org/m"), &json!(4096))
    );
    hive.register(&used, &registration("b", &server))
        .await
        .refused(401, "invalid_api_key")
        .await;
    let other = Server::unregistered("c").await;
    let registered = hive.register(&unused, &registration("c", &other)).await.json().await;
    assert_eq!(registered["epoch"], 1);
    assert_eq!(hive.chat("m").key(&key).send().await.status, 200);
}

#[tokio::test]
async fn a_live_worker_is_told_to_register_again_and_serves() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    worker.falls_silent();
    let hive = hive.again(&[]).await;
    assert_eq!(hive.workers().await, Vec::<Value>::new());
    let beat = worker.beat.lock().unwrap().clone();
    hive.heartbeat("a", &worker.registered.credential, &beat)
        .await
        .refused(404, "unknown_worker")
        .await;
    let again = hive
        .register(&worker.registered.credential, &worker.registration)
        .await
        .json()
        .await;
    assert_eq!(again["epoch"], 2, "epochs never go back");
    let now = Heartbeat { epoch: 2, ..beat };
    assert_eq!(
        hive.heartbeat("a", again["credential"].as_str().unwrap(), &now)
            .await
            .status,
        200
    );
    assert_eq!(hive.chat("m").send().await.status, 200);
    assert_eq!(worker.server.call(0).await.header("x-hive-epoch"), Some("2"));
}

#[tokio::test]
async fn what_ran_when_it_was_killed_is_closed_as_aborted() {
    let mut hive = Hive::start().await;
    hive.worker("a")
        .script([Script::says(&["a"]), Script::begins(&["a"]).hang()])
        .join()
        .await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let waiting = hive.chat("m").spawn();
    // They may have begun in one millisecond, and then stand in any order.
    let states = async |hive: &Hive| {
        let requests = hive.requests().await;
        let mut states: Vec<String> = requests.iter().map(|r| r["state"].as_str().unwrap().into()).collect();
        states.sort();
        states
    };
    crate::harness::eventually("one runs and one waits", async || {
        (states(&hive).await == ["completed", "queued", "running"]).then_some(())
    })
    .await;
    hive.kill();
    waiting.abort();
    let hive = hive.again(&[]).await;
    assert_eq!(states(&hive).await, ["aborted", "aborted", "completed"]);
}
