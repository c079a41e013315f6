//! Callers of a test: requests as clients send them, answers read as strict clients read them.

use std::pin::Pin;

use axum::http::HeaderMap;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use crate::{
    harness::{Hive, soon},
    shapes,
};

/// An answer under way; dropping it closes the connection.
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    buffer: Vec<u8>,
}

/// One thing a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sse {
    /// An event's data.
    Data(String),
    /// A comment.
    Comment(String),
}

/// A request for an answer to be sent.
#[derive(Clone)]
pub struct Ask {
    http: reqwest::Client,
    url: String,
    key: String,
    headers: HeaderMap,
    body: Value,
}

impl Hive {
    /// A chat request for this model with the admin key.
    pub fn chat(&self, model: &str) -> Ask {
        let messages = json!([{"role": "user", "content": "Say hello."}]);
        self.ask("/v1/chat/completions", json!({"model": model, "messages": messages}))
    }

    /// A request to continue "Once" with this model.
    pub fn completion(&self, model: &str) -> Ask {
        self.ask("/v1/completions", json!({"model": model, "prompt": "Once"}))
    }

    /// A request for the embedding of "Once" by this model.
    pub fn embedding(&self, model: &str) -> Ask {
        self.ask("/v1/embeddings", json!({"model": model, "input": "Once"}))
    }

    fn ask(&self, path: &str, body: Value) -> Ask {
        Ask {
            http: self.http.clone(),
            url: format!("{}{path}", self.data),
            key: self.admin.clone(),
            headers: HeaderMap::new(),
            body,
        }
    }

    /// A request to the data plane with the admin key.
    pub fn on_data(&self, method: &str, path: &str) -> RequestBuilder {
        self.http
            .request(method.parse().unwrap(), format!("{}{path}", self.data))
            .bearer_auth(&self.admin)
    }

    /// A request to the control plane with the admin key.
    pub fn on_control(&self, method: &str, path: &str) -> RequestBuilder {
        self.http
            .request(method.parse().unwrap(), format!("{}{path}", self.control))
            .bearer_auth(&self.admin)
    }

    /// A request to the data plane without any key.
    pub fn stranger(&self, method: &str, path: &str) -> RequestBuilder {
        self.http
            .request(method.parse().unwrap(), format!("{}{path}", self.data))
    }

    /// A new key with these scopes: its public id and its text.
    pub async fn key(&self, scopes: &[&str]) -> (String, String) {
        let made = self
            .on_control("POST", "/control/v1/keys")
            .json(&json!({"name": "a test's", "scopes": scopes}));
        let made = Reply::to(made).await.json().await;
        (
            made["id"].as_str().unwrap().to_owned(),
            made["key"].as_str().unwrap().to_owned(),
        )
    }

    /// A new key on these terms, beside its name and scope: its text.
    pub async fn key_with(&self, terms: Value) -> String {
        let mut new = json!({"name": "a test's", "scopes": ["infer"]});
        new.as_object_mut().unwrap().extend(terms.as_object().unwrap().clone());
        let made = self.on_control("POST", "/control/v1/keys").json(&new);
        Reply::to(made).await.json().await["key"].as_str().unwrap().to_owned()
    }

    /// The latest requests in the books.
    pub async fn requests(&self) -> Vec<Value> {
        Reply::to(self.on_control("GET", "/control/v1/requests?limit=1000"))
            .await
            .json()
            .await
            .as_array()
            .unwrap()
            .clone()
    }

    /// A connection to the data plane, for bytes of one's own.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.data_address()).await.unwrap()
    }
}

impl Ask {
    /// Wants a stream.
    pub fn stream(self) -> Self {
        self.with("stream", json!(true))
    }

    /// Wants the usage chunk of a stream.
    pub fn usage(self) -> Self {
        self.with("stream_options", json!({"include_usage": true}))
    }

    /// One field of the body.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.body[field] = value;
        self
    }

    /// Another key.
    pub fn key(mut self, key: &str) -> Self {
        key.clone_into(&mut self.key);
        self
    }

    /// A header.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().unwrap());
        self
    }

    /// Sends it and waits for the answer's head.
    pub async fn send(self) -> Reply {
        Reply::to(
            self.http
                .post(self.url)
                .bearer_auth(self.key)
                .headers(self.headers)
                .json(&self.body),
        )
        .await
    }

    /// Sends it in a task of its own; aborting the task is a client that leaves.
    pub fn spawn(self) -> JoinHandle<Reply> {
        tokio::spawn(self.send())
    }
}

impl Reply {
    /// The answer to this request.
    pub async fn to(request: RequestBuilder) -> Self {
        let response = soon("the head of an answer", request.send()).await.expect("an answer");
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: Box::pin(response.bytes_stream()),
            buffer: Vec::new(),
        }
    }

    /// A header as text; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The whole body, which must end as HTTP wants it.
    pub async fn bytes(mut self) -> Vec<u8> {
        while self.more().await {}
        self.buffer
    }

    /// The whole body as text.
    pub async fn text(self) -> String {
        String::from_utf8(self.bytes().await).expect("UTF-8")
    }

    /// The whole body of a success as JSON.
    pub async fn json(self) -> Value {
        let status = self.status;
        let text = self.text().await;
        assert!((200..300).contains(&status), "{status}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The error of a refusal with this status and code; its envelope, id and headers are checked.
    pub async fn refused(self, status: u16, code: &str) -> Value {
        let (headers, got) = (self.headers.clone(), self.status);
        let text = self.text().await;
        assert_eq!(got, status, "{text}");
        assert!(headers.contains_key("x-request-id"), "no x-request-id: {headers:?}");
        assert_eq!(headers["content-type"], "application/json", "{text}");
        let error = shapes::error(&serde_json::from_str(&text).expect("JSON"));
        assert_eq!(error["code"], code, "{text}");
        assert_eq!(headers.contains_key("www-authenticate"), status == 401, "{headers:?}");
        if status == 503 {
            let seconds: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=60).contains(&seconds), "{seconds}");
        }
        error
    }

    /// What the stream says next; `None` at its proper end.
    pub async fn next(&mut self) -> Option<Sse> {
        let line = self.line().await?;
        if let Some(comment) = line.strip_prefix(':') {
            return Some(Sse::Comment(comment.trim().to_owned()));
        }
        let data = line
            .strip_prefix("data: ")
            .unwrap_or_else(|| panic!("no data line: {line:?}"))
            .to_owned();
        assert_eq!(
            self.line().await.as_deref(),
            Some(""),
            "an event ends with a blank line"
        );
        Some(Sse::Data(data))
    }

    /// The next event's data; comments are passed over.
    pub async fn event(&mut self) -> Option<String> {
        loop {
            if let Sse::Data(data) = self.next().await? {
                return Some(data);
            }
        }
    }

    /// The next chunk as JSON.
    pub async fn chunk(&mut self) -> Value {
        serde_json::from_str(&self.event().await.expect("a chunk")).expect("JSON")
    }

    /// Reads chunks until this text has come.
    pub async fn until(&mut self, text: &str) {
        let mut so_far = String::new();
        while so_far != text {
            so_far += said(&self.chunk().await);
            assert!(text.starts_with(&so_far), "{so_far:?}");
        }
    }

    /// All events that are still to come, up to the proper end of the body.
    pub async fn events(mut self) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.event().await {
            events.push(event);
        }
        events
    }

    /// The error event that ends this stream: the last event, not followed by `[DONE]`.
    pub async fn broken(self, code: &str) -> Value {
        let events = self.events().await;
        assert!(!events.iter().any(|event| event == "[DONE]"), "{events:?}");
        let error = shapes::error(&serde_json::from_str(events.last().expect("an event")).expect("JSON"));
        assert_eq!(error["code"], code, "{events:?}");
        error
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(String::from_utf8(line[..end].to_vec()).expect("UTF-8"));
            }
            if !self.more().await {
                let rest = String::from_utf8_lossy(&self.buffer);
                assert!(rest.is_empty(), "{}: the body ends in half a line: {rest}", self.status);
                return None;
            }
        }
    }

    async fn more(&mut self) -> bool {
        match soon("more of a body", self.body.next()).await {
            Some(bytes) => self
                .buffer
                .extend_from_slice(&bytes.expect("a body that ends as HTTP wants it")),
            None => return false,
        }
        true
    }
}

/// The text of a chunk's first choice.
pub fn said(chunk: &Value) -> &str {
    chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default()
}

/// The text of a whole stream, which must end with `[DONE]`.
pub fn text_of(events: &[String]) -> String {
    let (done, chunks) = events.split_last().expect("events");
    assert_eq!(done, "[DONE]");
    chunks
        .iter()
        .map(|chunk| said(&serde_json::from_str(chunk).expect("JSON")).to_owned())
        .collect()
}

/// Writes these bytes and reads until the other side closes.
pub async fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the other side closes", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}
