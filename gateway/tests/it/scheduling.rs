//! Who goes first and where to: context, priorities, tokens, labels, and workers that do not do their part.

use serde_json::{Value, json};

use crate::{
    client::{Reply, Sse},
    harness::{Hive, eventually},
    script::{Gate, Script},
};

fn turns(words: &[&str]) -> Value {
    let says =
        |(n, text): (usize, &&str)| json!({"role": if n % 2 == 0 { "user" } else { "assistant" }, "content": text});
    words.iter().enumerate().map(says).collect()
}

async fn where_to(hive: &Hive, words: &[&str]) -> (String, String) {
    let reply = hive.chat("m").with("messages", turns(words)).send().await;
    let route = reply.header("x-hive-route");
    let by = route
        .split("by=")
        .nth(1)
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    (reply.header("x-hive-worker").to_owned(), by.to_owned())
}

async fn until_queued(hive: &Hive, count: usize) {
    eventually(&format!("{count} requests wait"), async || {
        let waiting = hive.requests().await.iter().filter(|r| r["state"] == "queued").count();
        (waiting == count).then_some(())
    })
    .await;
}

/// A worker whose first answer waits for the gate, and that answer under way.
async fn occupied(hive: &Hive, gate: &Gate) -> (crate::worker::Worker, Reply) {
    let first = Script::begins(&["a"]).wait(gate).ends(1);
    let worker = hive.worker("a").script([first, Script::says(&["b"])]).join().await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    (worker, running)
}

/// The `user` fields of what the worker got, in order.
async fn order(worker: &crate::worker::Worker, count: usize) -> Vec<Value> {
    let mut order = Vec::new();
    for number in 1..=count {
        order.push(worker.server.call(number).await.body["user"].clone());
    }
    order
}

#[tokio::test]
async fn a_conversation_goes_back_to_the_worker_that_has_it() {
    let hive = Hive::start().await;
    let workers = [
        hive.worker("a").slots(4).join().await,
        hive.worker("b").slots(4).join().await,
    ];
    let mut begun = Vec::new();
    for word in ["one", "two", "three"] {
        begun.push((word, where_to(&hive, &[word]).await.0));
    }
    assert_ne!(begun[0].1, begun[1].1, "what begins is shared out");
    for (word, home) in &begun {
        for words in [
            vec![*word, "Hello", "go on"],
            vec![*word, "Hello", "go on", "Hello", "and on"],
        ] {
            assert_eq!(
                where_to(&hive, &words).await,
                (home.clone(), "prefix".to_owned()),
                "{words:?}"
            );
        }
    }
    // Another process under the same id has not heard any of it.
    let [a, _b] = workers;
    let (word, _) = begun.iter().find(|(_, home)| home == "a").unwrap();
    let again = hive.register(&a.registered.credential, &a.registration).await;
    assert_eq!(again.status, 200);
    assert_ne!(where_to(&hive, &[*word, "Hello", "go on"]).await.1, "prefix");
}

#[tokio::test]
async fn a_session_stays_where_it_was_while_there_is_room() {
    let hive = Hive::start().await;
    let hang = Script::begins(&["a"]).hang();
    let _workers = [hive.worker("a").join().await, hive.worker("b").join().await];
    for (field, name) in [("header", "s1"), ("prompt_cache_key", "s2"), ("user", "s3")] {
        let ask = |text: &str| {
            let ask = hive.chat("m").with("messages", turns(&[text]));
            match field {
                "header" => ask.header("x-session-id", name),
                _ => ask.with(field, json!(name)),
            }
        };
        let home = ask("first").send().await.header("x-hive-worker").to_owned();
        for text in ["second", "third", "fourth"] {
            let reply = ask(text).send().await;
            assert_eq!(reply.header("x-hive-worker"), home, "{field}");
            assert!(reply.header("x-hive-route").contains("by=session"), "{field}");
        }
    }
    hive.worker("c").model("other").script([hang]).join().await;
    let ask = || hive.chat("other").header("x-session-id", "s");
    let mut held = ask().stream().send().await;
    held.until("a").await;
    hive.worker("d").model("other").join().await;
    assert_eq!(
        ask().send().await.header("x-hive-worker"),
        "d",
        "the session does not wait for its worker"
    );
}

#[tokio::test]
async fn only_keys_that_may_see_the_hives_state_are_told_the_route() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let (_, plain) = hive.key(&["infer"]).await;
    let (_, knowing) = hive.key(&["infer", "metrics:read"]).await;
    for ask in [hive.chat("m"), hive.chat("m").stream(), hive.completion("m")] {
        let reply = ask.clone().key(&plain).send().await;
        assert_eq!((reply.header("x-hive-worker"), reply.header("x-hive-route")), ("a", ""));
        let route = ask.key(&knowing).send().await.header("x-hive-route").to_owned();
        assert!(route.starts_with("a; by=only_one; attempts=1; queued_ms="), "{route}");
    }
}

#[tokio::test]
async fn higher_priorities_go_first() {
    let hive = Hive::with(&[("scheduler.places_per_slot", "9")]).await;
    let gate = Gate::new();
    let (worker, running) = occupied(&hive, &gate).await;
    let mut asked = Vec::new();
    for (number, priority) in ["low", "normal", "high", "normal", "high"].into_iter().enumerate() {
        let key = hive.key_with(json!({ "priority": priority })).await;
        asked.push(
            hive.chat("m")
                .key(&key)
                .with("user", json!(format!("{priority}{number}")))
                .spawn(),
        );
        until_queued(&hive, number + 1).await;
    }
    gate.open();
    running.events().await;
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(
        order(&worker, 5).await,
        ["high2", "high4", "normal1", "normal3", "low0"]
    );
}

#[tokio::test]
async fn turns_are_counted_in_tokens() {
    let hive = Hive::with(&[("scheduler.places_per_slot", "9")]).await;
    let gate = Gate::new();
    let (worker, running) = occupied(&hive, &gate).await;
    let (_, long) = hive.key(&["infer"]).await;
    let (_, short) = hive.key(&["infer"]).await;
    let mut asked = Vec::new();
    let waiting = [("l1", 2000), ("l2", 2000), ("s1", 200), ("s2", 200), ("s3", 200)];
    for (number, (name, most)) in waiting.into_iter().enumerate() {
        let key = if most == 2000 { &long } else { &short };
        let ask = hive.chat("m").key(key).with("user", json!(name));
        asked.push(ask.with("max_tokens", json!(most)).spawn());
        until_queued(&hive, number + 1).await;
    }
    gate.open();
    running.events().await;
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(order(&worker, 5).await, ["s1", "s2", "s3", "l1", "l2"]);
}

#[tokio::test]
async fn a_greedy_key_cannot_keep_others_out_of_the_queue() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    let (worker, running) = occupied(&hive, &gate).await;
    let (_, greedy) = hive.key(&["infer"]).await;
    let (_, modest) = hive.key(&["infer"]).await;
    let mut asked = Vec::new();
    for number in 0..4 {
        asked.push(
            hive.chat("m")
                .key(&greedy)
                .with("user", json!(format!("g{number}")))
                .spawn(),
        );
        until_queued(&hive, number + 1).await;
    }
    hive.chat("m")
        .key(&greedy)
        .send()
        .await
        .refused(503, "queue_full")
        .await;
    let let_in = hive.chat("m").key(&modest).with("user", json!("m")).spawn();
    asked.pop().unwrap().await.unwrap().refused(503, "queue_full").await;
    until_queued(&hive, 4).await;
    gate.open();
    running.events().await;
    assert_eq!(let_in.await.unwrap().status, 200);
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(order(&worker, 4).await, ["g0", "m", "g1", "g2"]);
}

#[tokio::test]
async fn a_keys_requests_go_only_to_workers_with_its_labels() {
    let hive = Hive::start().await;
    let plain = hive.worker("plain").slots(4).join().await;
    let zone = json!({"zone": "a", "gpu": "yes"});
    let labelled = hive.worker("labelled").slots(4).labels(zone.clone()).join().await;
    assert_eq!(hive.worker_view("labelled").await["labels"], zone);
    let choosy = hive.key_with(json!({"labels": {"zone": "a"}})).await;
    for _thrice in 0..3 {
        assert_eq!(
            hive.chat("m").key(&choosy).send().await.header("x-hive-worker"),
            labelled.id()
        );
    }
    assert_eq!(plain.server.calls(), 0);
    let elsewhere = hive.key_with(json!({"labels": {"zone": "b"}})).await;
    hive.chat("m")
        .key(&elsewhere)
        .send()
        .await
        .refused(503, "no_worker")
        .await;
    let bad = json!({"name": "k", "scopes": ["infer"], "labels": {"zone": "not one word"}});
    let refused = Reply::to(hive.on_control("POST", "/control/v1/keys").json(&bad)).await;
    assert_eq!(refused.refused(400, "invalid_request").await["param"], "labels");
}

#[tokio::test]
async fn one_who_waits_is_told_its_place_and_for_how_long() {
    let hive = Hive::with(&[
        ("relay.hold_headers", "100ms"),
        ("relay.keepalive", "100ms"),
        ("scheduler.places_per_slot", "2"),
    ])
    .await;
    let gate = Gate::new();
    let slow = Script::begins(&["a"]).wait(&gate).ends(1);
    let worker = hive
        .worker("a")
        .script([slow.clone(), slow, Script::begins(&["b"]).hang()])
        .join()
        .await;
    let first = hive.chat("m").spawn();
    worker.server.call(0).await;
    let mut waiting = hive.chat("m").stream().send().await;
    assert_eq!(
        waiting.next().await,
        Some(Sse::Comment("waiting for a slot, position 1".into()))
    );
    gate.open();
    assert_eq!(first.await.unwrap().status, 200);
    waiting.events().await;
    // Now it has been seen how long a slot is held.
    let mut running = hive.chat("m").stream().send().await;
    running.until("b").await;
    let mut waiting = hive.chat("m").stream().send().await;
    let Some(Sse::Comment(told)) = waiting.next().await else {
        panic!("a comment comes first")
    };
    assert!(
        told.starts_with("waiting for a slot, position 1, about ") && told.ends_with(" s"),
        "{told}"
    );
    let _other = hive.chat("m").spawn();
    until_queued(&hive, 2).await;
    let full = hive.chat("m").send().await;
    let seconds = full.header("retry-after").to_owned();
    let error = full.refused(503, "queue_full").await;
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .ends_with(&format!("Try again in about {seconds} s.")),
        "{error}"
    );
}

#[tokio::test]
async fn a_request_of_which_workers_die_is_not_to_be_sent_again() {
    let hive = Hive::start().await;
    let dies = || Script::stream().fin();
    let _workers = [
        hive.worker("a").script([dies()]).join().await,
        hive.worker("b").script([dies()]).join().await,
    ];
    let refused = hive.chat("m").send().await;
    assert_eq!(refused.header("x-should-retry"), "false");
    let error = refused.refused(502, "worker_failed").await;
    assert!(
        error["message"].as_str().unwrap().contains("Two workers died"),
        "{error}"
    );
}

#[tokio::test]
async fn a_retry_that_is_not_made_costs_nothing() {
    let hive = Hive::start().await;
    let bad = || Script::answers(500, "text/plain", "");
    for number in 0..5 {
        let model = format!("alone{number}");
        hive.worker(&model).model(&model).script([bad()]).join().await;
        hive.chat(&model).send().await.refused(502, "worker_failed").await;
    }
    for number in 0..3 {
        let model = format!("pair{number}");
        let names = ["x", "y"].map(|name| format!("{model}{name}"));
        let _both = [
            hive.worker(&names[0])
                .model(&model)
                .script([bad(), Script::says(&["b"])])
                .join()
                .await,
            hive.worker(&names[1]).model(&model).join().await,
        ];
        assert_eq!(hive.chat(&model).send().await.status, 200);
        assert_eq!(hive.chat(&model).send().await.status, 200);
    }
}

#[tokio::test]
async fn a_fleet_that_fails_as_a_whole_is_tried_one_request_at_a_time_until_it_recovers() {
    let hive = Hive::start().await;
    let worker = hive
        .worker("a")
        .slots(4)
        .script([Script::answers(500, "text/plain", "")])
        .join()
        .await;
    for _thrice in 0..3 {
        hive.chat("m").send().await.refused(502, "worker_failed").await;
    }
    assert_eq!(hive.worker_view("a").await["state"], "suspect");
    // Its first event is enough.
    let (first, rest) = (Gate::new(), Gate::new());
    let answer = Script::stream().wait(&first).token("a").wait(&rest).ends(1);
    worker.server.answers(answer);
    let (one, two) = (hive.chat("m").spawn(), hive.chat("m").spawn());
    worker.server.call(3).await;
    until_queued(&hive, 1).await;
    assert_eq!(worker.server.calls(), 4);
    first.open();
    worker.server.call(4).await;
    rest.open();
    assert_eq!((one.await.unwrap().status, two.await.unwrap().status), (200, 200));
    let ejections = Reply::to(hive.on_control("GET", "/metrics")).await.text().await;
    assert!(ejections.contains("hive_ejections_total 1"), "{ejections}");
}

#[tokio::test]
async fn a_worker_that_answers_heartbeats_and_generates_nothing_is_suspect() {
    let hive = Hive::with(&[("relay.first_token_timeout", "1s")]).await;
    let worker = hive.worker("a").join().await;
    worker.says(|beat| (beat.in_flight, beat.tokens_generated) = (1, 5));
    hive.until("a", "suspect").await;
    hive.chat("m").send().await.refused(503, "no_worker").await;
    worker.says(|beat| beat.tokens_generated = 6);
    hive.until("a", "ready").await;
    worker.says(|beat| beat.in_flight = 0);
    assert_eq!(hive.chat("m").send().await.status, 200);
}
