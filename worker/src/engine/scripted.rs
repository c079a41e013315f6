//! An engine that plays a script: known tokens at a known cadence, and faults on demand, for tests and benches.
//!
//! Without a script it says the last user message back, word by word. A script is a JSON file (`--script`); all
//! keys are optional:
//!
//! ```json
//! {
//!   "tokens": ["Hello", " world"],
//!   "interval_ms": 10,
//!   "first_token_ms": 200,
//!   "load_ms": 2000,
//!   "fail_load": "out of memory",
//!   "fault": {"at": 1, "kind": "die"}
//! }
//! ```
//!
//! `tokens` may also be a number: that many are made up. `fault` happens instead of token `at` (0: before the first
//! one); its kinds are those of [`FaultKind`]. A last user message in braces is a script of its own, which
//! overrides the first key by key. One word is one token; the context holds 4096 unless `--context-length` says else.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use serde::Deserialize;
use wire::ModelFacts;

use super::{
    Candidate, ChatRequest, Delta, Engine, EngineError, Event, Fault, FinishReason, LoadError, Prepared, Report, Role,
    Slot, Spec, TokenLogprob, text::Answer,
};

/// What to play.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    tokens: Option<Tokens>,
    interval_ms: Option<u64>,
    first_token_ms: Option<u64>,
    load_ms: Option<u64>,
    fail_load: Option<String>,
    fault: Option<FaultAt>,
}

/// The tokens themselves, or how many to make up.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Tokens {
    List(Vec<String>),
    Count(u32),
}

/// A fault, and the token it takes the place of.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultAt {
    #[serde(default)]
    at: u32,
    kind: FaultKind,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The process aborts.
    Die,
    /// Nothing more comes, and nothing ends.
    Stall,
    /// The body ends properly, without a finish reason.
    Close,
    /// Half an event, then the connection breaks.
    Truncate,
    /// One event of more than 256 KiB.
    Giant,
    /// Lines that are no JSON and bytes that are no UTF-8, then the end.
    Garbage,
    /// A whole answer without its `[DONE]`.
    NoDone,
    /// `[DONE]` without a finish reason.
    DoneWithoutFinish,
    /// An error event, as a failing engine would cause.
    ErrorEvent,
    /// A panic of the engine.
    Panic,
    /// Status 500 instead of a stream.
    #[serde(rename = "http_500")]
    Http500,
    /// Status 307 to somewhere else.
    Redirect,
}

/// Reads the script and loads as slowly, or as unsuccessfully, as it says.
pub async fn load(spec: &Spec, report: &Report) -> Result<Scripted, LoadError> {
    let script = spec.script.as_deref().map_or(Ok(Script::default()), read_script)?;
    let load = Duration::from_millis(script.load_ms.unwrap_or(0));
    for tenth in 0..10_u8 {
        report("loading the script", f32::from(tenth) / 10.0);
        if !load.is_zero() {
            tokio::time::sleep(load / 10).await;
        }
    }
    match &script.fail_load {
        Some(reason) => Err(LoadError::Engine(format!("the script fails the load: {reason}"))),
        None => Ok(Scripted {
            script,
            context: spec.context_length.unwrap_or(4096),
        }),
    }
}

fn read_script(path: &Path) -> Result<Script, LoadError> {
    let path = PathBuf::from(path);
    let text = std::fs::read(&path).map_err(|source| LoadError::Unreadable {
        path: path.clone(),
        source,
    })?;
    serde_json::from_slice(&text)
        .map_err(|error| LoadError::Engine(format!("{} is not a script: {error}", path.display())))
}

/// The engine of a script.
#[derive(Debug)]
pub struct Scripted {
    script: Script,
    context: u32,
}

impl Scripted {
    /// The script for one request: an object in the user's last message overrides key by key.
    fn script_for(&self, last: &str) -> Result<Script, EngineError> {
        if !last.trim_start().starts_with('{') {
            let said = Tokens::List(last.split_inclusive(' ').map(str::to_owned).collect());
            let tokens = self.script.tokens.clone().or(Some(said));
            return Ok(Script {
                tokens,
                ..self.script.clone()
            });
        }
        let own: Script = serde_json::from_str(last).map_err(|error| EngineError::Invalid {
            param: "messages",
            message: format!("a message in braces is a script, and this one is none: {error}"),
        })?;
        Ok(Script {
            tokens: own
                .tokens
                .or_else(|| self.script.tokens.clone())
                .or(Some(Tokens::Count(3))),
            interval_ms: own.interval_ms.or(self.script.interval_ms),
            first_token_ms: own.first_token_ms.or(self.script.first_token_ms),
            fault: own.fault.or(self.script.fault),
            ..own
        })
    }
}

fn last_words(request: &ChatRequest) -> &str {
    request
        .messages
        .iter()
        .rfind(|message| message.role == Role::User)
        .map_or("", |message| &message.text)
}

impl Engine for Scripted {
    fn facts(&self) -> ModelFacts {
        ModelFacts {
            context_length: Some(self.context),
            architecture: Some("scripted".to_owned()),
            ..ModelFacts::default()
        }
    }

    fn prepare(&self, request: ChatRequest) -> BoxFuture<'_, Result<Prepared, EngineError>> {
        let words = request
            .messages
            .iter()
            .flat_map(|message| message.text.split_whitespace());
        let prompt = words
            .map(|word| u32::try_from(word.len()).unwrap_or(u32::MAX))
            .collect();
        let verdict = match self
            .script_for(last_words(&request))
            .map(|script| script.fault.map(|fault| fault.kind))
        {
            Ok(Some(FaultKind::Http500)) => Err(EngineError::Failed("the script answers 500".to_owned())),
            Ok(Some(FaultKind::Redirect)) => Err(EngineError::Redirect),
            Ok(_) => Prepared::new(request, prompt, self.context),
            Err(error) => Err(error),
        };
        std::future::ready(verdict).boxed()
    }

    fn generate(&self, prepared: Prepared, slot: Slot) -> BoxStream<'static, Event> {
        let prompt = prepared.prompt_tokens();
        let Prepared { request, budget, .. } = prepared;
        // `prepare` has refused what is no script.
        let script = self.script_for(last_words(&request)).unwrap_or_default();
        let tokens = match script.tokens {
            Some(Tokens::List(tokens)) => tokens,
            Some(Tokens::Count(count)) => (0..count).map(|n| format!("t{n} ")).collect(),
            None => Vec::new(),
        };
        let pause = Duration::from_millis(script.interval_ms.unwrap_or(0));
        let play = Play {
            tokens: tokens.into_iter(),
            played: 0,
            first_pause: Duration::from_millis(script.first_token_ms.unwrap_or(0)) + pause,
            pause,
            fault: script.fault,
            answer: Answer::new(prompt, budget, request.stop),
            logprobs: request.logprobs.is_some(),
            over: false,
            _slot: slot,
        };
        stream::unfold(play, |mut play| async {
            let events = play.next().await?;
            Some((stream::iter(events), play))
        })
        .flatten()
        .boxed()
    }
}

/// One request being played.
struct Play {
    tokens: std::vec::IntoIter<String>,
    played: u32,
    first_pause: Duration,
    pause: Duration,
    fault: Option<FaultAt>,
    answer: Answer,
    logprobs: bool,
    over: bool,
    _slot: Slot,
}

impl Play {
    async fn next(&mut self) -> Option<Vec<Event>> {
        if self.over {
            return None;
        }
        let pause = if self.played == 0 { self.first_pause } else { self.pause };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let mut events = Vec::new();
        if let Some(fault) = self.fault.take_if(|fault| fault.at == self.played) {
            self.commit(fault.kind, &mut events).await;
            return Some(events);
        }
        self.played += 1;
        if let Some(token) = self.tokens.next() {
            let logprob = self.logprobs.then(|| TokenLogprob {
                token: Candidate {
                    bytes: token.clone().into_bytes(),
                    logprob: -0.5,
                },
                top: Vec::new(),
            });
            self.over = self.answer.push(&token, logprob, &mut events);
        } else {
            self.answer.end("", FinishReason::Stop, &mut events);
            self.over = true;
        }
        Some(events)
    }

    async fn commit(&mut self, kind: FaultKind, events: &mut Vec<Event>) {
        // What was said before must be on the wire when the fault happens.
        tokio::task::yield_now().await;
        let raw = |text: &'static [u8]| Event::Fault(Fault::Bytes(Bytes::from_static(text)));
        match kind {
            FaultKind::Die => std::process::abort(),
            FaultKind::Panic => panic!("the script panics"),
            FaultKind::Stall => std::future::pending().await,
            FaultKind::Close => events.push(Event::Fault(Fault::End)),
            FaultKind::Truncate => events.extend([raw(b"data: {\"id\":\"chatcmpl-"), Event::Fault(Fault::Abort)]),
            FaultKind::Giant => {
                let text = "x".repeat(300 * 1024);
                events.push(Event::Delta(Delta {
                    text,
                    logprobs: Vec::new(),
                }));
                return;
            }
            FaultKind::Garbage => events.extend([
                raw(b"data: {not json\n\n"),
                raw(b"data: \xff\xfe\xc3\x28\n\nno field\n\n"),
                Event::Fault(Fault::End),
            ]),
            FaultKind::NoDone => {
                events.push(Event::Fault(Fault::NoDone));
                return;
            }
            FaultKind::DoneWithoutFinish => events.extend([raw(b"data: [DONE]\n\n"), Event::Fault(Fault::End)]),
            // The last two never come here: `prepare` refuses their requests.
            FaultKind::ErrorEvent | FaultKind::Http500 | FaultKind::Redirect => {
                events.push(Event::Failed("the script fails the generation".to_owned()));
            }
        }
        self.over = true;
    }
}
