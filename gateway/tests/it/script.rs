//! What a worker says when it is asked: steps in the order it takes them, well-behaved or not.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::sync::watch;

/// A worker's answer to one request.
#[derive(Clone)]
pub struct Script(pub Vec<Step>);

/// One thing a worker does while it answers.
#[derive(Clone)]
pub enum Step {
    /// Writes bytes to the socket as they are.
    Raw(Vec<u8>),
    /// Writes one chunk of a chunked body.
    Chunk(Vec<u8>),
    /// Waits until the test lets it go on.
    Wait(Gate),
    /// Writes a comment every so often until the test lets it go on.
    Murmur(Duration, Gate),
    /// Writes a token every so often until nobody listens.
    Babble(Duration, String),
    /// Closes the connection with FIN.
    Fin,
    /// Closes the connection with RST.
    Reset,
    /// Says no more, and keeps the connection.
    Hang,
}

/// What a test opens to let a worker go on.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    /// A closed one.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Lets everyone through, now and later.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Waits until it is open.
    pub async fn passed(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

impl Script {
    /// A whole, well-formed answer of these tokens, with 7 tokens of prompt.
    pub fn says(tokens: &[&str]) -> Self {
        Self::begins(tokens).ends(tokens.len())
    }

    /// The beginning of an answer: head, role, these tokens.
    pub fn begins(tokens: &[&str]) -> Self {
        let role = json!({"role": "assistant", "content": ""});
        tokens
            .iter()
            .fold(Self::stream().event(&chunk(&role, None)), |script, token| {
                script.token(token)
            })
    }

    /// All of a good answer but the end of its body.
    pub fn says_until_done(tokens: &[&str]) -> Self {
        Self::begins(tokens).finish("stop").usage(7, tokens.len()).done()
    }

    /// The head of an event stream.
    pub fn stream() -> Self {
        Self::head(200, "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n")
    }

    /// A head with these header lines.
    pub fn head(status: u16, headers: &str) -> Self {
        Self(vec![Step::Raw(
            format!("HTTP/1.1 {status} X\r\n{headers}\r\n").into_bytes(),
        )])
    }

    /// A whole answer of another kind.
    pub fn answers(status: u16, content_type: &str, body: &str) -> Self {
        let headers = format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len());
        Self::head(status, &headers).raw(body.as_bytes())
    }

    /// An error in OpenAI's envelope.
    pub fn refuses(status: u16, code: &str, message: &str) -> Self {
        let error = json!({"message": message, "type": "invalid_request_error", "param": null, "code": code});
        Self::answers(status, "application/json", &json!({ "error": error }).to_string())
    }

    /// The end of a good answer: finish reason, usage, `[DONE]`, end of body.
    pub fn ends(self, tokens: usize) -> Self {
        self.finish("stop").usage(7, tokens).done().end()
    }

    /// One token of text.
    pub fn token(self, text: &str) -> Self {
        self.event(&chunk(&json!({ "content": text }), None))
    }

    /// The last chunk of the choice.
    pub fn finish(self, reason: &str) -> Self {
        self.event(&chunk(&json!({}), Some(reason)))
    }

    /// The usage chunk.
    pub fn usage(self, prompt: usize, completion: usize) -> Self {
        let mut last = chunk(&json!({}), None);
        last["choices"] = json!([]);
        last["usage"] =
            json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion});
        self.event(&last)
    }

    /// `[DONE]`.
    pub fn done(self) -> Self {
        self.data("[DONE]")
    }

    /// One event with this JSON.
    pub fn event(self, json: &Value) -> Self {
        self.data(&json.to_string())
    }

    /// One event with this text.
    pub fn data(self, text: &str) -> Self {
        self.chunk(format!("data: {text}\n\n").as_bytes())
    }

    /// Bytes of the body, in a frame of their own.
    pub fn chunk(self, bytes: &[u8]) -> Self {
        self.step(Step::Chunk(bytes.to_vec()))
    }

    /// Bytes on the wire.
    pub fn raw(self, bytes: &[u8]) -> Self {
        self.step(Step::Raw(bytes.to_vec()))
    }

    /// The end of a chunked body.
    pub fn end(self) -> Self {
        self.raw(b"0\r\n\r\n")
    }

    /// Waits for the test.
    pub fn wait(self, gate: &Gate) -> Self {
        self.step(Step::Wait(gate.clone()))
    }

    /// Comments, until the test lets it go on.
    pub fn murmur(self, every: Duration, gate: &Gate) -> Self {
        self.step(Step::Murmur(every, gate.clone()))
    }

    /// Tokens without an end.
    pub fn babble(self, every: Duration, token: &str) -> Self {
        self.step(Step::Babble(every, token.to_owned()))
    }

    /// Closes the connection with FIN.
    pub fn fin(self) -> Self {
        self.step(Step::Fin)
    }

    /// Closes the connection with RST.
    pub fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// Says no more.
    pub fn hang(self) -> Self {
        self.step(Step::Hang)
    }

    fn step(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }
}

/// A chunk of one choice, as a good worker sends it.
pub fn chunk(delta: &Value, finish_reason: Option<&str>) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    })
}
