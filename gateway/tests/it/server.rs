//! Servers of a test that speak OpenAI's API by [`Script`]: they read real requests from real sockets, and end
//! with their test, or when it kills them.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use crate::{
    harness::{own_address, soon},
    script::{Script, Step, chunk},
};

/// A server that speaks OpenAI's API by script.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accept: AbortHandle,
}

struct Shared {
    id: String,
    token: String,
    key: Option<String>,
    models: Mutex<Script>,
    scripts: Mutex<VecDeque<Script>>,
    calls: watch::Sender<Vec<Call>>,
    connections: AtomicUsize,
    listed: AtomicUsize,
    babbled: AtomicUsize,
    /// Chat requests being answered now, and the most there ever were.
    busy: Mutex<(usize, usize)>,
}

/// One request as it came.
#[derive(Clone)]
pub struct Call {
    /// Its path.
    pub path: String,
    /// The body.
    pub body: Value,
    headers: HashMap<String, String>,
    gone: watch::Receiver<bool>,
}

impl Server {
    /// A server to attach that lists these models and wants this key.
    pub async fn to_attach(models: &[&str], key: Option<&str>, scripts: Vec<Script>) -> Self {
        Self::start("attached", key, scripts).await.listing(models)
    }

    /// A server to attach on this address that says "Hello".
    pub async fn at(address: IpAddr, models: &[&str]) -> Self {
        let scripts = vec![Script::says(&["Hello"])];
        Self::start_at(address, "attached", None, scripts).await.listing(models)
    }

    fn listing(self, models: &[&str]) -> Self {
        let data: Vec<Value> = models
            .iter()
            .map(|id| json!({"id": id, "object": "model", "created": 1, "owned_by": "x"}))
            .collect();
        self.lists(Script::answers(
            200,
            "application/json",
            &json!({"object": "list", "data": data}).to_string(),
        ));
        self
    }

    /// A server that answers challenges for this id and chat requests by these scripts.
    pub async fn start(id: &str, key: Option<&str>, scripts: Vec<Script>) -> Self {
        Self::start_at(own_address(), id, key, scripts).await
    }

    async fn start_at(address: IpAddr, id: &str, key: Option<&str>, scripts: Vec<Script>) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            id: id.to_owned(),
            token: format!("dispatch-token-of-{id}"),
            key: key.map(ToOwned::to_owned),
            models: Mutex::new(Script::answers(404, "text/plain", "")),
            scripts: Mutex::new(scripts.into()),
            calls: watch::Sender::new(Vec::new()),
            connections: AtomicUsize::new(0),
            listed: AtomicUsize::new(0),
            babbled: AtomicUsize::new(0),
            busy: Mutex::default(),
        });
        let accept = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Self {
            address,
            shared,
            accept,
        }
    }

    /// A worker's server that has not registered.
    pub async fn unregistered(id: &str) -> Self {
        Self::start(id, None, vec![Script::says(&["Hello"])]).await
    }

    /// An address where nobody listens.
    pub fn nobody() -> SocketAddr {
        let free = std::net::TcpListener::bind((own_address(), 0)).unwrap();
        free.local_addr().unwrap()
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers requests for its models like this from now on.
    pub fn lists(&self, models: Script) {
        *self.shared.models.lock().unwrap() = models;
    }

    /// Answers chat requests like this from now on.
    pub fn answers(&self, script: Script) {
        *self.shared.scripts.lock().unwrap() = VecDeque::from([script]);
    }

    /// Ends as a process that is killed.
    pub fn dies(self) {
        self.accept.abort();
    }

    /// How many chat requests have come.
    pub fn calls(&self) -> usize {
        self.shared.calls.borrow().len()
    }

    /// How many tokens it has babbled, and comments murmured.
    pub fn babbled(&self) -> usize {
        self.shared.babbled.load(Ordering::SeqCst)
    }

    /// The bearer the gateway must show, if it is a worker's.
    pub fn dispatch_token(&self) -> &str {
        &self.shared.token
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How often it was asked for its models.
    pub fn listed(&self) -> usize {
        self.shared.listed.load(Ordering::SeqCst)
    }

    /// The most chat requests it has answered at the same time.
    pub fn most_at_once(&self) -> usize {
        self.shared.busy.lock().unwrap().1
    }

    /// The chat request of this number, once it has come.
    pub async fn call(&self, number: usize) -> Call {
        let mut calls = self.shared.calls.subscribe();
        let calls = soon(
            "a request reaches the worker",
            calls.wait_for(|calls| calls.len() > number),
        )
        .await;
        calls.unwrap()[number].clone()
    }
}

impl Call {
    /// A header of the request.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Waits until the gateway has closed the connection.
    pub async fn gone(&self) {
        let mut gone = self.gone.clone();
        soon("the gateway leaves the worker", gone.wait_for(|gone| *gone))
            .await
            .unwrap();
    }

    /// Whether the gateway has closed the connection.
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(serve(accepted.unwrap().0, shared.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    stream.set_nodelay(true).unwrap();
    while let Some((line, headers, body)) = read_request(&mut stream).await {
        let path = line.split(' ').nth(1).unwrap_or_default();
        let (gone, heard) = watch::channel(false);
        let refused = shared
            .key
            .as_ref()
            .is_some_and(|key| headers.get("authorization") != Some(&format!("Bearer {key}")));
        let mut busy = None;
        let script = if let Some(nonce) = path.strip_prefix("/hive/challenge?nonce=") {
            shared.proof(nonce)
        } else if refused {
            Script::refuses(401, "invalid_api_key", "no")
        } else if path == "/v1/models" {
            shared.listed.fetch_add(1, Ordering::SeqCst);
            shared.models.lock().unwrap().clone()
        } else {
            assert!(line.starts_with("POST /v1/"), "{line}");
            let call = Call {
                path: path.to_owned(),
                body: serde_json::from_slice(&body).unwrap(),
                headers,
                gone: heard,
            };
            shared.calls.send_modify(|calls| calls.push(call));
            busy = Some(Busy::begin(&shared));
            let mut scripts = shared.scripts.lock().unwrap();
            if scripts.len() > 1 {
                scripts.pop_front().unwrap()
            } else {
                scripts[0].clone()
            }
        };
        if play(&mut stream, script, &shared, &gone, busy).await.is_none() {
            return;
        }
    }
}

impl Shared {
    fn proof(&self, nonce: &str) -> Script {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.token.as_bytes()).unwrap();
        mac.update(format!("{}\n{nonce}", self.id).as_bytes());
        let proof = gateway::auth::pepper::hex(&mac.finalize().into_bytes());
        Script::answers(200, "application/json", &json!({ "proof": proof }).to_string())
    }
}

/// A chat request is being answered as long as this lives.
struct Busy(Arc<Shared>);

impl Busy {
    fn begin(shared: &Arc<Shared>) -> Self {
        let mut busy = shared.busy.lock().unwrap();
        busy.0 += 1;
        busy.1 = busy.1.max(busy.0);
        Self(shared.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.lock().unwrap().0 -= 1;
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<(String, HashMap<String, String>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let mut lines = text.lines();
    let first = lines.next()?.to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    while bytes.len() < head + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some((first, headers, bytes.split_off(head)))
}

/// Takes the steps; `None` once the connection is of no more use.
async fn play(
    stream: &mut TcpStream,
    script: Script,
    shared: &Shared,
    gone: &watch::Sender<bool>,
    mut busy: Option<Busy>,
) -> Option<()> {
    for step in script.0 {
        if matches!(&step, Step::Chunk(bytes) if bytes.ends_with(b"[DONE]\n\n")) {
            // Whoever reads it may ask again at once.
            busy.take();
        }
        let taken = match step {
            Step::Raw(bytes) => stream.write_all(&bytes).await,
            Step::Chunk(bytes) => stream.write_all(&framed(&bytes)).await,
            Step::Wait(gate) => tokio::select! {
                () = gate.passed() => Ok(()),
                gone = left(stream) => Err(gone),
            },
            Step::Murmur(every, gate) => loop {
                if let Err(error) = stream.write_all(&framed(b": waiting for the engine\n\n")).await {
                    break Err(error);
                }
                shared.babbled.fetch_add(1, Ordering::SeqCst);
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    () = gate.passed() => break Ok(()),
                    gone = left(stream) => break Err(gone),
                }
            },
            Step::Babble(every, token) => {
                let event = framed(format!("data: {}\n\n", chunk(&json!({ "content": token }), None)).as_bytes());
                loop {
                    if let Err(error) = stream.write_all(&event).await {
                        break Err(error);
                    }
                    shared.babbled.fetch_add(1, Ordering::SeqCst);
                    tokio::select! {
                        () = tokio::time::sleep(every) => {}
                        gone = left(stream) => break Err(gone),
                    }
                }
            }
            Step::Hang => Err(left(stream).await),
            Step::Fin => return None,
            Step::Reset => {
                socket2::SockRef::from(&*stream)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                return None;
            }
        };
        if taken.is_err() {
            gone.send_replace(true);
            return None;
        }
    }
    Some(())
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// Returns when the other side has closed the connection.
async fn left(stream: &mut TcpStream) -> std::io::Error {
    match stream.read(&mut [0; 1]).await {
        Ok(0) => std::io::ErrorKind::UnexpectedEof.into(),
        Ok(_) => std::io::Error::other("bytes after the request"),
        Err(error) => error,
    }
}
