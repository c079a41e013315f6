//! Workers as operators see them: list, attach a server, drain, remove.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use reqwest::Url;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use utoipa::IntoParams;
use wire::{Attach, Labels, ModelFacts, WorkerId, WorkerKind, WorkerState, WorkerView, check_labels};

use super::body;
use crate::{
    audit::record::{self as recorded, Kind, Object},
    auth::caller::Operator,
    db::{self, DbError, attached::AttachedRow},
    error::ApiError,
    registry::{
        members::{Bearer, Event, Member, Target},
        probe,
        resolver::ResolveError,
    },
    secret_file,
    state::{AppState, Hive},
};

/// Slots of an attached server, if none are named.
const ATTACHED_SLOTS: u32 = 64;

/// List all workers.
#[utoipa::path(get, path = "/control/v1/workers", tag = "workers", responses(
    (status = 200, description = "All workers", body = Vec<WorkerView>),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
))]
pub async fn list(State(state): State<AppState>, _: Operator) -> Json<Vec<WorkerView>> {
    Json(state.dispatcher.workers())
}

/// Look at one worker.
#[utoipa::path(get, path = "/control/v1/workers/{id}", tag = "workers",
    params(("id" = String, Path, description = "The worker's id")),
    responses(
        (status = 200, description = "The worker", body = WorkerView),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
        (status = 404, description = "There is no such worker", body = wire::ErrorEnvelope),
    ))]
pub async fn show(
    State(state): State<AppState>,
    _: Operator,
    Path(id): Path<String>,
) -> Result<Json<WorkerView>, ApiError> {
    find(&state, &id).map(Json)
}

/// Attach an OpenAI-compatible server: it is asked for its models, then routed to like a worker.
#[utoipa::path(post, path = "/control/v1/workers", tag = "workers", request_body = Attach, responses(
    (status = 201, description = "It is attached", body = WorkerView),
    (status = 400, description = "The request is at fault", body = wire::ErrorEnvelope),
    (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
    (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
    (status = 409, description = "A live worker holds the id", body = wire::ErrorEnvelope),
    (status = 502, description = "The server does not answer as it should", body = wire::ErrorEnvelope),
    (status = 503, description = "The database cannot be written now", body = wire::ErrorEnvelope),
))]
pub async fn attach(
    State(state): State<AppState>,
    Operator(operator): Operator,
    body::Json(attach): body::Json<Attach>,
) -> Result<(StatusCode, Json<WorkerView>), ApiError> {
    let slots = attach.slots.unwrap_or(ATTACHED_SLOTS);
    if !(1..=1024).contains(&slots) {
        return Err(ApiError::invalid("slots", "`slots` must be between 1 and 1024."));
    }
    labels_fit(&attach.labels, attach.weight)?;
    let url = base_url(&state, &attach.url).await?;
    let id = match attach.id {
        Some(id) => id,
        None => made_from(&url)?,
    };
    if state
        .dispatcher
        .worker(&id)
        .is_some_and(|held| held.kind == WorkerKind::Own && held.state != WorkerState::Lost)
    {
        return Err(ApiError::WorkerExists(id.to_string()));
    }
    let bearer = attach.api_key.filter(|key| !key.is_empty()).map(Bearer);
    let listed = probe::models(state.upstream.client(), &url, bearer.as_ref())
        .await
        .map_err(|why| ApiError::NotAttachable(format!("The server at {url} was not attached: {why}.")))?;
    let models = if attach.models.is_empty() {
        listed.unwrap_or_default()
    } else {
        attach.models
    };
    if models.is_empty() {
        return Err(ApiError::invalid(
            "models",
            "The server lists no models. Name those it serves with --model.",
        ));
    }
    let now_ms = crate::now_ms();
    keep_key(&state, &id, bearer.as_ref()).map_err(|error| ApiError::Internal(format!("keys/attached: {error}")))?;
    let mut row = AttachedRow {
        id: id.clone(),
        epoch: 0,
        url,
        models,
        slots,
        labels: attach.labels,
        weight: attach.weight.unwrap_or(1.0),
    };
    let mut transaction = state.db.begin().await.map_err(DbError::from)?;
    row.epoch = db::attached::upsert(&mut transaction, &row, now_ms).await?;
    let attached = recorded::Event::now(Kind::WorkerAttach).on(Object {
        epoch: Some(row.epoch),
        ..Object::worker(&id)
    });
    state
        .audit
        .acts
        .by(Some(&operator.id))
        .sign(&mut transaction, attached)
        .await?;
    transaction.commit().await.map_err(DbError::from)?;
    for model in &row.models {
        db::models::upsert(&state.db, model, &ModelFacts::default(), now_ms).await?;
    }
    tracing::info!(
        worker = id.as_str(),
        url = row.url,
        models = row.models.len(),
        "a server was attached"
    );
    let _ = state
        .dispatcher
        .apply(Event::Joined(Box::new(member(row, bearer, WorkerState::Ready))));
    find(&state, id.as_str()).map(|view| (StatusCode::CREATED, Json(view)))
}

/// Ask a worker to finish what it holds and exit.
#[utoipa::path(post, path = "/control/v1/workers/{id}/drain", tag = "workers",
    params(("id" = String, Path, description = "The worker's id")),
    responses(
        (status = 200, description = "It takes nothing new from now on", body = WorkerView),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
        (status = 404, description = "There is no such worker", body = wire::ErrorEnvelope),
    ))]
pub async fn drain(
    State(state): State<AppState>,
    Operator(operator): Operator,
    Path(id): Path<String>,
) -> Result<Json<WorkerView>, ApiError> {
    let view = find(&state, &id)?;
    let drained = recorded::Event::now(Kind::WorkerDrain).on(Object::worker(&view.id));
    state
        .audit
        .acts
        .by(Some(&operator.id))
        .sign_alone(&state.db, drained)
        .await?;
    state
        .dispatcher
        .apply(Event::DrainWanted(view.id))
        .map_err(|_| unknown(&id))?;
    tracing::info!(worker = id, "a worker is to drain");
    find(&state, &id).map(Json)
}

/// How a worker is removed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Removal {
    /// Also one that lives.
    #[serde(default)]
    force: bool,
}

/// Detach a server, or shut a worker out: its credential is good no more, and it needs a new join token.
#[utoipa::path(delete, path = "/control/v1/workers/{id}", tag = "workers",
    params(("id" = String, Path, description = "The worker's id"), Removal),
    responses(
        (status = 204, description = "It is no longer listed"),
        (status = 400, description = "The query is at fault", body = wire::ErrorEnvelope),
        (status = 401, description = "The key is missing or wrong", body = wire::ErrorEnvelope),
        (status = 403, description = "The key lacks the scope", body = wire::ErrorEnvelope),
        (status = 404, description = "There is no such worker", body = wire::ErrorEnvelope),
        (status = 409, description = "It is a live worker of ours: drain it, or say `force`", body = wire::ErrorEnvelope),
        (status = 503, description = "The database cannot be written now", body = wire::ErrorEnvelope),
    ))]
pub async fn remove(
    State(state): State<AppState>,
    Operator(operator): Operator,
    Path(id): Path<String>,
    removal: Result<Query<Removal>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(Removal { force }) =
        removal.map_err(|_| ApiError::invalid("force", "`force` must be `true` or `false`."))?;
    let view = find(&state, &id)?;
    if view.kind == WorkerKind::Own && view.state != WorkerState::Lost && !force {
        return Err(ApiError::WorkerExists(id));
    }
    let mut transaction = state.db.begin().await.map_err(DbError::from)?;
    match view.kind {
        WorkerKind::Attached => drop(db::attached::delete(&mut transaction, &view.id).await?),
        WorkerKind::Own => db::workers::shut_out(&mut transaction, &view.id).await?,
    }
    let removed = recorded::Event::now(Kind::WorkerDetach).on(Object::worker(&view.id));
    state
        .audit
        .acts
        .by(Some(&operator.id))
        .sign(&mut transaction, removed)
        .await?;
    transaction.commit().await.map_err(DbError::from)?;
    state.audit.acts.carried().await;
    match view.kind {
        WorkerKind::Attached => drop(std::fs::remove_file(key_file(&state, &view.id))),
        WorkerKind::Own => state.credentials.forget(&view.id),
    }
    state
        .dispatcher
        .apply(Event::Removed(view.id))
        .map_err(|_| unknown(&id))?;
    tracing::info!(worker = id, "a worker was removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Puts the servers that were attached before a restart back into the registry; the first probe judges them.
pub async fn restore_attached(hive: &Hive) -> Result<(), db::DbError> {
    for row in db::attached::all(&hive.db).await? {
        let file = key_file(hive, &row.id);
        let bearer = match secret_file::read(&file) {
            Ok(key) => Some(Bearer(key.expose_secret().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(worker = row.id.as_str(), cause = %error, "the key of an attached server cannot be read");
                None
            }
        };
        let _ = hive
            .dispatcher
            .apply(Event::Joined(Box::new(member(row, bearer, WorkerState::Suspect))));
    }
    Ok(())
}

fn member(row: AttachedRow, bearer: Option<Bearer>, state: WorkerState) -> Member {
    let host = Url::parse(&row.url)
        .ok()
        .and_then(|url| url.host_str().map(ToOwned::to_owned))
        .unwrap_or_default();
    let target = Target {
        id: row.id,
        epoch: row.epoch,
        kind: WorkerKind::Attached,
        url: row.url,
        bearer,
    };
    let mut member = Member::new(target, row.models, row.slots, Instant::now());
    member.device = "attached".into();
    member.host = host;
    member.reported = state;
    member.labels = row.labels;
    member.weight = row.weight;
    member
}

/// Whether labels and a weight are such as a worker may have.
pub fn labels_fit(labels: &Labels, weight: Option<f32>) -> Result<(), ApiError> {
    check_labels(labels, weight).map_err(|rule| ApiError::invalid("labels", format!("`labels` and `weight`: {rule}.")))
}

/// The server's base URL without `/v1`; a name is resolved once and pinned to addresses we may call.
async fn base_url(state: &AppState, text: &str) -> Result<String, ApiError> {
    let shape = || {
        ApiError::invalid(
            "url",
            "`url` must look like http://HOST:PORT or https://HOST/PATH, without user, query or fragment.",
        )
    };
    let mut url = Url::parse(text).map_err(|_| shape())?;
    let plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    if !plain || url.query().is_some() || url.fragment().is_some() {
        return Err(shape());
    }
    let (host, port) = (
        url.host_str().ok_or_else(shape)?.to_owned(),
        url.port_or_known_default().ok_or_else(shape)?,
    );
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = state.resolver.pin(name).await.map_err(|error| match error {
        ResolveError::Address(_) => ApiError::invalid("url", format!("{error}.")),
        ResolveError::Unknown(..) => ApiError::NotAttachable(format!("Not attached: {error}.")),
    })?;
    // With TLS the certificate binds the name to its owner, and needs the name; the resolver keeps its address.
    if url.scheme() == "http"
        && let Some(ip) = first_that_listens(&addresses, port, state.config.relay.connect_timeout).await
    {
        url.set_ip_host(ip).map_err(|()| shape())?;
    }
    let base = url.as_str().trim_end_matches('/');
    Ok(base
        .strip_suffix("/v1")
        .unwrap_or(base)
        .trim_end_matches('/')
        .to_owned())
}

/// A name may stand for several addresses (`localhost` for `::1` and `127.0.0.1`) of which the server has one.
async fn first_that_listens(addresses: &[IpAddr], port: u16, limit: Duration) -> Option<IpAddr> {
    if let [only] = addresses {
        return Some(*only);
    }
    for ip in addresses {
        let connecting = tokio::net::TcpStream::connect((*ip, port));
        if let Ok(Ok(_)) = tokio::time::timeout(limit, connecting).await {
            return Some(*ip);
        }
    }
    addresses.first().copied()
}

fn made_from(url: &str) -> Result<WorkerId, ApiError> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let id: String = authority
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .take(60)
        .collect();
    id.trim_matches(['-', '.'])
        .parse()
        .map_err(|_| ApiError::invalid("id", "Give it an id of your own with --name."))
}

fn key_file(hive: &Hive, id: &WorkerId) -> std::path::PathBuf {
    hive.home.join("keys").join("attached").join(id.as_str())
}

fn keep_key(hive: &Hive, id: &WorkerId, bearer: Option<&Bearer>) -> std::io::Result<()> {
    let file = key_file(hive, id);
    match bearer {
        Some(Bearer(key)) => secret_file::create(&file, key),
        None => match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

fn find(state: &AppState, id: &str) -> Result<WorkerView, ApiError> {
    id.parse()
        .ok()
        .and_then(|id| state.dispatcher.worker(&id))
        .ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    ApiError::UnknownWorker(wire::printable(id, 64))
}
