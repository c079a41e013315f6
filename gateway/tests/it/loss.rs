//! Every way a worker can be lost after its first event: told in-band within a second, never a clean silent cut.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    client::text_of,
    harness::Hive,
    script::{Gate, Script},
};

/// A second is promised, a second more is for a busy machine.
const WITHIN: Duration = Duration::from_secs(2);

/// What goes wrong after the token `a`, and the gate it waits for.
fn losses(gate: &Gate) -> Vec<(&'static str, Script)> {
    let begun = || Script::begins(&["a"]).wait(gate);
    let giant = format!("data: {}\n\n", "x".repeat(257 * 1024));
    vec![
        ("FIN in the middle", begun().fin()),
        ("RST in the middle", begun().reset()),
        ("an end without finish_reason", begun().end()),
        ("[DONE] without finish_reason", begun().done().end()),
        (
            "an end in the middle of an event",
            begun().chunk(b"data: {\"choices\":[").end(),
        ),
        (
            "an event without its blank line",
            begun().finish("stop").chunk(b"data: [DONE]").end(),
        ),
        ("a giant event", begun().chunk(giant.as_bytes()).hang()),
        (
            "a giant line without an end",
            begun().chunk(&giant.as_bytes()[..giant.len() - 2]).hang(),
        ),
        (
            "bytes that are no UTF-8",
            begun().chunk(b"data: {\"choices\":[],\"x\":\"\xff\"}\n\n").hang(),
        ),
        ("text that is no JSON", begun().data("CUDA error: out of memory").hang()),
        ("JSON that is no chunk", begun().data("{\"detail\":\"oops\"}").hang()),
        ("an empty event", begun().chunk(b"data:\n\n").hang()),
        ("no terminating chunk", begun().finish("stop").fin()),
        ("a broken chunk header", begun().raw(b"zz\r\nhello\r\n").hang()),
    ]
}

#[tokio::test]
async fn a_worker_lost_in_the_middle_is_an_error_event_within_a_second() {
    let hive = Hive::start().await;
    for (number, (what, _)) in losses(&Gate::new()).into_iter().enumerate() {
        let gate = Gate::new();
        let (id, script) = (format!("w{number}"), losses(&gate).swap_remove(number).1);
        let worker = hive.worker(&id).model(&id).script([script]).join().await;
        let mut reply = hive.chat(&id).stream().send().await;
        reply.until("a").await;
        let lost = Instant::now();
        gate.open();
        let error = reply.broken("worker_lost").await;
        assert!(lost.elapsed() < WITHIN, "{what}: {:?}", lost.elapsed());
        assert_eq!(
            (&error["type"], &error["param"]),
            (&json!("upstream_error"), &Value::Null),
            "{what}"
        );
        assert_eq!(worker.server.calls(), 1, "{what}: not tried again");
        hive.until_in_flight(&id, 0).await;
    }
    let books = hive.requests().await;
    assert!(
        books
            .iter()
            .all(|r| r["state"] == "failed" && r["error"] == "worker_lost" && r["completion_tokens"] == 1),
        "{books:?}"
    );
}

#[tokio::test]
async fn a_worker_lost_in_the_middle_of_a_whole_answer_is_a_502_if_there_is_no_other() {
    let hive = Hive::start().await;
    let open = Gate::new();
    open.open();
    for (number, (what, script)) in losses(&open).into_iter().enumerate() {
        let id = format!("w{number}");
        let worker = hive.worker(&id).model(&id).script([script]).join().await;
        let error = hive.chat(&id).send().await.refused(502, "worker_failed").await;
        assert_eq!(error["type"], "upstream_error", "{what}");
        assert_eq!(worker.server.calls(), 1, "{what}: not tried again");
    }
}

#[tokio::test]
async fn a_worker_lost_in_the_middle_of_a_whole_answer_is_replaced_unnoticed() {
    let hive = Hive::start().await;
    let open = Gate::new();
    open.open();
    for (number, (what, script)) in losses(&open).into_iter().enumerate() {
        let model = format!("m{number}");
        let good = hive.worker(&format!("good{number}")).model(&model).join().await;
        // The one chosen longest ago comes first, so let the good one have been chosen.
        assert_eq!(hive.chat(&model).send().await.status, 200);
        let bad = hive
            .worker(&format!("bad{number}"))
            .model(&model)
            .script([script])
            .join()
            .await;
        let reply = hive.chat(&model).send().await;
        assert_eq!(reply.header("x-hive-worker"), good.id(), "{what}");
        let whole = reply.json().await;
        assert_eq!(
            whole["choices"][0]["message"]["content"], "Hello",
            "{what}: nothing of the lost worker"
        );
        assert_eq!((bad.server.calls(), good.server.calls()), (1, 2), "{what}");
        hive.until_in_flight(bad.id(), 0).await;
    }
    let books = hive.requests().await;
    assert!(
        books
            .iter()
            .all(|r| r["state"] == "completed" && r["completion_tokens"] == 2),
        "{books:?}"
    );
}

#[tokio::test]
async fn a_whole_answer_during_which_two_workers_were_lost_is_not_given_to_a_third() {
    let hive = Hive::start().await;
    let dying = || Script::begins(&["a"]).reset();
    let mut workers = Vec::new();
    for id in ["a", "b", "c"] {
        workers.push(hive.worker(id).script([dying()]).join().await);
    }
    hive.chat("m").send().await.refused(502, "worker_failed").await;
    let calls: usize = workers.iter().map(|worker| worker.server.calls()).sum();
    assert_eq!(calls, 2);
    assert_eq!(hive.requests().await[0]["state"], "failed");
}

#[tokio::test]
async fn a_client_that_leaves_while_its_whole_answer_begins_anew_frees_both_slots() {
    let hive = Hive::start().await;
    let good = hive
        .worker("good")
        .script([Script::says(&["x"]), Script::begins(&["b"]).hang()])
        .join()
        .await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    hive.worker("bad").script([Script::begins(&["a"]).fin()]).join().await;
    let asking = hive.chat("m").spawn();
    let second = good.server.call(1).await;
    asking.abort();
    second.gone().await;
    hive.until_in_flight("good", 0).await;
    hive.until_in_flight("bad", 0).await;
    let state = || async { hive.requests().await[0]["state"].clone() };
    crate::harness::eventually("it is cancelled", async || (state().await == "cancelled").then_some(())).await;
}

#[tokio::test]
async fn a_worker_that_died_is_not_asked_again_before_it_is_heard_of() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let (credential, beat) = (worker.registered.credential.clone(), worker.beat.clone());
    let mut stream = hive.chat("m").stream().send().await;
    stream.until("a").await;
    worker.dies();
    stream.broken("worker_lost").await;
    let view = hive.worker_view("a").await;
    assert_eq!(view["state"], "suspect", "{view}");
    assert!(view["message"].is_string());
    hive.chat("m").send().await.refused(503, "no_worker").await;
    let beat = beat.lock().unwrap().clone();
    assert_eq!(hive.heartbeat("a", &credential, &beat).await.status, 200);
    assert_eq!(hive.worker_view("a").await["state"], "ready");
}

#[tokio::test]
async fn a_worker_that_lives_and_lost_a_connection_is_asked_again_without_a_heartbeat() {
    let hive = Hive::start().await;
    let worker = hive
        .worker("a")
        .script([Script::begins(&["a"]).fin(), Script::says(&["b"])])
        .join()
        .await;
    worker.falls_silent();
    hive.chat("m").stream().send().await.broken("worker_lost").await;
    hive.until("a", "ready").await;
    assert_eq!(text_of(&hive.chat("m").stream().send().await.events().await), "b");
}

#[tokio::test]
async fn the_other_streams_go_on_when_one_worker_is_lost() {
    let hive = Hive::start().await;
    let (lose, finish) = (Gate::new(), Gate::new());
    hive.worker("a")
        .script([Script::begins(&["a"]).wait(&lose).reset()])
        .join()
        .await;
    let mut doomed = hive.chat("m").stream().send().await;
    doomed.until("a").await;
    hive.worker("b")
        .script([Script::begins(&["b"]).wait(&finish).token("c").ends(2)])
        .join()
        .await;
    let mut other = hive.chat("m").stream().send().await;
    other.until("b").await;
    lose.open();
    doomed.broken("worker_lost").await;
    finish.open();
    assert_eq!(text_of(&other.events().await), "c");
}

#[tokio::test]
async fn what_came_whole_before_the_fault_is_delivered() {
    let hive = Hive::start().await;
    // All in one segment: two tokens and the fault.
    let token = |text: &str| format!("data: {}\n\n", crate::script::chunk(&json!({"content": text}), None));
    let together = format!("{}{}data: oops\n\n", token("b"), token("c"));
    let gate = Gate::new();
    hive.worker("a")
        .script([Script::begins(&["a"]).wait(&gate).chunk(together.as_bytes()).hang()])
        .join()
        .await;
    let mut reply = hive.chat("m").stream().send().await;
    reply.until("a").await;
    gate.open();
    reply.until("bc").await;
    reply.broken("worker_lost").await;
    assert_eq!(hive.requests().await[0]["completion_tokens"], 3);
}

#[tokio::test]
async fn a_workers_own_error_event_is_a_loss_to_the_client_and_told_in_the_log() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").script([Script::says(&["unused"])]).join().await;
    for error in [
        json!({"error": {"message": "out of memory on /secret", "type": "server_error", "param": null, "code": "oom"}}),
        json!({"error": "out of memory on /secret"}),
        json!({"error": {"message": "out of memory on /secret", "code": 500}}),
    ] {
        worker
            .server
            .answers(Script::begins(&["a"]).event(&error).token("never").hang());
        let mut reply = hive.chat("m").stream().send().await;
        reply.until("a").await;
        let told = reply.broken("worker_lost").await;
        assert_eq!(told["type"], "upstream_error");
        assert!(!told["message"].as_str().unwrap().contains("secret"), "{told}");
    }
    worker.server.call(0).await.gone().await;
    hive.logged("what the worker said", |line| {
        line["cause"]
            .as_str()
            .is_some_and(|cause| cause.contains("out of memory"))
    })
    .await;
    let request = &hive.requests().await[0];
    assert_eq!(
        (&request["state"], &request["error"]),
        (&json!("failed"), &json!("worker_lost"))
    );
}

#[tokio::test]
async fn what_a_worker_does_after_done_is_of_no_matter() {
    let hive = Hive::start().await;
    let done = || Script::says_until_done(&["a"]);
    hive.worker("a")
        .script([
            done().fin(),
            done().reset(),
            done().hang(),
            done().data("late").end(),
            Script::says(&["a"]),
        ])
        .join()
        .await;
    for _request in 0..5 {
        assert_eq!(text_of(&hive.chat("m").stream().send().await.events().await), "a");
        hive.until_in_flight("a", 0).await;
    }
    assert_eq!(hive.worker_view("a").await["state"], "ready");
}
