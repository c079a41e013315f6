//! What a collector of OpenTelemetry gets to see of requests, and what it never does.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use gateway::auth::pepper::hex;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    harness::{Hive, Signal, new_home, own_address},
    script::Script,
    server::Server,
};

/// A client's span (W3C Trace Context, section 3.2.2), sampled.
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

struct Collector {
    address: SocketAddr,
    batches: mpsc::UnboundedReceiver<(HeaderMap, Bytes)>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind((own_address(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, batches) = mpsc::unbounded_channel();
        let take = async |State(sender): State<Arc<mpsc::UnboundedSender<_>>>, headers: HeaderMap, body: Bytes| {
            let _ = sender.send((headers, body));
        };
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::new(sender));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, batches }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The bytes of all batches so far, and the spans in them.
    fn taken(&mut self) -> (Vec<u8>, Vec<Span>) {
        let (mut bytes, mut spans) = (Vec::new(), Vec::new());
        while let Ok((headers, body)) = self.batches.try_recv() {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            assert_eq!(headers["x-tenant"], "bees");
            let request = ExportTraceServiceRequest::decode(&*body).unwrap();
            for of_resource in request.resource_spans {
                let resource = attributes(&of_resource.resource.unwrap().attributes);
                assert_eq!(resource["service.name"], "hive-gateway");
                spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
            bytes.extend(body);
        }
        (bytes, spans)
    }
}

fn attributes(pairs: &[KeyValue]) -> HashMap<String, String> {
    let text = |value: &Any| match value {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |pair: &KeyValue| text(pair.value.as_ref().unwrap().value.as_ref().unwrap());
    pairs.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found.next().unwrap_or_else(|| panic!("no span {name}: {spans:?}"));
    assert!(found.next().is_none(), "two spans {name}");
    span
}

/// A hive that tells this collector of its requests.
async fn traced(collector: &Collector, percent: &str) -> (Hive, tempfile::TempDir) {
    let folder = new_home();
    let header = folder.path().join("header");
    gateway::secret_file::create(&header, "X-Tenant: bees\n").unwrap();
    let settings = [
        ("otlp.endpoint", collector.url()),
        ("otlp.header_file", header.to_str().unwrap().to_owned()),
        ("otlp.percent", percent.to_owned()),
    ];
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    (Hive::with(&settings).await, folder)
}

#[tokio::test]
async fn one_trace_holds_the_client_the_request_and_every_worker_that_had_it() {
    let mut collector = Collector::start().await;
    let (mut hive, _folder) = traced(&collector, "0").await;
    let good = hive.worker("good").slots(2).join().await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    let bad = hive
        .worker("bad")
        .slots(2)
        .script([Script::answers(500, "text/plain", "oh")]);
    let bad = bad.join().await;
    let reply = hive.chat("m").stream().header("traceparent", PARENT).send().await;
    let id = reply.header("x-request-id").to_owned();
    assert_eq!(reply.events().await.len(), 5);
    hive.signal(Signal::SIGTERM);
    assert_eq!(hive.exit().await.code(), Some(0));

    let (bytes, spans) = collector.taken();
    // Of the first request nobody wanted to know.
    assert_eq!(spans.len(), 3, "{spans:?}");
    let [client_trace, client_span] = [&PARENT[3..35], &PARENT[36..52]];
    assert!(spans.iter().all(|span| hex(&span.trace_id) == client_trace));
    let request = named(&spans, "chat m");
    assert_eq!(
        (hex(&request.parent_span_id).as_str(), request.kind()),
        (client_span, SpanKind::Server)
    );
    let told = attributes(&request.attributes);
    for (name, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.usage.input_tokens", "7"),
        ("gen_ai.usage.output_tokens", "2"),
        ("hive.request.id", &id),
        ("hive.outcome", "completed"),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
    assert_eq!(request.events[0].name, "first token");
    for (attempt, call, failure) in [
        ("attempt bad", bad.server.call(0).await, Some("bad")),
        ("attempt good", good.server.call(1).await, None),
    ] {
        let span = named(&spans, attempt);
        assert_eq!(
            (&span.parent_span_id, span.kind()),
            (&request.span_id, SpanKind::Client)
        );
        assert!(span.start_time_unix_nano >= request.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= request.end_time_unix_nano);
        assert_eq!(
            attributes(&span.attributes).get("error.type").map(String::as_str),
            failure
        );
        let is_error = span
            .status
            .as_ref()
            .is_some_and(|status| status.code() == StatusCode::Error);
        assert_eq!(is_error, failure.is_some());
        // The worker was told that this is its parent.
        let told = format!("00-{client_trace}-{}-01", hex(&span.span_id));
        assert_eq!(call.header("traceparent"), Some(told.as_str()));
    }
    let words = [b"Say hello".as_slice(), b"Hel", hive.admin.as_bytes()];
    assert!(
        !words
            .iter()
            .any(|word| bytes.windows(word.len()).any(|part| part == *word))
    );
}

#[tokio::test]
async fn a_request_that_fails_says_how() {
    let mut collector = Collector::start().await;
    let (mut hive, _folder) = traced(&collector, "100").await;
    hive.worker("a").script([Script::begins(&["a"]).reset()]).join().await;
    let reply = hive.chat("m").stream().send().await;
    assert!(
        reply
            .events()
            .await
            .iter()
            .any(|event| format!("{event:?}").contains("worker_lost"))
    );
    hive.signal(Signal::SIGTERM);
    assert_eq!(hive.exit().await.code(), Some(0));
    let (_, spans) = collector.taken();
    let request = named(&spans, "chat m");
    let told = attributes(&request.attributes);
    assert_eq!([&told["hive.outcome"], &told["error.type"]], ["failed", "worker_lost"]);
    assert_eq!(request.status.as_ref().unwrap().code(), StatusCode::Error);
    assert!(request.parent_span_id.is_empty());
    assert_eq!(named(&spans, "attempt a").parent_span_id, request.span_id);
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_spans_and_no_request() {
    let nobody = format!("http://{}", Server::nobody());
    let mut hive = Hive::with(&[("otlp.endpoint", &nobody)]).await;
    hive.worker("a").join().await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    hive.signal(Signal::SIGTERM);
    assert_eq!(hive.exit().await.code(), Some(0));
    hive.logged("the loss", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("otlp.endpoint"))
    })
    .await;
}
