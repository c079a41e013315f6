//! The wire form of chat, key by key.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;

fn choice(delta: Delta, finish: Option<FinishReason>) -> Value {
    let head = Head {
        id: "chatcmpl-1".to_owned(),
        created: 5,
        model: "m".parse().unwrap(),
        fingerprint: "fp_1".to_owned(),
        cached: Some(0),
    };
    let choices = vec![Choice::new(0, delta, None, finish)];
    let event = sse(&Envelope::new(&head, "chat.completion.chunk", choices, None));
    let data = std::str::from_utf8(&event).unwrap().strip_prefix("data: ").unwrap();
    let mut chunk: Value = serde_json::from_str(data.strip_suffix("\n\n").unwrap()).unwrap();
    assert!(!data.trim_end().contains('\n'), "one line: {data}");
    let same = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m",
        "system_fingerprint": "fp_1", "choices": null});
    let choice = chunk["choices"][0].take();
    chunk["choices"] = Value::Null;
    assert_eq!(chunk, same);
    choice
}

#[test]
fn chunks_have_the_keys_that_clients_expect_and_no_others() {
    let expect = |delta: Value, finish: Value| json!({"index": 0, "delta": delta, "finish_reason": finish});
    let null = Value::Null;
    assert_eq!(
        choice(Delta::Role { calls: false }, None),
        expect(json!({"role": "assistant", "content": ""}), null.clone())
    );
    assert_eq!(
        choice(Delta::Role { calls: true }, None),
        expect(json!({"role": "assistant", "content": null}), null.clone())
    );
    assert_eq!(
        choice(Delta::Content("a\n[DONE]"), None),
        expect(json!({"content": "a\n[DONE]"}), null.clone())
    );
    let call = Delta::Call {
        index: 1,
        id: "call_1",
        name: "f",
    };
    assert_eq!(
        choice(call, None),
        expect(
            json!({"tool_calls": [{"index": 1, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
            null.clone()
        )
    );
    assert_eq!(
        choice(Delta::Arguments { index: 1, text: "{\"" }, None),
        expect(
            json!({"tool_calls": [{"index": 1, "function": {"arguments": "{\""}}]}),
            null
        )
    );
    assert_eq!(
        choice(Delta::Nothing, Some(FinishReason::ToolCalls)),
        expect(json!({}), json!("tool_calls"))
    );
}

#[test]
fn usage_tells_its_details() {
    let usage = engine::Usage {
        prompt: 3,
        completion: 4,
        reasoning: 2,
    };
    assert_eq!(
        serde_json::to_value(Usage::new(usage, Some(0))).unwrap(),
        json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 2}})
    );
    let unknown = serde_json::to_value(Usage::new(usage, None)).unwrap();
    assert!(unknown.get("prompt_tokens_details").is_none(), "{unknown}");
}

#[test]
fn logprobs_have_all_four_keys_and_no_infinity() {
    let candidate = |bytes: &[u8], logprob| Candidate {
        bytes: bytes.to_vec(),
        logprob,
    };
    let logprob = TokenLogprob {
        token: candidate(b"a", -0.5),
        top: vec![candidate(&[0xF0], f32::NEG_INFINITY)],
    };
    let json = serde_json::to_value(Logprobs::new(&[logprob])).unwrap();
    assert_eq!(
        json,
        json!({"content": [{"token": "a", "logprob": -0.5, "bytes": [97],
            "top_logprobs": [{"token": "\u{FFFD}", "logprob": -9999.0, "bytes": [240]}]}], "refusal": null})
    );
}
