//! Workers that are in: heartbeats, silence, fencing, draining, leaving, being removed.

use serde_json::{Value, json};
use wire::WorkerState;

use crate::{
    client::{Reply, text_of},
    harness::Hive,
    script::{Gate, Script},
    worker::Worker,
};

async fn leave(hive: &Hive, worker: &Worker) -> Reply {
    let url = format!("{}/control/v1/workers/{}/leave", hive.control, worker.id());
    let body = json!({"epoch": worker.registered.epoch, "reason": "SIGTERM"});
    Reply::to(
        hive.http
            .post(url)
            .bearer_auth(&worker.registered.credential)
            .json(&body),
    )
    .await
}

#[tokio::test]
async fn a_silent_worker_is_lost_until_it_is_heard_again() {
    let hive = Hive::with(&[("registry.silence_limit", "1500ms")]).await;
    let gate = Gate::new();
    let worker = hive
        .worker("a")
        .script([
            Script::begins(&["a"]).wait(&gate).token("b").ends(2),
            Script::says(&["c"]),
        ])
        .join()
        .await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    worker.falls_silent();
    hive.until("a", "lost").await;
    let models = Reply::to(hive.on_data("GET", "/v1/models")).await.json().await;
    assert_eq!(models["data"], json!([]));
    hive.chat("m").send().await.refused(503, "no_worker").await;
    // What it held goes on: it may be only the heartbeats that are lost.
    gate.open();
    assert_eq!(text_of(&running.events().await), "b");
    let beat = worker.beat.lock().unwrap().clone();
    assert_eq!(
        hive.heartbeat("a", &worker.registered.credential, &beat).await.status,
        200
    );
    assert_eq!(hive.worker_view("a").await["state"], "ready");
    assert_eq!(hive.chat("m").send().await.status, 200);
}

#[tokio::test]
async fn a_heartbeat_tells_the_interval_and_is_shown_to_operators() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").slots(4).join().await;
    assert_eq!(worker.registered.heartbeat_interval_ms, 200);
    let mut beat = worker.beat.lock().unwrap().clone();
    beat.tokens_per_second = Some(12.5);
    beat.memory_bytes = Some(1 << 30);
    worker.falls_silent();
    let reply = hive
        .heartbeat("a", &worker.registered.credential, &beat)
        .await
        .json()
        .await;
    assert_eq!(reply, json!({"drain": false, "heartbeat_interval_ms": 200}));
    let view = hive.worker_view("a").await;
    for (field, value) in [
        ("model", json!("m")),
        ("models", json!(["m"])),
        ("state", json!("ready")),
        ("pid", json!(std::process::id())),
        ("url", json!(worker.server.url())),
        ("host", json!("here")),
        ("slots", json!(4)),
        ("in_flight", json!(0)),
        ("epoch", json!(1)),
        ("kind", json!("own")),
        ("tokens_per_second", json!(12.5)),
        ("memory_bytes", json!(1 << 30)),
    ] {
        assert_eq!(view[field], value, "{field}");
    }
    let one = Reply::to(hive.on_control("GET", "/control/v1/workers/a"))
        .await
        .json()
        .await;
    assert_eq!(one["id"], "a");
    Reply::to(hive.on_control("GET", "/control/v1/workers/b"))
        .await
        .refused(404, "unknown_worker")
        .await;
}

#[tokio::test]
async fn only_the_worker_itself_beats_and_only_under_its_own_epoch() {
    let hive = Hive::start().await;
    let (a, b) = (hive.worker("a").join().await, hive.worker("b").join().await);
    let good = a.beat.lock().unwrap().clone();
    for bearer in [
        b.registered.credential.as_str(),
        &hive.admin,
        "dispatch-token-of-a",
        "hvw_junk",
    ] {
        hive.heartbeat("a", bearer, &good)
            .await
            .refused(401, "invalid_api_key")
            .await;
    }
    for epoch in [good.epoch + 1, 0, -1] {
        let stale = wire::Heartbeat { epoch, ..good.clone() };
        hive.heartbeat("a", &a.registered.credential, &stale)
            .await
            .refused(409, "stale_epoch")
            .await;
    }
    hive.heartbeat("nobody", &a.registered.credential, &good)
        .await
        .refused(401, "invalid_api_key")
        .await;
    assert_eq!(leave(&hive, &a).await.status, 204);
    // Its credential is good, but the gateway has let it go: register again.
    hive.heartbeat("a", &a.registered.credential, &good)
        .await
        .refused(404, "unknown_worker")
        .await;
    leave(&hive, &a).await.refused(404, "unknown_worker").await;
    assert_eq!(hive.worker_view("a").await, Value::Null);
}

#[tokio::test]
async fn a_worker_asked_to_drain_finishes_what_it_holds_and_gets_nothing_new() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    let worker = hive
        .worker("a")
        .slots(2)
        .script([Script::begins(&["a"]).wait(&gate).token("b").ends(2)])
        .join()
        .await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let drained = Reply::to(hive.on_control("POST", "/control/v1/workers/a/drain"))
        .await
        .json()
        .await;
    assert_eq!(drained["state"], "draining");
    hive.chat("m").send().await.refused(503, "no_worker").await;
    let beat = worker.beat.lock().unwrap().clone();
    let told = hive
        .heartbeat("a", &worker.registered.credential, &beat)
        .await
        .json()
        .await;
    assert_eq!(told["drain"], true);
    gate.open();
    assert_eq!(text_of(&running.events().await), "b");
    assert_eq!(leave(&hive, &worker).await.status, 204);
    Reply::to(hive.on_control("POST", "/control/v1/workers/a/drain"))
        .await
        .refused(404, "unknown_worker")
        .await;
}

#[tokio::test]
async fn a_worker_that_says_it_drains_gets_nothing_new() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    worker.says(|beat| beat.state = WorkerState::Draining);
    hive.until("a", "draining").await;
    hive.chat("m").send().await.refused(503, "no_worker").await;
}

#[tokio::test]
async fn a_live_worker_is_not_removed_but_a_lost_one_is() {
    let hive = Hive::with(&[("registry.silence_limit", "1500ms")]).await;
    let worker = hive.worker("a").join().await;
    let remove = async || Reply::to(hive.on_control("DELETE", "/control/v1/workers/a")).await;
    remove().await.refused(409, "worker_exists").await;
    worker.falls_silent();
    hive.until("a", "lost").await;
    assert_eq!(remove().await.status, 204);
    assert_eq!(hive.worker_view("a").await, Value::Null);
    remove().await.refused(404, "unknown_worker").await;
    hive.chat("m").send().await.refused(503, "no_worker").await;
}

#[tokio::test]
async fn a_worker_killed_while_it_streams_is_told_to_its_client_at_once() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let mut reply = hive.chat("m").stream().send().await;
    reply.until("a").await;
    worker.dies();
    reply.broken("worker_lost").await;
    assert_eq!(hive.worker_view("a").await["state"], "suspect");
    // Respawned under the same name by its supervisor, with a token for that name.
    let token = hive.join_token(Some("a")).await;
    hive.worker("a").join_with(&token).await;
    assert_eq!(hive.chat("m").send().await.status, 200);
}
