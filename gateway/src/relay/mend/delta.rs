//! One choice's deltas: who speaks is said once, calls are told apart by their index and named once.

use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::words::Words;

/// A call that has begun, as far as it is needed to tell it from the next.
#[derive(Debug)]
struct Call {
    /// The server's id, if it gave one.
    id: Option<String>,
    name: String,
    /// What has come of its arguments, if it has no id.
    arguments: String,
}

/// What a choice has said so far, as far as the next delta depends on it.
#[derive(Debug, Default)]
pub struct Said {
    /// The role has been sent.
    begun: bool,
    /// The calls that have begun, by their index.
    calls: Vec<Call>,
    /// A call in the older form has begun.
    older_call: bool,
    /// Characters of the tokens whose log-probabilities have come.
    pub offset: u64,
    /// Its text.
    pub words: Words,
    /// It has said something.
    pub has_spoken: bool,
    /// Whether it has ended.
    pub end: End,
}

/// How near a choice is to its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum End {
    /// Nothing is known of it.
    #[default]
    Open,
    /// The server has given this finish reason, and may go on.
    Near(String),
    /// The client has the finish reason: nothing follows.
    Told,
}

impl Said {
    /// Nothing yet, of a choice that any of these texts ends.
    pub fn new(stop: &[String]) -> Self {
        Self {
            words: Words::until(stop),
            ..Self::default()
        }
    }

    /// How many functions it has called.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// A delta, or a whole message, as a client may see it; after the last nothing follows.
    pub fn delta(&mut self, mut delta: Map<String, Value>, is_last: bool, own_id: &str) -> Map<String, Value> {
        let content = delta.remove("content").and_then(text);
        let told = self.words.push(content.as_deref().unwrap_or_default(), is_last);
        // No text is nothing, but in the first delta.
        let is_first = content.is_some() && !self.begun;
        let content = Some(told).filter(|text| is_first || !text.is_empty());
        let calls = match delta.remove("tool_calls") {
            // They come after the text.
            Some(Value::Array(calls)) if !self.words.is_cut => calls,
            _ => Vec::new(),
        };
        let calls: Vec<Value> = calls.into_iter().filter_map(|call| self.call(call, own_id)).collect();
        delta.remove("role");
        delta.retain(|key, value| match key.as_str() {
            "refusal" | "reasoning_content" | "reasoning" => value.is_string(),
            "function_call" => self.older_call(value),
            _ => !value.is_null(),
        });
        if !self.begun {
            self.begun = true;
            delta.insert("role".into(), "assistant".into());
            if content.is_none() {
                let silent = if calls.is_empty() && !self.older_call {
                    json!("")
                } else {
                    Value::Null
                };
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
        let index = call.get("index").and_then(Value::as_u64);
        let index = self.index_of(index, id.as_ref(), name.as_deref(), &arguments);
        if let Some(held) = self.calls.get_mut(index) {
            if held.id.is_none() {
                held.arguments.push_str(&arguments);
            }
            return Some(json!({"index": index, "function": {"arguments": arguments}}));
        }
        let shown = id.clone().unwrap_or_else(|| format!("call_{own_id}_{index}"));
        let name = name.unwrap_or_default();
        let function = json!({"name": name, "arguments": arguments});
        self.calls.push(Call { id, name, arguments });
        Some(json!({"index": index, "id": shown, "type": "function", "function": function}))
    }

    /// Which call a fragment belongs to: by its index, else by its id, else it begins one if it has a name.
    fn index_of(&self, index: Option<u64>, id: Option<&String>, name: Option<&str>, arguments: &str) -> usize {
        let next = self.calls.len();
        if let Some(index) = index.and_then(|index| usize::try_from(index).ok()) {
            // Some servers call every call their first.
            let held = self.calls.get(index).filter(|_| next - 1 == index);
            let other = name.is_some_and(|name| held.is_some_and(|held| held.is_over(id, name, arguments)));
            return if other { next } else { index.min(next) };
        }
        let known = id.and_then(|id| self.calls.iter().position(|call| call.id.as_ref() == Some(id)));
        match known {
            Some(known) => known,
            None if name.is_some() || next == 0 => next,
            None => next - 1,
        }
    }

    /// Whether this is a call in the older form; it is named once.
    fn older_call(&mut self, call: &mut Value) -> bool {
        let Value::Object(call) = call else { return false };
        call.retain(|key, value| value.is_string() && !(self.older_call && key == "name"));
        self.older_call = true;
        true
    }
}

impl Call {
    /// Whether a named fragment under the same index begins another call: by its id, or if it has none, because the name is
    /// another or nothing can follow what has come.
    fn is_over(&self, id: Option<&String>, name: &str, arguments: &str) -> bool {
        if id.is_some() {
            return self.id.as_ref() != id;
        }
        let is_complete = || serde_json::from_str::<IgnoredAny>(&self.arguments).is_ok();
        self.name != name || !arguments.is_empty() && is_complete()
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

/// A chat's log-probabilities in OpenAI's form; some servers send one token's alone.
pub fn logprobs(logprobs: Value) -> Option<Value> {
    let Value::Object(mut logprobs) = logprobs else {
        return None;
    };
    if logprobs.contains_key("token") {
        let token = token(logprobs.into())?;
        return Some(json!({"content": [token], "refusal": null}));
    }
    let mut list = |key: &str| tokens(logprobs.remove(key)).map(Value::from).unwrap_or_default();
    let (content, refusal) = (list("content"), list("refusal"));
    (content != refusal).then(|| json!({"content": content, "refusal": refusal}))
}

/// A completion's log-probabilities in its older form: lists side by side. Some servers send a chat's; then `offset`
/// counts the characters before.
pub fn older_logprobs(logprobs: Value, offset: &mut u64) -> Value {
    let Value::Object(mut logprobs) = logprobs else {
        return Value::Null;
    };
    let Some(tokens) = tokens(logprobs.remove("content")) else {
        logprobs.retain(|_, list| list.is_array());
        return if logprobs.contains_key("tokens") {
            logprobs.into()
        } else {
            Value::Null
        };
    };
    let name = |token: &Value| token["token"].as_str().unwrap_or_default().to_owned();
    let offsets = tokens.iter().map(|token| {
        let at = *offset;
        *offset += name(token).chars().count() as u64;
        at
    });
    let offsets: Vec<u64> = offsets.collect();
    let rivals = tokens.iter().map(|token| {
        let rivals = token["top_logprobs"].as_array().into_iter().flatten();
        let rivals: Map<String, Value> = rivals.map(|rival| (name(rival), rival["logprob"].clone())).collect();
        Value::from(rivals)
    });
    json!({
        "tokens": tokens.iter().map(name).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| &token["logprob"]).collect::<Vec<_>>(),
        "top_logprobs": rivals.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

fn tokens(list: Option<Value>) -> Option<Vec<Value>> {
    match list {
        Some(Value::Array(list)) => Some(list.into_iter().filter_map(token).collect()),
        _ => None,
    }
}

/// A token with its rivals, and the keys that must be there; what is none is left out.
fn token(token: Value) -> Option<Value> {
    let mut token = candidate(token)?;
    let rivals = match token.remove("top_logprobs") {
        Some(Value::Array(rivals)) => rivals.into_iter().filter_map(candidate).map(Value::from).collect(),
        _ => Vec::new(),
    };
    token.insert("top_logprobs".into(), rivals.into());
    Some(token.into())
}

fn candidate(token: Value) -> Option<Map<String, Value>> {
    let Value::Object(mut token) = token else { return None };
    let bytes = token.remove("bytes").filter(Value::is_array).unwrap_or_default();
    token.insert("bytes".into(), bytes);
    (token.get("token")?.is_string() && token.get("logprob")?.is_number()).then_some(token)
}
