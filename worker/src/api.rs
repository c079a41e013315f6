//! The worker's HTTP: OpenAI's API over the one engine, for whoever shows the dispatch bearer.
//!
//! Every route wants the bearer, except the challenge by which the gateway finds out who listens here. A dispatch
//! must also name the epoch of the registration in force. Nothing is queued: without a free slot it says so.

mod answer;
mod chunk;
mod embeddings;
mod order;
mod refusal;
mod text;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, Query, Request, State, rejection::BytesRejection},
    http::{HeaderMap, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::{FutureExt, StreamExt, stream};
use hmac::{Hmac, Mac};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use wire::{CHALLENGE_PATH, ChallengeAnswer, EPOCH_HEADER, PROMPT_TOKENS_HEADER, REQUEST_HEADER, WorkerState};

use crate::{
    door::{Door, Guest},
    engine::{Engine, EngineError, Event, FinishReason, Prepared, Usage},
    slots::Slot,
    state::{Worker, hex, random_hex},
};
use answer::{Echo, Giving, Head, Telling};
use order::{Form, Order};
use refusal::Refusal;

/// Largest request body, in bytes.
const BODY_LIMIT: usize = 8 << 20;

/// Serves until the worker closes, then lets open connections end.
pub async fn serve(listener: TcpListener, worker: Arc<Worker>) {
    let close = worker.close.clone();
    let service = router(worker).into_make_service_with_connect_info::<Guest>();
    let served = axum::serve(Door::new(listener), service).with_graceful_shutdown(close.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the listener failed");
    }
}

fn router(worker: Arc<Worker>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/models", get(models))
        .route("/healthz", get(healthz))
        .fallback(|| async { Refusal::UnknownUrl })
        .method_not_allowed_fallback(|| async { Refusal::MethodNotAllowed })
        .layer(middleware::from_fn_with_state(worker.clone(), for_the_gateway_only))
        .route(CHALLENGE_PATH, get(challenge))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn(survive_panics))
        .with_state(worker)
}

/// Lets in whoever shows the dispatch bearer.
async fn for_the_gateway_only(
    State(worker): State<Arc<Worker>>,
    ConnectInfo(guest): ConnectInfo<Guest>,
    request: Request,
    next: Next,
) -> Response {
    if shows(request.headers(), worker.dispatch_token.expose_secret()) {
        guest.welcome();
        next.run(request).await
    } else {
        Refusal::WrongBearer.into_response()
    }
}

/// Compares digests, so that neither content nor length of the token shows in the time it takes.
fn shows(headers: &HeaderMap, token: &str) -> bool {
    let shown = headers
        .get(header::AUTHORIZATION)
        .map(axum::http::HeaderValue::as_bytes)
        .unwrap_or_default();
    let Some((scheme, shown)) = shown.split_at_checked("bearer ".len()) else {
        return false;
    };
    scheme.eq_ignore_ascii_case(b"bearer ") && Sha256::digest(shown).ct_eq(&Sha256::digest(token)).into()
}

/// A panic costs its request, not the connection's others, nor the process.
async fn survive_panics(request: Request, next: Next) -> Response {
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answered
        .unwrap_or_else(|_| Refusal::Failed("a bug in the worker; its log has the place".to_owned()).into_response())
}

/// `POST /v1/chat/completions`.
async fn chat(
    State(worker): State<Arc<Worker>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let engine = ready(&worker, &headers).await?;
    let order = Order::chat(&body?, &worker.model, &engine.facts())?;
    answer(&worker, engine, &headers, order).await
}

/// `POST /v1/completions`.
async fn completions(
    State(worker): State<Arc<Worker>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let engine = ready(&worker, &headers).await?;
    let order = Order::completion(&body?, &worker.model)?;
    answer(&worker, engine, &headers, order).await
}

/// The engine, if this dispatch is for it.
async fn ready<'a>(worker: &'a Worker, headers: &HeaderMap) -> Result<&'a Arc<dyn Engine>, Refusal> {
    check_epoch(worker, headers).await?;
    match (worker.state(), worker.engine.get()) {
        (WorkerState::Ready, Some(engine)) => Ok(engine),
        (WorkerState::Loading, _) => Err(Refusal::Loading),
        _ => Err(Refusal::ShuttingDown),
    }
}

/// What the engine makes of a request before it takes a slot; `param` is the field that holds the prompt.
async fn prepare<T>(
    worker: &Worker,
    param: &'static str,
    work: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, Refusal> {
    tokio::select! {
        prepared = work => prepared.map_err(|error| {
            if let EngineError::Stuck(reason) = &error {
                worker.break_down(reason);
            }
            Refusal::of(error, &worker.model, param)
        }),
        // Preparing may have to wait for a prefill; no use, where there is no slot afterwards.
        () = worker.slots.stay_full() => Err(Refusal::Busy),
    }
}

/// A place at the engine; none while all are taken, or once the worker leaves.
async fn take_slot(worker: &Worker) -> Result<Slot, Refusal> {
    let slot = worker.slots.take().await.ok_or(Refusal::Busy)?;
    // It may have been told to stop while this request was being prepared.
    match worker.state() {
        WorkerState::Ready => Ok(slot),
        _ => Err(Refusal::ShuttingDown),
    }
}

/// Generates what was ordered; all choices share one slot.
async fn answer(
    worker: &Arc<Worker>,
    engine: &Arc<dyn Engine>,
    headers: &HeaderMap,
    order: Order,
) -> Result<Response, Refusal> {
    let Order {
        requests,
        n,
        include_usage,
        form,
    } = order;
    let param = if form == Form::Chat { "messages" } else { "prompt" };
    let mut prompts: Vec<Prepared> = Vec::with_capacity(requests.len());
    for request in requests {
        prompts.push(prepare(worker, param, engine.prepare(request)).await?);
    }
    let prompt_tokens = prompts.iter().map(Prepared::prompt_tokens).sum();
    let slot = take_slot(worker).await?;
    let client = slot.client();
    let echoes = match form {
        Form::Text { echo: true } => tokio::select! {
            echoes = echoes(engine, &prompts, &slot) => echoes.map_err(|error| Refusal::of(error, &worker.model, param))?,
            () = worker.stop.cancelled() => return Err(Refusal::ShuttingDown),
        },
        _ => vec![Echo::default(); prompts.len()],
    };
    let each = || prompts.iter().flat_map(|prompt| (0..n).map(move |i| (prompt, i)));
    let telling = Telling {
        head: Head::new(&request_id(headers), form, worker.model.clone(), engine.as_ref()),
        form,
        prompt_tokens,
        echoes: echoes
            .into_iter()
            .flat_map(|echo| std::iter::repeat_n(echo, n as usize))
            .collect(),
        include_usage,
        logprobs: prompts.iter().any(Prepared::wants_logprobs),
        must_call: prompts.iter().any(Prepared::must_call),
    };
    let choices = answer::choices(each().map(|(prompt, i)| {
        match prompt.budget() {
            // Only an echo was asked for.
            0 => stream::once(std::future::ready(Event::Finish {
                reason: FinishReason::Length,
                usage: Usage::default(),
            }))
            .boxed(),
            _ => engine.generate(prompt.choice(i), slot.clone()),
        }
    }));
    drop(slot);
    let giving = Giving::new(worker.clone(), client, &telling);
    let mut response = answer::stream(telling, choices, giving);
    response
        .headers_mut()
        .insert(PROMPT_TOKENS_HEADER, prompt_tokens.into());
    Ok(response)
}

/// What each prompt says, and how likely that was, if it was asked.
async fn echoes(engine: &Arc<dyn Engine>, prompts: &[Prepared], slot: &Slot) -> Result<Vec<Echo>, EngineError> {
    let mut echoes = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let logprobs = if prompt.wants_logprobs() {
            engine.likelihoods(prompt, slot.clone()).await?
        } else {
            Vec::new()
        };
        echoes.push(Echo {
            text: prompt.written().to_owned(),
            logprobs,
        });
    }
    Ok(echoes)
}

/// A dispatch meant for another registration of this id is not ours to answer.
async fn check_epoch(worker: &Worker, headers: &HeaderMap) -> Result<(), Refusal> {
    let named = headers
        .get(EPOCH_HEADER)
        .and_then(|value| value.to_str().ok()?.parse::<i64>().ok());
    let mut epoch = worker.epoch.subscribe();
    let fits = |ours: Option<i64>| ours.is_none() || ours == named;
    let settled = epoch.wait_for(|epoch| !epoch.changing || (epoch.number.is_some() && fits(epoch.number)));
    let ours = match tokio::time::timeout(Duration::from_secs(2), settled).await {
        Ok(Ok(epoch)) => epoch.number,
        _ => worker.epoch.borrow().number,
    };
    if fits(ours) { Ok(()) } else { Err(Refusal::StaleEpoch) }
}

/// The gateway's id for the request, if it is a sane one.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &&str| {
        (1..=128).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let id = headers
        .get(REQUEST_HEADER)
        .and_then(|value| value.to_str().ok())
        .filter(sane);
    id.map_or_else(random_hex::<12>, str::to_owned)
}

/// `GET /v1/models`: the one model.
async fn models(State(worker): State<Arc<Worker>>) -> Json<impl Serialize> {
    #[derive(Serialize)]
    struct Model {
        id: String,
        object: &'static str,
        created: u64,
        owned_by: &'static str,
    }
    #[derive(Serialize)]
    struct List {
        object: &'static str,
        data: [Model; 1],
    }
    let model = Model {
        id: worker.model.to_string(),
        object: "model",
        created: worker.started,
        owned_by: "hive",
    };
    Json(List {
        object: "list",
        data: [model],
    })
}

/// `GET /healthz`: the process lives; `state` says whether it takes requests.
async fn healthz(State(worker): State<Arc<Worker>>) -> Json<impl Serialize> {
    #[derive(Serialize)]
    struct Health {
        state: &'static str,
        in_flight: u32,
        still_busy: u32,
    }
    Json(Health {
        state: worker.state().as_str(),
        in_flight: worker.slots.in_flight(),
        still_busy: worker.slots.still_busy(),
    })
}

#[derive(Deserialize)]
struct Challenge {
    nonce: String,
}

/// `GET CHALLENGE_PATH`: proves that whoever listens here is the process that registered.
async fn challenge(
    State(worker): State<Arc<Worker>>,
    query: Result<Query<Challenge>, axum::extract::rejection::QueryRejection>,
) -> Result<impl IntoResponse, Refusal> {
    let Ok(Query(Challenge { nonce })) = query else {
        return Err(Refusal::invalid("nonce", "is missing; the challenge is `?nonce=<hex>`"));
    };
    if nonce.len() > 256 {
        return Err(Refusal::invalid("nonce", "is longer than 256 characters"));
    }
    let mut proof = Hmac::<Sha256>::new_from_slice(worker.dispatch_token.expose_secret().as_bytes())
        .map_err(|error| Refusal::Failed(error.to_string()))?;
    proof.update(format!("{}\n{nonce}", worker.id).as_bytes());
    let answer = Json(ChallengeAnswer {
        proof: hex(&proof.finalize().into_bytes()),
    });
    // Whoever asks is still a stranger, and shown out soon: nothing else should be sent here.
    Ok(([(header::CONNECTION, "close")], answer))
}
