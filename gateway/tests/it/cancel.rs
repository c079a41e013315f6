//! Requests nobody wants any more: the worker hears of it at once, the slot is free, the books are right.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    client::Reply,
    harness::{Hive, eventually},
    script::{Gate, Script},
};

/// The latest request, once it is in this state.
async fn settled(hive: &Hive, state: &str) -> Value {
    eventually(&format!("the request is {state}"), async || {
        hive.requests().await.into_iter().next().filter(|r| r["state"] == state)
    })
    .await
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_frees_its_slot_and_is_charged_for_what_it_got() {
    let hive = Hive::start().await;
    let worker = hive
        .worker("a")
        .script([Script::begins(&["a", "b"]).hang(), Script::says(&["c"])])
        .join()
        .await;
    let mut reply = hive.chat("m").stream().send().await;
    reply.until("ab").await;
    assert_eq!(hive.worker_view("a").await["in_flight"], 1);
    drop(reply);
    worker.server.call(0).await.gone().await;
    hive.until_in_flight("a", 0).await;
    let request = settled(&hive, "cancelled").await;
    assert_eq!(
        (&request["completion_tokens"], &request["error"]),
        (&json!(2), &Value::Null)
    );
    assert!(request["ttft_ms"].is_u64() && request["total_ms"].is_u64());
    assert_eq!(
        hive.worker_view("a").await["state"],
        "ready",
        "that was not the worker's fault"
    );
    assert_eq!(hive.chat("m").send().await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_a_whole_answer_does_so_too() {
    let hive = Hive::start().await;
    let flood = Script::begins(&["a", "b", "c"]).babble(Duration::ZERO, &"x".repeat(60_000));
    let worker = hive.worker("a").script([flood]).join().await;
    let asking = hive.chat("m").spawn();
    let call = worker.server.call(0).await;
    // More than all buffers in between hold, so the gateway has read the first tokens.
    eventually("15 MB are on their way", async || {
        (worker.server.babbled() >= 250).then_some(())
    })
    .await;
    asking.abort();
    call.gone().await;
    hive.until_in_flight("a", 0).await;
    let request = settled(&hive, "cancelled").await;
    assert!(
        request["completion_tokens"].as_u64().is_some_and(|tokens| tokens >= 3),
        "{request}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_event_ends_the_prefill() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").script([Script::stream().hang()]).join().await;
    for (number, ask) in [hive.chat("m"), hive.chat("m").stream()].into_iter().enumerate() {
        let asking = ask.spawn();
        let call = worker.server.call(number).await;
        assert!(!call.is_gone());
        asking.abort();
        call.gone().await;
        hive.until_in_flight("a", 0).await;
        assert_eq!(settled(&hive, "cancelled").await["completion_tokens"], Value::Null);
    }
    assert_eq!(hive.worker_view("a").await["state"], "ready");
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_never_reaches_a_worker() {
    let hive = Hive::with(&[("scheduler.places_per_slot", "1")]).await;
    let gate = Gate::new();
    let worker = hive
        .worker("a")
        .script([Script::begins(&["a"]).wait(&gate).ends(1), Script::says(&["b"])])
        .join()
        .await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let waiting = hive.chat("m").with("user", json!("impatient")).spawn();
    settled(&hive, "queued").await;
    hive.chat("m").send().await.refused(503, "queue_full").await;
    waiting.abort();
    eventually("its place is free", async || {
        let states: Vec<Value> = hive.requests().await.into_iter().map(|r| r["state"].clone()).collect();
        states.contains(&json!("cancelled")).then_some(())
    })
    .await;
    let next = hive.chat("m").with("user", json!("patient")).spawn();
    eventually("another takes the place", async || {
        (hive.requests().await.iter().any(|r| r["state"] == "queued")).then_some(())
    })
    .await;
    gate.open();
    assert_eq!(next.await.unwrap().status, 200);
    assert_eq!(worker.server.call(1).await.body["user"], "patient");
    assert_eq!(worker.server.calls(), 2);
}

#[tokio::test]
async fn a_slot_that_is_cancelled_still_busy_is_shown_and_not_used() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    worker.says(|beat| (beat.in_flight, beat.still_busy) = (1, 1));
    let still_busy = async |id: &str| {
        eventually("its slot is still busy", async || {
            (hive.worker_view(id).await["still_busy"] == 1).then_some(())
        })
        .await;
    };
    still_busy("a").await;
    let view = hive.worker_view("a").await;
    assert_eq!((&view["state"], &view["in_flight"]), (&json!("ready"), &json!(0)));
    let waiting = hive.chat("m").spawn();
    settled(&hive, "queued").await;
    // Another worker takes it, and the explanation tells why the first did not.
    let other = hive.worker("b").join().await;
    let reply = waiting.await.unwrap();
    assert_eq!((reply.status, reply.header("x-hive-worker")), (200, other.id()));
    let path = format!("/control/v1/requests/{}/explain", reply.header("x-request-id"));
    let told = Reply::to(hive.on_control("GET", &path)).await.json().await;
    let candidates = told["decision"]["attempts"][0]["candidates"]
        .as_array()
        .unwrap()
        .clone();
    assert!(
        candidates
            .iter()
            .any(|c| c["worker"] == "a" && c["verdict"] == "still_busy"),
        "{candidates:?}"
    );
    other.says(|beat| (beat.in_flight, beat.still_busy) = (1, 1));
    still_busy("b").await;
    let waiting = hive.chat("m").spawn();
    settled(&hive, "queued").await;
    worker.says(|beat| (beat.in_flight, beat.still_busy) = (0, 0));
    assert_eq!(waiting.await.unwrap().header("x-hive-worker"), "a");
    assert_eq!(worker.server.calls(), 1);
}

#[tokio::test]
async fn an_operator_can_cancel_a_request_wherever_it_is() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let cancel =
        async |id: &str| Reply::to(hive.on_control("POST", &format!("/control/v1/requests/{id}/cancel"))).await;
    // Streaming, the request named by its id in the answer.
    let mut streaming = hive.chat("m").stream().send().await;
    let id = streaming.header("x-request-id").to_owned();
    streaming.until("a").await;
    // Waiting for the same slot.
    let waiting = hive.chat("m").spawn();
    let queued = eventually("the second waits", async || {
        hive.requests().await.into_iter().find(|r| r["state"] == "queued")
    })
    .await;
    assert_eq!(cancel(queued["id"].as_str().unwrap()).await.status, 202);
    waiting.await.unwrap().refused(409, "cancelled").await;
    assert_eq!(cancel(&id).await.status, 202);
    streaming.broken("cancelled").await;
    worker.server.call(0).await.gone().await;
    hive.until_in_flight("a", 0).await;
    // Collecting a whole answer.
    let collecting = hive.chat("m").spawn();
    worker.server.call(1).await;
    let running = eventually("the third runs", async || {
        hive.requests().await.into_iter().find(|r| r["state"] == "running")
    })
    .await;
    assert_eq!(cancel(running["id"].as_str().unwrap()).await.status, 202);
    collecting.await.unwrap().refused(409, "cancelled").await;
    // Again, and one that never was.
    assert_eq!(cancel(&id).await.status, 202);
    cancel("req_nobody").await.refused(404, "not_found").await;
    let states: Vec<Value> = hive.requests().await.into_iter().map(|r| r["state"].clone()).collect();
    assert_eq!(states, [json!("cancelled"), json!("cancelled"), json!("cancelled")]);
}

#[tokio::test]
async fn cancelling_one_stream_leaves_its_sibling_running() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    let worker = hive
        .worker("a")
        .slots(2)
        .script([Script::begins(&["a"]).wait(&gate).token("b").ends(2)])
        .join()
        .await;
    let (mut leaving, mut staying) = (
        hive.chat("m").stream().send().await,
        hive.chat("m").stream().send().await,
    );
    leaving.until("a").await;
    staying.until("a").await;
    drop(leaving);
    eventually("one of both is gone", async || {
        let gone = [
            worker.server.call(0).await.is_gone(),
            worker.server.call(1).await.is_gone(),
        ];
        (gone[0] || gone[1]).then_some(())
    })
    .await;
    hive.until_in_flight("a", 1).await;
    gate.open();
    assert_eq!(crate::client::text_of(&staying.events().await), "b");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_dropped_and_nobody_else_notices() {
    let hive = Hive::with(&[("relay.slow_client", "300ms")]).await;
    let flood = Script::begins(&["a"]).babble(Duration::ZERO, &"x".repeat(60_000));
    let gate = Gate::new();
    let calm = Script::begins(&["a"]).wait(&gate).token("b").ends(2);
    let worker = hive.worker("a").slots(2).script([flood, calm]).join().await;
    let mut stuck = hive.chat("m").stream().send().await;
    assert!(stuck.event().await.is_some());
    let mut fine = hive.chat("m").stream().send().await;
    fine.until("a").await;
    worker.server.call(0).await.gone().await;
    hive.until_in_flight("a", 1).await;
    eventually("it counts as the client's doing", async || {
        hive.requests()
            .await
            .iter()
            .any(|r| r["state"] == "cancelled")
            .then_some(())
    })
    .await;
    gate.open();
    assert_eq!(crate::client::text_of(&fine.events().await), "b");
    assert_eq!(hive.worker_view("a").await["state"], "ready");
    drop(stuck);
}
