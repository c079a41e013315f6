//! Reads a chat request: lenient on what is unknown or null, exact on what is used, and every refusal names its field.
//!
//! It knows OpenAI's request and nothing of engines: what only a model can judge is not judged here.

use serde_json::{Map, Value};
use wire::ModelName;

use super::refusal::Refusal;
use crate::engine::{ChatRequest, Message, Role, Sampling};

/// What was asked for.
#[derive(Debug)]
pub struct Asked {
    /// The work.
    pub chat: ChatRequest,
    /// As a stream of events, not in one piece.
    pub stream: bool,
    /// With a last chunk that tells the usage.
    pub include_usage: bool,
}

/// Reads the body of a request for `model`.
pub fn parse(body: &[u8], model: &ModelName) -> Result<Asked, Refusal> {
    let body: Value = serde_json::from_slice(body).map_err(|error| Refusal::Invalid {
        param: String::new(),
        message: format!("The body is not JSON: {error}"),
    })?;
    let Value::Object(body) = body else {
        return Err(Refusal::Invalid {
            param: String::new(),
            message: "The body is not a JSON object.".to_owned(),
        });
    };
    let fields = Fields(&body);
    match fields.get("model") {
        Some(Value::String(asked)) if asked == model.as_str() => {}
        Some(Value::String(asked)) => return Err(Refusal::WrongModel { asked: asked.clone() }),
        Some(_) => return Err(Refusal::invalid("model", "must be a string")),
        None => return Err(Refusal::invalid("model", "is missing")),
    }
    refuse_unsupported(&fields)?;
    let messages = match fields.get("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        Some(_) => return Err(Refusal::invalid("messages", "must be a list with at least one message")),
        None => return Err(Refusal::invalid("messages", "is missing")),
    };
    let messages = messages
        .iter()
        .enumerate()
        .map(|(i, message)| read_message(i, message))
        .collect::<Result<_, _>>()?;
    let max_tokens = match fields.whole("max_completion_tokens", 1, u32::MAX.into())? {
        None => fields.whole("max_tokens", 1, u32::MAX.into())?,
        some => some,
    };
    let chat = ChatRequest {
        messages,
        max_tokens: max_tokens.and_then(|n| u32::try_from(n).ok()),
        sampling: read_sampling(&fields)?,
        stop: read_stop(&fields)?,
        schema: read_schema(&fields)?,
        logprobs: read_logprobs(&fields)?,
    };
    let options = fields.get("stream_options").and_then(Value::as_object);
    let include_usage = options.is_some_and(|options| options.get("include_usage") == Some(&Value::Bool(true)));
    Ok(Asked {
        chat,
        stream: fields.yes("stream")?,
        include_usage,
    })
}

/// What would change the answer and cannot be done is refused, never quietly dropped.
fn refuse_unsupported(fields: &Fields) -> Result<(), Refusal> {
    if fields.whole("n", 1, 128)?.is_some_and(|n| n > 1) {
        let message = "`n` can only be 1 here; send the request several times instead.".to_owned();
        return Err(Refusal::Unsupported { param: "n", message });
    }
    for param in ["tools", "functions"] {
        if fields
            .get(param)
            .is_some_and(|value| value.as_array().is_none_or(|tools| !tools.is_empty()))
        {
            let message = format!("`{param}` is not supported by this worker yet; leave it out.");
            return Err(Refusal::Unsupported { param, message });
        }
    }
    Ok(())
}

fn read_message(i: usize, message: &Value) -> Result<Message, Refusal> {
    let at = |field: &str| format!("messages[{i}].{field}");
    let Value::Object(message) = message else {
        return Err(Refusal::invalid(format!("messages[{i}]"), "must be an object"));
    };
    let role = match message.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool" | "function") => Role::Tool,
        _ => {
            return Err(Refusal::invalid(
                at("role"),
                "must be system, developer, user, assistant or tool",
            ));
        }
    };
    let text = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let parts = parts
                .iter()
                .enumerate()
                .map(|(j, part)| read_part(&at(&format!("content[{j}]")), part));
            parts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        // An assistant that called tools may have said nothing; its calls are what it said.
        None | Some(Value::Null) if role == Role::Assistant => {
            let calls = message.get("tool_calls").or_else(|| message.get("function_call"));
            calls
                .filter(|calls| !calls.is_null())
                .map(Value::to_string)
                .unwrap_or_default()
        }
        _ => return Err(Refusal::invalid(at("content"), "must be a string or a list of parts")),
    };
    Ok(Message { role, text })
}

fn read_part<'a>(at: &str, part: &'a Value) -> Result<&'a str, Refusal> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("none");
    let text = match kind {
        "text" => part.get("text"),
        "refusal" => part.get("refusal"),
        _ => {
            return Err(Refusal::invalid(
                format!("{at}.type"),
                "must be `text`: this model reads text only",
            ));
        }
    };
    text.and_then(Value::as_str)
        .ok_or_else(|| Refusal::invalid(format!("{at}.{kind}"), "must be a string"))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "ranges are checked, and engines compute in f32"
)]
fn read_sampling(fields: &Fields) -> Result<Sampling, Refusal> {
    let usual = Sampling::default();
    let number = |name, least, most, usual: f32| {
        fields
            .number(name, least, most)
            .map(|number| number.map_or(usual, |number| number as f32))
    };
    let mut logit_bias = Vec::new();
    match fields.get("logit_bias") {
        None => {}
        Some(Value::Object(biases)) => {
            for (token, bias) in biases {
                match (token.parse(), bias.as_f64()) {
                    (Ok(token), Some(bias)) if (-100.0..=100.0).contains(&bias) => {
                        logit_bias.push((token, bias as f32));
                    }
                    _ => return Err(Refusal::invalid("logit_bias", "maps token numbers to -100 … 100")),
                }
            }
        }
        Some(_) => return Err(Refusal::invalid("logit_bias", "must be an object")),
    }
    Ok(Sampling {
        temperature: number("temperature", 0.0, 2.0, usual.temperature)?,
        // 0 and -1 are how others spell "off".
        top_k: fields
            .whole("top_k", -1, i64::from(u32::MAX))?
            .and_then(|k| usize::try_from(k).ok())
            .filter(|&k| k > 0),
        top_p: number("top_p", 0.0, 1.0, usual.top_p)?,
        min_p: number("min_p", 0.0, 1.0, usual.min_p)?,
        presence_penalty: number("presence_penalty", -2.0, 2.0, usual.presence_penalty)?,
        frequency_penalty: number("frequency_penalty", -2.0, 2.0, usual.frequency_penalty)?,
        repetition_penalty: number("repetition_penalty", 0.01, 100.0, usual.repetition_penalty)?,
        seed: fields.whole("seed", i64::MIN, i64::MAX)?.map(i64::cast_unsigned),
        logit_bias,
    })
}

fn read_stop(fields: &Fields) -> Result<Vec<String>, Refusal> {
    let wrong = || Refusal::invalid("stop", "must be a string, or a list of at most 4 that are not empty");
    let stop = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(texts)) => {
            let texts: Option<Vec<_>> = texts.iter().map(|text| text.as_str().map(str::to_owned)).collect();
            texts.ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    if stop.len() > 4 || stop.iter().any(String::is_empty) {
        Err(wrong())
    } else {
        Ok(stop)
    }
}

fn read_schema(fields: &Fields) -> Result<Option<Value>, Refusal> {
    let Some(format) = fields.get("response_format") else {
        return Ok(None);
    };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(serde_json::json!({"type": "object"}))),
        Some("json_schema") => match format.pointer("/json_schema/schema") {
            Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Some(schema.clone())),
            _ => Err(Refusal::invalid(
                "response_format.json_schema.schema",
                "must be a JSON schema",
            )),
        },
        _ => Err(Refusal::invalid(
            "response_format.type",
            "must be text, json_object or json_schema",
        )),
    }
}

fn read_logprobs(fields: &Fields) -> Result<Option<usize>, Refusal> {
    let top = fields.whole("top_logprobs", 0, 20)?;
    if fields.yes("logprobs")? {
        return Ok(Some(top.and_then(|top| usize::try_from(top).ok()).unwrap_or(0)));
    }
    match top {
        Some(1..) => Err(Refusal::invalid("top_logprobs", "needs `logprobs` to be true")),
        _ => Ok(None),
    }
}

/// The fields of the body; null is the same as absent.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn yes(&self, name: &str) -> Result<bool, Refusal> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(yes)) => Ok(*yes),
            Some(_) => Err(Refusal::invalid(name, "must be true or false")),
        }
    }

    fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f64>, Refusal> {
        match self.get(name).map(Value::as_f64) {
            None => Ok(None),
            Some(Some(number)) if (least..=most).contains(&number) => Ok(Some(number)),
            Some(_) => Err(Refusal::invalid(
                name,
                format!("must be a number from {least} to {most}"),
            )),
        }
    }

    /// A whole number; `16.0` is one.
    fn whole(&self, name: &str, least: i64, most: i64) -> Result<Option<i64>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        #[expect(clippy::cast_possible_truncation, reason = "only exact and small floats are taken")]
        let float = || {
            value
                .as_f64()
                .filter(|n| n.fract() == 0.0 && n.abs() < 9e15)
                .map(|n| n as i64)
        };
        match value.as_i64().or_else(float) {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(Refusal::invalid(
                name,
                format!("must be a whole number from {least} to {most}"),
            )),
        }
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
