//! What a worker says instead of an answer, in OpenAI's four fields, whatever shape it came in.
//!
//! Whose fault it is decides what becomes of it: a client's own is told to the client, a worker's is not.

use std::{fmt::Write as _, time::Duration};

use axum::http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use serde_json::Value;
use wire::{ErrorBody, WorkerKind, openai::parameters::Kind, printable};

use super::upstream::{Absence, Failure};
use crate::error::chain;

/// The largest error body that is read from a worker, in bytes.
const LARGEST: usize = 64 * 1024;
/// How long one without room is asked for nothing, if it does not say, or says less.
const SOON: Duration = Duration::from_secs(1);
/// The longest that it may ask for; SDKs wait no longer either.
const LATE: Duration = Duration::from_secs(60);
/// The longest text that is taken for an error's message, in characters.
const LONGEST: usize = 1000;

/// The failure that a response of another status than 200 is.
pub async fn read(response: reqwest::Response, target: WorkerKind, kind: Kind) -> Failure {
    let status = response.status();
    let wait = wait(response.headers());
    let body = read_body(response, LARGEST).await.ok().flatten().unwrap_or_default();
    match judge(status, mend(&body), target, kind) {
        Failure::Away(absence) => {
            let wait = wait.or((!absence.counts).then_some(SOON));
            let wait = wait.map(|wait| wait.clamp(SOON, LATE));
            Failure::Away(Absence { wait, ..absence })
        }
        other => other,
    }
}

/// How long it asks us to wait, if it says so in seconds.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The body of a response; none if it is larger than `most` bytes.
pub async fn read_body(mut response: reqwest::Response, most: usize) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if body.len() + chunk.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

fn judge(status: StatusCode, error: Option<ErrorBody>, target: WorkerKind, kind: Kind) -> Failure {
    let attached = target == WorkerKind::Attached;
    let code = error.as_ref().and_then(|e| e.code.as_deref()).unwrap_or_default();
    match status.as_u16() {
        503 if code == "busy" => Failure::Busy,
        503 if !attached && ["loading", "shutting_down"].contains(&code) => away(format!("it is {code}"), false),
        429 | 503 if attached => away(format!("it answered {status}"), status.is_server_error()),
        409 if !attached => Failure::Lost(format!("it answered 409 {code}")),
        400 | 413 | 415 | 422 => {
            let error = error.unwrap_or_else(|| {
                no_message(format!(
                    "The server behind this model refused the request with status {status}."
                ))
            });
            Failure::Client(status, mark_overflow(error, kind))
        }
        // It serves chat, or it would not be routed to; that it has no such route is no fault of its health.
        404 | 405 | 501 if attached && kind != Kind::Chat => {
            let what = if kind == Kind::Embeddings {
                "embeddings"
            } else {
                "completions"
            };
            let error = no_message(format!("The server behind this model does not offer {what}."));
            Failure::Client(status, error)
        }
        // llama.cpp and others say 500 to a prompt that is too long.
        500 if attached && error.as_ref().is_some_and(|error| is_overflow(&error.message)) => {
            let error = error.unwrap_or_else(|| no_message(String::new()));
            Failure::Client(status, mark_overflow(error, kind))
        }
        _ => Failure::Bad(format!("it answered {status} {code}")),
    }
}

fn away(why: String, counts: bool) -> Failure {
    let wait = None;
    Failure::Away(Absence { why, wait, counts })
}

fn no_message(message: String) -> ErrorBody {
    ErrorBody {
        message,
        r#type: "invalid_request_error".into(),
        param: None,
        code: None,
    }
}

/// A prompt that does not fit has one code here, whoever says it in whatever words.
fn mark_overflow(mut error: ErrorBody, kind: Kind) -> ErrorBody {
    let said = [error.code.as_deref(), Some(error.r#type.as_str())];
    if said.contains(&Some("context_length_exceeded"))
        || said.contains(&Some("exceed_context_size_error"))
        || is_overflow(&error.message)
    {
        let param = match kind {
            Kind::Chat => "messages",
            Kind::Completions => "prompt",
            Kind::Embeddings => "input",
        };
        error.code = Some("context_length_exceeded".into());
        error.r#type = "invalid_request_error".into();
        error.param.get_or_insert_with(|| param.into());
    }
    error
}

/// The words of vLLM, `SGLang`, llama.cpp, TGI, Ollama, LM Studio and OpenAI itself.
fn is_overflow(message: &str) -> bool {
    let message = message.to_lowercase();
    [
        "maximum context length",
        "model's context length",
        "available context size",
        "context size has been exceeded",
        "context window",
        "exceeds context",
        "exceeds the context",
        "context length exceeded",
        "maximum model length",
        "max_model_len",
        "prompt is too long",
        "input is too long",
        "too many tokens",
        "`max_new_tokens` must be <=",
        "number of tokens to keep from the initial prompt is greater than the context",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// An error in any shape: OpenAI's, a bare text, `detail` (a text, or pydantic's list), a numeric code, no type.
pub fn mend(body: &[u8]) -> Option<ErrorBody> {
    let Ok(json) = serde_json::from_slice::<Value>(body) else {
        let text = std::str::from_utf8(body).ok()?.trim();
        let plain = !text.is_empty() && !text.starts_with('<') && text.chars().count() <= LONGEST;
        return plain.then(|| no_message(printable(text, LONGEST)));
    };
    mend_json(&json, "invalid_request_error")
}

/// An error in any shape of JSON; `kind` is its type if it names none.
pub fn mend_json(json: &Value, kind: &str) -> Option<ErrorBody> {
    let error = json.get("error").filter(|error| !error.is_null()).unwrap_or(json);
    let legible = |text: &str| printable(text, LONGEST);
    let text = |key: &str| error.get(key).and_then(Value::as_str).map(legible);
    let listed = error
        .get("detail")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let first = || listed.iter().find_map(place);
    let count = |key: &str| error.get(key).and_then(Value::as_u64);
    // llama.cpp's words do not hold its numbers.
    let too_long = count("n_prompt_tokens").zip(count("n_ctx")).map(|(prompt, context)| {
        format!("This model's maximum context length is {context} tokens, but the prompt has {prompt}. Shorten it.")
    });
    let message = error.as_str().map(legible);
    let message = message
        .or(too_long)
        .or_else(|| text("message"))
        .or_else(|| text("detail"))
        .or_else(|| sentences(listed))?;
    Some(ErrorBody {
        message,
        r#type: text("type").unwrap_or_else(|| kind.to_owned()),
        param: text("param").or_else(first),
        code: text("code"),
    })
}

/// What pydantic says of each fault, with its place.
fn sentences(faults: &[Value]) -> Option<String> {
    let said = faults.iter().filter_map(|fault| {
        let message = fault.get("msg")?.as_str()?;
        Some(place(fault).map_or_else(|| message.to_owned(), |place| format!("`{place}`: {message}")))
    });
    let said: Vec<String> = said.collect();
    (!said.is_empty()).then(|| printable(&said.join("; "), LONGEST))
}

/// Where in the body pydantic found a fault, as `messages[0].content`; none if that is the body itself.
fn place(fault: &Value) -> Option<String> {
    let steps = fault.get("loc")?.as_array()?.iter();
    let mut path = String::new();
    for step in steps.skip_while(|step| *step == "body") {
        // Writing to a string cannot fail.
        let _ = match step {
            Value::String(name) if path.is_empty() => write!(path, "{name}"),
            Value::String(name) => write!(path, ".{name}"),
            index => write!(path, "[{index}]"),
        };
    }
    Some(printable(&path, 100)).filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn foreign_error_shapes_become_ours() {
        for (body, message) in [
            (json!({"error": "no"}).to_string(), "no"),
            (json!({"detail": "no"}).to_string(), "no"),
            (
                json!({"detail": [{"loc": ["body"], "msg": "no"}, {"msg": "way"}]}).to_string(),
                "no; way",
            ),
            (
                json!({"detail": [{"loc": ["body", "a", 0, "b"], "msg": "no"}, {"loc": 7, "msg": "way"}]}).to_string(),
                "`a[0].b`: no; way",
            ),
            (json!({"message": "no", "code": 400}).to_string(), "no"),
            (json!({"error": {"message": "no", "code": 400}}).to_string(), "no"),
            (json!({"error": null, "message": "no"}).to_string(), "no"),
            ("no\u{7}".to_owned(), "no"),
        ] {
            let error = mend(body.as_bytes()).unwrap();
            assert_eq!((error.message.as_str(), error.code), (message, None), "{body}");
        }
        for body in ["", "{\"x\":1}", "<html>no</html>", "[]"] {
            assert!(mend(body.as_bytes()).is_none(), "{body}");
        }
    }

    #[test]
    fn only_a_clients_own_fault_reaches_the_client() {
        let refused = |status: u16, target| judge(StatusCode::from_u16(status).unwrap(), None, target, Kind::Chat);
        assert!(matches!(refused(422, WorkerKind::Attached), Failure::Client(..)));
        for (status, counts) in [(429, false), (503, true)] {
            let Failure::Away(absence) = refused(status, WorkerKind::Attached) else {
                panic!("{status}")
            };
            assert_eq!(absence.counts, counts, "of 4xx none counts, of 5xx each");
        }
        for status in [301, 401, 403, 404, 500] {
            assert!(
                matches!(refused(status, WorkerKind::Attached), Failure::Bad(_)),
                "{status}"
            );
        }
        assert!(matches!(refused(409, WorkerKind::Own), Failure::Lost(_)));
        let absent = judge(StatusCode::NOT_FOUND, None, WorkerKind::Attached, Kind::Embeddings);
        assert!(matches!(absent, Failure::Client(..)));
    }

    #[test]
    fn a_prompt_that_does_not_fit_has_one_code_in_whatever_words() {
        for message in [
            "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.",
            "The input (6000 tokens) is longer than the model's context length (4096 tokens).",
            "the request exceeds the available context size. try increasing the context size or enable context shift",
            "prompt is too long: 2000 tokens > 1024 maximum",
        ] {
            for status in [400, 422, 500] {
                let error = no_message(message.into());
                let status = StatusCode::from_u16(status).unwrap();
                let Failure::Client(_, error) = judge(status, Some(error), WorkerKind::Attached, Kind::Chat) else {
                    panic!("{message}");
                };
                assert_eq!(error.code.as_deref(), Some("context_length_exceeded"), "{message}");
                assert_eq!(error.param.as_deref(), Some("messages"));
            }
        }
        let other = mark_overflow(no_message("temperature must be below 2".into()), Kind::Chat);
        assert_eq!(other.code, None);
    }
}
