//! Who gets in, and what is refused at the door.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wire::CHALLENGE_PATH;

use super::{
    gateway::Gateway,
    worker::{Answer, PATIENCE, Worker, client, streamed, with},
};

#[tokio::test]
async fn strangers_get_nowhere_but_to_the_challenge() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    for bearer in [
        None,
        Some("Bearer wrong"),
        Some("Bearer "),
        Some("dispatch-me"),
        Some("Basic dispatch-me"),
    ] {
        for (method, path) in [
            (Method::GET, "/healthz"),
            (Method::GET, "/v1/models"),
            (Method::POST, "/v1/chat/completions"),
            (Method::POST, "/v1/completions"),
            (Method::POST, "/v1/embeddings"),
            (Method::DELETE, "/v1/chat/completions"),
            (Method::GET, "/nowhere"),
        ] {
            let mut request = client().request(method, format!("{}{path}", worker.url));
            if let Some(bearer) = bearer {
                request = request.header("authorization", bearer);
            }
            let answer = Answer::of(request.send().await.unwrap()).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path} with {bearer:?}");
            assert_eq!(answer.code(), "invalid_api_key");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    let challenge = client()
        .get(format!("{}{CHALLENGE_PATH}?nonce=ab", worker.url))
        .send()
        .await
        .unwrap();
    assert_eq!(Answer::of(challenge).await.json()["proof"].as_str().unwrap().len(), 64);
    let lower = client()
        .get(format!("{}/healthz", worker.url))
        .header("authorization", "bearer dispatch-me");
    assert_eq!(lower.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn who_shows_no_bearer_is_shown_out_and_the_gateway_may_stay() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let address = worker.url.strip_prefix("http://").unwrap();
    let connect = async |begins: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(begins.as_bytes()).await.unwrap();
        stream
    };
    let ask = |bearer: &str| format!("GET /healthz HTTP/1.1\r\nhost: w\r\nauthorization: Bearer {bearer}\r\n\r\n");
    let mut gateway = connect(&ask("dispatch-me")).await;
    let strangers = ["", "GET /healthz HT", &ask("wrong")];
    let mut connected = Vec::new();
    for begins in strangers {
        connected.push((begins, connect(begins).await));
    }
    for (begins, mut stranger) in connected {
        let shown_out = timeout(PATIENCE, stranger.read_to_end(&mut Vec::new())).await;
        assert!(shown_out.is_ok(), "still there after {begins:?}");
    }
    gateway.write_all(ask("dispatch-me").as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while String::from_utf8_lossy(&said).matches("HTTP/1.1 200").count() < 2 {
        let read = timeout(PATIENCE, gateway.read_buf(&mut said)).await.unwrap().unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&said));
    }
}

#[tokio::test]
async fn a_dispatch_must_name_the_epoch_of_the_registration() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(json!({}), &[]).await.ready().await;
    for epoch in [None, Some(0), Some(2)] {
        worker.epoch = epoch;
        let answer = worker.ask(&streamed("hi")).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::CONFLICT, "stale_epoch".to_owned()),
            "{epoch:?}"
        );
    }
    worker.epoch = Some(1);
    assert_eq!(worker.ask(&streamed("hi")).await.text(), "hi");
}

#[tokio::test]
async fn every_refusal_wears_the_envelope() {
    let worker = Worker::alone(json!({}), &["--context-length", "10"])
        .await
        .ready()
        .await;
    let post = |body: &str| {
        worker.get("/v1/chat/completions").build().map(|mut request| {
            *request.method_mut() = Method::POST;
            *request.body_mut() = Some(body.to_owned().into());
            request
        })
    };
    let large = format!("\"{}\"", "x".repeat(9 << 20));
    let hi = streamed("hi");
    let answers = [
        (404, "unknown_url", worker.get("/v2").build()),
        (405, "method_not_allowed", worker.get("/v1/chat/completions").build()),
        (413, "request_too_large", post(&large)),
        (400, "invalid_request", post("{")),
        (
            400,
            "invalid_request",
            worker.chat(&with(hi.clone(), json!({"max_tokens": 0}))).build(),
        ),
        (
            400,
            "unsupported_parameter",
            worker
                .chat(&with(
                    hi.clone(),
                    json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]}),
                ))
                .build(),
        ),
        (
            404,
            "model_not_found",
            worker.chat(&with(hi.clone(), json!({"model": "other"}))).build(),
        ),
        (
            400,
            "context_length_exceeded",
            worker.chat(&streamed("w ".repeat(10))).build(),
        ),
        (
            400,
            "context_length_exceeded",
            worker.chat(&with(hi, json!({"max_tokens": 10}))).build(),
        ),
    ];
    for (status, code, request) in answers {
        let answer = Answer::of(client().execute(request.unwrap()).await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (status, code.to_owned()));
        let error = answer.json()["error"].clone();
        let keys: BTreeSet<&str> = error.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, BTreeSet::from(["message", "type", "param", "code"]));
    }
    let answer = worker.ask(&with(streamed("a b"), json!({"max_tokens": 9}))).await;
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(
        message,
        "This model's maximum context length is 10 tokens, but you asked for 11: 2 in `messages` and 9 for the answer. \
         Lower max_tokens to at most 8, or shorten `messages`."
    );
}

#[tokio::test]
async fn a_full_worker_says_so() {
    let worker = Worker::alone(json!({}), &["--slots", "1"]).await.ready().await;
    let stalled = streamed(json!({"fault": {"at": 0, "kind": "stall"}}).to_string());
    let _running = worker.chat(&stalled).send().await.unwrap();
    let answer = worker.ask(&streamed("hi")).await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::SERVICE_UNAVAILABLE, "busy".to_owned())
    );
    assert_eq!(answer.headers["retry-after"], "1");
}

#[tokio::test]
async fn the_one_model_is_listed() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let list: Value = worker.get("/v1/models").send().await.unwrap().json().await.unwrap();
    assert_eq!(list["object"], "list");
    assert_eq!(
        (list["data"][0]["id"].as_str(), list["data"][0]["object"].as_str()),
        (Some("m"), Some("model"))
    );
}

#[tokio::test]
async fn an_image_is_refused_by_model_and_field() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let image = json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]);
    let answer = worker
        .ask(&with(
            streamed("x"),
            json!({"messages": [{"role": "user", "content": image}]}),
        ))
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (400, "unsupported_parameter".to_owned())
    );
    let error = answer.json()["error"].clone();
    assert_eq!(error["param"], "messages[0].content[0].type");
    assert!(
        error["message"].as_str().unwrap().contains("`m` reads text only"),
        "{error}"
    );
}
