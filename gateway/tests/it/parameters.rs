//! What a request asks beyond its messages: judged before any worker is called, by what the model and its engine can do.

use serde_json::{Value, json};
use wire::{Capabilities, EngineName};

use crate::{client::Reply, harness::Hive, script::Script, server::Server, shapes, worker::CHATS};

fn image(url: &str) -> Value {
    let part = json!({"type": "image_url", "image_url": {"url": url}});
    json!([{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}])
}

#[tokio::test]
async fn a_parameter_without_effect_is_accepted_and_named() {
    let hive = Hive::start().await;
    hive.worker("a").able(EngineName::Mistral, CHATS).join().await;
    let described =
        json!({"type": "json_schema", "json_schema": {"name": "x", "description": "A thing", "schema": {}}});
    let ask = hive
        .chat("m")
        .with("user", json!("u"))
        .with("store", json!(false))
        .with("x_new", json!({"a": 1}))
        .with("verbosity", Value::Null)
        .with("mirostat", json!(0))
        .with("skip_special_tokens", json!(true))
        .with(
            "stream_options",
            json!({"include_usage": false, "include_obfuscation": true}),
        )
        .with("response_format", described)
        .with("temperature", json!(0))
        .with("bad\u{e9}\nname", json!(1));
    for ask in [ask.clone(), ask.stream()] {
        let reply = ask.send().await;
        assert_eq!(reply.status, 200);
        let mut named: Vec<_> = reply.header("x-hive-ignored-params").split(", ").collect();
        named.sort_unstable();
        let inner = [
            "response_format.json_schema.description",
            "stream_options.include_obfuscation",
        ];
        assert_eq!(named, ["badname", inner[0], "store", inner[1], "user", "x_new"]);
    }
    let plain = hive.chat("m").send().await;
    assert!(!plain.headers.contains_key("x-hive-ignored-params"));
}

#[tokio::test]
async fn a_parameter_that_would_change_the_answer_is_refused_with_what_to_do() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").able(EngineName::Scripted, CHATS).join().await;
    for (name, value) in [
        ("mirostat", json!(2)),
        ("skip_special_tokens", json!(false)),
        ("guided_json", json!({"type": "object"})),
        ("functions", json!([{"name": "f"}])),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "x"})),
        ("web_search_options", json!({})),
    ] {
        let error = hive
            .chat("m")
            .with(name, value)
            .send()
            .await
            .refused(400, "unsupported_parameter")
            .await;
        assert_eq!(error["param"], name);
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains(name), "{error}");
    }
    let error = hive.completion("m").with("suffix", json!("end")).send().await;
    assert_eq!(error.refused(400, "unsupported_parameter").await["param"], "suffix");
    assert_eq!(worker.server.calls(), 0);
}

#[tokio::test]
async fn all_faults_are_told_at_once_and_no_worker_is_called() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").able(EngineName::Mistral, CHATS).join().await;
    let error = hive
        .chat("m")
        .with("messages", json!([{"role": "king", "content": "x"}, {"role": "user"}]))
        .with("temperature", json!(3))
        .with("tool_choice", json!("required"))
        .with("min_tokens", json!(5))
        .send()
        .await
        .refused(400, "invalid_request")
        .await;
    assert_eq!(error["param"], "messages[0].role");
    for name in [
        "messages[0].role",
        "messages[1].content",
        "temperature",
        "tool_choice",
        "min_tokens",
    ] {
        assert!(
            error["message"].as_str().unwrap().contains(&format!("`{name}`")),
            "{error}"
        );
    }
    for (json, param) in [
        (r#""temperature":NaN"#, "temperature"),
        (r#""seed":9223372036854775808"#, "seed"),
        (r#""user":"\ud800""#, "user"),
        (r#""logit_bias":{"1":-Infinity}"#, "logit_bias"),
    ] {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],{json}}}"#);
        let reply = Reply::to(hive.on_data("POST", "/v1/chat/completions").body(body)).await;
        let error = reply.refused(400, "invalid_request").await;
        assert!(error["param"].as_str().unwrap().starts_with(param), "{error}");
    }
    assert_eq!(worker.server.calls(), 0);
}

#[tokio::test]
async fn a_model_is_asked_only_for_what_it_can_do() {
    let hive = Hive::start().await;
    let embeds = Capabilities {
        embeddings: true,
        ..Capabilities::default()
    };
    let sees = Capabilities { vision: true, ..CHATS };
    let embedder = hive
        .worker("e")
        .model("embedder")
        .able(EngineName::Mistral, embeds)
        .join()
        .await;
    let blind = hive
        .worker("b")
        .model("blind")
        .able(EngineName::Mistral, CHATS)
        .join()
        .await;
    let seer = hive
        .worker("s")
        .model("seer")
        .able(EngineName::Mistral, sees)
        .join()
        .await;
    let inline = image("data:image/png;base64,iVBORw0KGgo=");
    for (ask, code, param) in [
        (hive.chat("embedder"), "invalid_request", "model"),
        (hive.completion("embedder"), "invalid_request", "model"),
        (hive.embedding("blind"), "invalid_request", "model"),
        (
            hive.chat("blind").with("messages", inline.clone()),
            "unsupported_parameter",
            "messages[0].content[1].type",
        ),
        (
            hive.chat("seer")
                .with("messages", image("http://169.254.169.254/x.png")),
            "unsupported_parameter",
            "messages[0].content[1].image_url.url",
        ),
    ] {
        let error = ask.send().await.refused(400, code).await;
        assert_eq!(error["param"], param);
        let text = error["message"].as_str().unwrap();
        assert!(
            param != "model" || text.contains("`embedder`") || text.contains("`blind`"),
            "{text}"
        );
    }
    assert_eq!(
        (embedder.server.calls(), blind.server.calls(), seer.server.calls()),
        (0, 0, 0)
    );
    let seen = hive.chat("seer").with("messages", inline.clone()).send().await;
    shapes::completion(&seen.json().await);
    assert_eq!(seer.server.call(0).await.body["messages"], inline);
}

#[tokio::test]
async fn an_attached_server_gets_everything_and_judges_itself() {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], None, vec![Script::says(&["yes"])]).await;
    let attach = hive
        .on_control("POST", "/control/v1/workers")
        .json(&json!({"url": server.url()}));
    assert_eq!(Reply::to(attach).await.status, 201);
    let remote = image("https://example.org/cat.png");
    let reply = hive
        .chat("x")
        .with("messages", remote.clone())
        .with("mirostat", json!(2))
        .with("functions", json!([{"name": "f"}]))
        .with("x_new", json!(1))
        .send()
        .await;
    assert!(!reply.headers.contains_key("x-hive-ignored-params"));
    shapes::completion(&reply.json().await);
    let body = server.call(0).await.body;
    assert_eq!(
        (&body["mirostat"], &body["messages"], &body["x_new"]),
        (&json!(2), &remote, &json!(1))
    );
    // Their ranges are that server's too, and so is a tool that is no function.
    let custom = json!({"id": "a", "type": "custom", "custom": {"name": "sql", "input": "x"}});
    let past = json!([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [custom]},
        {"role": "tool", "tool_call_id": "a", "content": "y"}]);
    for (name, value) in [
        ("chat_template_kwargs", json!({"thinking": "high"})),
        ("enable_thinking", json!("auto")),
        ("repeat_penalty", json!(0)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("messages", past),
    ] {
        let reply = hive.chat("x").with(name, value.clone()).send().await;
        assert_eq!(reply.status, 200, "{name}");
        assert_eq!(server.call(server.calls() - 1).await.body[name], value);
    }
    // What is wrong by OpenAI's own rules is told here all the same.
    let wrong = hive.chat("x").with("temperature", json!("hot")).send().await;
    assert_eq!(wrong.refused(400, "invalid_request").await["param"], "temperature");
    assert_eq!(server.calls(), 7);
}

#[tokio::test]
async fn a_model_tells_what_becomes_of_each_parameter() {
    let hive = Hive::start().await;
    hive.worker("a").able(EngineName::Mistral, CHATS).join().await;
    hive.worker("b").model("unknown").join().await;
    let model = Reply::to(hive.on_data("GET", "/v1/models/m")).await.json().await;
    shapes::model(&model);
    let hive_knows = &model["hive"];
    assert_eq!(
        (&hive_knows["engine"], &hive_knows["capabilities"]["tools"]),
        (&json!("mistral"), &json!(true))
    );
    let chat = &hive_knows["parameters"]["chat"];
    for (name, support) in [
        ("temperature", "emulated"),
        ("max_tokens", "native"),
        ("seed", "emulated"),
        ("tools", "emulated"),
        ("user", "ignored"),
        ("mirostat", "refused"),
    ] {
        assert_eq!(chat[name], support, "{name}");
    }
    assert_eq!(hive_knows["parameters"]["completions"]["suffix"], "refused");
    assert!(hive_knows["parameters"].get("embeddings").is_none(), "it makes none");
    let unknown = Reply::to(hive.on_data("GET", "/v1/models/unknown")).await.json().await;
    assert_eq!(unknown["hive"]["parameters"]["chat"]["mirostat"], "passed");
    assert_eq!(unknown["hive"]["parameters"]["chat"]["stop"], "emulated");
    let list = Reply::to(hive.on_data("GET", "/v1/models")).await.json().await;
    assert!(list["data"][0]["hive"].get("parameters").is_none(), "{list}");
}
