//! What OpenTelemetry is told, if a collector is configured: a span for each admitted request, and below it one for each
//! worker that had it.
//!
//! Names are those of its conventions for generative AI. A client's `traceparent` is the span's parent, and the worker
//! gets the attempt's (W3C Trace Context), so that one trace holds all sides. It never holds words, secrets or people,
//! decides nothing, and keeps no request waiting: spans are sent in batches by a thread of their own, and dropped when
//! the collector does not take them.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use axum::http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_http::{Bytes, HeaderExtractor, HeaderInjector, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tokio::runtime::Handle;
use wire::{RequestState, RequestView, WorkerId, openai::parameters::Kind};

use crate::{config::Otlp, error::chain, outside};

/// How long the last spans may take to be sent when the gateway stops.
const LAST: Duration = Duration::from_secs(3);

/// Where spans are begun; without a collector, none are.
#[derive(Debug, Clone)]
pub struct Spans(Option<(SdkTracerProvider, SdkTracer)>);

/// The span of a request that has not ended.
#[derive(Debug)]
pub struct Span {
    tracer: SdkTracer,
    request: Context,
    attempt: Option<Context>,
}

/// The span that a client names as its own, if it names one.
#[derive(Debug)]
pub struct Parent(Context);

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum SpansError {
    /// The header for the collector cannot be read.
    #[error("otlp.header_file cannot be used")]
    Header(#[source] std::io::Error),
    /// Connections to the collector cannot be set up.
    #[error("connections to the collector of traces cannot be set up")]
    Client(#[from] reqwest::Error),
    /// The endpoint does not fit the exporter.
    #[error("otlp.endpoint cannot be used")]
    Exporter(#[from] ExporterBuildError),
    /// The thread that sends spans could not be started.
    #[error("the sending of traces cannot be set up: {0}")]
    Setup(String),
}

impl Spans {
    /// Spans as the settings say; they are sent on this runtime.
    pub fn open(settings: &Otlp) -> Result<Self, SpansError> {
        let Some(endpoint) = &settings.endpoint else {
            return Ok(Self(None));
        };
        let collector = Collector {
            client: outside::client()?,
            header: settings.header().map_err(SpansError::Header)?,
            runtime: Handle::current(),
            is_lost: AtomicBool::new(false),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()?;
        let share = Sampler::TraceIdRatioBased(f64::from(settings.percent) / 100.0);
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder()
            .with_service_name("hive-gateway")
            .with_attribute(version);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(share)))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("hive-gateway");
        Ok(Self(Some((provider, tracer))))
    }

    /// The span that a client names as its own.
    pub fn parent(&self, headers: &HeaderMap) -> Parent {
        let none = Context::new();
        Parent(match self.0 {
            Some(_) => TraceContextPropagator::new().extract_with_context(&none, &HeaderExtractor(headers)),
            None => none,
        })
    }

    /// Begins the span of a request that was just admitted, below the client's own.
    pub fn begin(&self, kind: Kind, view: &RequestView, Parent(parent): &Parent) -> Option<Span> {
        let (_, tracer) = self.0.as_ref()?;
        let operation = match kind {
            Kind::Chat => "chat",
            Kind::Completions => "text_completion",
            Kind::Embeddings => "embeddings",
        };
        let span = tracer
            .span_builder(format!("{operation} {}", view.model))
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("gen_ai.operation.name", operation),
                KeyValue::new("gen_ai.provider.name", "hive"),
                KeyValue::new("gen_ai.request.model", view.model.clone()),
                KeyValue::new("hive.request.id", view.id.clone()),
                KeyValue::new("hive.key.id", view.key_id.clone()),
            ]);
        Some(Span {
            tracer: tracer.clone(),
            request: parent.with_span(tracer.build_with_context(span, parent)),
            attempt: None,
        })
    }

    /// Sends what has not been sent, for a few seconds at most.
    pub async fn close(&self) {
        let Some((provider, _)) = self.0.clone() else { return };
        let closed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST)).await;
        if let Ok(Err(error)) = closed {
            tracing::warn!(cause = chain(&error), "the last traces were not sent");
        }
    }
}

impl Span {
    /// A worker has it now; the one before, if any, no longer.
    pub fn worker(&mut self, worker: &WorkerId, epoch: i64) {
        self.end_attempt();
        let span = self
            .tracer
            .span_builder(format!("attempt {worker}"))
            .with_kind(SpanKind::Client)
            .with_attributes([
                KeyValue::new("hive.worker.id", worker.to_string()),
                KeyValue::new("hive.worker.epoch", epoch),
            ]);
        let span = self.tracer.build_with_context(span, &self.request);
        self.attempt = Some(self.request.with_span(span));
    }

    /// The worker that has it has failed, in this way.
    pub fn worker_failed(&mut self, how: &'static str) {
        if let Some(attempt) = &self.attempt {
            attempt.span().set_attribute(KeyValue::new("error.type", how));
            attempt.span().set_status(Status::error(how));
        }
        self.end_attempt();
    }

    /// The first token has come.
    pub fn first_token(&self) {
        self.request.span().add_event("first token", Vec::new());
    }

    /// Tells the worker whose attempt it is.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let context = self.attempt.as_ref().unwrap_or(&self.request);
        TraceContextPropagator::new().inject_context(context, &mut HeaderInjector(headers));
    }

    /// It has ended, as the books say.
    pub fn end(mut self, view: &RequestView) {
        let span = self.request.span();
        let tokens = [
            ("gen_ai.usage.input_tokens", view.prompt_tokens),
            ("gen_ai.usage.output_tokens", view.completion_tokens),
        ];
        for (name, count) in tokens {
            if let Some(count) = count.filter(|_| !view.estimated) {
                span.set_attribute(KeyValue::new(name, count));
            }
        }
        span.set_attribute(KeyValue::new("hive.outcome", view.state.as_str()));
        if view.state != RequestState::Completed {
            let code = view.error.clone().unwrap_or_else(|| view.state.as_str().to_owned());
            span.set_attribute(KeyValue::new("error.type", code));
        }
        if matches!(view.state, RequestState::Failed | RequestState::Aborted) {
            span.set_status(Status::error(view.state.as_str()));
        }
        self.end_attempt();
        self.request.span().end();
    }

    fn end_attempt(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            attempt.span().end();
        }
    }
}

/// The collector, as the exporter's thread reaches it: that thread has no reactor of its own.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    header: Option<(axum::http::HeaderName, axum::http::HeaderValue)>,
    runtime: Handle,
    /// Whether the last batch was not taken; said once, not with every batch.
    is_lost: AtomicBool,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        request.headers_mut().extend(self.header.clone());
        let request = reqwest::Request::try_from(request)?;
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let answer = client.execute(request).await?.error_for_status()?;
            let status = answer.status();
            let body = answer.bytes().await?;
            Ok::<_, reqwest::Error>((status, body))
        });
        let result = sent.await?;
        if self.is_lost.swap(result.is_err(), Ordering::Relaxed) != result.is_err() {
            match &result {
                Ok(_) => tracing::info!("traces are sent again"),
                Err(error) => tracing::warn!(
                    cause = chain(error),
                    "traces are lost: the collector at otlp.endpoint does not take them"
                ),
            }
        }
        let (status, body) = result?;
        Ok(Response::builder().status(status).body(body)?)
    }
}
