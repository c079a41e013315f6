//! A gateway small enough to read: it takes registrations, dials back, hears heartbeats, and notes everything.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use hmac::{Hmac, Mac};
use serde_json::json;
use sha2::Sha256;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use wire::{CHALLENGE_PATH, ChallengeAnswer, Heartbeat, HeartbeatReply, Leave, Registered, Registration};

use super::worker::{PATIENCE, Worker, client, hex, secret_file};

/// What the gateway has seen; registrations with the bearer they showed.
#[derive(Debug, Default)]
pub struct Seen {
    pub registrations: Vec<(String, Registration)>,
    pub heartbeats: Vec<Heartbeat>,
    pub leaves: Vec<Leave>,
}

/// What it does out of turn, next.
#[derive(Debug, Default)]
pub struct Moods {
    pub refuse_registration: Option<StatusCode>,
    /// Statuses for the next heartbeats.
    pub heartbeats: VecDeque<StatusCode>,
    pub drain: bool,
    /// How often it wants heartbeats; 0: every 100 ms.
    pub interval_ms: u64,
}

impl Moods {
    fn interval_ms(&self) -> u64 {
        if self.interval_ms == 0 { 100 } else { self.interval_ms }
    }
}

struct Inner {
    seen: watch::Sender<Seen>,
    moods: Mutex<Moods>,
}

pub struct Gateway {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    server: JoinHandle<()>,
}

impl Gateway {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(address: SocketAddr) -> Self {
        let inner = Arc::new(Inner {
            seen: watch::Sender::default(),
            moods: Mutex::default(),
        });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/control/v1/workers/register", post(register))
            .route("/control/v1/workers/{id}/heartbeat", post(heartbeat))
            .route("/control/v1/workers/{id}/leave", post(leave))
            .with_state(inner.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, inner, server }
    }

    /// Stops listening and breaks all connections: a gateway that was killed.
    pub async fn kill(self) -> SocketAddr {
        self.server.abort();
        let _ = self.server.await;
        self.address
    }

    pub fn mood(&self, change: impl FnOnce(&mut Moods)) {
        change(&mut self.inner.moods.lock().unwrap());
    }

    /// Waits until what it has seen gives an answer.
    pub async fn sees<T>(&self, what: &str, look: impl Fn(&Seen) -> Option<T>) -> T {
        let mut seen = self.inner.seen.subscribe();
        let fits = timeout(PATIENCE, seen.wait_for(|seen| look(seen).is_some())).await;
        fits.map_or(None, |seen| look(&seen.unwrap()))
            .unwrap_or_else(|| panic!("never seen: {what}; {:#?}", self.inner.seen.borrow()))
    }

    /// Starts a scripted worker `w1` that joins here, and waits for its registration.
    pub async fn worker(&self, script: serde_json::Value, more: &[&str]) -> Worker {
        let mut worker = self.unjoined_worker(&script, more);
        let (url, token) = self
            .sees("a registration", |seen| {
                seen.registrations
                    .last()
                    .map(|(_, r)| (r.url.clone(), r.dispatch_token.clone()))
            })
            .await;
        (worker.url, worker.token, worker.epoch) = (url, token, Some(1));
        worker
    }

    /// Starts a scripted worker `w1` that wants to join here.
    pub fn unjoined_worker(&self, script: &serde_json::Value, more: &[&str]) -> Worker {
        let folder = tempfile::tempdir().unwrap();
        let script_path = folder.path().join("script.json");
        std::fs::write(&script_path, script.to_string()).unwrap();
        let script_path = script_path.to_str().unwrap().to_owned();
        let engine = ["--device", "scripted", "--script", &script_path];
        self.starting_worker(folder, &[&engine[..], more].concat())
    }

    /// Starts a worker `w1` that wants to join here.
    pub fn starting_worker(&self, folder: TempDir, engine: &[&str]) -> Worker {
        let token = secret_file(folder.path(), "join", "join-me");
        let gateway = format!("http://{}", self.address);
        let state = folder.path().join("state.json").to_str().unwrap().to_owned();
        let usual = [
            "--model",
            "m",
            "--id",
            "w1",
            "--gateway",
            &gateway,
            "--join-token-file",
            &token,
            "--state-file",
            &state,
        ];
        Worker::start(folder, &[&usual[..], engine].concat())
    }
}

fn bearer(headers: &HeaderMap) -> String {
    let value = headers[header::AUTHORIZATION].to_str().unwrap();
    value.strip_prefix("Bearer ").unwrap().to_owned()
}

fn refusal(status: StatusCode) -> Response {
    let error = json!({"message": format!("a refusal with {status}"), "type": "x", "param": null, "code": "x"});
    (status, Json(json!({ "error": error }))).into_response()
}

/// Answers with epoch n and credential `credential-n` for the n-th registration.
async fn register(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    Json(registration): Json<Registration>,
) -> Response {
    if let Some(status) = inner.moods.lock().unwrap().refuse_registration {
        return refusal(status);
    }
    let challenge = format!("{}{CHALLENGE_PATH}?nonce=c0ffee", registration.url);
    let answer: ChallengeAnswer = client().get(challenge).send().await.unwrap().json().await.unwrap();
    let mut proof = Hmac::<Sha256>::new_from_slice(registration.dispatch_token.as_bytes()).unwrap();
    proof.update(format!("{}\nc0ffee", registration.id).as_bytes());
    let proof = proof.finalize().into_bytes();
    if answer.proof != hex(&proof) {
        return refusal(StatusCode::FORBIDDEN);
    }
    let id = registration.id.clone();
    let mut epoch = 0;
    inner.seen.send_modify(|seen| {
        seen.registrations.push((bearer(&headers), registration));
        epoch = i64::try_from(seen.registrations.len()).unwrap();
    });
    let credential = format!("credential-{epoch}");
    Json(Registered {
        id,
        epoch,
        credential,
        heartbeat_interval_ms: inner.moods.lock().unwrap().interval_ms(),
    })
    .into_response()
}

async fn heartbeat(State(inner): State<Arc<Inner>>, Path(id): Path<String>, Json(beat): Json<Heartbeat>) -> Response {
    assert_eq!(id, "w1");
    inner.seen.send_modify(|seen| seen.heartbeats.push(beat));
    let mut moods = inner.moods.lock().unwrap();
    match moods.heartbeats.pop_front() {
        Some(status) => refusal(status),
        None => Json(HeartbeatReply {
            drain: moods.drain,
            heartbeat_interval_ms: moods.interval_ms(),
        })
        .into_response(),
    }
}

async fn leave(State(inner): State<Arc<Inner>>, Json(leave): Json<Leave>) -> StatusCode {
    inner.seen.send_modify(|seen| seen.leaves.push(leave));
    StatusCode::NO_CONTENT
}
