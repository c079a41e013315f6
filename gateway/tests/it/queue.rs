//! More requests than slots: one slot one request, a bounded queue, turns between keys, load shared out.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    client::Reply,
    harness::{Hive, eventually},
    script::{Gate, Script},
};

/// Waits until this many requests wait for a slot.
async fn until_queued(hive: &Hive, count: usize) {
    eventually(&format!("{count} requests wait"), async || {
        let waiting = hive.requests().await.iter().filter(|r| r["state"] == "queued").count();
        (waiting == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_requests_and_one_slot_go_one_after_the_other() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    let worker = hive
        .worker("a")
        .script([Script::begins(&["a"]).wait(&gate).ends(1)])
        .join()
        .await;
    let (first, second) = (hive.chat("m").spawn(), hive.chat("m").spawn());
    until_queued(&hive, 1).await;
    assert_eq!(
        (worker.server.calls(), &hive.worker_view("a").await["in_flight"]),
        (1, &json!(1))
    );
    gate.open();
    assert_eq!((first.await.unwrap().status, second.await.unwrap().status), (200, 200));
    assert_eq!(worker.server.most_at_once(), 1);
}

#[tokio::test]
async fn a_request_whose_worker_died_has_a_place_in_a_full_queue() {
    let hive = Hive::with(&[("scheduler.places_per_slot", "1")]).await;
    let (gate, death) = (Gate::new(), Gate::new());
    let _a = hive
        .worker("a")
        .script([Script::begins(&["a"]).wait(&gate).ends(1)])
        .join()
        .await;
    let mut asked = vec![hive.chat("m").spawn()];
    hive.until_in_flight("a", 1).await;
    let _b = hive
        .worker("b")
        .script([Script::stream().wait(&death).reset(), Script::says(&["b"])])
        .join()
        .await;
    asked.push(hive.chat("m").spawn());
    hive.until_in_flight("b", 1).await;
    asked.extend([hive.chat("m").spawn(), hive.chat("m").spawn()]);
    until_queued(&hive, 2).await;
    death.open();
    hive.logged("the loss", |line| line["message"] == "an attempt failed")
        .await;
    gate.open();
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_full_queue_and_a_long_wait_are_told_apart_and_quickly() {
    let hive = Hive::with(&[
        ("scheduler.places_per_slot", "1"),
        ("scheduler.queue_timeout", "1500ms"),
    ])
    .await;
    let worker = hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let waiting = hive.chat("m").stream().spawn();
    until_queued(&hive, 1).await;
    let started = Instant::now();
    let full = hive.chat("m").send().await;
    assert_eq!(full.header("retry-after"), "2");
    full.refused(503, "queue_full").await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    waiting.await.unwrap().refused(503, "queue_timeout").await;
    assert_eq!(worker.server.calls(), 1);
    let errors: Vec<Value> = hive.requests().await.into_iter().map(|r| r["error"].clone()).collect();
    assert_eq!(errors, [json!("queue_full"), json!("queue_timeout"), Value::Null]);
}

#[tokio::test]
async fn keys_take_turns_however_much_one_of_them_wants() {
    let hive = Hive::with(&[("scheduler.places_per_slot", "9")]).await;
    let gate = Gate::new();
    let worker = hive
        .worker("a")
        .script([Script::begins(&["a"]).wait(&gate).ends(1)])
        .join()
        .await;
    let (_, greedy) = hive.key(&["infer"]).await;
    let (_, modest) = hive.key(&["infer"]).await;
    let mut asked = Vec::new();
    for (number, (key, name)) in [
        (&greedy, "g0"),
        (&greedy, "g1"),
        (&greedy, "g2"),
        (&greedy, "g3"),
        (&modest, "m1"),
    ]
    .into_iter()
    .enumerate()
    {
        asked.push(hive.chat("m").key(key).with("user", json!(name)).spawn());
        if number == 0 {
            worker.server.call(0).await;
        } else {
            until_queued(&hive, number).await;
        }
    }
    gate.open();
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    let mut order = Vec::new();
    for number in 0..5 {
        order.push(worker.server.call(number).await.body["user"].clone());
    }
    assert_eq!(order, ["g0", "g1", "m1", "g2", "g3"]);
}

#[tokio::test]
async fn the_worker_with_the_smallest_share_of_its_slots_taken_is_chosen() {
    let hive = Hive::start().await;
    let script = Script::begins(&["a"]).hang();
    hive.worker("small").slots(1).script([script.clone()]).join().await;
    hive.worker("large").slots(3).script([script]).join().await;
    let mut held: Vec<Reply> = Vec::new();
    for _request in 0..3 {
        held.push(hive.chat("m").stream().send().await);
    }
    let load = async |id: &str| hive.worker_view(id).await["in_flight"].clone();
    assert_eq!((load("small").await, load("large").await), (json!(1), json!(2)));
    held.push(hive.chat("m").stream().send().await);
    assert_eq!((load("small").await, load("large").await), (json!(1), json!(3)));
}

#[tokio::test]
async fn equal_workers_take_turns() {
    let hive = Hive::start().await;
    let workers = [hive.worker("a").join().await, hive.worker("b").join().await];
    for _request in 0..6 {
        assert_eq!(hive.chat("m").send().await.status, 200);
    }
    assert_eq!(workers.map(|worker| worker.server.calls()), [3, 3]);
}

#[tokio::test]
async fn a_new_worker_takes_those_who_wait() {
    let hive = Hive::start().await;
    hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let waiting = hive.chat("m").spawn();
    until_queued(&hive, 1).await;
    hive.worker("b").join().await;
    assert_eq!(waiting.await.unwrap().header("x-hive-worker"), "b");
}

#[tokio::test]
async fn a_burst_is_served_without_ever_passing_a_workers_slots() {
    let hive = Hive::with(&[("scheduler.places_per_slot", "20")]).await;
    let workers = [
        hive.worker("a").slots(2).join().await,
        hive.worker("b").slots(1).join().await,
    ];
    let asked: Vec<_> = (0..40)
        .map(|number| {
            if number % 2 == 0 {
                hive.chat("m")
            } else {
                hive.chat("m").stream()
            }
            .spawn()
        })
        .collect();
    for reply in asked {
        let reply = reply.await.unwrap();
        assert_eq!(reply.status, 200);
        reply.text().await;
    }
    assert!(workers[0].server.most_at_once() <= 2 && workers[1].server.most_at_once() <= 1);
    assert_eq!(workers[0].server.calls() + workers[1].server.calls(), 40);
    hive.until_in_flight("a", 0).await;
    hive.until_in_flight("b", 0).await;
    assert!(hive.requests().await.iter().all(|r| r["state"] == "completed"));
}
