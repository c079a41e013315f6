//! Workers of a test: servers that register themselves and send heartbeats.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::task::AbortHandle;
use wire::{Capabilities, EngineName, Heartbeat, ModelFacts, Registered, WorkerState};

use crate::{
    client::Reply,
    harness::{Hive, eventually},
    script::Script,
    server::Server,
};

/// What a model that chats can do.
pub const CHATS: Capabilities = Capabilities {
    chat: true,
    completions: true,
    embeddings: false,
    vision: false,
    tools: true,
    structured_output: true,
    thinking: false,
};

/// A worker that registered and sends heartbeats.
pub struct Worker {
    /// Its server.
    pub server: Server,
    /// What the gateway gave it.
    pub registered: Registered,
    /// What its heartbeats say.
    pub beat: Arc<Mutex<Heartbeat>>,
    /// What it registered with.
    pub registration: Value,
    heart: AbortHandle,
}

/// A worker about to join.
pub struct Joining<'a> {
    hive: &'a Hive,
    id: String,
    model: String,
    slots: u32,
    state: WorkerState,
    facts: ModelFacts,
    labels: Value,
    scripts: Vec<Script>,
}

impl Hive {
    /// A worker to be, with one slot for the model `m`, that says "Hello".
    pub fn worker(&self, id: &str) -> Joining<'_> {
        Joining {
            hive: self,
            id: id.to_owned(),
            model: "m".to_owned(),
            slots: 1,
            state: WorkerState::Ready,
            facts: ModelFacts::default(),
            labels: json!({}),
            scripts: vec![Script::says(&["Hel", "lo"])],
        }
    }

    /// A join token, bound to an id if one is given.
    pub async fn join_token(&self, id: Option<&str>) -> String {
        let made = self
            .on_control("POST", "/control/v1/join-tokens")
            .json(&json!({ "worker_id": id }));
        Reply::to(made).await.json().await["token"].as_str().unwrap().to_owned()
    }

    /// Sends a registration.
    pub async fn register(&self, bearer: &str, registration: &Value) -> Reply {
        Reply::to(
            self.http
                .post(format!("{}/control/v1/workers/register", self.control))
                .bearer_auth(bearer)
                .json(registration),
        )
        .await
    }

    /// Sends a heartbeat.
    pub async fn heartbeat(&self, id: &str, bearer: &str, beat: &Heartbeat) -> Reply {
        let url = format!("{}/control/v1/workers/{id}/heartbeat", self.control);
        Reply::to(self.http.post(url).bearer_auth(bearer).json(beat)).await
    }
}

impl Joining<'_> {
    /// The model it serves.
    pub fn model(mut self, model: &str) -> Self {
        model.clone_into(&mut self.model);
        self
    }

    /// How many requests it takes at once.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// The state it registers in.
    pub fn state(mut self, state: WorkerState) -> Self {
        self.state = state;
        self
    }

    /// The engine it runs and what its model can do.
    pub fn able(mut self, engine: EngineName, capabilities: Capabilities) -> Self {
        self.facts.engine = Some(engine);
        self.facts.capabilities = Some(capabilities);
        self
    }

    /// The longest prompt and answer it takes, in tokens.
    pub fn context(mut self, tokens: u32) -> Self {
        self.facts.context_length = Some(tokens);
        self
    }

    /// What an operator calls it.
    pub fn labels(mut self, labels: Value) -> Self {
        self.labels = labels;
        self
    }

    /// What it answers; of several, one each in turn and the last one from then on.
    pub fn script(mut self, scripts: impl IntoIterator<Item = Script>) -> Self {
        self.scripts = scripts.into_iter().collect();
        self
    }

    /// Joins with a fresh token.
    pub async fn join(self) -> Worker {
        let token = self.hive.join_token(None).await;
        self.join_with(&token).await
    }

    /// Joins with this token.
    pub async fn join_with(self, token: &str) -> Worker {
        let server = Server::start(&self.id, None, self.scripts).await;
        let mut registration = registration(&self.id, &server);
        registration["model"] = json!(self.model);
        registration["slots"] = json!(self.slots);
        registration["state"] = json!(self.state);
        registration["facts"] = json!(self.facts);
        registration["labels"] = self.labels;
        let reply = self.hive.register(token, &registration).await;
        let registered: Registered = serde_json::from_value(reply.json().await).unwrap();
        let beat = Heartbeat {
            facts: self.facts,
            ..Heartbeat::idle(registered.epoch, self.state)
        };
        let beat = Arc::new(Mutex::new(beat));
        let heart = beating(self.hive, &registered, beat.clone());
        Worker {
            server,
            registered,
            beat,
            registration,
            heart,
        }
    }
}

/// What a worker of this id on this server would register with.
pub fn registration(id: &str, server: &Server) -> Value {
    json!({
        "id": id, "model": "m", "url": server.url(), "dispatch_token": server.dispatch_token(), "device": "scripted",
        "slots": 1, "pid": std::process::id(), "host": "here", "version": "0.0.0", "state": "ready",
    })
}

fn beating(hive: &Hive, registered: &Registered, beat: Arc<Mutex<Heartbeat>>) -> AbortHandle {
    let url = format!("{}/control/v1/workers/{}/heartbeat", hive.control, registered.id);
    let request = hive.http.post(url).bearer_auth(&registered.credential);
    let every = Duration::from_millis(registered.heartbeat_interval_ms);
    let task = tokio::spawn(async move {
        let mut tick = tokio::time::interval(every);
        loop {
            tick.tick().await;
            let beat = beat.lock().unwrap().clone();
            let _ = request.try_clone().unwrap().json(&beat).send().await;
        }
    });
    task.abort_handle()
}

impl Worker {
    /// Its id.
    pub fn id(&self) -> &str {
        self.registered.id.as_str()
    }

    /// Changes what its heartbeats say.
    pub fn says(&self, change: impl FnOnce(&mut Heartbeat)) {
        change(&mut self.beat.lock().unwrap());
    }

    /// Sends no heartbeat from now on, but goes on answering.
    pub fn falls_silent(&self) {
        self.heart.abort();
    }

    /// Ends as a process that is killed: every socket closes at once.
    pub fn dies(self) {
        self.heart.abort();
        self.server.dies();
    }
}

impl Hive {
    /// All workers, as the control plane lists them.
    pub async fn workers(&self) -> Vec<Value> {
        let list = Reply::to(self.on_control("GET", "/control/v1/workers"))
            .await
            .json()
            .await;
        list.as_array().unwrap().clone()
    }

    /// One worker; null if it is not listed.
    pub async fn worker_view(&self, id: &str) -> Value {
        self.workers()
            .await
            .into_iter()
            .find(|worker| worker["id"] == id)
            .unwrap_or_default()
    }

    /// Waits until a worker is in this state.
    pub async fn until(&self, id: &str, state: &str) {
        eventually(&format!("worker {id} is {state}"), async || {
            (self.worker_view(id).await["state"] == state).then_some(())
        })
        .await;
    }

    /// Waits until a worker holds this many requests.
    pub async fn until_in_flight(&self, id: &str, count: u32) {
        eventually(&format!("worker {id} holds {count}"), async || {
            (self.worker_view(id).await["in_flight"] == count).then_some(())
        })
        .await;
    }
}
