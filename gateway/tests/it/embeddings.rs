//! Vectors: one JSON answer, which passes as the worker wrote it, under the same rules as any other answer.

use serde_json::{Value, json};

use crate::{
    client::Reply,
    harness::{Hive, eventually},
    script::{Gate, Script, Step},
    server::Server,
    shapes,
};

fn vectors() -> String {
    // Spacing and digits that a reader would not write again.
    r#"{ "object":"list","data":[{"object":"embedding","index":0,"embedding":[1.0e-3,0.50]}],"model":"m","usage":{"prompt_tokens":3,"total_tokens":3} }"#.to_owned()
}

fn answers() -> Script {
    Script::answers(200, "application/json", &vectors())
}

#[tokio::test]
async fn vectors_pass_as_the_worker_wrote_them_and_are_in_the_books() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").script([answers()]).join().await;
    let ask = hive
        .embedding("m")
        .with("encoding_format", json!("base64"))
        .with("dimensions", json!(2));
    let reply = ask.send().await;
    assert_eq!((reply.status, reply.header("x-hive-worker")), (200, "a"));
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.text().await, vectors());
    let call = worker.server.call(0).await;
    assert_eq!(call.path, "/v1/embeddings");
    let sent = json!({"model": "m", "input": "Once", "encoding_format": "base64", "dimensions": 2});
    assert_eq!(call.body, sent, "no stream is asked for");
    assert!(call.header("x-hive-request").is_some());
    let entry = eventually("the books have it", async || {
        hive.requests()
            .await
            .into_iter()
            .find(|entry| entry["state"] == "completed")
    })
    .await;
    assert_eq!(
        (&entry["prompt_tokens"], &entry["completion_tokens"]),
        (&json!(3), &json!(0))
    );
}

#[tokio::test]
async fn a_worker_that_dies_before_its_vectors_is_replaced() {
    let hive = Hive::start().await;
    hive.worker("a").script([Script(vec![Step::Reset])]).join().await;
    hive.worker("b").script([answers()]).join().await;
    for _ in 0..2 {
        let list = hive.embedding("m").send().await.json().await;
        shapes::embeddings(&list);
    }
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_workers_connection() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    let worker = hive.worker("a").script([Script(vec![Step::Wait(gate)])]).join().await;
    let asking = hive.embedding("m").spawn();
    let call = worker.server.call(0).await;
    asking.abort();
    call.gone().await;
    hive.until_in_flight("a", 0).await;
}

#[tokio::test]
async fn a_request_for_vectors_that_is_wrong_names_its_field() {
    let hive = Hive::start().await;
    let worker = hive
        .worker("a")
        .script([Script::refuses(400, "context_length_exceeded", "too long")])
        .join()
        .await;
    for (field, value, param) in [
        ("input", json!(null), "input"),
        ("input", json!(""), "input"),
        ("input", json!(["a", ""]), "input[1]"),
        ("input", json!(["a", 7]), "input[1]"),
        ("dimensions", json!(0), "dimensions"),
        ("encoding_format", json!("hex"), "encoding_format"),
    ] {
        let error = hive
            .embedding("m")
            .with(field, value)
            .send()
            .await
            .refused(400, "invalid_request")
            .await;
        assert_eq!(error["param"], param, "{error}");
    }
    assert_eq!(worker.server.calls(), 0);
    let error = hive
        .embedding("m")
        .send()
        .await
        .refused(400, "context_length_exceeded")
        .await;
    assert_eq!(error["message"], "too long");
}

#[tokio::test]
async fn an_attached_servers_vectors_are_mended_and_its_lack_of_them_is_told() {
    let hive = Hive::start().await;
    let strayed = json!({"data": [{"embedding": [0.5], "index": 1}, {"embedding": [0.25], "index": 0}], "model": "theirs", "x": null});
    let server = Server::to_attach(
        &["x"],
        None,
        vec![
            Script::answers(200, "application/json; charset=utf-8", &strayed.to_string()),
            Script::answers(200, "application/json", &strayed.to_string()),
            Script::answers(200, "application/json", &strayed.to_string()),
            Script::answers(404, "text/plain", "404 page not found"),
        ],
    )
    .await;
    let attach = hive
        .on_control("POST", "/control/v1/workers")
        .json(&json!({"url": server.url(), "id": "far"}));
    assert_eq!(Reply::to(attach).await.status, 201);
    let texts = json!(["One", "Two"]);
    let list = hive
        .embedding("x")
        .with("input", texts.clone())
        .send()
        .await
        .json()
        .await;
    shapes::embeddings(&list);
    assert_eq!(
        (&list["model"], &list["data"][1]["embedding"]),
        (&json!("x"), &json!([0.5]))
    );
    // OpenAI's SDKs ask for base64 unasked, and take what comes for that.
    let ask = hive
        .embedding("x")
        .with("input", texts)
        .with("encoding_format", json!("base64"));
    let encoded = ask.send().await.json().await;
    assert_eq!(encoded["data"][1]["embedding"], "AAAAPw==");
    // Two vectors for one text are nobody's.
    hive.embedding("x").send().await.refused(502, "worker_failed").await;
    for _ in 0..4 {
        let error = hive.embedding("x").send().await.refused(400, "invalid_request").await;
        assert!(error["message"].as_str().unwrap().contains("embeddings"), "{error}");
    }
    assert_eq!(
        hive.worker_view("far").await["state"],
        "ready",
        "a route it lacks is no fault of its health"
    );
    assert_eq!(Value::Null, list["x"]);
}
