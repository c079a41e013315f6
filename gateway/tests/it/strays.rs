//! Attached servers that stray from OpenAI's document: their clients are ours, and see none of it.

use serde_json::{Value, json};

use crate::{
    client::{Reply, said, text_of},
    harness::Hive,
    script::{Script, chunk},
    server::Server,
    shapes,
};

/// A hive with one attached server of the model `x` that answers like this, one script after the other.
pub async fn attached(scripts: Vec<Script>) -> (Hive, Server) {
    let hive = Hive::start().await;
    let server = Server::to_attach(&["x"], None, scripts).await;
    let attach = hive
        .on_control("POST", "/control/v1/workers")
        .json(&json!({"url": server.url(), "id": "far"}));
    assert_eq!(Reply::to(attach).await.status, 201);
    (hive, server)
}

/// An answer of these events, and its proper end.
pub fn events(events: &[Value]) -> Script {
    events.iter().fold(Script::stream(), Script::event).done().end()
}

async fn chunks(reply: Reply) -> Vec<Value> {
    let events = reply.events().await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
    events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

/// What strict clients want of a whole stream, in order.
fn strict(chunks: &[Value]) {
    let same = |key: &str| chunks.iter().all(|chunk| chunk[key] == chunks[0][key]);
    assert!(same("id") && same("created") && same("model"), "{chunks:?}");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    for chunk in chunks {
        shapes::chunk(chunk);
        let text = chunk.to_string();
        for key in ["tool_calls", "name", "system_fingerprint", "service_tier", "error"] {
            assert!(!text.contains(&format!("\"{key}\":null")), "{text}");
        }
        if !chunk["choices"].as_array().unwrap().is_empty() {
            assert!(chunk.get("usage").is_none_or(Value::is_null), "{text}");
        }
    }
    let roles = chunks
        .iter()
        .filter(|chunk| chunk["choices"][0]["delta"].get("role").is_some());
    assert_eq!(roles.count(), 1, "the role is said once: {chunks:?}");
}

#[tokio::test]
async fn a_sloppy_stream_comes_out_strict() {
    let usage = json!({"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6, "avg_tok_per_sec": 12.5, "total_time_sec": 1});
    let head = |choice: Value| json!({"id": null, "model": "/models/file.gguf", "system_fingerprint": null, "service_tier": null, "choices": [choice]});
    let mut last = head(
        json!({"index": 0, "delta": {"role": "assistant", "content": null, "tool_calls": null}, "finish_reason": "eos_token"}),
    );
    last["usage"] = usage;
    let logprob = json!({"token": "lo", "logprob": -0.5, "bytes": null, "top_logprobs": []});
    let script = events(&[
        head(json!({"delta": {"role": "assistant", "content": "Hel", "tool_calls": null, "name": null}})),
        head(
            json!({"index": 0, "delta": {"role": "assistant", "content": "lo", "function_call": null}, "logprobs": logprob}),
        ),
        json!({"type": "ping"}),
        last,
    ]);
    let (hive, _server) = attached(vec![script]).await;
    let streamed = chunks(hive.chat("x").stream().usage().send().await).await;
    strict(&streamed);
    assert!(
        streamed[0]["id"].as_str().unwrap().starts_with("chatcmpl-"),
        "{streamed:?}"
    );
    assert_eq!(streamed[0]["model"], "x", "as it was asked for");
    let end = &streamed[streamed.len() - 2..];
    assert_eq!(end[0]["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        end[1]["usage"],
        json!({"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6})
    );
    assert_eq!(streamed[1]["choices"][0]["logprobs"]["content"][0]["token"], "lo");
    let unasked = chunks(hive.chat("x").stream().send().await).await;
    assert!(unasked.iter().all(|chunk| chunk.get("usage").is_none()), "{unasked:?}");
    let whole = hive.chat("x").send().await.json().await;
    shapes::completion(&whole);
    assert_eq!(
        (&whole["choices"][0]["message"]["content"], &whole["model"]),
        (&json!("Hello"), &json!("x"))
    );
    assert!(whole.get("system_fingerprint").is_none());
}

#[tokio::test]
async fn a_server_that_makes_one_choice_of_two_is_no_silent_success() {
    let (hive, _server) = attached(vec![Script::says(&["a"])]).await;
    let ask = hive.chat("x").with("n", json!(2));
    let error = ask.clone().send().await.refused(400, "unsupported_parameter").await;
    assert_eq!(error["param"], "n");
    let events = ask.stream().send().await.events().await;
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["param"], "n", "{events:?}");
    assert!(hive.requests().await.iter().all(|request| request["state"] == "failed"));
}

#[tokio::test]
async fn one_bad_answer_does_not_shut_a_server_out() {
    let begins = || Script::begins(&["a"]);
    for script in [
        begins().end(),
        begins().data("oh"),
        begins().reset(),
        events(&[json!({"choices": []})]),
    ] {
        let (hive, server) = attached(vec![script, Script::begins(&["a"]).data("").ends(1)]).await;
        let probes = server.listed();
        hive.chat("x").stream().send().await.text().await;
        assert_eq!(hive.chat("x").send().await.status, 200);
        assert_eq!(hive.worker_view("far").await["state"], "ready");
        assert!(server.listed() <= probes + 1, "it needed no probe to be well again");
    }
}

#[tokio::test]
async fn sloppy_calls_come_out_strict() {
    let delta = |delta: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
    let script = || {
        events(&[
            delta(
                json!({"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}),
            ),
            delta(
                json!({"tool_calls": [{"index": 1, "id": "", "type": null, "function": {"name": "g", "arguments": "{\"b\""}}]}),
            ),
            delta(
                json!({"tool_calls": [{"index": 1, "id": null, "type": null, "function": {"name": null, "arguments": ":2}"}}]}),
            ),
            json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        ])
    };
    let (hive, _server) = attached(vec![script(), script()]).await;
    let streamed = chunks(hive.chat("x").stream().send().await).await;
    strict(&streamed);
    let call = |i: usize| streamed[i]["choices"][0]["delta"]["tool_calls"][0].clone();
    assert_eq!(
        call(0),
        json!({"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}})
    );
    assert_eq!(
        (&call(1)["index"], &call(1)["function"]["name"]),
        (&json!(1), &json!("g"))
    );
    assert!(!call(1)["id"].as_str().unwrap().is_empty());
    assert_eq!(call(2), json!({"index": 1, "function": {"arguments": ":2}"}}));
    assert_eq!(streamed[3]["choices"][0]["finish_reason"], "tool_calls");
    let whole = hive.chat("x").send().await.json().await;
    let message = &whole["choices"][0]["message"];
    assert_eq!(
        (&message["content"], &message["tool_calls"][1]["function"]["arguments"]),
        (&Value::Null, &json!("{\"b\":2}"))
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    assert!(whole.get("usage").is_none(), "it told none, and none is made up");
}

#[tokio::test]
async fn an_answer_in_one_piece_is_streamed_all_the_same() {
    let piece = json!({"id": "chatcmpl-7", "object": "chat.completion", "created": 1_700_000_000, "model": "theirs",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}});
    let (hive, _server) = attached(vec![Script::answers(200, "application/json", &piece.to_string())]).await;
    let streamed = chunks(hive.chat("x").stream().usage().send().await).await;
    strict(&streamed);
    assert_eq!(streamed.last().unwrap()["usage"]["total_tokens"], 2);
    assert_eq!(text_of(&hive.chat("x").stream().send().await.events().await), "Hello");
    shapes::completion(&hive.chat("x").send().await.json().await);
}

#[tokio::test]
async fn an_answer_that_broke_off_over_there_is_no_good_end() {
    let begun = json!({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}]});
    let broken = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]});
    let (hive, _server) = attached(vec![events(&[begun, broken])]).await;
    hive.chat("x").stream().send().await.broken("worker_lost").await;
}

#[tokio::test]
async fn errors_of_any_shape_come_out_in_the_envelope() {
    let json = "application/json";
    for (status, kind, body, code, text) in [
        (
            400,
            json,
            r#"{"detail":"bad temperature"}"#,
            "invalid_request",
            "bad temperature",
        ),
        (
            400,
            json,
            r#"{"error":"bad temperature"}"#,
            "invalid_request",
            "bad temperature",
        ),
        (
            422,
            json,
            r#"{"detail":[{"loc":["body"],"msg":"bad temperature"}]}"#,
            "invalid_request",
            "bad temperature",
        ),
        (
            422,
            json,
            r#"{"detail":[{"type":"less_than_equal","loc":["body","temperature"],"msg":"Input should be at most 2","input":9}]}"#,
            "invalid_request",
            "`temperature`: Input should be at most 2",
        ),
        (
            400,
            json,
            r#"{"object":"error","message":"bad temperature","code":40001}"#,
            "invalid_request",
            "bad temperature",
        ),
        (
            400,
            "text/plain",
            "bad temperature",
            "invalid_request",
            "bad temperature",
        ),
        (400, "text/html", "<html>bad</html>", "invalid_request", "status 400"),
        (
            400,
            json,
            r#"{"object":"error","message":"This model's maximum context length is 2048 tokens. However, you requested 4096 tokens."}"#,
            "context_length_exceeded",
            "2048",
        ),
        (
            400,
            json,
            r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error","n_prompt_tokens":700,"n_ctx":512}}"#,
            "context_length_exceeded",
            "512 tokens, but the prompt has 700",
        ),
    ] {
        let (hive, _server) = attached(vec![Script::answers(status, kind, body)]).await;
        for ask in [hive.chat("x"), hive.chat("x").stream()] {
            let error = ask.send().await.refused(400, code).await;
            assert!(error["message"].as_str().unwrap().contains(text), "{error}");
            assert_eq!(error["type"], "invalid_request_error");
        }
        assert_eq!(
            hive.worker_view("far").await["state"],
            "ready",
            "a client's fault is not the server's"
        );
    }
}

#[tokio::test]
async fn a_strayed_completion_comes_out_strict() {
    let script = events(&[
        json!({"id": "", "model": "theirs", "choices": [{"text": "a", "index": 0}]}),
        json!({"model": "theirs", "choices": [{"text": null, "index": 0, "finish_reason": "length", "logprobs": null}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
    ]);
    let (hive, _server) = attached(vec![script]).await;
    let whole = hive.completion("x").send().await.json().await;
    shapes::text_completion(&whole);
    assert_eq!(
        (&whole["model"], &whole["choices"][0]["text"]),
        (&json!("x"), &json!("a"))
    );
}

#[tokio::test]
async fn a_fault_that_pydantic_found_names_its_field() {
    let body = json!({"detail": [
        {"type": "missing", "loc": ["body", "messages", 0, "content"], "msg": "Field required"},
        {"type": "less_than_equal", "loc": ["body", "top_p"], "msg": "Input should be at most 1"},
    ]});
    let (hive, _server) = attached(vec![Script::answers(422, "application/json", &body.to_string())]).await;
    let error = hive.chat("x").send().await.refused(400, "invalid_request").await;
    assert_eq!(error["param"], "messages[0].content");
    let told = "`messages[0].content`: Field required; `top_p`: Input should be at most 1";
    assert_eq!(error["message"], told);
}

#[tokio::test]
async fn a_stop_text_is_kept_where_the_server_ignores_it() {
    let begins = || Script::begins(&["One", " E"]).token("N").token("D two");
    let (hive, server) = attached(vec![begins().hang(), begins().hang(), begins().ends(5)]).await;
    let ask = hive.chat("x").with("stop", json!(["END"]));
    let streamed = chunks(ask.clone().stream().usage().send().await).await;
    strict(&streamed);
    let said: String = streamed.iter().map(said).collect();
    let last = &streamed.last().unwrap()["choices"][0];
    assert_eq!((said.as_str(), &last["finish_reason"]), ("One ", &json!("stop")));
    server.call(0).await.gone().await;
    let whole = ask.send().await.json().await;
    assert_eq!(whole["choices"][0]["message"]["content"], "One ");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    server.call(1).await.gone().await;
    // Where nothing is to stop it, all of it passes.
    let events = hive.chat("x").stream().send().await.events().await;
    assert_eq!(text_of(&events), "One END two");
    assert_eq!(hive.worker_view("far").await["state"], "ready");
}

#[tokio::test]
async fn a_stop_text_that_was_asked_for_is_no_end() {
    let (hive, _server) = attached(vec![Script::says(&["One END"])]).await;
    let ask = hive.chat("x").with("stop", json!("END")).stream();
    for kept in ["include_stop_str_in_output", "min_tokens"] {
        let ask = ask
            .clone()
            .with(kept, if kept == "min_tokens" { json!(9) } else { json!(true) });
        assert_eq!(text_of(&ask.send().await.events().await), "One END", "{kept}");
    }
    assert_eq!(text_of(&ask.send().await.events().await), "One ");
}

#[tokio::test]
async fn what_a_server_says_after_its_end_reaches_nobody() {
    let call = json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]});
    for stray in [json!({"content": "!"}), call] {
        let script = || {
            Script::begins(&["Hello"])
                .finish("stop")
                .event(&chunk(&stray, None))
                .hang()
        };
        let (hive, server) = attached(vec![script(), script()]).await;
        let streamed = chunks(hive.chat("x").stream().send().await).await;
        strict(&streamed);
        assert_eq!(streamed.iter().map(said).collect::<String>(), "Hello");
        assert_eq!(streamed.last().unwrap()["choices"][0]["finish_reason"], "stop");
        server.call(0).await.gone().await;
        let message = hive.chat("x").send().await.json().await["choices"][0]["message"].take();
        assert_eq!(
            (&message["content"], message.get("tool_calls")),
            (&json!("Hello"), None)
        );
    }
}

#[tokio::test]
async fn a_finish_reason_beside_every_word_ends_nothing() {
    let word = |text: &str| chunk(&json!({"role": "assistant", "content": text}), Some("stop"));
    let (hive, _server) = attached(vec![events(&[word(""), word("Hel"), word("lo")])]).await;
    let streamed = chunks(hive.chat("x").stream().send().await).await;
    strict(&streamed);
    let (last, before) = streamed.split_last().unwrap();
    assert_eq!(before.iter().map(said).collect::<String>(), "Hello");
    assert!(
        before
            .iter()
            .all(|chunk| chunk["choices"][0]["finish_reason"].is_null())
    );
    assert_eq!(
        last["choices"][0],
        json!({"index": 0, "delta": {}, "finish_reason": "stop"})
    );
}
