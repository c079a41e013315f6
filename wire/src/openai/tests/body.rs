//! What is JSON and what is not, and bodies made by chance.

use super::*;

#[test]
fn what_is_no_json_is_named_by_its_place() {
    let m = r#""model":"m","messages":[{"role":"user","content":"hi"}]"#;
    for (body, param) in [
        (String::new(), ""),
        ("{".into(), ""),
        ("[]".into(), ""),
        ("\"x\"".into(), ""),
        ("\u{0}".into(), ""),
        (format!("{{{m}"), ""),
        (format!("{{{m},\"stop\":[\"a\""), ""),
        ("\u{feff}{}".into(), ""),
        (format!("{{{m}}} {{}}"), ""),
        (format!("{{{m},\"temperature\":NaN}}"), "temperature"),
        (format!("{{{m},\"top_p\":-Infinity}}"), "top_p"),
        (format!("{{{m},\"seed\":1e999}}"), "seed"),
        (format!("{{{m},\"logit_bias\":{{\"5\": NaN}}}}"), "logit_bias.5"),
        (format!("{{{m},\"user\":\"\\ud800\"}}"), "user"),
        (
            format!("{{{m},\"metadata\":{{\"a\":[1,{{\"b\":\"x\\udc00\"}}]}}}}"),
            "metadata.a[1].b",
        ),
        (
            r#"{"model":"m","messages":[{"role":"user","content":"ok"},{"role":"user","content":"\ud83dx"}]}"#.into(),
            "messages[1].content",
        ),
        (format!("{{{m},\"x\":{}1{}}}", "[".repeat(200), "]".repeat(200)), "x"),
        (
            format!(
                "{{{m},{}\"y\":1}}",
                (0..600).map(|i| format!("\"x{i}\":1,")).collect::<String>()
            ),
            "",
        ),
    ] {
        let faults = ChatRequest::read(body.as_bytes()).unwrap_err();
        let place = faults.param().unwrap_or_default();
        assert!(
            place.starts_with(param) && (place.is_empty() == param.is_empty()),
            "{body}: {place}: {faults}"
        );
    }
    let invalid = ChatRequest::read(b"{\"model\":\"m\",\"messages\":[\"\xff\"]}").unwrap_err();
    assert!(invalid.to_string().contains("not"), "{invalid}");
}

#[test]
fn brackets_in_texts_are_no_depth_and_128_levels_are_allowed() {
    read(json!({"user": "[{".repeat(500)}));
    let deep = |levels: usize| {
        format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"x":{}{}}}"#,
            "[".repeat(levels),
            "]".repeat(levels)
        )
    };
    assert!(ChatRequest::read(deep(127).as_bytes()).is_ok());
    assert_eq!(ChatRequest::read(deep(128).as_bytes()).unwrap_err().param(), Some("x"));
}

#[test]
fn a_body_of_very_many_values_is_refused_before_anything_is_made_of_it() {
    for (many, place) in [
        ("1,".repeat(1_000_001), "messages["),
        ("{},".repeat(100_000), "messages["),
    ] {
        let text = format!(r#"{{"model":"m","messages":[{many}1]}}"#);
        let faults = ChatRequest::read(text.as_bytes()).unwrap_err();
        assert!(faults.param().unwrap().starts_with(place), "{faults}");
        assert!(faults.to_string().contains("1000000 values"), "{faults}");
    }
    read(json!({"user": ",[{".repeat(1_000_000)}));
}

#[test]
fn the_body_goes_on_as_it_was_written() {
    let text = r#"{"model":"a","stream":false,"seed":12345678901234567890,"x":1.0e2,"a\"b":null,"content":"ä\ud83d\ude00","model":"m"}"#;
    let body = Body::read(text.as_bytes()).unwrap();
    let out = String::from_utf8(body.with(&[("stream", "true"), ("model", "\"z\"")])).unwrap();
    let wanted =
        r#"{"seed":12345678901234567890,"x":1.0e2,"a\"b":null,"content":"ä\ud83d\ude00","stream":true,"model":"z"}"#;
    assert_eq!(out, wanted);
    assert_eq!(
        body.names().collect::<Vec<_>>(),
        ["stream", "seed", "x", "content", "model"]
    );
    assert_eq!(body.raw("model"), Some("\"m\""));
    assert_eq!(Body::read(b"{}").unwrap().with(&[]), b"{}");
}

/// Bodies made of good ones by chance: bytes changed, cut and doubled, values put in others' places.
#[test]
fn no_body_makes_a_reader_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let good = body(
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "ü\u{1f600}"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "x"}], "tools": [function("f")], "tool_choice": function("f"),
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"enum": [1]}}}}},
        "prompt": [[1, 2], "x"], "input": ["a"], "logit_bias": {"1": 2}, "stop": ["a"], "stream_options": {"include_usage": true}}),
    );
    let pieces: [&[u8]; 14] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b"\\ud800",
        b"NaN",
        b"1e999",
        b"-1",
        b"null",
        b":",
        b",",
        b"\xff",
        b"{\"type\":",
    ];
    for _ in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 => drop(bytes.splice(
                    at..(at + random(12)).min(bytes.len()),
                    pieces[random(pieces.len())].iter().copied(),
                )),
                2 => bytes.truncate(at + 1),
                _ => {
                    let from = random(bytes.len());
                    let copy = bytes[from..(from + 40).min(bytes.len())].to_vec();
                    drop(bytes.splice(at..at, copy));
                }
            }
        }
        for faults in [
            ChatRequest::read(&bytes).err(),
            CompletionRequest::read(&bytes).err(),
            EmbeddingRequest::read(&bytes).err(),
        ]
        .into_iter()
        .flatten()
        {
            assert!(!faults.to_string().is_empty());
        }
    }
}
