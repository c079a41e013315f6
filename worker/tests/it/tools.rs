//! Calls of tools and answers in JSON on the wire, played by the scripted engine.

use serde_json::{Value, json};

use super::worker::{Worker, streamed, with};

/// A tool whose schema is what the helpers of client libraries make of a typed function.
pub fn weather() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "description": "The weather in a city", "strict": true,
    "parameters": {
        "$defs": {"Unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
            "unit": {"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}]},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city", "unit", "days"],
        "additionalProperties": false,
    }}})
}

/// A tool that takes nothing.
pub fn now() -> Value {
    json!({"type": "function", "function": {"name": "now"}})
}

/// Fails unless the arguments are what the schema of `weather` allows.
pub fn check_weather(arguments: &str) {
    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|_| panic!("JSON, not {arguments}"));
    assert_eq!(value.as_object().unwrap().len(), 3, "{value}");
    assert!(
        ["Paris", "Rome", "Oslo"].contains(&value["city"].as_str().unwrap()),
        "{value}"
    );
    assert!(
        [json!("celsius"), json!("fahrenheit"), Value::Null].contains(&value["unit"]),
        "{value}"
    );
    assert!((1..=7).contains(&value["days"].as_i64().unwrap()), "{value}");
}

fn calling(content: &str, more: Value) -> Value {
    with(with(streamed(content), json!({"tools": [now(), weather()]})), more)
}

#[tokio::test]
async fn a_call_that_must_come_comes_with_arguments_that_fit() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    let ask = calling("Weather?", json!({"tool_choice": named}));
    let answer = worker.ask(&ask).await;
    let said = answer.choice(0);
    assert_eq!(
        (said.finish.as_str(), said.calls.len(), said.text.as_str()),
        ("tool_calls", 1, "")
    );
    assert_eq!(said.calls[0].name, "get_weather");
    assert!(said.calls[0].id.starts_with("call_") && said.calls[0].id.len() > 20);
    check_weather(&said.calls[0].arguments);

    assert_eq!(
        answer.chunks()[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": null})
    );
    let again = worker.ask(&ask).await.choice(0);
    assert_ne!(again.calls[0].id, said.calls[0].id, "ids are never used twice");

    let required = worker
        .ask(&calling("Weather?", json!({"tool_choice": "required", "n": 2})))
        .await;
    for i in 0..2 {
        assert_eq!(required.choice(i).finish, "tool_calls");
        let begins = &required.chunks()[i]["choices"][0];
        assert_eq!(
            begins,
            &json!({"index": i, "delta": {"role": "assistant", "content": null}, "finish_reason": null})
        );
    }
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}});
    let required = worker.ask(&calling("Weather?", json!({"tool_choice": allowed}))).await;
    assert_eq!(required.choice(0).calls[0].name, "get_weather");
}

#[tokio::test]
async fn a_model_that_may_call_can_speak_and_call() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let tokens = [
        "Let me ",
        "see.\n",
        "<tool_",
        "call>\n{\"name\": \"now\", \"argu",
        "ments\": {\"zo",
        "ne\": \"é\"}}\n</tool_call>",
        "\n<tool_call>{\"name\": \"get_weather\", \"arguments\": {}}</tool_call>",
    ];
    let script = json!({ "tokens": tokens }).to_string();
    let answer = worker.ask(&calling(&script, json!({"logprobs": true}))).await;
    let said = answer.choice(0);
    assert_eq!(
        (said.text.as_str(), said.finish.as_str()),
        ("Let me see.", "tool_calls")
    );
    let calls: Vec<_> = said
        .calls
        .iter()
        .map(|call| (call.name.as_str(), call.arguments.as_str()))
        .collect();
    assert_eq!(calls, [("now", "{\"zone\": \"é\"}"), ("get_weather", "{}")]);
    assert_ne!(said.calls[0].id, said.calls[1].id);
    assert_eq!(answer.usage()[1], 7);

    assert_eq!(answer.logprobs().len(), 7, "a token each, also those held back");

    let plain = worker.ask(&calling(&script, json!({"tool_choice": "none"}))).await;
    assert_eq!((plain.text(), plain.finish().as_str()), (tokens.concat(), "stop"));
    let plain = worker.ask(&calling("no call", json!({}))).await;
    assert_eq!((plain.text().as_str(), plain.finish().as_str()), ("no call", "stop"));
}

#[tokio::test]
async fn a_call_cut_by_the_budget_ends_with_length() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let tokens = json!({"tokens": ["<tool_call>{\"name\": \"now\", \"arguments\": ", "{\"a\":", " 1}}</tool_call>"]})
        .to_string();
    let answer = worker.ask(&calling(&tokens, json!({"max_tokens": 2}))).await;
    let said = answer.choice(0);
    assert_eq!(
        (said.finish.as_str(), said.calls[0].arguments.as_str()),
        ("length", "{\"a\":")
    );
}

#[tokio::test]
async fn calls_and_results_of_the_past_are_part_of_the_prompt() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}});
    let past = json!([
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": null, "tool_calls": [call], "refusal": null, "annotations": [], "audio": null, "function_call": null},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "half past nine"}]},
        {"role": "user", "content": "thanks"},
    ]);
    let with_past = worker.ask(&calling("x", json!({ "messages": past }))).await;
    assert_eq!(with_past.text(), "thanks");
    let without = worker.ask(&calling("thanks", json!({}))).await;
    assert!(with_past.usage()[0] > without.usage()[0] + 8, "{:?}", with_past.usage());
}

#[tokio::test]
async fn a_schema_keeps_the_answer_and_a_bad_one_is_refused_before_any_token() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}});
    let answer = worker
        .ask(&with(
            streamed("JSON!"),
            format(weather()["function"]["parameters"].clone()),
        ))
        .await;
    check_weather(&answer.text());
    let object = worker
        .ask(&with(
            streamed("JSON!"),
            json!({"response_format": {"type": "json_object"}}),
        ))
        .await;
    assert_eq!(object.text(), "{}");

    let refused = worker
        .ask(&with(
            streamed("x"),
            format(json!({"type": "object", "properties": {"a": {"type": "nonsense"}}})),
        ))
        .await;
    let param = refused.json()["error"]["param"].as_str().unwrap().to_owned();
    assert_eq!(
        (refused.status.as_u16(), param.starts_with("response_format")),
        (400, true),
        "{param}"
    );
    let bad = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}}}});
    let refused = worker.ask(&with(streamed("x"), json!({"tools": [now(), bad]}))).await;
    let param = refused.json()["error"]["param"].as_str().unwrap().to_owned();
    assert_eq!(
        (
            refused.status.as_u16(),
            param.starts_with("tools[1].function.parameters")
        ),
        (400, true),
        "{param}"
    );
}

/// What pydantic 2.12 makes of `Decimal`, `set[str]`, `Path` and `Literal`, and zod 4 of a record.
pub fn beyond_grammars() -> Value {
    json!({"type": "object", "properties": {
        "price": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}]},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": true},
        "file": {"type": "string", "format": "path"},
        "unit": {"const": "EUR", "type": "string"},
        "more": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}},
    }, "required": ["price", "tags", "file", "unit", "more", "who"]})
}

#[tokio::test]
async fn a_schema_that_is_not_strict_is_kept_as_far_as_can_be_and_a_strict_one_is_refused() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    let tool = |strict: Value| {
        json!({"tools": [{"type": "function", "function": {"name": "buy", "strict": strict, "parameters": beyond_grammars()}}],
        "tool_choice": "required"})
    };
    let format = |strict: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": strict, "schema": beyond_grammars()}}});
    let fits = |text: &str| {
        let said: Value = serde_json::from_str(text).unwrap();
        assert!(
            said["unit"] == "EUR" && said["tags"].is_array() && said.get("who").is_some(),
            "{said}"
        );
        assert!(said["price"].is_number() || said["price"].is_string(), "{said}");
    };
    for strict in [Value::Null, json!(false)] {
        let called = worker.ask(&with(streamed("x"), tool(strict.clone()))).await;
        fits(&called.choice(0).calls[0].arguments);
        let said = worker.ask(&with(streamed("x"), format(strict))).await;
        fits(&said.text());
    }
    for (strict, param) in [
        (tool(json!(true)), "tools[0].function.parameters"),
        (format(json!(true)), "response_format.json_schema.schema"),
    ] {
        let refused = worker.ask(&with(streamed("x"), strict)).await;
        let error = refused.json()["error"].clone();
        assert_eq!(
            (refused.status.as_u16(), &error["param"]),
            (400, &json!(param)),
            "{error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("without `strict`"), "{message}");
    }
}
