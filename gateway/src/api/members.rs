//! What workers themselves call: register, heartbeat, leave. A join token or the worker's own credential opens.

use std::time::Instant;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use serde::de::DeserializeOwned;
use wire::{
    Heartbeat, HeartbeatReply, Leave, ModelFacts, ModelName, Registered, Registration, WorkerId, WorkerKind,
    WorkerState,
};

use super::{body, workers::labels_fit};
use crate::{
    audit::record::{self as recorded, Kind, Object},
    auth::{api_key, caller::Worker},
    db::{self, workers::Admission},
    error::ApiError,
    registry::{
        address,
        challenge::challenge,
        members::{self, Event, Member, Refused, Target},
    },
    server::Peer,
    state::AppState,
};

/// The longest word that a worker says of itself, in bytes: a host's name in the DNS.
const LONGEST_WORD: usize = 253;
/// The most slots a worker may offer.
const MOST_SLOTS: u32 = 1024;

/// Register a worker; the gateway dials back before it believes.
#[utoipa::path(post, path = "/control/v1/workers/register", tag = "workers", request_body = Registration, responses(
    (status = 200, description = "It is registered, under a new epoch", body = Registered),
    (status = 400, description = "The registration is at fault, or the address did not prove itself", body = wire::ErrorEnvelope),
    (status = 401, description = "The token or credential is not good", body = wire::ErrorEnvelope),
    (status = 409, description = "A live worker holds the id", body = wire::ErrorEnvelope),
    (status = 503, description = "The database cannot be written now", body = wire::ErrorEnvelope),
))]
pub async fn register(
    State(state): State<AppState>,
    Extension(Peer(peer)): Extension<Peer>,
    Worker(bearer): Worker,
    body: Body,
) -> Result<Json<Registered>, ApiError> {
    let hmac = state.keyring.hmac(&bearer);
    if !state.credentials.knows(&hmac) {
        // Junk reaches no database.
        if !api_key::is_join_token(&bearer) {
            return Err(NOT_GOOD);
        }
        token(&state, &hmac).await?;
    }
    let registration: Registration = body::json(body, &state).await?;
    let admission = admit(&state, &registration.id, &hmac).await?;
    if !(1..=MOST_SLOTS).contains(&registration.slots) {
        return Err(ApiError::invalid("slots", "`slots` must be between 1 and 1024."));
    }
    labels_fit(&registration.labels, registration.weight)?;
    // What a worker says of itself is shown to operators.
    for (field, text) in [
        ("device", &registration.device),
        ("host", &registration.host),
        ("version", &registration.version),
    ] {
        if text.len() > LONGEST_WORD || !text.bytes().all(|b| b.is_ascii_graphic()) {
            let message =
                format!("`{field}` must have at most {LONGEST_WORD} printable ASCII characters and no space.");
            return Err(ApiError::invalid(field, message));
        }
    }
    if registration.dispatch_token.len() < 16 || registration.dispatch_token.len() > 256 {
        return Err(ApiError::invalid(
            "dispatch_token",
            "`dispatch_token` must have 16 to 256 characters.",
        ));
    }
    let allowed = &state.config.registry.allowed_cidrs;
    let url = address::worker_url(&registration.url, peer.ip(), allowed)
        .map_err(|error| ApiError::invalid("url", format!("{error}.")))?;
    challenge(
        state.upstream.client(),
        &url,
        &registration.id,
        &registration.dispatch_token,
    )
    .await
    .map_err(|error| ApiError::invalid("url", format!("{error}.")))?;

    // One that shows its own credential keeps it: were the answer lost, a new one would lock the worker out for good.
    let credential = match admission {
        Admission::Credential(_) => bearer,
        Admission::Token(_) => format!("hvw_{}", api_key::random(40)),
    };
    let credential_hmac = state.keyring.hmac(&credential);
    let now_ms = crate::now_ms();
    let epoch = db::workers::register(&state.db, &registration.id, &admission, &credential_hmac, now_ms)
        .await?
        .ok_or(NOT_GOOD)?;
    state.credentials.set(&registration.id, credential_hmac);
    keep_facts(&state, &registration.model, &registration.facts).await;
    let target = Target {
        id: registration.id.clone(),
        epoch,
        kind: WorkerKind::Own,
        url,
        bearer: Some(members::Bearer(registration.dispatch_token)),
    };
    let mut member = Member::new(target, vec![registration.model], registration.slots, Instant::now());
    member.device = registration.device;
    member.pid = Some(registration.pid);
    member.host = registration.host;
    member.version = registration.version;
    member.reported = registration.state;
    member.facts = registration.facts;
    member.labels = registration.labels;
    member.weight = registration.weight.unwrap_or(1.0);
    let (model, url) = (member.models[0].to_string(), member.target.url.clone());
    state
        .dispatcher
        .apply(Event::Joined(Box::new(member)))
        .map_err(|refused| refusal(refused, &registration.id))?;
    tracing::info!(
        worker = registration.id.as_str(),
        epoch,
        model,
        url,
        "a worker registered"
    );
    state
        .audit
        .journal
        .record(recorded::Event::now(Kind::WorkerRegister).on(Object {
            model: Some(model),
            epoch: Some(epoch),
            ..Object::worker(&registration.id)
        }));
    Ok(Json(Registered {
        id: registration.id,
        epoch,
        credential,
        heartbeat_interval_ms: interval_ms(&state),
    }))
}

const NOT_GOOD: ApiError = ApiError::Unauthenticated(
    "This join token was used, has expired or was never made. Make one with `hivectl worker spawn`, or POST /control/v1/join-tokens.",
);

/// Whether the bearer may register this id, looked at before anything is dialled.
async fn admit<'a>(state: &AppState, id: &WorkerId, hmac: &'a str) -> Result<Admission<'a>, ApiError> {
    if state.credentials.fits(id, hmac) {
        return Ok(Admission::Credential(hmac));
    }
    match token(state, hmac).await? {
        Some(bound) if bound == id.as_str() => {}
        Some(bound) => {
            return Err(ApiError::invalid(
                "id",
                format!("This join token is for the worker `{bound}` alone."),
            ));
        }
        None => {
            if state
                .dispatcher
                .worker(id)
                .is_some_and(|worker| worker.state != WorkerState::Lost)
            {
                return Err(ApiError::WorkerExists(id.to_string()));
            }
        }
    }
    Ok(Admission::Token(hmac))
}

/// The worker id that a good join token is bound to, if to any.
async fn token(state: &AppState, hmac: &str) -> Result<Option<String>, ApiError> {
    let found = db::join_tokens::find(&state.db, hmac, crate::now_ms()).await?;
    found.ok_or(NOT_GOOD)
}

/// Tell that a worker lives, and how it does.
#[utoipa::path(post, path = "/control/v1/workers/{id}/heartbeat", tag = "workers",
    params(("id" = String, Path, description = "The worker's id")), request_body = Heartbeat, responses(
    (status = 200, description = "Heard", body = HeartbeatReply),
    (status = 401, description = "The credential is not the worker's", body = wire::ErrorEnvelope),
    (status = 404, description = "The gateway has forgotten it: register again", body = wire::ErrorEnvelope),
    (status = 409, description = "Another registration holds the id: exit", body = wire::ErrorEnvelope),
))]
pub async fn heartbeat(
    State(state): State<AppState>,
    Path(id): Path<String>,
    Worker(bearer): Worker,
    body: Body,
) -> Result<Json<HeartbeatReply>, ApiError> {
    let (id, beat) = member(&state, &id, &bearer, body, |beat: &Heartbeat| beat.epoch).await?;
    let facts = beat.facts.clone();
    let news = state.dispatcher.worker(&id).filter(|worker| worker.facts != facts);
    let drain = state
        .dispatcher
        .apply(Event::Beat(id.clone(), beat))
        .map_err(|refused| refusal(refused, &id))?;
    if let Some(worker) = news {
        keep_facts(&state, &worker.model, &facts).await;
    }
    Ok(Json(HeartbeatReply {
        drain,
        heartbeat_interval_ms: interval_ms(&state),
    }))
}

/// Tell that a worker goes.
#[utoipa::path(post, path = "/control/v1/workers/{id}/leave", tag = "workers",
    params(("id" = String, Path, description = "The worker's id")), request_body = Leave, responses(
    (status = 204, description = "It is no longer listed"),
    (status = 401, description = "The credential is not the worker's", body = wire::ErrorEnvelope),
    (status = 404, description = "The gateway does not know it", body = wire::ErrorEnvelope),
    (status = 409, description = "Another registration holds the id", body = wire::ErrorEnvelope),
))]
pub async fn leave(
    State(state): State<AppState>,
    Path(id): Path<String>,
    Worker(bearer): Worker,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (id, leave) = member(&state, &id, &bearer, body, |leave: &Leave| leave.epoch).await?;
    state
        .dispatcher
        .apply(Event::Left(id.clone(), leave.epoch))
        .map_err(|refused| refusal(refused, &id))?;
    tracing::info!(
        worker = id.as_str(),
        epoch = leave.epoch,
        reason = leave.reason,
        "a worker left"
    );
    state
        .audit
        .journal
        .record(recorded::Event::now(Kind::WorkerLeave).on(Object {
            epoch: Some(leave.epoch),
            ..Object::worker(&id)
        }));
    Ok(StatusCode::NO_CONTENT)
}

/// The worker that calls, and what it says. The credential of an earlier registration is answered as stale, not as
/// unknown; nobody else's body is read.
async fn member<T: DeserializeOwned>(
    state: &AppState,
    id: &str,
    bearer: &str,
    body: Body,
    epoch: fn(&T) -> i64,
) -> Result<(WorkerId, T), ApiError> {
    const NOT_ITS_OWN: ApiError =
        ApiError::Unauthenticated("This is not the worker's credential. Register with a join token.");
    let id: WorkerId = id.parse().map_err(|_| NOT_ITS_OWN)?;
    if state.credentials.fits(&id, &state.keyring.hmac(bearer)) {
        return Ok((id, body::json(body, state).await?));
    }
    let Some(worker) = state.dispatcher.worker(&id).filter(|_| bearer.starts_with("hvw_")) else {
        return Err(NOT_ITS_OWN);
    };
    let said = body::json(body, state).await?;
    if worker.epoch > epoch(&said) {
        Err(ApiError::StaleEpoch)
    } else {
        Err(NOT_ITS_OWN)
    }
}

/// Only for the next start: a database that cannot be written now does not cost the worker its place.
async fn keep_facts(state: &AppState, model: &ModelName, facts: &ModelFacts) {
    if let Err(error) = db::models::upsert(&state.db, model, facts, crate::now_ms()).await {
        tracing::warn!(
            model = model.as_str(),
            cause = crate::error::chain(&error),
            "what is known about a model could not be stored"
        );
    }
}

fn refusal(refused: Refused, id: &WorkerId) -> ApiError {
    match refused {
        Refused::Unknown => ApiError::UnknownWorker(id.to_string()),
        Refused::Stale => ApiError::StaleEpoch,
    }
}

fn interval_ms(state: &AppState) -> u64 {
    u64::try_from(state.config.registry.heartbeat_interval.as_millis()).unwrap_or(u64::MAX)
}
