//! Workers of one model that differ: a request goes to one that can do what it asks.

use serde_json::{Value, json};
use wire::{Capabilities, EngineName};

use crate::{client::Reply, harness::Hive, script::Script, server::Server, shapes, worker::CHATS};

async fn model(hive: &Hive) -> Value {
    let model = Reply::to(hive.on_data("GET", "/v1/models/m")).await.json().await;
    shapes::model(&model);
    model["hive"].clone()
}

#[tokio::test]
async fn an_image_goes_to_the_worker_that_sees() {
    let hive = Hive::start().await;
    let sees = Capabilities { vision: true, ..CHATS };
    let blind = hive.worker("blind").able(EngineName::Mistral, CHATS).join().await;
    let seer = hive.worker("seer").able(EngineName::Mistral, sees).join().await;
    assert_eq!(model(&hive).await["capabilities"]["vision"], true);
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}});
    let ask = hive
        .chat("m")
        .with("messages", json!([{"role": "user", "content": [image]}]));
    for _ in 0..3 {
        assert_eq!(ask.clone().send().await.header("x-hive-worker"), "seer");
    }
    assert_eq!(blind.server.calls(), 0);
    let drain = hive.on_control("POST", "/control/v1/workers/seer/drain");
    assert_eq!(Reply::to(drain).await.status, 200);
    assert_eq!(seer.server.calls(), 3);
    let error = ask.send().await.refused(400, "unsupported_parameter").await;
    assert_eq!(error["param"], "messages[0].content[0].type");
    assert_eq!(hive.chat("m").send().await.header("x-hive-worker"), "blind");
}

#[tokio::test]
async fn what_may_not_fit_goes_to_the_worker_with_the_longer_context() {
    let hive = Hive::start().await;
    let short = hive.worker("short").context(1000).join().await;
    hive.worker("long").context(8000).join().await;
    assert_eq!(model(&hive).await["context_length"], 8000);
    let words = json!([{"role": "user", "content": "word ".repeat(1000)}]);
    for ask in [
        hive.chat("m").with("messages", words.clone()),
        hive.chat("m").with("max_tokens", json!(990)),
        // Too much for either: the one with the longer context says so.
        hive.chat("m").with("messages", words).with("max_tokens", json!(9000)),
    ] {
        for _ in 0..2 {
            assert_eq!(ask.clone().send().await.header("x-hive-worker"), "long");
        }
    }
    assert_eq!(short.server.calls(), 0);
    // What fits both goes to whoever was idle longer.
    assert_eq!(hive.chat("m").send().await.header("x-hive-worker"), "short");
}

#[tokio::test]
async fn what_our_engines_refuse_goes_to_the_attached_server() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["m"], None, vec![Script::says(&["yes"])]).await;
    let attach = hive
        .on_control("POST", "/control/v1/workers")
        .json(&json!({"url": server.url(), "id": "far", "slots": 1}));
    assert_eq!(Reply::to(attach).await.status, 201);
    let ours = hive.worker("ours").able(EngineName::Mistral, CHATS).join().await;
    let knows = model(&hive).await;
    let chat = &knows["parameters"]["chat"];
    assert_eq!(
        (&knows["engine"], &knows["workers_ready"]),
        (&json!("mistral"), &json!(2))
    );
    assert_eq!(
        (&chat["temperature"], &chat["mirostat"]),
        (&json!("emulated"), &json!("passed"))
    );
    for _ in 0..3 {
        let reply = hive
            .chat("m")
            .with("mirostat", json!(2))
            .with("store", json!(false))
            .send()
            .await;
        assert_eq!(reply.header("x-hive-worker"), "far");
        assert!(!reply.headers.contains_key("x-hive-ignored-params"), "it got them all");
    }
    assert_eq!(ours.server.calls(), 0);
    // Another conversation, which nobody remembers: it goes to whoever was idle longer.
    let other = json!([{"role": "user", "content": "Something else."}]);
    let ask = hive.chat("m").with("messages", other).with("store", json!(false));
    let reply = ask.send().await;
    assert_eq!(reply.header("x-hive-worker"), "ours");
    assert_eq!(reply.header("x-hive-ignored-params"), "store");
    // What is wrong for everybody is told by the one that finds least.
    let error = hive
        .chat("m")
        .with("temperature", json!(9))
        .with("mirostat", json!(2))
        .send()
        .await;
    let error = error.refused(400, "invalid_request").await;
    assert!(!error["message"].as_str().unwrap().contains("mirostat"), "{error}");
}
