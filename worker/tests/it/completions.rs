//! The older API: texts that go on.

use serde_json::{Value, json};

use super::worker::{Answer, Worker, with};

/// A request for the text that follows this one.
#[allow(clippy::needless_pass_by_value)]
pub fn ask(prompt: Value, more: Value) -> Value {
    with(
        json!({"model": "m", "prompt": prompt, "stream": true, "stream_options": {"include_usage": true}}),
        more,
    )
}

/// Text and finish reason of every choice of a stream.
pub fn said(answer: &Answer, choices: usize) -> Vec<(String, String)> {
    let mut said = vec![(String::new(), String::new()); choices];
    for chunk in answer.chunks() {
        assert_eq!(chunk["object"], "text_completion");
        assert!(chunk["id"].as_str().unwrap().starts_with("cmpl-"));
        for choice in chunk["choices"].as_array().unwrap() {
            let (text, finish) = &mut said[usize::try_from(choice["index"].as_u64().unwrap()).unwrap()];
            assert_eq!(finish, "", "nothing follows the finish");
            text.push_str(choice["text"].as_str().unwrap());
            finish.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        }
    }
    said
}

async fn continued(worker: &Worker, body: &Value, choices: usize) -> Vec<(String, String)> {
    said(&worker.post("/v1/completions", body).await, choices)
}

/// The log-probabilities of a whole stream's one choice, list by list.
pub fn logprobs(answer: &Answer) -> Value {
    let mut told = json!({"tokens": [], "token_logprobs": [], "text_offset": [], "top_logprobs": []});
    for chunk in answer.chunks() {
        for (key, list) in told.as_object_mut().unwrap() {
            let more = chunk["choices"][0]["logprobs"][key].as_array().cloned();
            list.as_array_mut().unwrap().extend(more.unwrap_or_default());
        }
    }
    told
}

fn pairs(said: &[(&str, &str)]) -> Vec<(String, String)> {
    said.iter()
        .map(|(text, finish)| ((*text).to_owned(), (*finish).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_text_goes_on_without_any_template() {
    let worker = Worker::alone(json!({"tokens": [" upon", " a", " time"]}), &[])
        .await
        .ready()
        .await;
    assert_eq!(
        continued(&worker, &ask(json!("Once"), json!({})), 1).await,
        pairs(&[(" upon a time", "stop")])
    );
    let echoed = continued(&worker, &ask(json!("Once"), json!({"echo": true, "max_tokens": 2})), 1).await;
    assert_eq!(echoed, pairs(&[("Once upon a", "length")]));
    let only_echo = continued(&worker, &ask(json!("Once"), json!({"echo": true, "max_tokens": 0})), 1).await;
    assert_eq!(only_echo, pairs(&[("Once", "length")]));
    assert_eq!(
        continued(&worker, &ask(json!("Once"), json!({"stop": "a"})), 1).await,
        pairs(&[(" upon ", "stop")])
    );
}

#[tokio::test]
async fn a_long_echo_comes_in_events_that_a_gateway_takes() {
    let worker = Worker::alone(json!({"tokens": ["b"]}), &[]).await.ready().await;
    let prompt = "xé".repeat(100_000);
    let body = ask(json!(prompt), json!({"echo": true}));
    let streamed = worker.post("/v1/completions", &body).await;
    let largest = streamed.events().iter().map(|event| event.len()).max().unwrap();
    assert!(largest < 64 * 1024, "{largest}");
    assert_eq!(said(&streamed, 1), pairs(&[(&(prompt + "b"), "stop")]));
}

#[tokio::test]
async fn prompts_in_a_list_each_get_their_choices_in_order() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let lists = ask(json!(["one", "two three"]), json!({"n": 2}));
    let four = pairs(&[
        ("one", "stop"),
        ("one", "stop"),
        ("two three", "stop"),
        ("two three", "stop"),
    ]);
    let answer = worker.post("/v1/completions", &lists).await;
    assert_eq!(said(&answer, 4), four);
    assert_eq!(answer.usage(), [3, 6, 9]);
    let ids = continued(&worker, &ask(json!([[7, 8], [9]]), json!({})), 2).await;
    assert_eq!(ids, pairs(&[("7 8 ", "stop"), ("9 ", "stop")]));
}

#[tokio::test]
async fn the_older_logprobs_come_in_their_own_form() {
    let worker = Worker::alone(json!({"tokens": ["é ", "b"]}), &[]).await.ready().await;
    let body = ask(json!("x"), json!({"logprobs": 1}));
    assert_eq!(
        logprobs(&worker.post("/v1/completions", &body).await),
        json!({"tokens": ["é ", "b"], "token_logprobs": [-0.5, -0.5], "text_offset": [0, 2],
            "top_logprobs": [{"é ": -0.5}, {"b": -0.5}]})
    );
    let none = worker.post("/v1/completions", &with(body, json!({"stop": "é"}))).await;
    assert_eq!(
        none.chunks()[0]["choices"][0]["logprobs"],
        json!({"tokens": [], "token_logprobs": [], "text_offset": [], "top_logprobs": []})
    );
}

#[tokio::test]
async fn an_echo_tells_how_likely_the_prompt_was() {
    let worker = Worker::alone(json!({"tokens": ["b"]}), &[]).await.ready().await;
    let echo = |more| with(ask(json!("é x"), json!({"echo": true, "logprobs": 0})), more);
    let both = json!({"tokens": ["é ", "x", "b"], "token_logprobs": [null, -0.5, -0.5], "text_offset": [0, 2, 3],
        "top_logprobs": [null, {"x": -0.5}, {"b": -0.5}]});
    let answer = worker.post("/v1/completions", &echo(json!({}))).await;
    assert_eq!(logprobs(&answer), both);
    let alone = worker.post("/v1/completions", &echo(json!({"max_tokens": 0}))).await;
    assert_eq!(said(&alone, 1), pairs(&[("é x", "length")]));
    let told = logprobs(&alone);
    assert_eq!(
        (&told["tokens"], &told["token_logprobs"]),
        (&json!(["é ", "x"]), &json!([null, -0.5]))
    );
}

#[tokio::test]
async fn what_is_not_done_is_said() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let more = json!({"best_of": 3});
    let refused = worker.post("/v1/completions", &ask(json!("x"), more)).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "unsupported_parameter".to_owned())
    );
    assert_eq!(refused.json()["error"]["param"], "best_of");
    for (path, body, param) in [
        ("/v1/completions", ask(json!("w ".repeat(5000)), json!({})), "prompt"),
        (
            "/v1/embeddings",
            json!({"model": "m", "input": "w ".repeat(5000)}),
            "input",
        ),
    ] {
        let refused = worker.post(path, &body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (400, "context_length_exceeded".to_owned())
        );
        assert_eq!(refused.json()["error"]["param"], param);
    }
}
