//! What the readers take and what they refuse, field by field.

mod body;
mod chat;
mod limits;
mod older;
mod tools;

use serde_json::{Value, json};

use super::{parameters::Kind, *};
use crate::{Capabilities, EngineName, ModelFacts};

fn body(extra: Value) -> Vec<u8> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    let (Value::Object(fields), Value::Object(extra)) = (&mut body, extra) else {
        panic!("an object");
    };
    fields.extend(extra);
    body.to_string().into_bytes()
}

fn read(extra: Value) -> ChatRequest {
    ChatRequest::read(&body(extra)).unwrap_or_else(|faults| panic!("{faults}"))
}

/// The fields at fault, those our engines alone cannot do with a `?`.
fn faults(extra: Value) -> Vec<String> {
    named(&ChatRequest::read(&body(extra)).unwrap_err())
}

fn named(faults: &Faults) -> Vec<String> {
    let name = |fault: &Fault| {
        let mark = if fault.kind == FaultKind::Unsupported { "?" } else { "" };
        format!("{}{mark}", fault.param.clone().unwrap_or_default())
    };
    faults.iter().map(name).collect()
}

fn function(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}
