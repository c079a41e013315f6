//! The registry's database in trouble: inference goes on from memory, writes say 503, nothing acknowledged is lost.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    client::{Reply, text_of},
    harness::{Hive, eventually},
    script::{Gate, Script},
};

#[tokio::test]
async fn while_the_database_is_locked_chats_go_on_and_are_booked_later() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let file = SqliteConnectOptions::new().filename(hive.home().join("hive.db"));
    let mut locker = SqliteConnection::connect_with(&file).await.unwrap();
    locker.execute("BEGIN EXCLUSIVE").await.unwrap();
    let new_key = || {
        hive.on_control("POST", "/control/v1/keys")
            .json(&json!({"name": "x", "scopes": ["infer"]}))
    };
    let writing = tokio::spawn(Reply::to(new_key()));
    let started = Instant::now();
    for _request in 0..3 {
        assert_eq!(text_of(&hive.chat("m").stream().send().await.events().await), "Hello");
    }
    let beat = worker.beat.lock().unwrap().clone();
    assert_eq!(
        hive.heartbeat("a", &worker.registered.credential, &beat).await.status,
        200
    );
    let models = Reply::to(hive.on_data("GET", "/v1/models")).await.json().await;
    assert_eq!(models["data"][0]["id"], "m");
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "nobody waited for the lock: {:?}",
        started.elapsed()
    );
    let error = writing.await.unwrap().refused(503, "storage_unavailable").await;
    assert_eq!(error["type"], "server_error");
    locker.execute("ROLLBACK").await.unwrap();
    assert_eq!(Reply::to(new_key()).await.status, 201);
    eventually("the requests are in the books", async || {
        let requests = hive.requests().await;
        (requests.len() == 3 && requests.iter().all(|r| r["state"] == "completed")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_removed_or_replaced_is_never_made_anew_in_silence() {
    let hive = Hive::start().await;
    let _worker = hive.worker("a").join().await;
    let new_key = || {
        hive.on_control("POST", "/control/v1/keys")
            .json(&json!({"name": "x", "scopes": ["infer"]}))
    };
    let (file, aside) = (hive.home().join("hive.db"), hive.home().join("aside"));
    let refused = async || {
        let reply = Reply::to(new_key()).await;
        assert_eq!(reply.header("retry-after"), "5");
        reply.refused(503, "storage_unavailable").await;
        assert_eq!(hive.chat("m").send().await.status, 200);
    };
    std::fs::rename(&file, &aside).unwrap();
    refused().await;
    assert!(!file.exists(), "no empty registry took its place");
    std::fs::write(&file, "another").unwrap();
    refused().await;
    assert_eq!(
        std::fs::read(&file).unwrap(),
        b"another",
        "what is not ours stays as it is"
    );
    std::fs::rename(&aside, &file).unwrap();
    assert_eq!(Reply::to(new_key()).await.status, 201);
    eventually("what was asked meanwhile is in the books", async || {
        (hive.requests().await.len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_books_balance_whatever_happens_also_after_a_kill() {
    let mut hive = Hive::with(&[("scheduler.places_per_slot", "2"), ("scheduler.queue_timeout", "500ms")]).await;
    let gate = Gate::new();
    let some = [
        Script::says(&["a"]),
        Script::begins(&["a"]).fin(),
        Script::refuses(400, "invalid_request", "no"),
        Script::begins(&["a"]).wait(&gate).ends(1),
        Script::answers(500, "text/plain", ""),
        Script::begins(&["a"]).hang(),
    ];
    hive.worker("a")
        .slots(3)
        .script(some.iter().cloned().cycle().take(60))
        .join()
        .await;
    hive.worker("b")
        .slots(3)
        .script(some.iter().rev().cloned().cycle().take(60))
        .join()
        .await;
    let asked: Vec<_> = (0..36)
        .map(|number| {
            if number % 2 == 0 {
                hive.chat("m")
            } else {
                hive.chat("m").stream()
            }
            .spawn()
        })
        .collect();
    let all = eventually("all are admitted", async || {
        let requests = hive.requests().await;
        (requests.len() == asked.len()).then_some(requests)
    })
    .await;
    // Some have ended, some clients leave, some run until the end.
    asked.iter().step_by(5).for_each(tokio::task::JoinHandle::abort);
    gate.open();
    eventually("some have ended", async || {
        let open = hive.requests().await.iter().filter(|r| r["total_ms"].is_null()).count();
        (open < asked.len() / 2).then_some(())
    })
    .await;
    hive.kill();
    let hive = hive.again(&[]).await;
    let after = hive.requests().await;
    assert_eq!(after.len(), all.len());
    for request in &after {
        let state = request["state"].as_str().unwrap();
        assert!(
            ["completed", "failed", "cancelled", "aborted"].contains(&state),
            "{request}"
        );
        let went_wrong = ["failed", "aborted"].contains(&state);
        assert_eq!(went_wrong, request["error"] != Value::Null, "{request}");
    }
    for state in ["completed", "failed"] {
        assert!(after.iter().any(|request| request["state"] == state), "none {state}");
    }
}
