//! What the gateway says of itself: the log on standard error, request ids, one access-log line per request.
//!
//! It never logs a prompt, an answer, a header or a secret; of a key only its public id.

use std::{
    io::IsTerminal as _,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::Response,
};
use tracing_subscriber::{EnvFilter, filter::ParseError, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    auth::api_key::masked,
    config::{Log, LogFormat},
    error::Failed,
};

/// The header that carries the request id both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What to log; a filter that does not parse is an error.
pub fn filter(log: &Log) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(&log.filter)
}

/// Starts the log; a filter that does not parse is an error.
pub fn init(log: &Log) -> Result<(), ParseError> {
    let filter = filter(log)?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    if json {
        registry
            .with(
                layer
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false),
            )
            .init();
    } else {
        registry.with(layer).init();
    }
    Ok(())
}

/// The id of a request: the client's own if it is sane, else one of ours.
#[derive(Debug, Clone)]
pub struct RequestId {
    /// The id.
    pub id: Arc<str>,
    /// Whether we made it; one of a client's may come twice.
    pub is_ours: bool,
}

/// What handlers add to a request's access-log line.
#[derive(Debug, Clone, Default)]
pub struct AccessLog(Arc<Mutex<Fields>>);

#[derive(Debug, Default, Clone)]
struct Fields {
    key: Option<String>,
    model: Option<String>,
    worker: Option<String>,
}

impl AccessLog {
    /// The public id of the key that called.
    pub fn key(&self, id: &str) {
        self.lock().key = Some(id.to_owned());
    }

    /// The public id of the key that called, if one was recognised.
    pub fn key_id(&self) -> Option<String> {
        self.lock().key.clone()
    }

    /// The model asked for.
    pub fn model(&self, model: &str) {
        self.lock().model = Some(model.to_owned());
    }

    /// The worker that answered.
    pub fn worker(&self, worker: &str) {
        self.lock().worker = Some(worker.to_owned());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Fields> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Middleware: gives the request its id, and writes its line when the last byte of the answer is gone.
pub async fn access_log(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let clients = sane_id(request.headers().get(&REQUEST_ID));
    let is_ours = clients.is_none();
    let id = clients.unwrap_or_else(new_id);
    let log = AccessLog::default();
    request.extensions_mut().insert(RequestId {
        id: id.clone(),
        is_ours,
    });
    request.extensions_mut().insert(log.clone());
    // Written when dropped: also if the client leaves before there is an answer.
    let mut line = Line {
        method: request.method().to_string(),
        path: masked(request.uri().path()).into_owned(),
        id: id.clone(),
        started,
        log,
        status: None,
        failed: None,
        bytes: 0,
        ended: false,
    };
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let took = HeaderValue::from(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
    response.headers_mut().insert("openai-processing-ms", took);
    line.status = Some(response.status());
    line.failed = response.extensions_mut().remove::<Failed>();
    response.map(|body| Body::new(LoggedBody { body, line }))
}

/// A request id of our own: `req_` and 24 random base-62 digits.
pub fn new_id() -> Arc<str> {
    format!("req_{}", crate::auth::api_key::random(24)).into()
}

fn sane_id(value: Option<&HeaderValue>) -> Option<Arc<str>> {
    let text = value?.to_str().ok()?;
    let sane =
        (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:".contains(&b));
    (sane && wire::secret_in(text).is_none()).then(|| text.into())
}

struct Line {
    method: String,
    path: String,
    id: Arc<str>,
    started: Instant,
    log: AccessLog,
    status: Option<StatusCode>,
    failed: Option<Failed>,
    bytes: u64,
    ended: bool,
}

impl Line {
    fn write(&self) {
        let fields = self.log.lock().clone();
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let failed = self.failed.as_ref();
        let (code, cause) = (failed.map(|f| f.code.as_str()), failed.and_then(|f| f.cause.as_deref()));
        // Probes come every second or so and would bury the rest.
        let quiet =
            matches!(self.path.as_str(), "/healthz" | "/readyz" | "/health") || self.path.ends_with("/heartbeat");
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    method = self.method,
                    path = self.path.escape_debug().to_string(),
                    status = self.status.map(|status| status.as_u16()),
                    ms,
                    bytes = self.bytes,
                    request_id = &*self.id,
                    key = fields.key,
                    model = fields.model,
                    worker = fields.worker,
                    code,
                    cause,
                    cut = (!self.ended).then_some(true),
                    "request"
                )
            };
        }
        if quiet && self.status.is_some_and(|status| status.is_success()) {
            line!(debug);
        } else if self.status.is_some_and(|status| status.is_server_error()) {
            line!(warn);
        } else {
            line!(info);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.write();
    }
}

struct LoggedBody {
    body: Body,
    line: Line,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.line.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Poll::Ready(None) => self.line.ended = true,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        // hyper does not poll a body of known size to its end.
        self.line.ended |= self.body.is_end_stream() || self.body.size_hint().exact() == Some(self.line.bytes);
    }
}
