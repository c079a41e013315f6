//! Connections to workers: one request out, one response head in, and every way that can fail by its name.
//!
//! No proxy from the environment, no redirects, no cookies; it never chooses a worker and never retries.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use tokio::time::Instant;
use wire::{ErrorBody, WorkerKind, openai::parameters::Kind};

use super::{Call, refusal};
use crate::{
    books::Entry,
    config,
    error::{ApiError, chain},
    registry::{
        members::Target,
        resolver::{Pinned, Resolver},
    },
};

/// The most of an answer that is read before it is asked for, in bytes; hyper's own limit is 400 KiB, for each client
/// that is slower than its worker.
const READ_AHEAD: usize = 8 * 1024;
/// What the kernel may hold of an answer for us, in bytes.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Connections to one worker that are kept without a request.
const KEPT: usize = 256;
/// How long they are kept: less than the 10 s that a worker gives one on which it was shown no bearer yet.
const KEPT_FOR: Duration = Duration::from_secs(8);

/// One thread's connections to workers.
#[derive(Debug)]
pub struct Upstream {
    /// For plain HTTP, with a bounded buffer.
    plain: Client<HttpConnector<Pinned>, Full<Bytes>>,
    /// For TLS.
    client: reqwest::Client,
}

/// How an attempt failed before the first event.
#[derive(Debug)]
pub enum Failure {
    /// No connection could be made: the worker has seen nothing.
    Connect(String),
    /// The connection broke: the worker has probably died.
    Lost(String),
    /// The worker began an answer that is none, or did not bring it to its end.
    Garbled(String),
    /// The worker answered something no client should see.
    Bad(String),
    /// The worker sent no event for this long.
    Silent(Duration),
    /// The worker's slots are all taken.
    Busy,
    /// The worker cannot serve us at present.
    Away(Absence),
    /// The worker says the request is at fault.
    Client(StatusCode, ErrorBody),
}

/// A worker has no room, or is on its way out.
#[derive(Debug, Default)]
pub struct Absence {
    /// Why, for the log.
    pub why: String,
    /// For how long it is to get nothing; none if it is we who lack something.
    pub wait: Option<Duration>,
    /// Whether that counts against its health.
    pub counts: bool,
}

impl Failure {
    /// Which of these it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Lost(_) => "lost",
            Self::Garbled(_) => "garbled",
            Self::Bad(_) => "bad",
            Self::Silent(_) => "silent",
            Self::Busy => "busy",
            Self::Away(_) => "away",
            Self::Client(..) => "client",
        }
    }

    /// What went wrong, for the log.
    pub fn cause(&self) -> &str {
        match self {
            Self::Connect(why) | Self::Lost(why) | Self::Garbled(why) | Self::Bad(why) => why,
            Self::Away(absence) => &absence.why,
            Self::Silent(_) => "no event in time",
            Self::Busy => "all slots are taken",
            Self::Client(_, body) => &body.message,
        }
    }
}

/// How long a worker may be silent before its first event.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    ends: Instant,
}

impl Patience {
    /// So much of it, from now on.
    pub fn new(limit: Duration) -> Self {
        let ends = Instant::now() + limit;
        Self { limit, ends }
    }

    /// The worker was heard of: all of it again.
    pub fn renew(&mut self) {
        self.ends = Instant::now() + self.limit;
    }

    /// What comes of some work, while there is patience left.
    pub async fn with<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let done = tokio::time::timeout_at(self.ends, work).await;
        done.unwrap_or(Err(Failure::Silent(self.limit)))
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
            .dns_resolver(Pinned(resolver.clone()))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(relay.connect_timeout)
            .tcp_nodelay(true)
            .http1_only()
            .pool_max_idle_per_host(KEPT)
            .pool_idle_timeout(KEPT_FOR)
            .build()?;
        let mut connector = HttpConnector::new_with_resolver(Pinned(resolver));
        connector.set_connect_timeout(Some(relay.connect_timeout));
        connector.set_nodelay(true);
        connector.set_recv_buffer_size(Some(RECEIVE_BUFFER));
        let plain = Client::builder(TokioExecutor::new())
            .http1_max_buf_size(READ_AHEAD)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(KEPT)
            .pool_idle_timeout(KEPT_FOR)
            .build(connector);
        Ok(Self { plain, client })
    }

    /// Sends the call; a response of status 200 is the only success.
    pub async fn send(&self, target: &Target, call: &Call, entry: &Entry) -> Result<reqwest::Response, Failure> {
        let url = format!("{}{}", target.url, path(call.kind));
        let headers = headers(target, call, entry).map_err(|error| Failure::Bad(error.to_string()))?;
        let response = if url.starts_with("http://") {
            let mut request = Request::post(url)
                .body(Full::new(call.body.clone()))
                .map_err(|error| Failure::Bad(error.to_string()))?;
            *request.headers_mut() = headers;
            let response = self.plain.request(request).await;
            response
                .map(|response| reqwest::Response::from(response.map(reqwest::Body::wrap)))
                .map_err(|error| failure(&error, error.is_connect()))?
        } else {
            let request = self.client.post(url).headers(headers).body(call.body.clone());
            request
                .send()
                .await
                .map_err(|error| failure(&error, error.is_connect()))?
        };
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

fn headers(target: &Target, call: &Call, entry: &Entry) -> Result<HeaderMap, axum::http::header::InvalidHeaderValue> {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static(accept(call.kind)));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert("x-request-id", HeaderValue::from_str(&call.correlation_id)?);
    if let Some(bearer) = &target.bearer {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", bearer.0))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    if target.kind == WorkerKind::Own {
        headers.insert(wire::EPOCH_HEADER, HeaderValue::from(target.epoch));
        headers.insert(wire::REQUEST_HEADER, HeaderValue::from_str(entry.id())?);
    }
    entry.tell(&mut headers);
    Ok(headers)
}

fn failure(error: &(dyn std::error::Error + 'static), connecting: bool) -> Failure {
    let why = chain(error);
    if is_our_own_lack(error) {
        Failure::Away(Absence {
            why,
            ..Absence::default()
        })
    } else if connecting {
        Failure::Connect(why)
    } else {
        Failure::Lost(why)
    }
}

/// Whether we have run out of file descriptors (ENFILE, EMFILE of errno(3)), which no worker can help.
fn is_our_own_lack(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>()?.raw_os_error())
        .any(|code| matches!(code, 23 | 24))
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
