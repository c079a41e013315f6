//! Why a request went where it did: told to operators, for requests that wait, run, have ended or are long gone.

use serde_json::{Value, json};

use crate::{
    client::Reply,
    harness::{Hive, eventually},
    script::Script,
};

async fn explained(hive: &Hive, id: &str) -> Value {
    let path = format!("/control/v1/requests/{id}/explain");
    Reply::to(hive.on_control("GET", &path)).await.json().await
}

fn verdicts(attempt: &Value) -> Vec<(String, String)> {
    let text = |candidate: &Value, field: &str| candidate[field].as_str().unwrap().to_owned();
    let candidates = attempt["candidates"].as_array().unwrap();
    candidates
        .iter()
        .map(|c| (text(c, "worker"), text(c, "verdict")))
        .collect()
}

fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(worker, verdict)| ((*worker).to_owned(), (*verdict).to_owned()))
        .collect()
}

#[tokio::test]
async fn each_attempt_tells_who_was_there_who_was_chosen_and_how_it_failed() {
    let hive = Hive::start().await;
    let good = hive.worker("good").slots(2).join().await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    hive.worker("bad")
        .slots(2)
        .script([Script::answers(500, "text/plain", "oh")])
        .join()
        .await;
    hive.worker("loading").state(wire::WorkerState::Loading).join().await;
    let reply = hive
        .chat("m")
        .header("x-request-id", "mine-1")
        .with("max_tokens", json!(100))
        .send()
        .await;
    assert_eq!(reply.header("x-hive-worker"), good.id());
    assert!(
        reply
            .header("x-hive-route")
            .starts_with("good; by=only_one; attempts=2; "),
        "{:?}",
        reply.headers
    );
    let told = explained(&hive, "mine-1").await;
    let decision = &told["decision"];
    assert_eq!(
        (&decision["correlation"], &decision["priority"]),
        (&json!("mine-1"), &json!("normal"))
    );
    assert!(decision["expected_tokens"].as_u64().unwrap() > 100);
    let [first, second] = decision["attempts"].as_array().unwrap().as_slice() else {
        panic!("two attempts: {decision}")
    };
    assert_eq!(
        (&first["worker"], &first["reason"]),
        (&json!("bad"), &json!("least_work"))
    );
    assert!(first["failure"].as_str().unwrap().contains("500"), "{first}");
    assert_eq!(
        verdicts(first),
        named(&[("bad", "chosen"), ("good", "passed"), ("loading", "loading")])
    );
    assert_eq!((&second["worker"], &second["failure"]), (&json!("good"), &Value::Null));
    assert_eq!(
        verdicts(second),
        named(&[("good", "chosen"), ("bad", "tried"), ("loading", "loading")])
    );
    assert_eq!(told["request"]["state"], "completed");
    // The books' own id leads to the same.
    let id = told["request"]["id"].as_str().unwrap();
    assert_ne!(id, "mine-1");
    assert_eq!(explained(&hive, id).await["decision"], *decision);
}

#[tokio::test]
async fn a_request_that_waits_tells_its_place() {
    let hive = Hive::start().await;
    hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let told = explained(&hive, running.header("x-request-id")).await;
    assert_eq!(
        (&told["request"]["state"], &told["decision"]["place"]),
        (&json!("running"), &Value::Null)
    );
    let _waiting = hive.chat("m").header("x-request-id", "waits").spawn();
    let place = eventually("it waits", async || {
        let path = "/control/v1/requests/waits/explain";
        let reply = Reply::to(hive.on_control("GET", path)).await;
        let told = if reply.status == 200 {
            reply.json().await
        } else {
            Value::Null
        };
        Some(told["decision"]["place"].clone()).filter(|place| !place.is_null())
    })
    .await;
    assert_eq!(place["position"], 1);
}

#[tokio::test]
async fn what_was_decided_before_a_restart_is_forgotten_and_the_books_are_not() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let id = hive.chat("m").send().await.header("x-request-id").to_owned();
    assert_eq!(explained(&hive, &id).await["decision"]["attempts"][0]["worker"], "a");
    let hive = hive.again(&[]).await;
    let told = explained(&hive, &id).await;
    assert_eq!(
        (&told["decision"], &told["request"]["worker"]),
        (&Value::Null, &json!("a"))
    );
}

#[tokio::test]
async fn only_operators_ask_why_and_nobody_about_what_never_was() {
    let hive = Hive::start().await;
    let path = "/control/v1/requests/req_nobody/explain";
    Reply::to(hive.on_control("GET", path))
        .await
        .refused(404, "not_found")
        .await;
    let (_, key) = hive.key(&["infer", "metrics:read"]).await;
    let asked = hive.http.get(format!("{}{path}", hive.control)).bearer_auth(key);
    Reply::to(asked).await.refused(403, "insufficient_scope").await;
}
