//! A conversation: messages, sampling, and all faults at once.

use super::*;

#[test]
fn unknown_fields_and_nulls_change_nothing() {
    let request = read(json!({
        "user": "x", "store": true, "metadata": {}, "num_ctx": 1, "tools": [], "stop": null, "max_tokens": null,
        "temperature": null, "logit_bias": null, "response_format": null, "n": 1, "stream_options": null, "functions": [],
        "function_call": "auto", "tool_choice": "auto", "top_logprobs": null, "parallel_tool_calls": null
    }));
    assert_eq!(request, read(json!({})));
    assert_eq!((request.sampling, request.n), (Sampling::default(), 1));
}

#[test]
fn the_newer_name_of_max_tokens_wins() {
    let max = |extra| read(extra).max_tokens;
    assert_eq!(max(json!({"max_tokens": 5, "max_completion_tokens": 7})), Some(7));
    assert_eq!(max(json!({"max_tokens": 5.0, "max_completion_tokens": null})), Some(5));
    for bad in [json!(0), json!(-1), json!(1.5), json!("9"), json!(1e30), json!([])] {
        assert_eq!(faults(json!({"max_tokens": bad})), ["max_tokens"]);
    }
}

#[test]
fn content_may_come_in_parts_and_roles_under_older_names() {
    let request = read(json!({"messages": [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"x": 1}}]},
        {"role": "user", "content": "", "name": "ann"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
         "refusal": null, "annotations": [], "audio": null, "function_call": null, "reasoning_content": "hm"},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": null, "refusal": "no", "tool_calls": []},
        {"role": "assistant", "function_call": {"name": "g", "arguments": {"a": 1}}},
        {"role": "function", "name": "g", "content": null},
    ]}));
    let messages: Vec<_> = request
        .messages
        .iter()
        .map(|m| (m.role.as_str(), m.content.text()))
        .collect();
    let wanted = [
        ("developer", "a\nb"),
        ("user", ""),
        ("assistant", ""),
        ("tool", "42"),
        ("assistant", "no"),
        ("assistant", ""),
        ("tool", ""),
    ];
    assert_eq!(messages, wanted.map(|(role, text)| (role, text.to_owned())));
    assert_eq!(request.messages[1].name.as_deref(), Some("ann"));
    assert_eq!(request.messages[2].reasoning.as_deref(), Some("hm"));
    assert_eq!(
        (
            &*request.messages[2].tool_calls[0].id,
            &*request.messages[2].tool_calls[0].name
        ),
        ("1", "f")
    );
    assert_eq!(request.messages[3].tool_call_id.as_deref(), Some("1"));
    assert_eq!(request.messages[5].tool_calls[0].arguments, r#"{"a":1}"#);
}

#[test]
fn a_message_that_cannot_be_read_is_named() {
    let faulty = |message: Value| faults(json!({"messages": [{"role": "user", "content": "hi"}, message]}));
    for (message, param) in [
        (json!("x"), "messages[1]"),
        (json!({"content": "x"}), "messages[1].role"),
        (json!({"role": "king", "content": ""}), "messages[1].role"),
        (json!({"role": "user", "content": null}), "messages[1].content"),
        (json!({"role": "user", "content": 7}), "messages[1].content"),
        (json!({"role": "user", "content": "", "name": 7}), "messages[1].name"),
        (
            json!({"role": "user", "content": [{"type": "banana"}]}),
            "messages[1].content[0].type",
        ),
        (json!({"role": "user", "content": ["x"]}), "messages[1].content[0]"),
        (
            json!({"role": "user", "content": [{"type": "text"}]}),
            "messages[1].content[0].text",
        ),
        (
            json!({"role": "user", "content": [{"type": "file", "file": {}}]}),
            "messages[1].content[0].type?",
        ),
        (
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}),
            "messages[1].content[0].image_url.url",
        ),
        (
            json!({"role": "user", "content": [{"type": "image_url"}]}),
            "messages[1].content[0].image_url.url",
        ),
        (json!({"role": "tool", "content": "x"}), "messages[1].tool_call_id"),
        (
            json!({"role": "tool", "content": "x", "tool_call_id": "nobody's"}),
            "messages[1].tool_call_id",
        ),
        (json!({"role": "assistant", "tool_calls": {}}), "messages[1].tool_calls"),
        (
            json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}),
            "messages[1].tool_calls[0].id",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"id": "1", "function": {"arguments": "{}"}}]}),
            "messages[1].tool_calls[0].function.name",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": 7}}]}),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (json!({"role": "assistant", "audio": {"id": "x"}}), "messages[1].audio?"),
    ] {
        assert_eq!(faulty(message), [param]);
    }
    for (messages, param) in [
        (json!([]), "messages"),
        (json!(null), "messages"),
        (json!("hi"), "messages"),
    ] {
        assert_eq!(faults(json!({"messages": messages})), [param]);
    }
}

#[test]
fn all_faults_are_told_at_once_in_order() {
    let faulty =
        ChatRequest::read(br#"{"messages":[{"role":"x"},{"role":"user"}],"n":0,"stream":"yes","stream_options":3}"#)
            .unwrap_err();
    assert_eq!(
        named(&faulty),
        [
            "model",
            "messages[0].role",
            "messages[1].content",
            "n",
            "stream",
            "stream_options"
        ]
    );
    assert_eq!((faulty.code(), faulty.param()), ("invalid_request", Some("model")));
    let text = faulty.to_string();
    assert!(
        text.contains("`messages[1].content` is missing; send a string or a list of parts."),
        "{text}"
    );
    let many = ChatRequest::read(&body(json!({"messages": vec![json!(1); 2048]})))
        .unwrap_err()
        .to_string();
    assert!(many.ends_with("And 2032 more.") && many.len() < 1000, "{many}");
}

#[test]
fn sampling_keeps_to_its_ranges_bounds_included() {
    let request = read(
        json!({"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "presence_penalty": -2,
        "frequency_penalty": 2, "seed": -5, "logit_bias": {"17": -100}, "repeat_penalty": 1.5}),
    );
    assert_eq!(request.sampling.logit_bias, [(17, -100.0)]);
    assert_eq!(
        (request.sampling.top_k, request.sampling.repetition_penalty.to_bits()),
        (None, 1.5_f32.to_bits())
    );
    assert!(request.sampling.seed.is_some());
    assert_eq!(
        read(json!({"temperature": 2})).sampling.temperature.to_bits(),
        2_f32.to_bits()
    );
    for (field, bad) in [
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(-0.1)),
        ("presence_penalty", json!(3)),
        ("seed", json!(1.5)),
        ("seed", json!(u64::MAX)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"1": 101})),
        ("logit_bias", json!([1])),
        ("n", json!(129)),
        ("stream", json!("yes")),
    ] {
        assert_eq!(faults(json!({field: bad})), [field]);
    }
}

#[test]
fn stop_is_one_text_or_up_to_four() {
    assert_eq!(read(json!({"stop": "a"})).stop, ["a"]);
    assert_eq!(read(json!({"stop": ["a", "b"]})).stop, ["a", "b"]);
    for bad in [
        json!(["a", "b", "c", "d", "e"]),
        json!([1]),
        json!(""),
        json!(7),
        json!([""]),
    ] {
        assert_eq!(faults(json!({"stop": bad})), ["stop"]);
    }
}

#[test]
fn logprobs_are_wanted_before_alternatives_are() {
    assert_eq!(read(json!({"logprobs": true})).logprobs, Some(0));
    assert_eq!(read(json!({"logprobs": true, "top_logprobs": 20})).logprobs, Some(20));
    assert_eq!(read(json!({"logprobs": false, "top_logprobs": 0})).logprobs, None);
    assert_eq!(faults(json!({"top_logprobs": 3})), ["top_logprobs"]);
    assert_eq!(faults(json!({"logprobs": true, "top_logprobs": 21})), ["top_logprobs"]);
    assert_eq!(faults(json!({"logprobs": 5})), ["logprobs"]);
}

#[test]
fn thinking_is_asked_for_in_three_places() {
    for (asked, enabled, effort) in [
        (json!({}), None, None),
        (json!({"reasoning_effort": "none"}), Some(false), None),
        (json!({"reasoning_effort": "minimal"}), None, Some(Effort::Low)),
        (
            json!({"reasoning_effort": "xhigh", "enable_thinking": true}),
            Some(true),
            Some(Effort::High),
        ),
        (
            json!({"enable_thinking": true, "chat_template_kwargs": {"enable_thinking": false, "reasoning_effort": "medium"}}),
            Some(false),
            Some(Effort::Medium),
        ),
        (
            json!({"chat_template_kwargs": {}, "reasoning_effort": null}),
            None,
            None,
        ),
    ] {
        assert_eq!(read(asked.clone()).thinking, Thinking { enabled, effort }, "{asked}");
    }
    assert_eq!(
        faults(json!({"enable_thinking": "yes", "reasoning_effort": "very", "chat_template_kwargs": {"date": 1}})),
        ["reasoning_effort?", "enable_thinking?", "chat_template_kwargs.date?"]
    );
    assert_eq!(faults(json!({"chat_template_kwargs": "x"})), ["chat_template_kwargs?"]);
}
