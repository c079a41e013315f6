//! One choice's deltas: who speaks is said once, calls are told apart by their index and named once.

use serde_json::{Map, Value, json};

/// What a choice has said so far, as far as the next delta depends on it.
#[derive(Debug, Default)]
pub struct Said {
    /// The role has been sent.
    begun: bool,
    /// The calls that have begun, by their index; the server's ids, to tell them apart if it has no indexes.
    calls: Vec<Option<String>>,
}

impl Said {
    /// How many functions it has called.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// A delta, or a whole message, as a client may see it.
    pub fn delta(&mut self, mut delta: Map<String, Value>, own_id: &str) -> Map<String, Value> {
        let content = delta.remove("content").and_then(text);
        let calls = match delta.remove("tool_calls") {
            Some(Value::Array(calls)) => calls,
            _ => Vec::new(),
        };
        let calls: Vec<Value> = calls.into_iter().filter_map(|call| self.call(call, own_id)).collect();
        delta.retain(|_, value| !value.is_null());
        delta.remove("role");
        if !self.begun {
            self.begun = true;
            delta.insert("role".into(), "assistant".into());
            if content.is_none() {
                let silent = if calls.is_empty() { json!("") } else { Value::Null };
                delta.insert("content".into(), silent);
            }
        }
        if let Some(content) = content {
            delta.insert("content".into(), content.into());
        }
        if !calls.is_empty() {
            delta.insert("tool_calls".into(), calls.into());
        }
        delta
    }

    fn call(&mut self, call: Value, own_id: &str) -> Option<Value> {
        let Value::Object(mut call) = call else { return None };
        let filled = |value: Option<Value>| match value {
            Some(Value::String(text)) if !text.is_empty() => Some(text),
            _ => None,
        };
        let id = filled(call.remove("id"));
        let mut function = match call.remove("function") {
            Some(Value::Object(function)) => function,
            _ => Map::new(),
        };
        let name = filled(function.remove("name"));
        let arguments = match function.remove("arguments") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text,
            // Some servers send them parsed.
            Some(other) => other.to_string(),
        };
        let index = self.index_of(call.get("index").and_then(Value::as_u64), id.as_ref(), name.is_some());
        if index < self.calls.len() {
            return Some(json!({"index": index, "function": {"arguments": arguments}}));
        }
        let shown = id.clone().unwrap_or_else(|| format!("call_{own_id}_{index}"));
        self.calls.push(id);
        let function = json!({"name": name.unwrap_or_default(), "arguments": arguments});
        Some(json!({"index": index, "id": shown, "type": "function", "function": function}))
    }

    /// Which call a fragment belongs to: by its index, else by its id, else it begins one if it has a name.
    fn index_of(&self, index: Option<u64>, id: Option<&String>, named: bool) -> usize {
        let next = self.calls.len();
        if let Some(index) = index.and_then(|index| usize::try_from(index).ok()) {
            // A server that calls every call its first tells them apart by ids.
            let held = self.calls.get(index).filter(|_| next - 1 == index);
            let other = named && id.is_some() && held.is_some_and(|held| held.as_ref() != id);
            return if other { next } else { index.min(next) };
        }
        let known = id.and_then(|id| self.calls.iter().position(|call| call.as_ref() == Some(id)));
        match known {
            Some(known) => known,
            None if named || next == 0 => next,
            None => next - 1,
        }
    }
}

/// Text, also if it came as a list of parts.
pub fn text(content: Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
            Some(texts.collect())
        }
        _ => None,
    }
}

/// Log-probabilities in OpenAI's form; some servers send one token's alone.
pub fn logprobs(logprobs: Value) -> Option<Value> {
    let Value::Object(mut logprobs) = logprobs else {
        return None;
    };
    if logprobs.contains_key("token") {
        let token = token(Value::Object(logprobs));
        return Some(json!({"content": [token], "refusal": null}));
    }
    if let Some(Value::Array(tokens)) = logprobs.get_mut("content") {
        *tokens = std::mem::take(tokens).into_iter().map(token).collect();
    }
    logprobs.entry("content").or_insert(Value::Null);
    logprobs.entry("refusal").or_insert(Value::Null);
    Some(logprobs.into())
}

/// A token with the keys that must be there.
fn token(mut token: Value) -> Value {
    if let Value::Object(fields) = &mut token {
        fields.entry("bytes").or_insert(Value::Null);
        let others = match fields.remove("top_logprobs") {
            Some(Value::Array(others)) => others,
            _ => Vec::new(),
        };
        let others = others.into_iter().map(|mut other| {
            if let Value::Object(fields) = &mut other {
                fields.entry("bytes").or_insert(Value::Null);
            }
            other
        });
        let others: Vec<Value> = others.collect();
        fields.insert("top_logprobs".into(), others.into());
    }
    token
}
