//! Answers that go well: what a client sees of a worker's stream, byte for byte, and the same in one piece.

use serde_json::{Value, json};

use crate::{
    client::{Reply, Sse, text_of},
    harness::Hive,
    script::{Gate, Script, chunk},
    shapes,
};

#[tokio::test]
async fn a_stream_is_role_tokens_finish_and_done_in_the_workers_order() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let reply = hive.chat("m").stream().send().await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").starts_with("text/event-stream"));
    assert_eq!(reply.header("cache-control"), "no-cache");
    assert_eq!(reply.header("x-accel-buffering"), "no");
    assert_eq!(reply.header("x-hive-worker"), "a");
    assert!(reply.header("x-request-id").starts_with("req_"));
    assert!(!reply.headers.contains_key("content-encoding") && !reply.headers.contains_key("content-length"));
    let events = reply.events().await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|e| serde_json::from_str(e).unwrap())
        .collect();
    chunks.iter().for_each(shapes::chunk);
    assert_eq!(chunks.len(), 4, "role, two tokens, finish; no usage: nobody asked");
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert_eq!(chunks[1]["choices"][0]["delta"], json!({"content": "Hel"}));
    assert_eq!(chunks[2]["choices"][0]["delta"], json!({"content": "lo"}));
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    let call = worker.server.call(0).await;
    assert_eq!(call.header("accept-encoding"), Some("identity"));
    assert_eq!(call.header("authorization"), Some("Bearer dispatch-token-of-a"));
    assert_eq!(call.header("x-hive-epoch"), Some("1"));
    assert!(call.header("x-hive-request").unwrap().starts_with("req_"));
}

#[tokio::test]
async fn usage_is_the_last_chunk_when_it_is_asked_for() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let events = hive.chat("m").stream().usage().send().await.events().await;
    let [.., usage, done] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(done, "[DONE]");
    let usage: Value = serde_json::from_str(usage).unwrap();
    shapes::chunk(&usage);
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(
        usage["usage"],
        json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9})
    );
    for off in [
        json!(null),
        json!({}),
        json!({"include_usage": false}),
        json!({"include_usage": null}),
    ] {
        let events = hive
            .chat("m")
            .stream()
            .with("stream_options", off)
            .send()
            .await
            .events()
            .await;
        assert!(!events.iter().any(|event| event.contains("usage")), "{events:?}");
    }
}

#[tokio::test]
async fn a_whole_answer_says_what_the_stream_says() {
    let hive = Hive::start().await;
    let worker = hive
        .worker("a")
        .script([Script::says(&["Grüße", " 👋🏽", "\n", "data: [DONE]\n\n", "\\u0000"])])
        .join()
        .await;
    let streamed = text_of(&hive.chat("m").stream().send().await.events().await);
    let reply = hive.chat("m").send().await;
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("x-hive-worker"), "a");
    let whole = reply.json().await;
    shapes::completion(&whole);
    assert_eq!(whole["choices"][0]["message"]["content"], streamed);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        whole["usage"],
        json!({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})
    );
    // The worker is always asked for a stream with usage, whatever the client wants.
    for number in 0..2 {
        let body = worker.server.call(number).await.body;
        assert_eq!(body["stream"], true);
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
    }
}

#[tokio::test]
async fn tokens_arrive_one_by_one() {
    let hive = Hive::start().await;
    let gates = [Gate::new(), Gate::new()];
    let script = Script::begins(&["one"])
        .wait(&gates[0])
        .token("two")
        .wait(&gates[1])
        .token("three")
        .ends(3);
    hive.worker("a").script([script]).join().await;
    let mut reply = hive.chat("m").stream().send().await;
    reply.until("one").await;
    gates[0].open();
    reply.until("two").await;
    gates[1].open();
    assert_eq!(text_of(&reply.events().await), "three");
}

#[tokio::test]
async fn events_pass_through_as_the_worker_wrote_them() {
    let hive = Hive::start().await;
    // Spacing, order of keys, escapes, unknown fields, and texts that look like markers.
    let odd = r#"{ "x_new":{"a":[1e400,0.10]}, "choices":[ {"finish_reason":null,"delta":{"content":"[DONE] data: : ping \ud83d\ude00 \u2028","x":1},"index":0} ],"id":"","object":"chat.completion.chunk","created":1,"model":"other"}"#;
    let twice = r#"{"choices":[{"index":0,"delta":{"content":"é"},"finish_reason":null}],"error":null,"usage":null,"id":"1","object":"chat.completion.chunk","created":1,"model":"m"}"#;
    hive.worker("a")
        .script([Script::begins(&[]).data(odd).data(twice).ends(2)])
        .join()
        .await;
    let events = hive.chat("m").stream().send().await.events().await;
    assert_eq!(&events[1..3], [odd, twice]);
}

#[tokio::test]
async fn only_data_passes_however_the_worker_frames_it() {
    let hive = Hive::start().await;
    let token = chunk(&json!({"content": "👋"}), None).to_string();
    let split = token.find("👋").unwrap() + 2;
    let script = Script::stream()
        .chunk(b": hello\r\n\r\nevent: message\r\nid: 7\r\nretry: 1\r\n")
        .chunk(format!("data:{token}\r").as_bytes())
        .chunk(b"\n\r\n:\n\n")
        .chunk([b"data: ", &token.as_bytes()[..split]].concat().as_slice())
        .chunk(&token.as_bytes()[split..])
        .chunk(b"\n")
        .chunk(b"\n")
        .ends(2);
    hive.worker("a").script([script]).join().await;
    let mut reply = hive.chat("m").stream().send().await;
    assert_eq!(reply.next().await, Some(Sse::Data(token.clone())));
    assert_eq!(reply.next().await, Some(Sse::Data(token)));
    assert_eq!(text_of(&reply.events().await), "");
}

#[tokio::test]
async fn an_event_in_several_data_lines_becomes_one() {
    let hive = Hive::start().await;
    let script = Script::begins(&[])
        .chunk(b"data: {\"choices\":[{\"index\":0,\ndata: \"delta\":{\"content\":\"x\"},\"finish_reason\":null}]}\n\n")
        .ends(1);
    hive.worker("a").script([script]).join().await;
    assert_eq!(text_of(&hive.chat("m").stream().send().await.events().await), "x");
}

#[tokio::test]
async fn several_choices_tool_calls_and_logprobs_are_put_together() {
    let hive = Hive::start().await;
    let choice = |index: u64, delta: Value, finish: Option<&str>| {
        let mut event = chunk(&delta, finish);
        event["choices"][0]["index"] = json!(index);
        event
    };
    let call = |arguments: &str| json!({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]});
    let begin = json!({"role": "assistant", "content": null, "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]});
    let mut word = choice(1, json!({"role": "assistant", "content": "b"}), None);
    word["choices"][0]["logprobs"] = json!({"content": [{"token": "b"}], "refusal": null});
    let script = [
        choice(0, begin, None),
        word,
        choice(0, call("{\"a\""), None),
        choice(0, call(":1}"), None),
        choice(1, json!({}), Some("length")),
        choice(0, json!({}), Some("tool_calls")),
    ]
    .iter()
    .fold(Script::stream(), Script::event)
    .usage(7, 4)
    .done()
    .end();
    hive.worker("a").script([script]).join().await;
    let whole = hive.chat("m").with("n", json!(2)).send().await.json().await;
    shapes::completion(&whole);
    let (called, spoken) = (&whole["choices"][0], &whole["choices"][1]);
    assert_eq!(
        called["message"]["tool_calls"],
        json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}])
    );
    assert_eq!(called["message"]["content"], Value::Null);
    assert_eq!(
        (&called["finish_reason"], &spoken["finish_reason"]),
        (&json!("tool_calls"), &json!("length"))
    );
    assert_eq!(spoken["message"]["content"], "b");
    assert_eq!(spoken["logprobs"]["content"], json!([{"token": "b"}]));
}

#[tokio::test]
async fn what_the_gateway_does_not_know_reaches_the_worker_as_it_was_written() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let body = r#"{"top_k":40,"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"ä\ud83d\ude00","cache_control":{}}]}],"stream":null,"seed":1.0,"x":{"y":[]}}"#;
    let reply = Reply::to(hive.on_data("POST", "/v1/chat/completions").body(body)).await;
    shapes::completion(&reply.json().await);
    let mut expected: Value = serde_json::from_str(body).unwrap();
    expected["stream"] = json!(true);
    expected["stream_options"] = json!({"include_usage": true});
    assert_eq!(worker.server.call(0).await.body, expected);
}

#[tokio::test]
async fn nothing_of_a_workers_head_reaches_the_client() {
    let hive = Hive::start().await;
    let headers = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\nset-cookie: a=b\r\nserver: secret\r\nx-internal: 1\r\n";
    let script = Script::head(200, headers)
        .event(&chunk(&json!({"content": "x"}), None))
        .ends(1);
    hive.worker("a").script([script]).join().await;
    for ask in [hive.chat("m"), hive.chat("m").stream()] {
        let reply = ask.send().await;
        for name in ["set-cookie", "server", "x-internal"] {
            assert!(!reply.headers.contains_key(name), "{name}");
        }
    }
}
