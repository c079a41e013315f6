//! Connections to workers: one request out, one response head in, and every way that can fail by its name.
//!
//! No proxy from the environment, no redirects, no cookies; it never chooses a worker and never retries.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use wire::{ErrorBody, WorkerKind, openai::parameters::Kind};

use super::{Call, refusal};
use crate::{
    config,
    error::{ApiError, chain},
    registry::{
        members::Target,
        resolver::{Pinned, Resolver},
    },
};

/// One thread's connections to workers.
#[derive(Debug, Clone)]
pub struct Upstream {
    client: reqwest::Client,
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
    /// The worker sent no event for this long.
    Silent(Duration),
    /// The worker's slots are all taken.
    Busy,
    /// The worker has no room for us at present, or is on its way out; that is no fault of its health.
    Away(String),
    /// The worker says the request is at fault.
    Client(StatusCode, ErrorBody),
}

impl Failure {
    /// What went wrong, for the log.
    pub fn cause(&self) -> &str {
        match self {
            Self::Connect(why) | Self::Lost(why) | Self::Bad(why) | Self::Away(why) => why,
            Self::Silent(_) => "no event in time",
            Self::Busy => "all slots are taken",
            Self::Client(_, body) => &body.message,
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Client(status, body) => Self::Upstream(status, body),
            Failure::Silent(limit) => Self::WorkerSilent(limit),
            other => Self::WorkerFailed(other.cause().to_owned()),
        }
    }
}

impl Upstream {
    /// Connections for the thread whose runtime this is first used on.
    pub fn new(relay: &config::Relay, resolver: Arc<Resolver>) -> reqwest::Result<Self> {
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
        Ok(Self { client })
    }

    /// Sends the call; a response of status 200 is the only success.
    pub async fn send(&self, target: &Target, call: &Call, id: &str) -> Result<reqwest::Response, Failure> {
        let mut request = self
            .client
            .post(format!("{}{}", target.url, path(call.kind)))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, accept(call.kind))
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
        if response.status().as_u16() != 200 {
            return Err(refusal::read(response, target.kind, call.kind).await);
        }
        match response
            .headers()
            .get(CONTENT_ENCODING)
            .filter(|coding| *coding != "identity")
        {
            Some(coding) => Err(Failure::Bad(format!(
                "it answered in {coding:?}, which nobody asked for"
            ))),
            None => Ok(response),
        }
    }

    /// The client itself, for probes and model lists of attached servers.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }
}

/// The path of a kind of request, on our workers as on every other server.
fn path(kind: Kind) -> &'static str {
    match kind {
        Kind::Chat => "/v1/chat/completions",
        Kind::Completions => "/v1/completions",
        Kind::Embeddings => "/v1/embeddings",
    }
}

fn accept(kind: Kind) -> &'static str {
    match kind {
        Kind::Chat | Kind::Completions => "text/event-stream",
        Kind::Embeddings => "application/json",
    }
}

/// What a response says it is, in lower case.
pub fn content_type(response: &reqwest::Response) -> String {
    let value = response
        .headers()
        .get(CONTENT_TYPE)
        .map(reqwest::header::HeaderValue::as_bytes);
    String::from_utf8_lossy(value.unwrap_or_default()).to_ascii_lowercase()
}
