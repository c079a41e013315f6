//! A worker's answer as events: whole, checked, and with every way it can break by its name.
//!
//! It knows no client and no clock but the time its caller gives it to wait.

use std::collections::VecDeque;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde::Deserialize as _;
use serde_json::Value;
use wire::WorkerKind;

use super::{
    Call, Reply,
    chunk::{Chunk, Progress, Usage},
    embedded::read_all,
    mend::Mender,
    refusal::mend_json,
    sse::Decoder,
    upstream::{Failure, Patience, content_type},
};
use crate::{books::Tokens, error::chain, registry::members::Target};

/// The largest answer in one piece that is taken from a server that was asked for a stream, in bytes.
const LARGEST_PIECE: usize = 16 * 1024 * 1024;

/// One event that may go to the client.
#[derive(Debug)]
pub enum Event {
    /// A chunk, as the worker sent it.
    Chunk {
        /// What it says.
        data: Data,
        /// Whether it carries a token.
        token: bool,
        /// Whether it is the usage chunk.
        usage: bool,
    },
    /// The worker says the answer is complete, and it is.
    Done,
    /// The worker says that it failed.
    Error(wire::ErrorBody),
    /// The answer is complete, but has only so many choices of those that were asked for.
    TooFew(usize),
}

/// A chunk's JSON, in the form that it is wanted in.
#[derive(Debug)]
pub enum Data {
    /// For a stream: text, on one line.
    Text(Bytes),
    /// For who puts one answer together: read already.
    Value(Value),
}

/// Why an answer broke off; the text is for the log.
#[derive(Debug)]
pub enum Loss {
    /// The connection broke: whoever answered has probably died.
    Died(String),
    /// What came is no answer, or none to its end; whoever sent it lives.
    Garbled(String),
}

impl Loss {
    /// What went wrong.
    pub fn why(&self) -> &str {
        match self {
            Self::Died(why) | Self::Garbled(why) => why,
        }
    }
}

impl From<Loss> for Failure {
    fn from(loss: Loss) -> Self {
        match loss {
            Loss::Died(why) => Self::Lost(why),
            Loss::Garbled(why) => Self::Garbled(why),
        }
    }
}

/// A worker's answer under way.
#[derive(Debug)]
pub struct Answer {
    /// None once nothing more is to come.
    body: Option<reqwest::Body>,
    decoder: Decoder,
    /// What makes chunks of an attached server ours; our own workers' pass as they are.
    mender: Option<Mender>,
    ready: VecDeque<Event>,
    /// Whether it is passed on as text.
    stream: bool,
    /// How far it has come.
    pub progress: Progress,
    ended: bool,
    /// How many choices were asked for.
    choices: usize,
    /// What was wrong after the events that are ready.
    broken: Option<Loss>,
}

impl Reply for Answer {
    /// The answer, once its first event is there.
    async fn read(
        response: reqwest::Response,
        call: &Call,
        target: &Target,
        id: &str,
        mut patience: Patience,
    ) -> Result<Self, Failure> {
        let attached = target.kind == WorkerKind::Attached;
        let mut answer = Self {
            body: None,
            decoder: Decoder::default(),
            mender: attached.then(|| Mender::new(call.kind, &call.model, id, &call.stop)),
            ready: VecDeque::new(),
            stream: call.stream,
            // A server that does not know `n` makes one choice; what that comes to is told at the end.
            progress: Progress::of(if attached { 0 } else { call.choices }),
            ended: false,
            choices: call.choices,
            broken: None,
        };
        let kind = content_type(&response);
        if kind.starts_with("text/event-stream") {
            // Without the head, whose values keep the buffer that it was read into.
            answer.body = Some(response.into());
        } else if attached && kind.starts_with("application/json") {
            let piece = patience.with(read_all(response, LARGEST_PIECE)).await?;
            answer.take_in_one_piece(&piece).map_err(Failure::from)?;
        } else {
            return Err(Failure::Bad(format!("it answered {kind} instead of an event stream")));
        }
        while answer.awaits() {
            let more = async { answer.more().await.map_err(Failure::from) };
            patience.with(more).await?;
            // What our own worker says before its first event is that others have their turn, and its engine gets on.
            if !attached {
                patience.renew();
            }
        }
        if let Some(loss) = answer.broken {
            // The client has nothing yet, so another worker may still do better.
            return Err(loss.into());
        }
        match answer.ready.front() {
            Some(Event::Error(error)) => Err(Failure::Bad(format!(
                "it answered with an error event: {}",
                error.message
            ))),
            Some(_) => Ok(answer),
            None => Err(Failure::Garbled("it ended its answer before the first event".into())),
        }
    }
}

impl Answer {
    /// Waits until an event is ready or the answer has ended; nothing is lost if the wait is given up.
    pub async fn fill(&mut self) -> Result<(), Loss> {
        while self.awaits() {
            self.more().await?;
        }
        Ok(())
    }

    /// Whether nothing is there, and something is to come.
    fn awaits(&self) -> bool {
        self.ready.is_empty() && !self.ended
    }

    /// Takes in what comes next, events or not.
    async fn more(&mut self) -> Result<(), Loss> {
        if let Some(loss) = self.broken.take() {
            return Err(loss);
        }
        let Some(body) = &mut self.body else {
            return self.at_end_of_body();
        };
        match body.frame().await {
            Some(Ok(frame)) => {
                // What is no data is a trailer, which says nothing.
                if let Ok(bytes) = frame.into_data() {
                    self.decoder.feed(&bytes);
                    self.broken = self.decode().err();
                }
                Ok(())
            }
            None => self.at_end_of_body(),
            Some(Err(error)) => Err(Loss::Died(chain(&error))),
        }
    }

    /// How many bytes the events that are there already make on the wire.
    pub fn waiting(&self) -> usize {
        let length = |event: &Event| match event {
            Event::Chunk {
                data: Data::Text(text), ..
            } => text.len(),
            _ => "[DONE]".len(),
        };
        self.ready.iter().map(|event| "data: \n\n".len() + length(event)).sum()
    }

    /// The tokens so far: those that the worker has counted, else those that passed. Ours send one at a time; what an
    /// attached server has not counted, or says are none, is an estimate.
    pub fn tokens(&self) -> Tokens {
        let Usage {
            prompt_tokens,
            completion_tokens,
        } = self.progress.usage.unwrap_or_default();
        if self.mender.is_none() {
            return Tokens {
                prompt: prompt_tokens,
                completion: completion_tokens.or(Some(self.progress.tokens)),
                estimated: false,
            };
        }
        let passed = self.progress.estimate();
        let prompt = prompt_tokens.filter(|count| *count > 0);
        let completion = completion_tokens.filter(|count| *count > 0 || passed == 0);
        Tokens {
            prompt,
            completion: completion.or(Some(passed)),
            estimated: prompt.is_none() || completion.is_none(),
        }
    }

    /// The next event that is there already; after any but [`Event::Chunk`] there is none.
    pub fn take(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn decode(&mut self) -> Result<(), Loss> {
        while !self.ended {
            let Some(data) = self
                .decoder
                .next_event()
                .map_err(|error| Loss::Garbled(error.to_string()))?
            else {
                break;
            };
            self.read(data)?;
        }
        Ok(())
    }

    /// An event's data, as whatever it means for the client.
    fn read(&mut self, data: Bytes) -> Result<(), Loss> {
        // Some servers keep a connection alive with these; one of ours does not.
        if data.trim_ascii().is_empty() && self.mender.is_some() {
            return Ok(());
        }
        if data.trim_ascii() == b"[DONE]" {
            self.finish()?;
            return if self.progress.is_finished() {
                self.end()
            } else {
                Err(Loss::Garbled("it said [DONE] without a finish_reason".into()))
            };
        }
        if self.stream && self.mender.is_none() {
            let chunk: Chunk<'_> = serde_json::from_slice(&data).map_err(no_chunk)?;
            if let Some(error) = chunk.error {
                return self.fail(error);
            }
            let (token, usage) = self.note(&chunk)?;
            // One line of data goes out as one line: a chunk that came in several is JSON, where a newline is a blank.
            let data = if data.contains(&b'\n') {
                data.iter().map(|b| if *b == b'\n' { b' ' } else { *b }).collect()
            } else {
                data
            };
            let data = Data::Text(data);
            self.push(Event::Chunk { data, token, usage });
            return Ok(());
        }
        let mut value: Value = serde_json::from_slice(&data).map_err(no_chunk)?;
        if let Some(error) = value.get_mut("error").map(Value::take).filter(|error| !error.is_null()) {
            return self.fail(error);
        }
        let Some(mender) = &mut self.mender else {
            return self.pass(value);
        };
        // Half a usage is none for the client, but what it tells goes into the books.
        if let Ok(usage) = Usage::deserialize(&value["usage"]) {
            self.progress.usage = Some(usage);
        }
        let mended = mender.mend(value).map_err(Loss::Garbled)?;
        let is_over = mender.is_over(self.choices);
        if let Some(mended) = mended {
            self.pass(mended)?;
        }
        if is_over { self.end() } else { Ok(()) }
    }

    /// An answer in one piece, as the events it would have been.
    fn take_in_one_piece(&mut self, piece: &[u8]) -> Result<(), Loss> {
        let no_json = |error: serde_json::Error| Loss::Garbled(format!("it answered what is no JSON: {error}"));
        let piece: Value = serde_json::from_slice(piece).map_err(no_json)?;
        if piece.get("choices").is_none() {
            let said = mend_json(&piece, "upstream_error").map_or_else(String::new, |error| error.message);
            return Err(Loss::Garbled(format!("it answered 200 without choices: {said}")));
        }
        let chunks = self
            .mender
            .as_mut()
            .map(|mender| mender.split(piece))
            .unwrap_or_default();
        for chunk in chunks {
            self.pass(chunk.map_err(Loss::Garbled)?)?;
        }
        Ok(())
    }

    fn fail(&mut self, error: Value) -> Result<(), Loss> {
        let whole = Value::Object([("error".to_owned(), error)].into_iter().collect());
        let error = mend_json(&whole, "upstream_error");
        let mut error = error.ok_or_else(|| Loss::Garbled("it sent an error without a message".into()))?;
        error.code.get_or_insert_with(|| "worker_failed".into());
        self.push(Event::Error(error));
        Ok(())
    }

    fn pass(&mut self, chunk: Value) -> Result<(), Loss> {
        let (token, usage) = self.note(&Chunk::deserialize(&chunk).map_err(no_chunk)?)?;
        let data = if self.stream {
            Data::Text(serde_json::to_vec(&chunk).map_err(no_chunk)?.into())
        } else {
            Data::Value(chunk)
        };
        self.push(Event::Chunk { data, token, usage });
        Ok(())
    }

    /// Whether a chunk carries a token, and whether it is the usage chunk.
    fn note(&mut self, chunk: &Chunk<'_>) -> Result<(bool, bool), Loss> {
        if chunk.choices.is_none() && chunk.usage.is_none() {
            return Err(Loss::Garbled("it sent an event that is no chunk".into()));
        }
        Ok((self.progress.note(chunk), chunk.is_usage_chunk()))
    }

    /// Tells what the mender knows of the end, now that the server says no more.
    fn finish(&mut self) -> Result<(), Loss> {
        let told = self
            .mender
            .as_mut()
            .map(Mender::finish)
            .transpose()
            .map_err(Loss::Garbled)?;
        told.flatten().map_or(Ok(()), |chunk| self.pass(chunk))
    }

    /// The proper end; what was held back for it comes first.
    fn end(&mut self) -> Result<(), Loss> {
        if let Some(usage) = self.mender.as_mut().and_then(Mender::last) {
            self.pass(usage)?;
        }
        let choices = self.progress.choices();
        self.push(if choices < self.choices {
            Event::TooFew(choices)
        } else {
            Event::Done
        });
        Ok(())
    }

    fn push(&mut self, event: Event) {
        self.ended = !matches!(event, Event::Chunk { .. });
        self.ready.push_back(event);
    }

    fn at_end_of_body(&mut self) -> Result<(), Loss> {
        if self.decoder.is_mid_event() {
            return Err(Loss::Garbled("it ended in the middle of an event".into()));
        }
        self.finish()?;
        if !self.progress.is_finished() {
            return Err(Loss::Garbled("it ended without a finish_reason".into()));
        }
        // Some servers forget [DONE]; the finish_reason has said it.
        self.end()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn no_chunk(error: serde_json::Error) -> Loss {
    Loss::Garbled(format!("it sent an event that is no chunk: {error}"))
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
