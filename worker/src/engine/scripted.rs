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
//!   "prefill_ms": 300,
//!   "one_at_a_time": false,
//!   "thinks": false,
//!   "load_ms": 2000,
//!   "fail_load": "out of memory",
//!   "fault": {"at": 1, "kind": "die"}
//! }
//! ```
//!
//! `tokens` may also be a number: that many are made up. `fault` happens instead of token `at` (0: before the first
//! one); its kinds are those of [`FaultKind`]. A client that leaves cannot stop `prefill_ms`, which comes before all
//! else, and `one_at_a_time` has all requests wait for each other, as they do at a real engine on a CPU.
//! One that `thinks` may begin with `<think>` … `</think>`. A last user message in braces is a script of its own, which
//! overrides the first key by key. One word is one token; the context holds 4096 unless `--context-length` says else.
//! Where the answer must be JSON or a call and the script has no tokens, it says the shortest that the schema allows.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use llguidance::{
    ParserFactory,
    toktrie::{ApproximateTokEnv, TokEnv},
};
use serde::Deserialize;
use wire::{
    Capabilities, EngineName, ModelFacts,
    openai::{Input, Role},
};

use super::{
    Candidate, Delta, Engine, EngineError, Event, Fault, FinishReason, LoadError, Piece, Prepared, Prompt, Report,
    Request, Slot, Spec, TokenLogprob, fingerprint,
    grammar::{Grounds, Guide},
    text::Answer,
    thought::Start,
    tools::{self, Dialect},
    turns::{Turn, Turns},
};

/// Dimensions of an embedding.
const DIMENSIONS: u8 = 8;

/// What to play.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    tokens: Option<Tokens>,
    interval_ms: Option<u64>,
    first_token_ms: Option<u64>,
    prefill_ms: Option<u64>,
    one_at_a_time: bool,
    thinks: bool,
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
        None => Scripted::new(script, spec.context_length.unwrap_or(4096)),
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
pub struct Scripted {
    script: Script,
    context: u32,
    fingerprint: String,
    /// Its vocabulary for grammars is all bytes.
    grounds: Grounds,
    turns: Turns,
}

impl Scripted {
    fn new(script: Script, context: u32) -> Result<Self, LoadError> {
        let bytes: TokEnv = ApproximateTokEnv::single_byte_env();
        let factory = ParserFactory::new_simple(&bytes).map_err(|error| LoadError::Engine(error.to_string()))?;
        let grounds = Grounds {
            factory: Arc::new(factory),
            ends: Arc::new([bytes.tok_trie().eos_token()]),
            dialect: Dialect::Hermes,
        };
        let fingerprint = fingerprint::of_settings(&["scripted", &context.to_string(), &format!("{script:?}")]);
        Ok(Self {
            turns: Turns::new(script.one_at_a_time),
            script,
            context,
            fingerprint,
            grounds,
        })
    }

    /// The script for one request: an object in the user's last message overrides key by key.
    fn script_for(&self, last: &str) -> Result<Script, EngineError> {
        if !last.trim_start().starts_with('{') {
            return Ok(self.script.clone());
        }
        let own: Script = serde_json::from_str(last).map_err(|error| EngineError::Invalid {
            param: "messages".to_owned(),
            message: format!("A message in braces is a script, and this one is none: {error}."),
        })?;
        Ok(Script {
            tokens: own
                .tokens
                .or_else(|| self.script.tokens.clone())
                .or(Some(Tokens::Count(3))),
            interval_ms: own.interval_ms.or(self.script.interval_ms),
            first_token_ms: own.first_token_ms.or(self.script.first_token_ms),
            prefill_ms: own.prefill_ms.or(self.script.prefill_ms),
            fault: own.fault.or(self.script.fault),
            ..own
        })
    }

    fn look_at(&self, request: Request) -> Result<Prepared, EngineError> {
        let script = self.script_for(&last_words(&request.prompt))?;
        match script.fault.map(|fault| fault.kind) {
            Some(FaultKind::Http500) => return Err(EngineError::Failed("the script answers 500".to_owned())),
            Some(FaultKind::Redirect) => return Err(EngineError::Redirect),
            _ => {}
        }
        let guide = self.grounds.guide(&request)?;
        let prompt = match &request.prompt {
            Prompt::Chat(messages) => {
                let messages = tools::spell_out(messages.clone(), request.tools.as_ref());
                messages
                    .iter()
                    .flat_map(|message| tokens_of(&message.content.text()))
                    .collect()
            }
            Prompt::Raw(Input::Text(text)) => tokens_of(text),
            Prompt::Raw(Input::Tokens(tokens)) => tokens.clone(),
        };
        let dialect = request.tools.as_ref().map(|_| self.grounds.dialect);
        let written = request.prompt.written(numbers);
        let prepared = Prepared::new(request, prompt, self.context)?;
        let thought = (self.script.thinks && prepared.may_think()).then_some(Start::Before);
        Ok(Prepared {
            written,
            guide,
            dialect,
            thought,
            ..prepared
        })
    }

    /// What is said in answer to `last`.
    fn words(script: &Script, prepared: &Prepared, last: &str) -> Vec<String> {
        let must = prepared.request.schema.is_some() || prepared.request.tools.as_ref().is_some_and(|tools| tools.must);
        let said = match (&script.tokens, &prepared.guide) {
            (Some(Tokens::List(tokens)), _) => return tokens.clone(),
            (Some(Tokens::Count(count)), _) => return (0..*count).map(|n| format!("t{n} ")).collect(),
            (None, Some(guide)) if must => compose(guide.clone()),
            (None, _) => last.to_owned(),
        };
        said.split_inclusive(' ').map(str::to_owned).collect()
    }
}

/// The shortest text that a grammar over bytes allows, or nearly so: texts, lists and objects end as soon as they may.
fn compose(mut guide: Guide) -> String {
    const MOST: usize = 1 << 16;
    let mut text = Vec::new();
    let mut in_string = false;
    while text.len() < MOST && !guide.may_end() {
        let mut weights = vec![0.0_f32; 256];
        if guide.rule_out(&mut weights).is_err() {
            break;
        }
        let early: &[u8] = if in_string { b"\"" } else { b"}],\"" };
        let bytes = early.iter().copied().chain(b' '..=b'~').chain(0..=u8::MAX);
        let Some(next) = bytes.into_iter().find(|byte| weights[usize::from(*byte)] == 0.0) else {
            break;
        };
        let escaped = text.last() == Some(&b'\\');
        in_string ^= next == b'"' && !escaped;
        text.push(next);
        if guide.take(next.into()).unwrap_or(true) {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// What the script answers to.
fn last_words(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Chat(messages) => {
            let last = messages.iter().rfind(|message| message.role == Role::User);
            last.map(|message| message.content.text()).unwrap_or_default()
        }
        Prompt::Raw(Input::Text(text)) => text.clone(),
        Prompt::Raw(Input::Tokens(tokens)) => numbers(tokens),
    }
}

/// Tokens as text: their numbers.
fn numbers(tokens: &[u32]) -> String {
    tokens.iter().map(|token| format!("{token} ")).collect()
}

/// A number for each word.
fn tokens_of(text: &str) -> Vec<u32> {
    let number = |word: &str| {
        word.bytes()
            .fold(7, |n: u32, byte| n.wrapping_mul(31).wrapping_add(byte.into()))
    };
    text.split_whitespace().map(number).collect()
}

/// A unit vector that the tokens alone decide.
fn vector(tokens: &[u32]) -> Vec<f32> {
    let part = |shift: u8| {
        let sum: f32 = tokens
            .iter()
            .map(|token| f32::from(token.rotate_left(u32::from(shift) * 4).to_le_bytes()[0]) - 127.5)
            .sum();
        sum + f32::from(shift)
    };
    let vector: Vec<f32> = (0..DIMENSIONS).map(part).collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.into_iter().map(|x| x / length).collect()
}

impl Engine for Scripted {
    fn facts(&self) -> ModelFacts {
        ModelFacts {
            context_length: Some(self.context),
            quantization: None,
            architecture: Some("scripted".to_owned()),
            engine: Some(EngineName::Scripted),
            capabilities: Some(Capabilities {
                chat: true,
                completions: true,
                embeddings: true,
                tools: true,
                structured_output: true,
                vision: false,
                thinking: false,
            }),
        }
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn prepare(&self, request: Request) -> BoxFuture<'_, Result<Prepared, EngineError>> {
        std::future::ready(self.look_at(request)).boxed()
    }

    fn likelihoods(&self, prepared: &Prepared, slot: Slot) -> BoxFuture<'_, Result<Vec<TokenLogprob>, EngineError>> {
        let _slot = slot;
        let words = prepared
            .written
            .split_inclusive(' ')
            .enumerate()
            .map(|(at, word)| TokenLogprob {
                token: Candidate {
                    bytes: word.as_bytes().to_vec(),
                    logprob: if at == 0 { f32::NAN } else { -0.5 },
                },
                top: Vec::new(),
            });
        std::future::ready(Ok(words.collect())).boxed()
    }

    fn prepare_embedding(&self, inputs: Vec<Input>) -> BoxFuture<'_, Result<Vec<Vec<u32>>, EngineError>> {
        let tokens = inputs.into_iter().map(|input| {
            let tokens = match input {
                Input::Text(text) => tokens_of(&text),
                Input::Tokens(tokens) => tokens,
            };
            match u32::try_from(tokens.len()) {
                Ok(prompt) if prompt > self.context => Err(EngineError::ContextLength {
                    context: self.context,
                    prompt,
                    asked: None,
                }),
                _ => Ok(tokens),
            }
        });
        std::future::ready(tokens.collect()).boxed()
    }

    fn embed(&self, inputs: Vec<Vec<u32>>, slot: Slot) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EngineError>> {
        async move {
            let _slot = slot;
            Ok(inputs.iter().map(|tokens| vector(tokens)).collect())
        }
        .boxed()
    }

    fn generate(&self, prepared: Prepared, slot: Slot) -> BoxStream<'static, Event> {
        let last = last_words(&prepared.request.prompt);
        // `prepare` has refused what is no script.
        let script = self.script_for(&last).unwrap_or_default();
        let tokens = Self::words(&script, &prepared, &last);
        let pause = Duration::from_millis(script.interval_ms.unwrap_or(0));
        let prefill = script.prefill_ms.map(Duration::from_millis);
        let request = &prepared.request;
        let play = Play {
            tokens: tokens.into_iter(),
            played: 0,
            first_pause: Duration::from_millis(script.first_token_ms.unwrap_or(0)) + pause,
            pause,
            fault: script.fault,
            answer: Answer::new(
                prepared.prompt_tokens(),
                prepared.budget,
                request.stop.clone(),
                prepared.dialect,
            )
            .with_thoughts(prepared.thought),
            logprobs: request.logprobs.is_some(),
            over: false,
        };
        self.turns.begin(move |turn| {
            let held = Arc::new((slot, turn));
            let prefill = prefill.map(|time| tokio::spawn(hold(held.clone(), time)));
            let played = async move {
                if let Some(prefill) = prefill {
                    let _ = prefill.await;
                }
                stream::unfold((play, held), |(mut play, held)| async {
                    let events = play.next().await?;
                    held.1.step();
                    Some((stream::iter(events), (play, held)))
                })
                .flatten()
            };
            played.flatten_stream().boxed()
        })
    }
}

/// Holds a slot and a turn, whoever waits for that.
async fn hold(_held: Arc<(Slot, Turn)>, time: Duration) {
    tokio::time::sleep(time).await;
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
            self.over = self.answer.push(&token, logprob, false, &mut events);
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
                let piece = Piece::Text("x".repeat(300 * 1024));
                events.push(Event::Delta(Delta {
                    piece,
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
