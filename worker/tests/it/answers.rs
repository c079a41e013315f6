//! What an answer looks like on the wire.

use serde_json::{Value, json};
use wire::{PROMPT_TOKENS_HEADER, REQUEST_HEADER};

use super::worker::{Answer, Worker, streamed, with};

fn usage(prompt: u32, completion: u32) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}})
}

#[tokio::test]
async fn a_stream_has_openais_chunks_in_openais_order() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let request = worker.chat(&streamed("one two")).header(REQUEST_HEADER, "req-7");
    let answer = Answer::of(request.send().await.unwrap()).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-cache");
    assert_eq!(answer.headers[PROMPT_TOKENS_HEADER], "2");

    let chunks = answer.chunks();
    let created = chunks[0]["created"].as_u64().unwrap();
    let chunk = |more: Value| {
        let same = json!({"id": "chatcmpl-req-7", "object": "chat.completion.chunk", "created": created, "model": "m",
            "system_fingerprint": chunks[0]["system_fingerprint"]});
        with(same, more)
    };
    let choice = |delta: Value, finish: Value| {
        chunk(json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
    };
    let usage = usage(2, 2);
    assert_eq!(
        chunks,
        [
            choice(json!({"role": "assistant", "content": ""}), Value::Null),
            choice(json!({"content": "one "}), Value::Null),
            choice(json!({"content": "two"}), Value::Null),
            choice(json!({}), json!("stop")),
            chunk(json!({"choices": [], "usage": usage})),
        ]
    );
}

#[tokio::test]
async fn usage_comes_only_when_asked_for() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let answer = worker.ask(&with(streamed("a"), json!({"stream_options": null}))).await;
    assert!(answer.chunks().iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn one_piece_is_for_the_gateway_to_make() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let chat = with(streamed("x"), json!({"stream": false, "stream_options": null}));
    let text = json!({"model": "m", "prompt": "x"});
    for (path, body) in [("/v1/chat/completions", chat), ("/v1/completions", text)] {
        let refused = worker.post(path, &body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (400, "unsupported_parameter".to_owned())
        );
        let error = refused.json()["error"].clone();
        assert_eq!(error["param"], "stream");
        assert!(error["message"].as_str().unwrap().contains("its gateway"), "{error}");
    }
}

#[tokio::test]
async fn tokens_leave_as_they_come() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let stalled = json!({"tokens": ["first", "second"], "fault": {"at": 1, "kind": "stall"}}).to_string();
    let mut running = worker.chat(&streamed(stalled)).send().await.unwrap();
    let mut seen = String::new();
    while !seen.contains("first") {
        seen.push_str(std::str::from_utf8(&running.chunk().await.unwrap().expect("more")).unwrap());
    }
    assert!(!seen.contains("second"));
}

#[tokio::test]
async fn max_tokens_and_stop_texts_end_an_answer() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let short = worker
        .ask(&with(
            streamed("a b c d"),
            json!({"max_tokens": 9, "max_completion_tokens": 2}),
        ))
        .await;
    assert_eq!(
        (short.text().as_str(), short.finish().as_str(), short.usage()[1]),
        ("a b ", "length", 2)
    );
    let tokens = json!({"tokens": ["on", "e S", "TO", "P two"]}).to_string();
    let stopped = worker.ask(&with(streamed(tokens), json!({"stop": ["STOP"]}))).await;
    assert_eq!(
        (stopped.text().as_str(), stopped.finish().as_str(), stopped.usage()[1]),
        ("one ", "stop", 4)
    );
}

#[tokio::test]
async fn text_that_looks_like_the_wire_passes_intact() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let pieces = ["[DONE]", "\n\ndata: {}\r\n", "\u{0}", "🐝é", "\"\\"];
    let answer = worker.ask(&streamed(json!({ "tokens": pieces }).to_string())).await;
    assert_eq!(answer.text(), pieces.concat());
}

#[tokio::test]
async fn logprobs_come_with_the_tokens_they_belong_to() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let asked = with(streamed("ab cd"), json!({"logprobs": true}));
    let tokens = worker.ask(&asked).await.logprobs();
    assert_eq!(tokens.len(), 2);
    assert_eq!(
        tokens[0],
        json!({"token": "ab ", "logprob": -0.5, "bytes": b"ab ", "top_logprobs": []})
    );
}

#[tokio::test]
async fn logprobs_that_were_asked_for_are_told_even_where_there_are_none() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let asked = with(streamed("ab"), json!({"logprobs": true, "stop": "a"}));
    let answer = worker.ask(&asked).await;
    let none = json!({"content": [], "refusal": null});
    assert_eq!(answer.text(), "");
    let ends = answer
        .chunks()
        .into_iter()
        .find(|chunk| chunk["choices"][0]["finish_reason"].is_string());
    assert_eq!(ends.unwrap()["choices"][0]["logprobs"], none);
}

#[tokio::test]
async fn thoughts_are_told_apart_where_a_model_thinks_and_nowhere_else() {
    let says = json!({"tokens": ["<thi", "nk>", "hm, ", "so", "</think>", "\n\n", "42"]});
    let asked = streamed(says.to_string());
    let worker = Worker::alone(json!({"thinks": true}), &[]).await.ready().await;
    let answer = worker.ask(&asked).await;
    let said = answer.choice(0);
    assert_eq!((said.text.as_str(), said.thought.as_str()), ("42", "hm, so"));
    let usage = &answer.chunks().pop().unwrap()["usage"];
    assert_eq!(
        (&usage["completion_tokens_details"], &usage["completion_tokens"]),
        (&json!({"reasoning_tokens": 4}), &json!(7))
    );
    let plain = worker.ask(&streamed("42")).await;
    assert!(!plain.body().contains("reasoning_content"), "{}", plain.body());

    let other = Worker::alone(json!({}), &[]).await.ready().await;
    let answer = other.ask(&asked).await;
    assert_eq!(answer.text(), "<think>hm, so</think>\n\n42");
    assert!(!answer.body().contains("reasoning_content"), "{}", answer.body());
}

#[tokio::test]
async fn several_choices_come_in_order_and_are_counted_together() {
    let worker = Worker::alone(json!({}), &["--slots", "1"]).await.ready().await;
    let answer = worker.ask(&with(streamed("one two"), json!({"n": 3}))).await;
    let chunks = answer.chunks();
    for (i, chunk) in chunks.iter().take(3).enumerate() {
        assert_eq!(chunk["choices"][0]["index"], i, "the speakers come first, in order");
        assert_eq!(chunk["choices"][0]["delta"]["role"], "assistant");
    }
    assert!((0..3).all(|i| answer.choice(i).text == "one two"));
    assert_eq!(answer.usage(), [2, 6, 8], "the prompt counts once");
    assert_eq!(worker.in_flight().await, 0);
}

#[tokio::test]
async fn a_choice_that_breaks_breaks_all_of_them() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let script = json!({"tokens": ["a", "b"], "fault": {"at": 1, "kind": "close"}}).to_string();
    let broken = worker.ask(&with(streamed(script), json!({"n": 2}))).await;
    assert!(broken.broke || !broken.body().contains("[DONE]"), "{}", broken.body());
    let stalled = json!({"tokens": ["a"], "fault": {"at": 0, "kind": "stall"}}).to_string();
    let running = worker
        .chat(&with(streamed(stalled), json!({"n": 4})))
        .send()
        .await
        .unwrap();
    super::worker::eventually("the slot is taken", async || {
        (worker.in_flight().await == 1).then_some(())
    })
    .await;
    drop(running);
    super::worker::eventually("the slot is free", async || {
        (worker.in_flight().await == 0).then_some(())
    })
    .await;
}
