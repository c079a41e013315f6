//! Any OpenAI-compatible server as a worker: attached, listed, asked, watched, detached.

use serde_json::{Value, json};

use crate::{
    client::{Reply, text_of},
    harness::{Hive, eventually},
    script::{Script, chunk},
    server::Server,
    shapes,
};

async fn attach(hive: &Hive, body: Value) -> Reply {
    Reply::to(hive.on_control("POST", "/control/v1/workers").json(&body)).await
}

#[tokio::test]
async fn a_server_is_attached_with_the_models_it_lists_and_answers() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x", "org/y", "not a name"], None, vec![Script::says(&["from afar"])]).await;
    let reply = attach(&hive, json!({"url": format!("{}/v1/", server.url())})).await;
    assert_eq!(reply.status, 201);
    let view = reply.json().await;
    let id = server.address.to_string().replace(':', "-");
    for (field, value) in [
        ("id", json!(id)),
        ("models", json!(["x", "org/y"])),
        ("url", json!(server.url())),
        ("kind", json!("attached")),
        ("state", json!("ready")),
        ("slots", json!(64)),
        ("pid", Value::Null),
        ("host", json!(server.address.ip())),
    ] {
        assert_eq!(view[field], value, "{field}");
    }
    let models = Reply::to(hive.on_data("GET", "/v1/models")).await.json().await;
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][1]["id"]),
        (&json!("org/y"), &json!("x"))
    );
    let whole = hive.chat("org/y").send().await;
    assert_eq!(whole.header("x-hive-worker"), id);
    shapes::completion(&whole.json().await);
    assert_eq!(
        text_of(&hive.chat("x").stream().send().await.events().await),
        "from afar"
    );
    let call = server.call(0).await;
    // Neither the client's key nor anything of ours goes there.
    assert_eq!(
        (
            call.header("authorization"),
            call.header("x-hive-epoch"),
            call.header("x-hive-request")
        ),
        (None, None, None)
    );
    assert_eq!(call.body["model"], "org/y");
}

#[tokio::test]
async fn models_named_by_hand_are_the_ones_routed() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], None, vec![Script::says(&["y"])]).await;
    let body = json!({"url": server.url(), "models": ["alias"], "id": "far", "slots": 1});
    let view = attach(&hive, body).await.json().await;
    assert_eq!(
        (&view["id"], &view["models"], &view["slots"]),
        (&json!("far"), &json!(["alias"]), &json!(1))
    );
    assert_eq!(hive.chat("alias").send().await.status, 200);
    hive.chat("x").send().await.refused(404, "model_not_found").await;
    // Attached again under the same id, it is replaced.
    let view = attach(&hive, json!({"url": server.url(), "id": "far"}))
        .await
        .json()
        .await;
    assert_eq!((&view["models"], &view["epoch"]), (&json!(["x"]), &json!(2)));
    hive.chat("alias").send().await.refused(503, "no_worker").await;
    assert_eq!(hive.workers().await.len(), 1);
}

#[tokio::test]
async fn a_server_that_lists_no_models_is_attached_with_those_that_are_named() {
    let hive = Hive::with(&[("registry.probe_interval", "50ms")]).await;
    let server = Server::to_attach(&[], None, vec![Script::says(&["y"])]).await;
    server.lists(Script::answers(404, "text/plain", "nothing here"));
    let unnamed = attach(&hive, json!({"url": server.url()})).await;
    let error = unnamed.refused(400, "invalid_request").await;
    assert!(error["message"].as_str().unwrap().contains("--model"), "{error}");
    attach(&hive, json!({"url": server.url(), "models": ["m"], "id": "far"}))
        .await
        .json()
        .await;
    let asked = server.listed();
    eventually("it was probed", async || (server.listed() > asked + 1).then_some(())).await;
    assert_eq!(hive.worker_view("far").await["state"], "ready");
    assert_eq!(hive.chat("m").send().await.status, 200);
}

#[tokio::test]
async fn a_server_outside_the_ranges_of_now_is_listed_and_never_called() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], None, vec![Script::says(&["y"])]).await;
    attach(&hive, json!({"url": server.url(), "id": "far"}))
        .await
        .json()
        .await;
    let asked = server.connections();
    let hive = hive
        .again(&[
            ("registry.allowed_cidrs", "[\"192.0.2.0/24\"]"),
            ("registry.probe_interval", "50ms"),
        ])
        .await;
    eventually("its probe was refused", async || {
        let view = hive.worker_view("far").await;
        view["message"]
            .as_str()?
            .contains("registry.allowed_cidrs")
            .then_some(())
    })
    .await;
    hive.chat("x").send().await.refused(503, "no_worker").await;
    assert_eq!(server.connections(), asked);
    let gone = Reply::to(hive.on_control("DELETE", "/control/v1/workers/far")).await;
    assert_eq!(gone.status, 204);
}

#[tokio::test]
async fn a_server_that_wants_a_key_gets_its_own() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], Some("sk-afar"), vec![Script::says(&["x"])]).await;
    for key in [Value::Null, json!(""), json!("sk-wrong")] {
        let error = attach(&hive, json!({"url": server.url(), "api_key": key}))
            .await
            .refused(502, "worker_failed")
            .await;
        assert!(error["message"].as_str().unwrap().contains("--api-key-file"), "{error}");
    }
    let reply = attach(&hive, json!({"url": server.url(), "api_key": "sk-afar"}))
        .await
        .text()
        .await;
    assert!(!reply.contains("sk-afar"), "{reply}");
    assert_eq!(hive.chat("x").send().await.status, 200);
    assert_eq!(server.call(0).await.header("authorization"), Some("Bearer sk-afar"));
    assert!(!hive.log().contains("sk-afar"));
}

#[tokio::test]
async fn a_server_that_is_none_is_not_attached_and_the_reason_told() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&[], None, vec![]).await;
    let nobody = Server::nobody();
    let error = attach(&hive, json!({"url": format!("http://{nobody}")}))
        .await
        .refused(502, "worker_failed")
        .await;
    assert!(
        error["message"].as_str().unwrap().contains("cannot be reached"),
        "{error}"
    );
    let error = attach(&hive, json!({"url": server.url()}))
        .await
        .refused(400, "invalid_request")
        .await;
    assert!(error["message"].as_str().unwrap().contains("--model"), "{error}");
    for answer in [
        Script::answers(200, "text/html", "<html>"),
        Script::answers(200, "application/json", "{\"models\":[]}"),
        Script::answers(500, "text/plain", ""),
        Script::stream().fin(),
    ] {
        server.lists(answer);
        attach(&hive, json!({"url": server.url()}))
            .await
            .refused(502, "worker_failed")
            .await;
    }
    for url in [
        "",
        "ftp://127.0.0.1/",
        "127.0.0.1:80",
        "http://u:p@127.0.0.1:80",
        "http://127.0.0.1:80/?x",
        "http://127.0.0.1:80/#x",
        "http://",
    ] {
        let error = attach(&hive, json!({"url": url}))
            .await
            .refused(400, "invalid_request")
            .await;
        assert_eq!(error["param"], "url", "{url}");
    }
    for (field, value) in [
        ("slots", json!(0)),
        ("slots", json!(1025)),
        ("id", json!("a/b")),
        ("models", json!(["a b"])),
    ] {
        let mut body = json!({"url": server.url()});
        body[field] = value;
        attach(&hive, body).await.refused(400, "invalid_request").await;
    }
    assert_eq!(hive.workers().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_live_workers_id_is_not_given_to_a_server() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let server = Server::to_attach(&["x"], None, vec![]).await;
    attach(&hive, json!({"url": server.url(), "id": "a"}))
        .await
        .refused(409, "worker_exists")
        .await;
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_server_that_forgets_done_has_its_stream_mended() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], None, vec![Script::begins(&["a"]).finish("stop").end()]).await;
    attach(&hive, json!({"url": server.url()})).await.json().await;
    assert_eq!(text_of(&hive.chat("x").stream().send().await.events().await), "a");
    let request = &hive.requests().await[0];
    assert_eq!(
        (&request["state"], &request["completion_tokens"]),
        (&json!("completed"), &json!(1))
    );
    // Without a finish_reason there is nothing to mend.
    server.answers(Script::begins(&["a"]).end());
    hive.chat("x").stream().send().await.broken("worker_lost").await;
}

#[tokio::test]
async fn usage_inside_the_last_chunk_is_read_and_passes() {
    let hive = Hive::start().await;
    let mut last = chunk(&json!({}), Some("stop"));
    last["usage"] = json!({"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16, "queue_time": 0.1});
    let server = Server::to_attach(&["x"], None, vec![Script::begins(&["a"]).event(&last).done().end()]).await;
    attach(&hive, json!({"url": server.url()})).await.json().await;
    let whole = hive.chat("x").send().await.json().await;
    assert_eq!(whole["usage"]["completion_tokens"], 5);
    let request = &hive.requests().await[0];
    assert_eq!(
        (&request["prompt_tokens"], &request["completion_tokens"]),
        (&json!(11), &json!(5))
    );
}

#[tokio::test]
async fn a_server_that_strays_in_its_chunks_is_still_understood() {
    let hive = Hive::start().await;
    let parts = chunk(
        &json!({"content": [{"type": "text", "text": "a"}], "tool_calls": null}),
        None,
    );
    let mut half_usage = chunk(&json!({"content": "b"}), None);
    half_usage["usage"] = json!({"prompt_tokens": 11});
    let bare = json!({"choices": [{"delta": {"reasoning_content": "c"}}], "error": null});
    let script = [&parts, &half_usage, &bare]
        .into_iter()
        .fold(Script::stream(), Script::event);
    let server = Server::to_attach(&["x"], None, vec![script.finish("stop").done().end()]).await;
    attach(&hive, json!({"url": server.url()})).await.json().await;
    let events = hive.chat("x").stream().send().await.events().await;
    assert_eq!(events.len(), 5, "{events:?}");
    let request = &hive.requests().await[0];
    let counted = (
        &request["state"],
        &request["prompt_tokens"],
        &request["completion_tokens"],
    );
    assert_eq!(counted, (&json!("completed"), &json!(11), &json!(3)));
}

#[tokio::test]
async fn errors_of_a_server_come_back_in_the_envelope() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], None, vec![Script::says(&["x"])]).await;
    attach(&hive, json!({"url": server.url()})).await.json().await;
    for (body, message) in [
        ("{\"error\":\"too long\"}", "too long"),
        ("{\"detail\":\"too long\"}", "too long"),
        ("{\"message\":\"too long\",\"code\":400}", "too long"),
        (
            "{\"object\":\"error\",\"message\":\"too long\",\"type\":\"BadRequestError\",\"param\":null,\"code\":400}",
            "too long",
        ),
        ("<html>", "refused the request with status 400"),
    ] {
        server.answers(Script::answers(400, "application/json", body));
        let error = hive.chat("x").send().await.refused(400, "invalid_request").await;
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
    }
    let overflow = "{\"error\":{\"message\":\"too long\",\"type\":\"invalid_request_error\",\"param\":\"messages\",\"code\":\"context_length_exceeded\"}}";
    server.answers(Script::answers(400, "application/json", overflow));
    let error = hive
        .chat("x")
        .send()
        .await
        .refused(400, "context_length_exceeded")
        .await;
    assert_eq!(error["param"], "messages");
    // That it has no room for us is no fault of its health.
    server.answers(Script::answers(429, "application/json", "{}"));
    for _more_than_an_ejection_needs in 0..4 {
        let full = hive.chat("x").send().await;
        assert!(!full.header("retry-after").is_empty());
        full.refused(503, "queue_full").await;
    }
    assert_eq!(hive.workers().await[0]["state"], "ready");
}

#[tokio::test]
async fn a_server_without_room_is_asked_for_nothing_while_others_serve() {
    let hive = Hive::start().await;
    let full = Script::head(429, "retry-after: 50\r\ncontent-length: 0\r\n");
    let server = Server::to_attach(&["m"], None, vec![full]).await;
    attach(&hive, json!({"url": server.url(), "id": "far"}))
        .await
        .json()
        .await;
    let _worker = hive.worker("a").join().await;
    for _more_than_retries_may_be_made in 0..12 {
        assert_eq!(hive.chat("m").send().await.status, 200);
    }
    assert_eq!(server.calls(), 1);
    assert_eq!(hive.worker_view("far").await["state"], "ready");
}

#[tokio::test]
async fn a_server_that_stops_answering_is_suspect_until_it_answers_again() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], None, vec![Script::says(&["x"])]).await;
    attach(&hive, json!({"url": server.url(), "id": "far"}))
        .await
        .json()
        .await;
    server.lists(Script::answers(500, "text/plain", ""));
    hive.until("far", "suspect").await;
    assert!(
        hive.worker_view("far").await["message"]
            .as_str()
            .unwrap()
            .contains("500")
    );
    hive.chat("x").send().await.refused(503, "no_worker").await;
    server.lists(Script::answers(200, "application/json", "{\"data\":[]}"));
    hive.until("far", "ready").await;
    assert_eq!(hive.chat("x").send().await.status, 200);
}

#[tokio::test]
async fn a_detached_server_is_asked_no_more() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], Some("k"), vec![Script::says(&["x"])]).await;
    attach(&hive, json!({"url": server.url(), "id": "far", "api_key": "k"}))
        .await
        .json()
        .await;
    assert!(hive.home().join("keys/attached/far").exists());
    assert_eq!(
        Reply::to(hive.on_control("DELETE", "/control/v1/workers/far"))
            .await
            .status,
        204
    );
    assert!(!hive.home().join("keys/attached/far").exists());
    hive.chat("x").send().await.refused(503, "no_worker").await;
    let hive = hive.again(&[]).await;
    assert_eq!(hive.workers().await, Vec::<Value>::new());
    assert_eq!(server.calls(), 0);
}

#[tokio::test]
async fn an_attached_server_and_its_key_outlive_a_kill() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], Some("sk-afar"), vec![Script::says(&["x"])]).await;
    attach(
        &hive,
        json!({"url": server.url(), "id": "far", "api_key": "sk-afar", "slots": 3}),
    )
    .await
    .json()
    .await;
    let hive = hive.again(&[]).await;
    hive.until("far", "ready").await;
    let view = hive.worker_view("far").await;
    assert_eq!((&view["models"], &view["slots"]), (&json!(["x"]), &json!(3)));
    assert_eq!(hive.chat("x").send().await.status, 200);
    assert_eq!(server.call(0).await.header("authorization"), Some("Bearer sk-afar"));
}

#[tokio::test]
async fn of_a_names_addresses_the_one_where_the_server_listens_is_kept() {
    let hive = Hive::start().await;
    let server = Server::at(std::net::Ipv4Addr::LOCALHOST.into(), &["x"]).await;
    let url = format!("http://localhost:{}", server.address.port());
    let view = attach(&hive, json!({ "url": url })).await.json().await;
    assert_eq!(view["url"], server.url(), "resolved once, and pinned");
    assert_eq!(hive.chat("x").send().await.status, 200);
    let unknown = attach(&hive, json!({"url": "http://no-such-name.invalid:80"})).await;
    let error = unknown.refused(502, "worker_failed").await;
    assert!(
        error["message"].as_str().unwrap().contains("no-such-name.invalid"),
        "{error}"
    );
}
