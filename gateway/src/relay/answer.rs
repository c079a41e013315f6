//! A worker's answer as events: whole, checked, and with every way it can break by its name.
//!
//! It knows no client and no clock but the time its caller gives it to wait.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::Value;

use super::{
    chunk::{Chunk, Progress},
    sse::Decoder,
    upstream::{Failure, mend_error},
};
use crate::error::chain;

/// One event that may go to the client.
#[derive(Debug)]
pub enum Event {
    /// A chunk, as the worker sent it.
    Chunk {
        /// The JSON text.
        data: Bytes,
        /// Whether it carries a token.
        token: bool,
        /// Whether it is the usage chunk.
        usage: bool,
    },
    /// The worker says the answer is complete, and it is.
    Done,
    /// The worker says that it failed.
    Error(wire::ErrorBody),
}

/// Why an answer broke off; the text is for the log.
#[derive(Debug)]
pub struct Loss(pub String);

/// A worker's answer under way.
#[derive(Debug)]
pub struct Answer {
    response: reqwest::Response,
    decoder: Decoder,
    ready: VecDeque<Event>,
    /// How far it has come.
    pub progress: Progress,
    ended: bool,
    /// What was wrong after the events that are ready.
    broken: Option<Loss>,
}

impl Answer {
    /// The answer, once its first event is there.
    pub async fn first(response: reqwest::Response) -> Result<Self, Failure> {
        let mut answer = Self {
            response,
            decoder: Decoder::default(),
            ready: VecDeque::new(),
            progress: Progress::default(),
            ended: false,
            broken: None,
        };
        answer.fill().await.map_err(|loss| Failure::Lost(loss.0))?;
        if let Some(loss) = answer.broken {
            // The client has nothing yet, so another worker may still do better.
            return Err(Failure::Lost(loss.0));
        }
        match answer.ready.front() {
            Some(Event::Error(error)) => Err(Failure::Bad(format!(
                "it answered with an error event: {}",
                error.message
            ))),
            Some(_) => Ok(answer),
            None => Err(Failure::Lost("it ended its answer before the first event".into())),
        }
    }

    /// Waits until an event is ready or the answer has ended; nothing is lost if the wait is given up.
    pub async fn fill(&mut self) -> Result<(), Loss> {
        while self.ready.is_empty() && !self.ended {
            if let Some(loss) = self.broken.take() {
                return Err(loss);
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => {
                    self.decoder.feed(&bytes);
                    self.broken = self.decode().err();
                }
                Ok(None) => self.at_end_of_body()?,
                Err(error) => return Err(Loss(chain(&error))),
            }
        }
        Ok(())
    }

    /// The next event that is there already; after [`Event::Done`] or [`Event::Error`] there is none.
    pub fn take(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn decode(&mut self) -> Result<(), Loss> {
        while !self.ended {
            let Some(data) = self.decoder.next_event().map_err(|error| Loss(error.to_string()))? else {
                break;
            };
            let event = self.read(data)?;
            self.ended = matches!(event, Event::Done | Event::Error(_));
            self.ready.push_back(event);
        }
        Ok(())
    }

    fn read(&mut self, data: Bytes) -> Result<Event, Loss> {
        if data.trim_ascii() == b"[DONE]" {
            return if self.progress.is_finished() {
                Ok(Event::Done)
            } else {
                Err(Loss("it said [DONE] without a finish_reason".into()))
            };
        }
        let (token, usage) = {
            let chunk: Chunk<'_> = serde_json::from_slice(&data)
                .map_err(|error| Loss(format!("it sent an event that is no chunk: {error}")))?;
            if let Some(error) = chunk.error {
                let whole = Value::Object([("error".to_owned(), error)].into_iter().collect());
                let error = mend_error(&whole, "upstream_error");
                let mut error = error.ok_or_else(|| Loss("it sent an error without a message".into()))?;
                error.code.get_or_insert_with(|| "worker_failed".into());
                return Ok(Event::Error(error));
            }
            if chunk.choices.is_none() && chunk.usage.is_none() {
                return Err(Loss("it sent an event that is no chunk".into()));
            }
            (self.progress.note(&chunk), chunk.is_usage_chunk())
        };
        // One line of data goes out as one line: a chunk that came in several is JSON, where a newline is a blank.
        let data = if data.contains(&b'\n') {
            data.iter().map(|b| if *b == b'\n' { b' ' } else { *b }).collect()
        } else {
            data
        };
        Ok(Event::Chunk { data, token, usage })
    }

    fn at_end_of_body(&mut self) -> Result<(), Loss> {
        if self.decoder.is_mid_event() {
            return Err(Loss("it ended in the middle of an event".into()));
        }
        if !self.progress.is_finished() {
            return Err(Loss("it ended without a finish_reason".into()));
        }
        // Some servers forget [DONE]; the finish_reason has said it.
        self.ended = true;
        self.ready.push_back(Event::Done);
        Ok(())
    }
}
