//! `POST /v1/chat/completions`: reads the few fields the gateway needs and keeps the rest as it came.

use std::{borrow::Cow, fmt, time::Duration};

use axum::{Extension, body::Body, extract::State, http::HeaderMap, response::Response};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use tokio::time::Instant;
use wire::ModelName;

use super::{
    admission::{self, Admitted},
    body::{self, DATA_LIMIT},
};
use crate::{
    auth::caller::Caller,
    error::ApiError,
    relay,
    state::AppState,
    telemetry::{self, AccessLog, RequestId},
};

/// The most messages in one request.
const MOST_MESSAGES: usize = 2048;
/// The most tools in one request.
const MOST_TOOLS: usize = 128;
/// The deepest nesting of the body's JSON.
const DEEPEST: usize = 128;

/// Answer a conversation.
///
/// With `stream: true` the answer comes as server-sent events, one chunk a token, and ends with `[DONE]`;
/// a worker lost on the way is an event with an `error`, and then no `[DONE]`.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "chat",
    request_body(content = schema::ChatRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The answer: one object, or a stream of chunks", body = schema::ChatCompletion),
        (status = 400, description = "The request is at fault; `param` names the field", body = wire::ErrorEnvelope),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 404, description = "The model is not known", body = wire::ErrorEnvelope),
        (status = 413, description = "The body is too large", body = wire::ErrorEnvelope),
        (status = 502, description = "The worker failed", body = wire::ErrorEnvelope),
        (status = 503, description = "No worker, or no room; try again after `Retry-After`", body = wire::ErrorEnvelope),
        (status = 504, description = "The deadline passed", body = wire::ErrorEnvelope),
    ),
)]
pub async fn create(
    State(state): State<AppState>,
    Caller(identity): Caller,
    Extension(RequestId(correlation_id)): Extension<RequestId>,
    Extension(log): Extension<AccessLog>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if state.lifecycle.is_draining() {
        return Err(ApiError::ShuttingDown);
    }
    let deadline = deadline(&headers)?;
    let bytes = body::read(body, DATA_LIMIT, &state).await?;
    let request = ChatRequest::read(&bytes)?;
    log.model(request.model.as_str());
    // The client's own id may come twice; the books need one that does not.
    let id = if headers.contains_key(telemetry::REQUEST_ID) {
        telemetry::new_id()
    } else {
        correlation_id.clone()
    };
    let Admitted { entry, standing } = admission::admit(
        &state,
        &identity,
        &id,
        &request.model,
        bytes.len(),
        request.answer_limit(),
    )?;
    let call = relay::Call {
        body: request.for_worker(),
        include_usage: request.include_usage,
        model: request.model,
        key_id: identity.id.clone(),
        correlation_id: correlation_id.to_string(),
        deadline,
        log,
    };
    let mut response = if request.stream {
        relay::stream(state, call, entry).await?
    } else {
        relay::whole(state, call, entry).await?
    };
    if let Some(standing) = standing {
        admission::tell(&standing, response.headers_mut());
    }
    Ok(response)
}

fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, ApiError> {
    let Some(value) = headers.get("x-hive-deadline-ms") else {
        return Ok(None);
    };
    let ms = value
        .to_str()
        .ok()
        .and_then(|text| text.parse::<u32>().ok())
        .filter(|ms| *ms > 0)
        .ok_or_else(|| {
            ApiError::invalid(
                "x-hive-deadline-ms",
                "The header x-hive-deadline-ms must be a number of milliseconds above 0.",
            )
        })?;
    Ok(Some(Instant::now() + Duration::from_millis(u64::from(ms))))
}

/// A chat request, read as far as the gateway needs it.
#[derive(Debug)]
struct ChatRequest<'a> {
    fields: Fields<'a>,
    model: ModelName,
    stream: bool,
    include_usage: bool,
}

/// The top-level fields of a JSON object in their order, each value as it was written.
#[derive(Debug)]
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> ChatRequest<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ApiError> {
        check_depth(bytes)?;
        let fields: Fields<'a> = serde_json::from_slice(bytes).map_err(|error| ApiError::Invalid {
            message: format!("The body is not a JSON object: {error}."),
            param: None,
        })?;
        let mut faults = Faults::default();
        let name = faults.field::<String>(&fields, "model", "a string, the name of a model");
        if name.is_none() && !faults.names("model") {
            faults.add(
                "model",
                "`model` is missing. Name one of those that GET /v1/models lists.",
            );
        }
        match faults.field::<Vec<&RawValue>>(&fields, "messages", "a list of messages") {
            Some(messages) if messages.is_empty() => faults.add("messages", "`messages` is empty. Send at least one."),
            Some(messages) if messages.len() > MOST_MESSAGES => {
                faults.add(
                    "messages",
                    &format!("`messages` has more than {MOST_MESSAGES} entries. Send fewer."),
                );
            }
            None if !faults.names("messages") => {
                faults.add("messages", "`messages` is missing. Send at least one message.");
            }
            _ => {}
        }
        if faults
            .field::<Vec<&RawValue>>(&fields, "tools", "a list of tools")
            .is_some_and(|tools| tools.len() > MOST_TOOLS)
        {
            faults.add(
                "tools",
                &format!("`tools` has more than {MOST_TOOLS} entries. Send fewer."),
            );
        }
        let stream = faults
            .field::<bool>(&fields, "stream", "true or false")
            .unwrap_or(false);
        let options =
            faults.field::<StreamOptions>(&fields, "stream_options", "an object such as {\"include_usage\": true}");
        let (Some(name), None) = (name, faults.first.as_ref()) else {
            return Err(faults.into_error());
        };
        // A name that no model could have is the name of a model that does not exist.
        let model = name.parse().map_err(|_| ApiError::ModelNotFound(printable(&name)))?;
        let include_usage = options.is_some_and(|options| options.include_usage.unwrap_or(false));
        Ok(Self {
            fields,
            model,
            stream,
            include_usage,
        })
    }

    /// The most tokens it wants for an answer, if it says so; the worker judges the value.
    fn answer_limit(&self) -> Option<u32> {
        let limit = |name| {
            self.fields
                .get(name)
                .and_then(|raw| serde_json::from_str(raw.get()).ok())
        };
        limit("max_completion_tokens").or_else(|| limit("max_tokens"))
    }

    /// The body for a worker: every field as it came, but always a stream and always with usage.
    fn for_worker(&self) -> Bytes {
        let mut out = Vec::with_capacity(
            128 + self
                .fields
                .0
                .iter()
                .map(|(_, value)| value.get().len() + 16)
                .sum::<usize>(),
        );
        out.push(b'{');
        for (name, value) in &self.fields.0 {
            if name != "stream" && name != "stream_options" {
                // A string always serialises.
                let _ = serde_json::to_writer(&mut out, name);
                out.push(b':');
                out.extend_from_slice(value.get().as_bytes());
                out.push(b',');
            }
        }
        out.extend_from_slice(br#""stream":true,"stream_options":{"include_usage":true}}"#);
        out.into()
    }
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// A caller's text as an error may show it.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// Faults of a request, all told at once.
#[derive(Debug, Default)]
struct Faults {
    first: Option<String>,
    named: Vec<String>,
    messages: Vec<String>,
}

impl Faults {
    fn add(&mut self, param: &str, message: &str) {
        self.first.get_or_insert_with(|| param.to_owned());
        self.named.push(param.to_owned());
        self.messages.push(message.to_owned());
    }

    fn names(&self, param: &str) -> bool {
        self.named.iter().any(|name| name == param)
    }

    /// One field as a type; absent and null are the same.
    fn field<'a, T: Deserialize<'a>>(&mut self, fields: &Fields<'a>, name: &str, form: &str) -> Option<T> {
        let raw = fields.get(name)?;
        serde_json::from_str::<Option<T>>(raw.get()).unwrap_or_else(|_| {
            self.add(name, &format!("`{name}` must be {form}."));
            None
        })
    }

    fn into_error(self) -> ApiError {
        ApiError::Invalid {
            message: self.messages.join(" "),
            param: self.first,
        }
    }
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(8);
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    // A name that comes twice counts once, with its last value, as most readers take it.
                    fields.retain(|(n, _)| *n != name);
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// The parser skips raw values without counting their depth, and a worker's may not.
fn check_depth(bytes: &[u8]) -> Result<(), ApiError> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > DEEPEST {
                    let message =
                        format!("The body's JSON is nested deeper than {DEEPEST} levels. Send a flatter one.");
                    return Err(ApiError::Invalid { message, param: None });
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Shapes for the OpenAPI document alone: requests are read leniently and answers pass as they come.
pub mod schema {
    use serde::Serialize;
    use utoipa::ToSchema;

    /// A conversation to answer. Fields beyond these go to the worker as they are.
    #[derive(Debug, Serialize, ToSchema)]
    #[schema(example = json!({"model": "smollm2-135m", "messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": false, "max_tokens": 64}))]
    pub struct ChatRequest {
        /// A model that `GET /v1/models` lists.
        pub model: String,
        /// The conversation so far.
        #[schema(min_items = 1, max_items = 2048)]
        pub messages: Vec<ChatMessage>,
        /// Whether the answer comes as server-sent events.
        #[schema(nullable)]
        pub stream: Option<bool>,
        /// What a stream tells beside the tokens.
        #[schema(nullable)]
        pub stream_options: Option<StreamOptions>,
        /// The most tokens to generate.
        #[schema(minimum = 1, nullable)]
        pub max_completion_tokens: Option<u32>,
        /// 0 always takes the likeliest token.
        #[schema(minimum = 0, maximum = 2, nullable)]
        pub temperature: Option<f32>,
        /// Sample from the likeliest tokens that make up this share.
        #[schema(minimum = 0, maximum = 1, nullable)]
        pub top_p: Option<f32>,
    }

    /// One message.
    #[derive(Debug, Serialize, ToSchema)]
    pub struct ChatMessage {
        /// `system`, `developer`, `user`, `assistant` or `tool`.
        pub role: String,
        /// The text, or a list of parts.
        pub content: serde_json::Value,
    }

    /// What a stream tells beside the tokens.
    #[derive(Debug, Serialize, ToSchema)]
    pub struct StreamOptions {
        /// Whether a last chunk tells the token counts.
        pub include_usage: bool,
    }

    /// A whole answer.
    #[derive(Debug, Serialize, ToSchema)]
    pub struct ChatCompletion {
        /// `chatcmpl-` and the request's id.
        pub id: String,
        /// `chat.completion`.
        pub object: String,
        /// When it was made, in Unix seconds.
        pub created: u64,
        /// The model that answered.
        pub model: String,
        /// The answers.
        pub choices: Vec<serde_json::Value>,
        /// Token counts.
        pub usage: Option<serde_json::Value>,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fault(body: &str) -> (u16, Option<String>, String) {
        let error = ChatRequest::read(body.as_bytes()).unwrap_err();
        let envelope = error.envelope().error;
        (error.status().as_u16(), envelope.param, envelope.message)
    }

    #[test]
    fn every_field_reaches_the_worker_as_it_was_written() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"ä\ud83d\ude00"}],"stream":false,"x_unknown":1.0e2,"seed":12345678901234567890,"a\"b":null}"#;
        let sent = ChatRequest::read(body.as_bytes()).unwrap().for_worker();
        let text = std::str::from_utf8(&sent).unwrap();
        assert!(
            text.contains(r#""x_unknown":1.0e2,"seed":12345678901234567890,"a\"b":null"#),
            "{text}"
        );
        assert!(text.contains(r#""content":"ä\ud83d\ude00""#), "{text}");
        let json: Value = serde_json::from_str(text).unwrap();
        assert_eq!(json["stream"], true);
        assert_eq!(json["stream_options"], json!({"include_usage": true}));
    }

    #[test]
    fn a_name_that_comes_twice_counts_once() {
        let body = r#"{"model":"a","model":"b","messages":[1],"stream":true,"stream":null}"#;
        let request = ChatRequest::read(body.as_bytes()).unwrap();
        assert_eq!(request.model.as_str(), "b");
        assert!(!request.stream);
        assert_eq!(
            std::str::from_utf8(&request.for_worker())
                .unwrap()
                .matches("\"model\"")
                .count(),
            1
        );
    }

    #[test]
    fn all_faults_are_told_at_once_and_the_first_is_the_param() {
        let (status, param, message) = fault(r#"{"messages":[],"stream":"yes","stream_options":3}"#);
        assert_eq!((status, param.as_deref()), (400, Some("model")));
        for name in ["`model`", "`messages`", "`stream`", "`stream_options`"] {
            assert!(message.contains(name), "{message}");
        }
        assert_eq!(fault(r#"{"model":7,"messages":[1]}"#).1.as_deref(), Some("model"));
        assert_eq!(fault(r#"{"model":"m","messages":"hi"}"#).1.as_deref(), Some("messages"));
        assert_eq!(fault("[1]").0, 400);
        assert_eq!(fault("{").0, 400);
    }

    #[test]
    fn a_name_no_model_can_have_is_an_unknown_model() {
        let (status, param, message) = fault("{\"model\":\"../x\\u0007\",\"messages\":[1]}");
        assert_eq!((status, param.as_deref()), (404, Some("model")));
        assert!(!message.contains('\u{7}'), "{message:?}");
    }

    #[test]
    fn deep_json_is_refused_and_brackets_in_texts_do_not_count() {
        let deep = format!(r#"{{"model":"m","messages":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
        assert_eq!(fault(&deep).0, 400);
        let text = format!(r#"{{"model":"m","messages":["{}\""]}}"#, "[{".repeat(500));
        assert!(ChatRequest::read(text.as_bytes()).is_ok());
    }
}
