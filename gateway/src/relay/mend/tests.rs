//! What attached servers send, and what clients see of it.

use proptest::prelude::*;

use super::*;

fn mender() -> Mender {
    Mender::new(Kind::Chat, &"asked".parse().unwrap(), "req_1", &[])
}

fn mend(mender: &mut Mender, chunk: Value) -> Value {
    mender.mend(chunk).unwrap().unwrap()
}

#[test]
fn a_bare_chunk_gets_what_every_chunk_must_have() {
    let mut mender = mender();
    let first = mend(
        &mut mender,
        json!({"choices": [{"delta": {"content": "a"}}], "model": "theirs", "system_fingerprint": null}),
    );
    assert_eq!(
        (&first["id"], &first["model"]),
        (&json!("chatcmpl-req_1"), &json!("asked"))
    );
    assert_eq!(first["object"], "chat.completion.chunk");
    assert!(first["created"].as_u64().unwrap() > 1_700_000_000 && first.get("system_fingerprint").is_none());
    assert_eq!(
        first["choices"],
        json!([{"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": null}])
    );
    let second = mend(
        &mut mender,
        json!({"id": "chatcmpl-later", "created": 5, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "b", "tool_calls": null, "reasoning_content": "hm"}, "finish_reason": ""}]}),
    );
    assert_eq!((&second["id"], &second["created"]), (&first["id"], &first["created"]));
    assert_eq!(
        second["choices"][0]["delta"],
        json!({"content": "b", "reasoning_content": "hm"})
    );
    assert_eq!(second["choices"][0]["finish_reason"], Value::Null);
    let last = mend(
        &mut mender,
        json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]}),
    );
    assert_eq!(
        last["choices"],
        json!([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    );
}

#[test]
fn finish_reasons_are_of_openais_set_and_a_break_is_none() {
    let finish = |reason: &str| {
        let mut mender = mender();
        mend(&mut mender, json!({"choices": [{"delta": {"content": "a"}}]}));
        let chunk = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]});
        mender
            .mend(chunk)
            .map(|chunk| chunk.unwrap()["choices"][0]["finish_reason"].clone())
    };
    for (theirs, ours) in [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("MAX_TOKENS", "length"),
        ("tool_use", "tool_calls"),
        ("SAFETY", "content_filter"),
    ] {
        assert_eq!(finish(theirs).unwrap(), ours);
    }
    assert_eq!(finish("null").unwrap(), Value::Null);
    for theirs in ["error", "abort", "canceled"] {
        assert!(finish(theirs).is_err(), "{theirs}");
    }
}

/// What a client reads of these chunks' first choices, a `|` for each finish reason, and whether the server is to be left.
fn told(mender: &mut Mender, key: &str, choices: &[Value]) -> (String, bool) {
    let mut told = String::new();
    let mut tell = |chunk: &Value| {
        for choice in chunk["choices"].as_array().unwrap() {
            told += choice.pointer(key).and_then(Value::as_str).unwrap_or_default();
            if let Some(reason) = choice["finish_reason"].as_str() {
                told += &["|", reason].concat();
            }
        }
    };
    for choice in choices {
        mender
            .mend(json!({"choices": [choice]}))
            .unwrap()
            .iter()
            .for_each(&mut tell);
        if mender.is_over(1) {
            return (told, true);
        }
    }
    mender.finish().unwrap().iter().for_each(&mut tell);
    (told, false)
}

fn content(text: &str) -> Value {
    json!({"delta": {"content": text}})
}

#[test]
fn nothing_of_a_choice_follows_its_end() {
    let end = |text: &str| json!({"delta": {"content": text}, "finish_reason": "length"});
    let call = json!({"delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}});
    let read = |choices: &[Value]| told(&mut mender(), "/delta/content", choices);
    let whole = ("a|length".to_owned(), false);
    assert_eq!(read(&[content("a"), end(""), content(""), end("")]), whole);
    let strayed = ("a|length".to_owned(), true);
    assert_eq!(read(&[content("a"), end(""), content("b"), content("c")]), strayed);
    assert_eq!(read(&[content("a"), end(""), call]), strayed);
    // Servers that write a reason into every chunk have not ended with the first.
    assert_eq!(
        read(&[end(""), end("a"), content("b"), end("c")]),
        ("abc|length".to_owned(), false)
    );
    assert_eq!(read(&[end("")]), ("|length".to_owned(), false));
}

#[test]
fn a_stop_text_ends_a_choice_whatever_the_server_does() {
    let stop = ["END".to_owned(), "🐝".to_owned()];
    let read = |kind, key, choices: &[Value]| {
        told(
            &mut Mender::new(kind, &"asked".parse().unwrap(), "req_1", &stop),
            key,
            choices,
        )
    };
    let finish = json!({"delta": {}, "finish_reason": "stop"});
    let chat = |choices: &[Value]| read(Kind::Chat, "/delta/content", choices);
    assert_eq!(
        chat(&[content("a E"), content("N"), content("D b"), content("c")]),
        ("a |stop".to_owned(), true)
    );
    assert_eq!(
        chat(&[content("a E"), content("N"), finish.clone()]),
        ("a EN|stop".to_owned(), false)
    );
    assert_eq!(
        chat(&[
            json!({"delta": {"content": "a🐝b", "tool_calls": [{"function": {"name": "f"}}]}}),
            finish
        ]),
        ("a|stop".to_owned(), true)
    );
    let text = |text: &str| json!({"text": text});
    assert_eq!(
        read(Kind::Completions, "/text", &[text("a E"), text("ND")]),
        ("a |stop".to_owned(), true)
    );
}

#[test]
fn log_probabilities_come_with_their_text_and_go_with_it() {
    let mut mender = Mender::new(Kind::Chat, &"asked".parse().unwrap(), "req_1", &["END".to_owned()]);
    let mut tokens = |text: &str| {
        let logprobs = json!({"content": [{"token": text, "logprob": -0.5}]});
        let chunk = json!({"choices": [{"delta": {"content": text}, "logprobs": logprobs}]});
        let told = mend(&mut mender, chunk);
        let told = told["choices"][0]["logprobs"]["content"].as_array().cloned();
        told.map(|told| {
            told.iter()
                .map(|token| token["token"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(tokens("a"), Some(vec!["a".to_owned()]));
    assert_eq!(tokens("E"), None);
    assert_eq!(tokens("x"), Some(vec!["E".to_owned(), "x".to_owned()]));
    assert_eq!((tokens("EN"), tokens("D")), (None, None));
}

#[test]
fn the_usage_comes_once_and_last_wherever_it_stood() {
    let mut mender = mender();
    let usage = |completion: u64| json!({"prompt_tokens": 3, "completion_tokens": completion, "total_tokens": 9, "avg_tok_per_sec": 7.5, "prompt_tokens_details": null});
    let chunk = mend(
        &mut mender,
        json!({"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": usage(1)}),
    );
    assert!(chunk.get("usage").is_none());
    mend(
        &mut mender,
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage(2)}),
    );
    assert_eq!(mender.mend(json!({"choices": [], "usage": usage(2)})), Ok(None));
    let last = mender.last().unwrap();
    assert_eq!(
        last["usage"],
        json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
    );
    assert_eq!(last["choices"], json!([]));
    assert_eq!(mender.last(), None, "and no other is made up");
}

#[test]
fn calls_are_named_once_and_told_apart() {
    let mut mender = mender();
    let calls = |mender: &mut Mender, calls: Value| {
        let chunk = mend(
            mender,
            json!({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}),
        );
        chunk["choices"][0]["delta"].clone()
    };
    assert_eq!(
        calls(
            &mut mender,
            json!([{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}])
        ),
        json!({"role": "assistant", "content": null, "tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]})
    );
    assert_eq!(
        calls(
            &mut mender,
            json!([{"index": 0, "id": null, "type": null, "function": {"name": null, "arguments": "y"}}])
        ),
        json!({"tool_calls": [{"index": 0, "function": {"arguments": "y"}}]})
    );
    assert_eq!(
        calls(&mut mender, json!([{"id": "", "function": {"name": "g"}}])),
        json!({"tool_calls": [{"index": 1, "id": "call_req_1_1", "type": "function", "function": {"name": "g", "arguments": ""}}]})
    );
    let end = mend(
        &mut mender,
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    );
    assert_eq!(end["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn calls_that_all_say_they_are_the_first_are_told_apart() {
    let told = |fragments: &[(&str, &str)]| {
        let mut mender = mender();
        let mut calls: Vec<(String, String)> = Vec::new();
        for (name, arguments) in fragments {
            let call = json!({"index": 0, "function": {"name": name, "arguments": arguments}});
            let chunk = mend(
                &mut mender,
                json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}),
            );
            let call = &chunk["choices"][0]["delta"]["tool_calls"][0];
            let [name, more] = ["name", "arguments"].map(|key| call["function"][key].as_str().unwrap_or_default());
            match calls.get_mut(usize::try_from(call["index"].as_u64().unwrap()).unwrap()) {
                Some((_, arguments)) => arguments.push_str(more),
                None => calls.push((name.to_owned(), more.to_owned())),
            }
        }
        let calls = calls.iter().map(|(name, arguments)| format!("{name}({arguments})"));
        calls.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        told(&[("f", "{\"a\":1}"), ("g", "{\"b\":2}")]),
        "f({\"a\":1}) g({\"b\":2})"
    );
    assert_eq!(told(&[("f", "{}"), ("f", "{}")]), "f({}) f({})");
    assert_eq!(
        told(&[("f", ""), ("f", "{\"a\""), ("f", ":1}"), ("f", "")]),
        "f({\"a\":1})"
    );
    assert_eq!(told(&[("f", "{}"), ("", "")]), "f({})");
}

#[test]
fn no_choice_comes_before_those_of_a_smaller_index() {
    let mut mender = mender();
    let chunk = mend(
        &mut mender,
        json!({"choices": [{"index": 2, "delta": {"content": "c"}}]}),
    );
    let indexes: Vec<_> = chunk["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["index"].as_u64())
        .collect();
    assert_eq!(indexes, [Some(0), Some(1), Some(2)]);
    let first = json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null});
    assert_eq!(chunk["choices"][0], first);
    let chunk = mend(
        &mut mender,
        json!({"choices": [{"index": 0, "delta": {"content": "a"}}]}),
    );
    assert_eq!(
        chunk["choices"],
        json!([{"index": 0, "delta": {"content": "a"}, "finish_reason": null}])
    );
}

#[test]
fn a_call_in_the_older_form_is_named_once() {
    let mut mender = mender();
    let mut delta = |call: Value| {
        let chunk = mend(&mut mender, json!({"choices": [{"delta": {"function_call": call}}]}));
        chunk["choices"][0]["delta"].clone()
    };
    assert_eq!(
        delta(json!({"name": "f", "arguments": "{"})),
        json!({"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{"}})
    );
    assert_eq!(
        delta(json!({"name": "f", "arguments": "}"})),
        json!({"function_call": {"arguments": "}"}})
    );
}

#[test]
fn one_tokens_logprobs_become_a_list() {
    let flat = json!({"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0}]});
    let chunk = mend(
        &mut mender(),
        json!({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": flat}]}),
    );
    assert_eq!(
        chunk["choices"][0]["logprobs"],
        json!({"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": null}]}], "refusal": null})
    );
}

#[test]
fn a_completion_gets_the_older_logprobs_whatever_form_they_had() {
    let mut mender = Mender::new(Kind::Completions, &"asked".parse().unwrap(), "req_1", &[]);
    let token = |token: &str| json!({"id": 7, "token": token, "logprob": -0.5, "top_logprobs": [{"token": "é", "logprob": -1.0}]});
    let mut told = |logprobs: Value| {
        let chunk = json!({"choices": [{"text": "x", "logprobs": logprobs}]});
        mend(&mut mender, chunk)["choices"][0]["logprobs"].clone()
    };
    let older = |token: &str, at: u64| json!({"tokens": [token], "token_logprobs": [-0.5], "top_logprobs": [{"é": -1.0}], "text_offset": [at]});
    assert_eq!(told(json!({"content": [token("né")]})), older("né", 0));
    assert_eq!(told(json!({"content": [token("x")]})), older("x", 2));
    assert_eq!(told(older("y", 9)), older("y", 9));
    for none in [json!(null), json!([]), json!({"x": 1}), json!("x")] {
        assert_eq!(told(none), Value::Null);
    }
}

#[test]
fn an_answer_in_one_piece_becomes_the_chunks_it_would_have_been() {
    let mut mender = mender();
    let piece = json!({"id": "chatcmpl-x", "created": 5, "object": "chat.completion", "choices": [
        {"message": {"role": "assistant", "content": "hi", "refusal": null}, "logprobs": null, "finish_reason": "length"},
        {"index": 1, "message": {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, "finish_reason": "stop"},
    ], "usage": {"prompt_tokens": 1, "completion_tokens": 2}});
    let chunks: Vec<Value> = mender.split(piece).into_iter().map(Result::unwrap).collect();
    let choice = |i: usize| chunks[i]["choices"][0].clone();
    assert_eq!(chunks.len(), 4);
    assert_eq!(
        choice(0),
        json!({"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": null})
    );
    assert_eq!(choice(1), json!({"index": 0, "delta": {}, "finish_reason": "length"}));
    assert_eq!(choice(2)["delta"]["tool_calls"][0]["index"], 0);
    assert_eq!(
        (&choice(3)["index"], &choice(3)["finish_reason"]),
        (&json!(1), &json!("tool_calls"))
    );
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["id"] == "chatcmpl-x" && chunk["object"] == "chat.completion.chunk")
    );
    assert_eq!(mender.last().unwrap()["usage"]["total_tokens"], 3);
}

#[test]
fn completions_keep_their_own_shape() {
    let mut mender = Mender::new(Kind::Completions, &"asked".parse().unwrap(), "req_1", &[]);
    let chunk = mend(&mut mender, json!({"choices": [{"text": "a"}]}));
    assert_eq!(
        (&chunk["id"], &chunk["object"]),
        (&json!("cmpl-req_1"), &json!("text_completion"))
    );
    assert_eq!(
        chunk["choices"],
        json!([{"index": 0, "text": "a", "logprobs": null, "finish_reason": null}])
    );
}

/// Values of every kind in the places where servers put theirs.
#[test]
fn no_chunk_makes_it_panic() {
    let odd = [
        json!(null),
        json!(u64::MAX),
        json!(-1),
        json!(1.5e300),
        json!("x"),
        json!([1, {"text": 2}]),
        json!({"token": 1, "top_logprobs": [2]}),
        json!([{"index": u64::MAX, "id": "a", "function": {"name": "f", "arguments": []}}, {"function": 1}, 7]),
    ];
    for kind in [Kind::Chat, Kind::Completions] {
        for a in &odd {
            for b in &odd {
                let mut mender = Mender::new(kind, &"asked".parse().unwrap(), "req_1", &[]);
                let chunk = json!({"id": a, "created": b, "usage": {"prompt_tokens": a, "completion_tokens": b}, "choices": [
                    {"index": a, "delta": {"content": b, "tool_calls": a, "role": b}, "logprobs": b, "finish_reason": a},
                    {"delta": {"tool_calls": b}, "message": a, "text": b}, b]});
                let _ = mender.split(chunk.clone());
                let _ = (
                    mender.mend(chunk.clone()),
                    mender.mend(chunk),
                    mender.finish(),
                    mender.last(),
                );
                let _ = (
                    mender.mend(a.clone()),
                    embeddings(
                        json!({"data": [{"embedding": a, "index": b}], "usage": b}),
                        &"m".parse().unwrap(),
                        wire::openai::Encoding::Float,
                        1,
                    ),
                );
            }
        }
    }
    let many = json!({"choices": [{"index": 1024, "delta": {}}]});
    assert!(mender().mend(many).is_err());
}

/// Any JSON, with the names that matter here.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..3_u64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c]{0,3}".prop_map(Value::from),
        prop_oneof![Just("stop"), Just("length"), Just("tool"), Just("error")].prop_map(Value::from),
    ];
    let names = [
        "index",
        "delta",
        "message",
        "text",
        "content",
        "role",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "type",
        "logprobs",
        "token",
        "logprob",
        "bytes",
        "top_logprobs",
        "refusal",
        "finish_reason",
        "usage",
        "choices",
        "prompt_tokens",
        "completion_tokens",
        "created",
        "tokens",
        "token_logprobs",
        "text_offset",
        "x",
    ];
    leaf.prop_recursive(6, 48, 5, move |inner| {
        let name = proptest::sample::select(names.to_vec());
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..7)
                .prop_map(|fields| Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

/// What every chunk has, whatever the server sent.
fn strict(kind: Kind, chunk: &Value) -> Result<(), TestCaseError> {
    prop_assert!(
        chunk["id"].is_string() && chunk["created"].is_u64() && chunk["model"] == "asked",
        "{chunk}"
    );
    for choice in chunk["choices"].as_array().unwrap() {
        prop_assert!(choice["index"].is_u64(), "{choice}");
        let reasons = ["stop", "length", "tool_calls", "content_filter", "function_call"];
        let reason = choice.get("finish_reason").unwrap();
        prop_assert!(
            reason.is_null() || reasons.contains(&reason.as_str().unwrap_or_default()),
            "{choice}"
        );
        let logprobs = choice.get("logprobs").filter(|logprobs| !logprobs.is_null());
        if kind == Kind::Completions {
            prop_assert!(
                choice["text"].is_string() && choice.get("logprobs").is_some(),
                "{choice}"
            );
            let told = logprobs.is_none_or(|logprobs| logprobs.as_object().unwrap().values().all(Value::is_array));
            prop_assert!(told, "{choice}");
            continue;
        }
        let delta = &choice["delta"];
        prop_assert!(
            delta.is_object() && delta.get("role").is_none_or(|role| role == "assistant"),
            "{choice}"
        );
        let text = |key| delta.get(key).is_none_or(|value: &Value| value.is_string());
        prop_assert!(
            delta.get("content").is_none_or(|c| c.is_string() || c.is_null()) && text("refusal"),
            "{choice}"
        );
        for call in delta
            .get("tool_calls")
            .iter()
            .flat_map(|calls| calls.as_array().unwrap())
        {
            prop_assert!(
                call["index"].is_u64() && call["function"]["arguments"].is_string(),
                "{call}"
            );
            let named = [call.get("id"), call.get("type"), call["function"].get("name")];
            let strings = named.iter().all(|value| value.is_some_and(Value::is_string));
            prop_assert!(strings || named == [None; 3], "{call}");
        }
        for token in logprobs
            .iter()
            .flat_map(|logprobs| logprobs["content"].as_array().into_iter().flatten())
        {
            for one in token["top_logprobs"].as_array().unwrap().iter().chain([token]) {
                prop_assert!(one["token"].is_string() && one["logprob"].is_number(), "{token}");
                prop_assert!(one["bytes"].is_array() || one["bytes"] == Value::Null, "{token}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn whatever_comes_in_what_goes_out_is_of_openais_shape(chunks in proptest::collection::vec(any_json(), 1..5)) {
        for kind in [Kind::Chat, Kind::Completions] {
            let mut mender = Mender::new(kind, &"asked".parse().unwrap(), "req_1", &["ab".to_owned()]);
            for chunk in &chunks {
                let wrapped = json!({"choices": [chunk], "usage": chunk});
                for chunk in [chunk.clone(), wrapped.clone()] {
                    if let Ok(Some(mended)) = mender.mend(chunk) {
                        strict(kind, &mended)?;
                    }
                }
                for mended in mender.split(wrapped).into_iter().flatten() {
                    strict(kind, &mended)?;
                }
            }
            if let Ok(Some(finish)) = mender.finish() {
                strict(kind, &finish)?;
            }
            if let Some(last) = mender.last() {
                let usage = &last["usage"];
                prop_assert!(usage["prompt_tokens"].is_u64() && usage["total_tokens"].is_u64(), "{last}");
            }
        }
    }
}
