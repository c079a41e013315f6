//! Every route of both planes, and what every request passes on its way to one, on one screen.

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Method, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tower_http::{
    CompressionLevel,
    catch_panic::CatchPanicLayer,
    compression::CompressionLayer,
    cors::{AllowHeaders, Any, CorsLayer},
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::{Config as Swagger, SwaggerUi};

use crate::{
    api,
    auth::{
        access::{self, Access, Route},
        caller,
    },
    error::{ApiError, Failed},
    server::Peer,
    state::AppState,
    telemetry,
};

/// The most headers of a request, and their most bytes.
const HEADERS: (usize, usize) = (64, 32 * 1024);

#[derive(OpenApi)]
#[openapi(
    info(title = "Hive", description = "One OpenAI-compatible endpoint over the GPUs you own.", license(name = "GPL-3.0-or-later", identifier = "GPL-3.0-or-later")),
    security(("key" = []), ("key_in_header" = [])), modifiers(&Key)
)]
struct DataDoc;

#[derive(OpenApi)]
#[openapi(
    info(title = "Hive control plane", description = "Workers, models, keys and requests of a hive, for its operators.", license(name = "GPL-3.0-or-later", identifier = "GPL-3.0-or-later")),
    security(("key" = []), ("key_in_header" = [])), modifiers(&Key)
)]
struct ControlDoc;

struct Key;

impl Modify for Key {
    fn modify(&self, doc: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key, `hvk_…`"))
            .build();
        let header = ApiKeyValue::with_description("x-api-key", "The same, as some clients send it");
        let components = doc.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(bearer));
        components.add_security_scheme("key_in_header", SecurityScheme::ApiKey(ApiKey::Header(header)));
    }
}

fn data_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(DataDoc::openapi())
        .routes(routes!(api::chat::create))
        .routes(routes!(api::completions::create))
        .routes(routes!(api::embeddings::create))
        .routes(routes!(api::models::list))
        .routes(routes!(api::health::live))
        .routes(routes!(api::health::ready))
}

fn control_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(ControlDoc::openapi())
        .routes(routes!(api::workers::list, api::workers::attach))
        .routes(routes!(api::workers::show, api::workers::remove))
        .routes(routes!(api::workers::drain))
        .routes(routes!(api::members::register))
        .routes(routes!(api::members::heartbeat))
        .routes(routes!(api::members::leave))
        .routes(routes!(api::join_tokens::create))
        .routes(routes!(api::models::list_all))
        .routes(routes!(api::keys::list, api::keys::create))
        .routes(routes!(api::keys::show, api::keys::revoke))
        .routes(routes!(api::keys::rotate))
        .routes(routes!(api::tokens::verify))
        .routes(routes!(api::tokens::revoke_holder))
        .routes(routes!(api::requests::list))
        .routes(routes!(api::usage::list))
        .routes(routes!(api::metrics::read))
        .routes(routes!(api::requests::explain))
        .routes(routes!(api::requests::cancel))
        .routes(routes!(api::audit::list))
        .routes(routes!(api::audit::checkpoint))
        .routes(routes!(api::audit::export))
        .routes(routes!(api::audit::erase))
        .routes(routes!(api::audit::downloaded))
        .routes(routes!(api::audit::prune))
        .routes(routes!(api::health::live))
        .routes(routes!(api::health::ready))
}

/// The data plane: OpenAI's API, probes and docs.
pub fn data_plane(state: AppState) -> Router {
    let (router, doc) = data_routes().split_for_parts();
    let router = router
        // A model's name may hold slashes, which OpenAPI cannot say of a path's parameter.
        .route("/v1/models/{*id}", get(api::models::show))
        .route("/health", get(api::health::live));
    let host = if state.config.server.listen.ip().is_loopback() {
        Some(Hosts::new(
            "server.allowed_hosts",
            state.config.server.allowed_hosts.clone(),
            false,
        ))
    } else {
        None
    };
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::OPTIONS])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(
            [
                "x-request-id",
                "retry-after",
                "x-should-retry",
                "openai-processing-ms",
                "x-hive-worker",
                "x-hive-route",
                "x-hive-ignored-params",
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
            ]
            .map(header::HeaderName::from_static),
        )
        .max_age(std::time::Duration::from_secs(600));
    // Preflights carry no key, so they are answered before any lock; the doors below say who else needs none.
    finish(router, completed(doc), access::DATA, host, state, Some(cors))
}

/// The control plane: what workers and operators call.
pub fn control_plane(state: AppState) -> Router {
    let (router, doc) = control_routes().split_for_parts();
    let router = router.route("/health", get(api::health::live));
    let hosts = Hosts::new("control.allowed_hosts", state.config.control.hosts(), true);
    finish(router, named(doc), access::CONTROL, Some(hosts), state, None)
}

/// The OpenAPI documents, as `openapi/gateway.json` and `openapi/control.json` hold them.
pub fn documents() -> (utoipa::openapi::OpenApi, utoipa::openapi::OpenApi) {
    (
        completed(data_routes().into_openapi()),
        named(control_routes().into_openapi()),
    )
}

/// The data plane's document with what its routes alone do not say.
fn completed(mut doc: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    #[derive(OpenApi)]
    #[openapi(paths(api::models::show))]
    struct One;
    doc.merge(One::openapi());
    api::schema::tell_of_asking(&mut doc);
    named(doc)
}

/// The document with a name for each operation that no other has, as generators of clients want it: its tag's and its own.
fn named(mut doc: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let operations = doc.paths.paths.values_mut().flat_map(|path| {
        let by_method = [
            &mut path.get,
            &mut path.post,
            &mut path.put,
            &mut path.patch,
            &mut path.delete,
        ];
        by_method.into_iter().flatten()
    });
    for operation in operations {
        if let (Some(tag), Some(id)) = (operation.tags.iter().flatten().next(), &mut operation.operation_id) {
            *id = format!("{tag}_{id}");
        }
    }
    doc
}

fn finish(
    router: Router<AppState>,
    doc: utoipa::openapi::OpenApi,
    table: &'static [Route],
    hosts: Option<Hosts>,
    state: AppState,
    cors: Option<CorsLayer>,
) -> Router {
    let swagger = Swagger::new(["/openapi.json"])
        .persist_authorization(true)
        .try_it_out_enabled(true);
    let router = router
        .merge(SwaggerUi::new("/docs").url("/openapi.json", doc).config(swagger))
        .fallback(unknown_url)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .with_state(state.clone())
        .layer(middleware::from_fn_with_state((state.clone(), table), let_in))
        .layer(middleware::from_fn(in_envelope))
        .layer(middleware::from_fn_with_state(state, record_denial))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(hosts, check_head));
    let router = match cors {
        // Streams of events are never compressed: the layer itself leaves them alone.
        Some(cors) => router
            .layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
            .layer(middleware::from_fn(choose_coding))
            .layer(cors),
        None => router,
    };
    router.layer(middleware::from_fn(telemetry::access_log))
}

/// Lets in whom the table lets in; a path that is routed and not in it is nobody's.
async fn let_in(State((state, table)): State<(AppState, &'static [Route])>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let Some(route) = route else {
        return next.run(request).await;
    };
    match access::access(table, request.method(), route) {
        Some(Access::Open | Access::Worker) => next.run(request).await,
        Some(Access::Holder(scope)) => {
            let (mut parts, body) = request.into_parts();
            match caller::authorise(&mut parts, &state, scope).await {
                Ok(_) => next.run(Request::from_parts(parts, body)).await,
                Err(error) => error.into_response(),
            }
        }
        None => {
            let allowed = access::allowed(table, route);
            let mut response = ApiError::MethodNotAllowed.into_response();
            if let Ok(allowed) = allowed.parse() {
                response.headers_mut().insert(header::ALLOW, allowed);
            }
            response
        }
    }
}

/// Counts refused credentials in the audit journal, on every route.
async fn record_denial(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let peer = request.extensions().get::<Peer>().map(|Peer(peer)| peer.ip());
    let log = request.extensions().get::<telemetry::AccessLog>().cloned();
    let response = next.run(request).await;
    if let Some(Failed { code, .. }) = response.extensions().get::<Failed>()
        && ["invalid_api_key", "insufficient_scope", "model_not_allowed"].contains(&code.as_str())
    {
        let key_id = log.and_then(|log| log.key_id());
        state
            .audit
            .denied(code, route.as_deref().unwrap_or("unlisted"), key_id, peer);
    }
    response
}

async fn unknown_url(method: Method, uri: Uri) -> ApiError {
    ApiError::UnknownUrl(format!("{method} {}", wire::printable(uri.path(), 200)))
}

/// What axum or the docs refuse in words of their own goes into the envelope like everything else.
async fn in_envelope(request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let response = next.run(request).await;
    let status = response.status();
    if response.extensions().get::<Failed>().is_some() || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let error = if status.is_server_error() {
        ApiError::Internal(format!("an answer of {status} from outside our handlers"))
    } else {
        unknown_url(method, uri).await
    };
    error.into_response()
}

#[expect(clippy::needless_pass_by_value, reason = "the form that tower-http wants")]
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    ApiError::Internal(format!("panic: {}", text.unwrap_or_default())).into_response()
}

/// The host names a plane answers for beyond the loopback ones, and the setting that names them.
#[derive(Debug, Clone)]
struct Hosts {
    setting: &'static str,
    names: std::sync::Arc<[String]>,
    /// Whether pages of these hosts alone may call.
    alone: bool,
}

impl Hosts {
    fn new(setting: &'static str, names: Vec<String>, alone: bool) -> Self {
        Self {
            setting,
            names: names.into(),
            alone,
        }
    }
}

/// Leaves `gzip` or nothing of what a client takes, for the layer that compresses: that one answers 406 in no envelope,
/// and only when the work has been done.
async fn choose_coding(mut request: Request, next: Next) -> Response {
    let headers = request.headers_mut();
    let taken = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .cloned()
        .collect::<Vec<_>>();
    let weight = |coding: &str| weight(&taken, coding).or_else(|| weight(&taken, "*"));
    let (gzip, identity) = (weight("gzip").unwrap_or(0.0), weight("identity").unwrap_or(0.001));
    headers.remove(header::ACCEPT_ENCODING);
    if gzip > 0.0 && gzip >= identity {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    } else if identity <= 0.0 {
        return ApiError::Invalid {
            message: "`Accept-Encoding` takes no answer at all; let it take `identity` or `gzip`.".into(),
            param: Some("accept-encoding".into()),
        }
        .into_response();
    }
    next.run(request).await
}

/// How much a client likes a content coding, from 0 to 1 (RFC 9110, section 12.5.3); none: it does not say.
fn weight(taken: &[HeaderValue], coding: &str) -> Option<f32> {
    let codings = taken
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    codings.into_iter().find_map(|entry| {
        let (name, weight) = entry.split_once(';').unwrap_or((entry, "q=1"));
        let is_it = name.trim().eq_ignore_ascii_case(coding);
        let number = weight.trim().trim_start_matches(['q', 'Q']).trim_start_matches('=');
        is_it.then(|| number.parse().ok()).flatten()
    })
}

/// Refuses floods of headers, and hosts and origins that are not ours (DNS rebinding).
async fn check_head(State(hosts): State<Option<Hosts>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if headers.len() > HEADERS.0 || bytes > HEADERS.1 {
        return ApiError::HeadTooLarge.into_response();
    }
    if let Some(hosts) = hosts {
        let said = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
        // HTTP/2 has the authority in the URI.
        let authority = request.uri().authority().map(axum::http::uri::Authority::as_str);
        let mut called = said(header::HOST).chain(authority);
        // A page says where it is from: one that may not read the answer must not act either.
        let mut from = said(header::ORIGIN).filter(|_| hosts.alone);
        let wrong = if !called.all(|host| is_ours(host, &hosts.names)) {
            Some("Host")
        } else if !from.all(|origin| {
            origin
                .split_once("://")
                .is_some_and(|(_, host)| is_ours(host, &hosts.names))
        }) {
            Some("Origin")
        } else {
            None
        };
        if let Some(header) = wrong {
            let setting = hosts.setting;
            return ApiError::WrongHost { header, setting }.into_response();
        }
    }
    next.run(request).await
}

/// Loopback in any spelling, or a name from the configuration; the port does not matter.
fn is_ours(host: &str, allowed: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let loopback = bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    loopback || name.eq_ignore_ascii_case("localhost") || allowed.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coding_is_liked_as_much_as_the_client_says() {
        let taken = [
            HeaderValue::from_static("br, GZIP ; q=0.5"),
            HeaderValue::from_static("*;Q=0, identity;q=x"),
        ];
        for (coding, liked) in [
            ("gzip", Some(0.5)),
            ("br", Some(1.0)),
            ("*", Some(0.0)),
            ("identity", None),
        ] {
            assert_eq!(weight(&taken, coding), liked, "{coding}");
        }
    }

    #[test]
    fn only_our_own_names_are_answered_for() {
        let allowed = ["hive.example.org".to_owned()];
        for host in [
            "localhost",
            "LOCALHOST:7411",
            "127.0.0.1:1",
            "127.0.0.9",
            "[::1]:7411",
            "[::1]",
            "Hive.Example.org:443",
        ] {
            assert!(is_ours(host, &allowed), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil:80",
            "10.0.0.1",
            "",
            "[::2]:1",
        ] {
            assert!(!is_ours(host, &allowed), "{host}");
        }
    }
}
