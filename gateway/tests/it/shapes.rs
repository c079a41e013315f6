//! The shapes of OpenAI's document that strict clients insist on: which keys must be there, and of which kind.

use serde_json::Value;

/// The error inside an envelope: exactly OpenAI's four keys, all there.
pub fn error(envelope: &Value) -> Value {
    assert_eq!(keys(envelope), ["error"], "{envelope}");
    let error = &envelope["error"];
    assert_eq!(keys(error), ["code", "message", "param", "type"], "{envelope}");
    assert!(
        error["message"].as_str().is_some_and(|message| !message.is_empty()),
        "{envelope}"
    );
    assert!(error["type"].is_string(), "{envelope}");
    assert!(error["param"].is_null() || error["param"].is_string(), "{envelope}");
    assert!(error["code"].is_string(), "{envelope}");
    error.clone()
}

/// `CreateChatCompletionResponse`.
pub fn completion(json: &Value) {
    require(json, &["choices", "created", "id", "model", "object", "usage"]);
    assert_eq!(json["object"], "chat.completion");
    assert!(
        json["created"].is_u64() && json["id"].is_string() && json["model"].is_string(),
        "{json}"
    );
    let choices = json["choices"].as_array().unwrap();
    assert!(!choices.is_empty(), "{json}");
    for (number, choice) in choices.iter().enumerate() {
        require(choice, &["finish_reason", "index", "logprobs", "message"]);
        assert_eq!(choice["index"], number);
        finish_reason(&choice["finish_reason"]);
        let message = &choice["message"];
        require(message, &["content", "refusal", "role"]);
        assert_eq!(message["role"], "assistant");
        assert!(message["content"].is_string() || message["content"].is_null(), "{json}");
    }
    usage(&json["usage"]);
}

/// `CreateChatCompletionStreamResponse`.
pub fn chunk(json: &Value) {
    require(json, &["choices", "created", "id", "model", "object"]);
    assert_eq!(json["object"], "chat.completion.chunk");
    for choice in json["choices"].as_array().unwrap() {
        require(choice, &["delta", "finish_reason", "index"]);
        assert!(choice["delta"].is_object(), "{json}");
        if !choice["finish_reason"].is_null() {
            finish_reason(&choice["finish_reason"]);
        }
    }
}

/// `CreateCompletionResponse`.
pub fn text_completion(json: &Value) {
    require(json, &["choices", "created", "id", "model", "object", "usage"]);
    assert_eq!(json["object"], "text_completion");
    for (number, choice) in json["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(keys(choice), ["finish_reason", "index", "logprobs", "text"], "{json}");
        assert_eq!(choice["index"], number);
        assert!(choice["text"].is_string(), "{json}");
        finish_reason(&choice["finish_reason"]);
    }
    usage(&json["usage"]);
}

/// `CreateEmbeddingResponse`.
pub fn embeddings(json: &Value) {
    assert_eq!(keys(json), ["data", "model", "object", "usage"]);
    assert_eq!(
        (&json["object"], json["model"].is_string()),
        (&Value::from("list"), true)
    );
    for (number, embedding) in json["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!(keys(embedding), ["embedding", "index", "object"], "{json}");
        assert_eq!(embedding["object"], "embedding");
        assert_eq!(embedding["index"], number);
        assert!(
            embedding["embedding"].is_array() || embedding["embedding"].is_string(),
            "{json}"
        );
    }
    assert_eq!(keys(&json["usage"]), ["prompt_tokens", "total_tokens"], "{json}");
}

/// `CompletionUsage`.
pub fn usage(json: &Value) {
    require(json, &["completion_tokens", "prompt_tokens", "total_tokens"]);
    let count = |key: &str| json[key].as_u64().unwrap();
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens"),
        "{json}"
    );
}

/// `Model`, with ours under `hive` and nothing else.
pub fn model(json: &Value) {
    assert_eq!(keys(json), ["created", "hive", "id", "object", "owned_by"]);
    assert_eq!(json["object"], "model");
    assert!(
        json["id"].is_string() && json["created"].is_u64() && json["owned_by"].is_string(),
        "{json}"
    );
}

/// The names of an object's keys in alphabetical order.
pub fn keys(json: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = json
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

fn require(json: &Value, wanted: &[&str]) {
    for key in wanted {
        assert!(json.get(key).is_some(), "no `{key}` in {json}");
    }
}

fn finish_reason(reason: &Value) {
    let known = ["stop", "length", "tool_calls", "content_filter", "function_call"];
    assert!(
        reason.as_str().is_some_and(|reason| known.contains(&reason)),
        "{reason}"
    );
}
