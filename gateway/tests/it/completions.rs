//! The older API, which continues texts: streamed and in one piece, with its own shapes and rules.

use serde_json::{Value, json};

use crate::{harness::Hive, script::Script, shapes};

/// A part of choice `index`, as our worker sends it.
fn part(index: u64, text: &str, finish_reason: Option<&str>) -> Value {
    let logprobs = (!text.is_empty()).then(|| {
        json!({"tokens": [text], "token_logprobs": [-0.25], "top_logprobs": [{text: -0.25}], "text_offset": [index]})
    });
    json!({
        "id": "cmpl-1", "object": "text_completion", "created": 1_700_000_000, "model": "m",
        "choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}],
    })
}

fn two_choices() -> Script {
    let usage = json!({"id": "cmpl-1", "object": "text_completion", "created": 1_700_000_000, "model": "m", "choices": [],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}});
    [
        part(1, " upon", None),
        part(0, " more", None),
        part(1, " a", None),
        part(0, "", Some("stop")),
        part(1, "", Some("length")),
        usage,
    ]
    .iter()
    .fold(Script::stream(), Script::event)
    .done()
    .end()
}

#[tokio::test]
async fn several_continuations_are_put_together_in_order_with_their_log_probabilities() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").script([two_choices()]).join().await;
    let reply = hive
        .completion("m")
        .with("n", json!(2))
        .with("logprobs", json!(1))
        .send()
        .await;
    assert_eq!(reply.header("x-hive-worker"), "a");
    let whole = reply.json().await;
    shapes::text_completion(&whole);
    let choices = &whole["choices"];
    assert_eq!(
        (&choices[0]["text"], &choices[1]["text"]),
        (&json!(" more"), &json!(" upon a"))
    );
    assert_eq!(choices[1]["finish_reason"], "length");
    let logprobs = json!({"tokens": [" upon", " a"], "token_logprobs": [-0.25, -0.25],
        "top_logprobs": [{" upon": -0.25}, {" a": -0.25}], "text_offset": [1, 1]});
    assert_eq!(choices[1]["logprobs"], logprobs);
    assert_eq!(whole["usage"]["completion_tokens"], 3);
    let call = worker.server.call(0).await;
    assert_eq!(call.path, "/v1/completions");
    assert_eq!(
        (&call.body["prompt"], &call.body["stream"]),
        (&json!("Once"), &json!(true))
    );
    let entry = crate::harness::eventually("the books have it", async || {
        hive.requests()
            .await
            .into_iter()
            .find(|entry| entry["state"] == "completed")
    })
    .await;
    assert_eq!(
        (&entry["prompt_tokens"], &entry["completion_tokens"]),
        (&json!(2), &json!(3))
    );
    assert!(entry["ttft_ms"].is_u64(), "{entry}");
}

#[tokio::test]
async fn a_streamed_continuation_passes_as_it_comes() {
    let hive = Hive::start().await;
    hive.worker("a").script([two_choices()]).join().await;
    let ask = hive.completion("m").with("n", json!(2)).stream();
    let events = ask.clone().send().await.events().await;
    assert_eq!(
        (events.len(), events.last().unwrap().as_str()),
        (6, "[DONE]"),
        "no usage: nobody asked"
    );
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(first, part(1, " upon", None));
    let events = ask.usage().send().await.events().await;
    let usage: Value = serde_json::from_str(&events[5]).unwrap();
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"]),
        (&json!([]), &json!(5))
    );
}

#[tokio::test]
async fn an_answer_without_one_of_its_choices_is_a_loss() {
    let hive = Hive::start().await;
    let one = || Script::stream().event(&part(0, "x", Some("stop"))).done().end();
    hive.worker("a").script([one()]).join().await;
    let ask = hive.completion("m").with("prompt", json!(["a", "b"]));
    ask.clone().stream().send().await.broken("worker_lost").await;
    hive.until("a", "ready").await;
    ask.send().await.refused(502, "worker_failed").await;
}

#[tokio::test]
async fn a_request_for_continuations_that_is_wrong_names_its_field() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    for (field, value) in [
        ("prompt", json!(null)),
        ("prompt", json!({"text": "x"})),
        ("prompt", json!([])),
        ("logprobs", json!(6)),
        ("max_tokens", json!(-1)),
        ("n", json!(0)),
        ("stream", json!("yes")),
    ] {
        let error = hive
            .completion("m")
            .with(field, value)
            .send()
            .await
            .refused(400, "invalid_request")
            .await;
        assert_eq!(error["param"], field, "{error}");
    }
    hive.completion("nope")
        .send()
        .await
        .refused(404, "model_not_found")
        .await;
    assert_eq!(worker.server.calls(), 0);
}
