//! What the reader takes and refuses, field by field.

#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn read(extra: Value) -> Result<Asked, Refusal> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) else {
        unreachable!()
    };
    body.extend(extra);
    parse(&serde_json::to_vec(body).unwrap(), &"m".parse().unwrap())
}

/// The field a refusal names.
fn fault(extra: Value) -> String {
    match read(extra).unwrap_err() {
        Refusal::Invalid { param, .. } => param,
        Refusal::Unsupported { param, .. } => format!("unsupported {param}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn unknown_fields_and_nulls_change_nothing() {
    let asked = read(json!({
        "user": "x", "store": true, "metadata": {}, "num_ctx": 1, "tools": [], "stop": null, "max_tokens": null,
        "temperature": null, "logit_bias": null, "response_format": null, "n": 1, "stream_options": null
    }))
    .unwrap();
    assert_eq!(asked.chat.sampling, Sampling::default());
    assert_eq!(asked.chat.max_tokens, None);
    assert!(!asked.stream && !asked.include_usage);
}

#[test]
fn the_newer_name_of_max_tokens_wins() {
    let max = |extra| read(extra).unwrap().chat.max_tokens;
    assert_eq!(max(json!({"max_tokens": 5, "max_completion_tokens": 7})), Some(7));
    assert_eq!(max(json!({"max_tokens": 5.0, "max_completion_tokens": null})), Some(5));
    for bad in [json!(0), json!(-1), json!(1.5), json!("9"), json!(1e30)] {
        assert_eq!(fault(json!({"max_tokens": bad})), "max_tokens");
    }
}

#[test]
fn content_may_come_in_parts_and_roles_under_older_names() {
    let asked = read(json!({"messages": [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"x": 1}}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}], "refusal": null},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]}))
    .unwrap();
    let messages: Vec<_> = asked.chat.messages.iter().map(|m| (m.role, m.text.as_str())).collect();
    assert_eq!(
        messages,
        [
            (Role::System, "a\nb"),
            (Role::Assistant, r#"[{"id":"1"}]"#),
            (Role::Tool, "42")
        ]
    );
}

#[test]
fn a_message_that_cannot_be_read_is_named() {
    let faulty = |message: Value| fault(json!({"messages": [{"role": "user", "content": "hi"}, message]}));
    assert_eq!(faulty(json!({"role": "king", "content": ""})), "messages[1].role");
    assert_eq!(faulty(json!({"role": "user", "content": null})), "messages[1].content");
    assert_eq!(
        faulty(json!({"role": "user", "content": [{"type": "image_url"}]})),
        "messages[1].content[0].type"
    );
    assert_eq!(
        faulty(json!({"role": "user", "content": [{"type": "text"}]})),
        "messages[1].content[0].text"
    );
    assert_eq!(faulty(json!("x")), "messages[1]");
    assert_eq!(fault(json!({"messages": []})), "messages");
}

#[test]
fn sampling_keeps_to_its_ranges_bounds_included() {
    let asked = read(
        json!({"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "presence_penalty": -2,
        "frequency_penalty": 2, "seed": -5, "logit_bias": {"17": -100}}),
    )
    .unwrap();
    assert_eq!(asked.chat.sampling.logit_bias, [(17, -100.0)]);
    assert_eq!(asked.chat.sampling.top_k, None);
    assert!(asked.chat.sampling.seed.is_some());
    assert!(read(json!({"temperature": 2})).is_ok());
    for (field, bad) in [
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(-0.1)),
        ("min_p", json!(1.1)),
        ("presence_penalty", json!(3)),
        ("repetition_penalty", json!(0)),
        ("seed", json!(1.5)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"1": 101})),
        ("stream", json!("yes")),
    ] {
        assert_eq!(fault(json!({field: bad})), field);
    }
}

#[test]
fn stop_is_one_text_or_up_to_four() {
    assert_eq!(read(json!({"stop": "a"})).unwrap().chat.stop, ["a"]);
    assert_eq!(read(json!({"stop": ["a", "b"]})).unwrap().chat.stop, ["a", "b"]);
    for bad in [json!(["a", "b", "c", "d", "e"]), json!([1]), json!(""), json!(7)] {
        assert_eq!(fault(json!({"stop": bad})), "stop");
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_not_dropped() {
    assert_eq!(fault(json!({"n": 2})), "unsupported n");
    assert_eq!(fault(json!({"tools": [{"type": "function"}]})), "unsupported tools");
    assert_eq!(
        fault(json!({"response_format": {"type": "xml"}})),
        "response_format.type"
    );
    assert_eq!(
        fault(json!({"response_format": {"type": "json_schema"}})),
        "response_format.json_schema.schema"
    );
    assert_eq!(fault(json!({"top_logprobs": 3})), "top_logprobs");
    assert_eq!(fault(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs");
}

#[test]
fn another_model_and_a_broken_body_are_told_apart() {
    assert!(matches!(
        read(json!({"model": "other"})),
        Err(Refusal::WrongModel { .. })
    ));
    assert_eq!(fault(json!({"model": 7})), "model");
    for bad in ["", "[]", "{", "\u{0}", &"[".repeat(1000)] {
        assert!(parse(bad.as_bytes(), &"m".parse().unwrap()).is_err(), "{bad}");
    }
}
