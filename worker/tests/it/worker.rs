//! A `hive-worker` process, and what a gateway would ask of it.

use std::{path::Path, process::Stdio, time::Duration};

use futures_util::StreamExt;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

/// Longer than anything here takes; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Tries `condition` until it holds.
pub async fn eventually<T>(what: &str, condition: impl AsyncFn() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, tries)
        .await
        .unwrap_or_else(|_| panic!("it never came to be that {what}"))
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// A client as the gateway's: no proxy, no redirects.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

/// A running worker; killed when dropped.
pub struct Worker {
    child: Child,
    stderr: watch::Receiver<Vec<String>>,
    pub folder: TempDir,
    pub url: String,
    pub token: String,
    pub epoch: Option<i64>,
}

/// Writes a file that only its owner can read.
pub fn secret_file(folder: &Path, name: &str, secret: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(name);
    std::fs::write(&path, format!("{secret}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

impl Worker {
    /// Starts a worker with exactly these arguments, in a folder of its own.
    pub fn start(folder: TempDir, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hive-worker"))
            .args(args)
            .env_clear()
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, stderr) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                sender.send_modify(|lines| lines.push(line));
            }
        });
        Self {
            child,
            stderr,
            folder,
            url: String::new(),
            token: String::new(),
            epoch: None,
        }
    }

    /// Starts a scripted worker without a gateway and waits until it listens.
    pub async fn alone(script: Value, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token = secret_file(folder.path(), "token", "dispatch-me");
        let script_path = folder.path().join("script.json");
        std::fs::write(&script_path, script.to_string()).unwrap();
        let script_path = script_path.to_str().unwrap().to_owned();
        let usual = [
            "--device",
            "scripted",
            "--model",
            "m",
            "--script",
            &script_path,
            "--dispatch-token-file",
            &token,
        ];
        Self::alone_with(folder, &[&usual[..], more].concat()).await
    }

    /// Starts any worker without a gateway, whose bearer is `dispatch-me`, and waits until it listens.
    pub async fn alone_with(folder: TempDir, args: &[&str]) -> Self {
        let state = folder.path().join("state.json").to_str().unwrap().to_owned();
        let mut worker = Self::start(folder, &[args, &["--state-file", &state]].concat());
        let listening = worker.state_file("it listens", |_| true).await;
        (worker.url, worker.token) = (listening["url"].as_str().unwrap().into(), "dispatch-me".into());
        worker
    }

    /// Waits until the state file says what it should.
    pub async fn state_file(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let path = self.folder.path().join("state.json");
        eventually(what, async || {
            let state = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            fits(&state).then_some(state)
        })
        .await
    }

    /// Waits until it takes requests.
    pub async fn ready(self) -> Self {
        self.state_file("the worker is ready", |state| state["state"] == "ready")
            .await;
        self
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs");
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the end: the exit code, if it was not a signal that ended it.
    pub async fn end(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait())
            .await
            .expect("it ends")
            .unwrap()
            .code()
    }

    /// Waits for a line on stderr.
    pub async fn says(&self, part: &str) -> String {
        let mut stderr = self.stderr.clone();
        let line = |lines: &Vec<String>| lines.iter().find(|line| line.contains(part)).cloned();
        let said = timeout(PATIENCE, stderr.wait_for(|lines| line(lines).is_some())).await;
        let said = said.unwrap_or_else(|_| panic!("it never says `{part}`: {:#?}", self.stderr.borrow()));
        let lines = match said {
            Ok(lines) => lines.clone(),
            Err(_) => self.stderr.borrow().clone(),
        };
        line(&lines).unwrap_or_else(|| panic!("it ended without saying `{part}`: {lines:#?}"))
    }

    /// The last line on stderr, once it has ended.
    pub async fn last_words(&self) -> String {
        let mut stderr = self.stderr.clone();
        let _ = timeout(PATIENCE, async { while stderr.changed().await.is_ok() {} }).await;
        self.stderr.borrow().last().cloned().unwrap_or_default()
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        client().get(format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    /// A chat request as the gateway sends it.
    pub fn chat(&self, body: &Value) -> RequestBuilder {
        self.dispatch("/v1/chat/completions", body)
    }

    /// Any request as the gateway sends it.
    pub fn dispatch(&self, path: &str, body: &Value) -> RequestBuilder {
        let request = client()
            .post(format!("{}{path}", self.url))
            .bearer_auth(&self.token)
            .json(body);
        match self.epoch {
            Some(epoch) => request.header(wire::EPOCH_HEADER, epoch),
            None => request,
        }
    }

    /// Sends a chat request and reads the answer to its end.
    pub async fn ask(&self, body: &Value) -> Answer {
        Answer::of(self.chat(body).send().await.unwrap()).await
    }

    /// Sends any request and reads the answer to its end.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.dispatch(path, body).send().await.unwrap()).await
    }

    /// Requests its engine works on.
    pub async fn in_flight(&self) -> u64 {
        self.slots().await.0
    }

    /// Slots that are taken, and those of them whose clients have left.
    pub async fn slots(&self) -> (u64, u64) {
        let health: Value = self.get("/healthz").send().await.unwrap().json().await.unwrap();
        let count = |key: &str| health[key].as_u64().unwrap();
        (count("in_flight"), count("still_busy"))
    }
}

/// A streaming request with the usage, to a scripted or real model `m`.
pub fn streamed(content: impl Into<String>) -> Value {
    json!({
        "model": "m",
        "messages": [{"role": "user", "content": content.into()}],
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

/// Adds fields to a request.
pub fn with(mut body: Value, more: Value) -> Value {
    let (Value::Object(body_fields), Value::Object(more)) = (&mut body, more) else {
        panic!("objects")
    };
    body_fields.extend(more);
    body
}

/// A choice of a stream, put together.
#[derive(Debug, Default)]
pub struct Said {
    pub text: String,
    /// What was thought before.
    pub thought: String,
    pub calls: Vec<Called>,
    pub finish: String,
}

/// A call of a stream, put together.
#[derive(Debug, Default)]
pub struct Called {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub bytes: Vec<u8>,
    /// The connection broke before the body's proper end.
    pub broke: bool,
}

impl Answer {
    pub async fn of(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let mut answer = Self {
            status,
            headers,
            bytes: Vec::new(),
            broke: false,
        };
        let mut body = response.bytes_stream();
        while let Some(part) = timeout(PATIENCE, body.next()).await.expect("the answer ends") {
            match part {
                Ok(part) => answer.bytes.extend(part),
                Err(_) => answer.broke = true,
            }
        }
        answer
    }

    pub fn body(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("JSON, not {}", self.body()))
    }

    /// The data of all events but comments; panics at anything that is not a well-formed event.
    pub fn events(&self) -> Vec<&str> {
        let events = self.body().split_terminator("\n\n");
        events
            .filter(|event| !event.starts_with(':'))
            .map(|event| {
                event
                    .strip_prefix("data: ")
                    .unwrap_or_else(|| panic!("an event, not {event:?}"))
            })
            .collect()
    }

    /// The chunks of a whole stream, without its `[DONE]`.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop(), Some("[DONE]"), "{}", self.body());
        events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect()
    }

    /// A choice of a whole stream; its calls must come by OpenAI's rules.
    pub fn choice(&self, index: usize) -> Said {
        let mut said = Said::default();
        for chunk in self.chunks() {
            let choices = chunk["choices"].as_array().unwrap().clone();
            let Some(choice) = choices.iter().find(|choice| choice["index"] == index) else {
                continue;
            };
            assert_eq!(said.finish, "", "nothing follows the finish: {}", self.body());
            let delta = &choice["delta"];
            said.text.push_str(delta["content"].as_str().unwrap_or_default());
            said.thought
                .push_str(delta["reasoning_content"].as_str().unwrap_or_default());
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let place = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                if call.get("id").is_some() {
                    assert_eq!((place, &call["type"]), (said.calls.len(), &json!("function")));
                    assert_eq!(call["function"]["arguments"], "");
                    let (id, name) = (text(&call["id"]), text(&call["function"]["name"]));
                    said.calls.push(Called {
                        id,
                        name,
                        ..Called::default()
                    });
                } else {
                    let keys: Vec<&String> = call["function"].as_object().unwrap().keys().collect();
                    assert_eq!((place + 1, keys.len()), (said.calls.len(), 1), "{call}");
                    said.calls[place]
                        .arguments
                        .push_str(&text(&call["function"]["arguments"]));
                }
            }
            said.finish = choice["finish_reason"].as_str().unwrap_or_default().to_owned();
        }
        said
    }

    /// The text of a whole stream.
    pub fn text(&self) -> String {
        let chunks = self.chunks();
        chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
            .collect()
    }

    /// The finish reason of a whole stream.
    pub fn finish(&self) -> String {
        let chunks = self.chunks();
        chunks
            .iter()
            .find_map(|chunk| chunk["choices"][0]["finish_reason"].as_str())
            .unwrap()
            .to_owned()
    }

    /// The usage of a whole stream: prompt, completion, total.
    pub fn usage(&self) -> [u64; 3] {
        let usage = &self.chunks().pop().unwrap()["usage"];
        ["prompt_tokens", "completion_tokens", "total_tokens"].map(|key| usage[key].as_u64().unwrap())
    }

    /// The log-probabilities of a whole stream's first choice, token by token.
    pub fn logprobs(&self) -> Vec<Value> {
        let chunks = self.chunks();
        let lists = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
        lists.flatten().cloned().collect()
    }

    /// The code of an error.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap().to_owned()
    }
}
