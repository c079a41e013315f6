//! Connections to workers: one request out, one response head in, and every way that can fail by its name.
//!
//! No proxy from the environment, no redirects, no cookies; it never chooses a worker and never retries.

use std::sync::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use axum::http::StatusCode;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use tokio::time::Instant;
use wire::{ErrorBody, ErrorEnvelope, WorkerKind};

use super::Call;
use crate::{
    config,
    error::{ApiError, chain},
    registry::{
        members::Target,
        resolver::{Pinned, Resolver},
    },
};

/// The largest error body that is read from a worker, in bytes.
const LARGEST_ERROR: usize = 64 * 1024;
/// Retries are counted over this long.
const RETRY_WINDOW: Duration = Duration::from_secs(10);

/// One thread's connections to workers.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: reqwest::Client,
    retries: Arc<Retries>,
}

/// Retries of the current window; shared by all threads.
#[derive(Debug, Default)]
pub struct Retries {
    count: Arc<AtomicUsize>,
    since: Mutex<Option<Instant>>,
}

/// How an attempt failed before the first event.
#[derive(Debug)]
pub enum Failure {
    /// No connection could be made: the worker has seen nothing.
    Connect(String),
    /// The connection broke: the worker has probably died.
    Lost(String),
    /// The worker answered something no client should see.
    Bad(String),
    /// The worker sent no event in time.
    Silent(String),
    /// The worker's slots are all taken.
    Busy,
    /// The worker says the request is at fault.
    Client(StatusCode, ErrorBody),
}

impl Failure {
    /// What went wrong, for the log.
    pub fn cause(&self) -> &str {
        match self {
            Self::Connect(why) | Self::Lost(why) | Self::Bad(why) | Self::Silent(why) => why,
            Self::Busy => "all slots are taken",
            Self::Client(_, body) => &body.message,
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Client(status, body) => Self::Upstream(status, body),
            other => Self::WorkerFailed(other.cause().to_owned()),
        }
    }
}

impl Upstream {
    /// Connections for the thread whose runtime this is first used on.
    pub fn new(relay: &config::Relay, resolver: Arc<Resolver>, retries: Arc<Retries>) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .dns_resolver(Pinned(resolver))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(relay.connect_timeout)
            .tcp_nodelay(true)
            .http1_only()
            .pool_max_idle_per_host(256)
            .pool_idle_timeout(Duration::from_secs(20))
            .build()?;
        Ok(Self { client, retries })
    }

    /// Sends the call; a response head that announces an event stream is the only success.
    pub async fn send(&self, target: &Target, call: &Call, id: &str) -> Result<reqwest::Response, Failure> {
        let mut request = self
            .client
            .post(format!("{}/v1/chat/completions", target.url))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream")
            .header(ACCEPT_ENCODING, "identity")
            .header("x-request-id", &call.correlation_id)
            .body(call.body.clone());
        if let Some(bearer) = &target.bearer {
            request = request.bearer_auth(&bearer.0);
        }
        if target.kind == WorkerKind::Own {
            request = request
                .header(wire::EPOCH_HEADER, target.epoch)
                .header(wire::REQUEST_HEADER, id);
        }
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                Failure::Connect(chain(&error))
            } else {
                Failure::Lost(chain(&error))
            }
        })?;
        let status = response.status();
        if status.as_u16() == 200 {
            let kind = response
                .headers()
                .get(CONTENT_TYPE)
                .map(|v| v.as_bytes().to_ascii_lowercase())
                .unwrap_or_default();
            if let Some(coding) = response.headers().get(CONTENT_ENCODING).filter(|c| *c != "identity") {
                return Err(Failure::Bad(format!(
                    "it answered in {coding:?}, which nobody asked for"
                )));
            }
            if kind.starts_with(b"text/event-stream") {
                return Ok(response);
            }
            return Err(Failure::Bad(format!(
                "it answered {} instead of an event stream",
                String::from_utf8_lossy(&kind)
            )));
        }
        Err(refusal(status, read_error(response).await, target.kind))
    }

    /// The retries of the last ten seconds, with this one.
    pub fn retries_lately(&self, now: Instant) -> Arc<AtomicUsize> {
        let mut since = self
            .retries
            .since
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if since.is_none_or(|start| now - start > RETRY_WINDOW) {
            *since = Some(now);
            self.retries.count.store(0, Ordering::Relaxed);
        }
        self.retries.count.fetch_add(1, Ordering::Relaxed);
        self.retries.count.clone()
    }

    /// The client itself, for probes and model lists of attached servers.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }
}

fn refusal(status: StatusCode, error: Option<ErrorBody>, kind: WorkerKind) -> Failure {
    let code = error.as_ref().and_then(|e| e.code.as_deref()).unwrap_or_default();
    match status.as_u16() {
        503 if code == "busy" => Failure::Busy,
        429 if kind == WorkerKind::Attached => Failure::Bad("it answered 429: it has no room for us".into()),
        409 if kind == WorkerKind::Own => Failure::Lost(format!("it answered 409 {code}")),
        400 | 413 | 415 | 422 => {
            let body = error.unwrap_or_else(|| ErrorBody {
                message: format!("The server behind this model refused the request with status {status}."),
                r#type: "invalid_request_error".into(),
                param: None,
                code: None,
            });
            Failure::Client(status, body)
        }
        _ => Failure::Bad(format!("it answered {status} {code}")),
    }
}

/// The error in a worker's answer, if it can be read; shapes that stray from OpenAI's are mended.
async fn read_error(mut response: reqwest::Response) -> Option<ErrorBody> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if body.len() + chunk.len() > LARGEST_ERROR {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    if let Ok(envelope) = serde_json::from_slice::<ErrorEnvelope>(&body) {
        return Some(envelope.error);
    }
    let json: serde_json::Value = serde_json::from_slice(&body).ok()?;
    mend_error(&json, "invalid_request_error")
}

/// An error object from a server that strays: a bare text, `detail`, a numeric code, no type.
pub fn mend_error(json: &serde_json::Value, kind: &str) -> Option<ErrorBody> {
    let error = json.get("error").unwrap_or(json);
    let text = |key: &str| error.get(key).and_then(|v| v.as_str()).map(ToOwned::to_owned);
    let message = error
        .as_str()
        .map(ToOwned::to_owned)
        .or_else(|| text("message"))
        .or_else(|| text("detail"))?;
    Some(ErrorBody {
        message,
        r#type: text("type").unwrap_or_else(|| kind.to_owned()),
        param: text("param"),
        code: text("code"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn foreign_error_shapes_become_ours() {
        for (json, message) in [
            (json!({"error": "no"}), "no"),
            (json!({"detail": "no"}), "no"),
            (json!({"message": "no", "code": 400}), "no"),
            (json!({"error": {"message": "no", "code": 400}}), "no"),
        ] {
            let error = mend_error(&json, "x").unwrap();
            assert_eq!((error.message.as_str(), error.code), (message, None));
        }
        assert!(mend_error(&json!({"x": 1}), "x").is_none());
    }

    #[test]
    fn only_a_clients_own_fault_reaches_the_client() {
        let refused = |status: u16, kind| refusal(StatusCode::from_u16(status).unwrap(), None, kind);
        assert!(matches!(refused(422, WorkerKind::Attached), Failure::Client(..)));
        for status in [301, 401, 403, 404, 429, 500, 503] {
            assert!(
                matches!(refused(status, WorkerKind::Attached), Failure::Bad(_)),
                "{status}"
            );
        }
        assert!(matches!(refused(409, WorkerKind::Own), Failure::Lost(_)));
    }
}
