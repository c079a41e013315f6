//! A streamed answer: the events of a chat as pieces of text, and every way they can stop short as a failure.

use std::time::Duration;

use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use reqwest::StatusCode;
use serde_json::Value;

use super::refusal::{cut, refused, silent};
use crate::error::Failure;

/// A chat on its way: the request's id, and the events that come.
pub struct Chat<S> {
    /// The gateway's id for the request.
    pub id: String,
    /// Its events.
    pub pieces: S,
}

/// What a streamed chat brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Some of the answer.
    Text(String),
    /// Why it ended, in OpenAI's words.
    Finish(String),
}

/// The pieces of an answer; `silence` is the longest wait for the next event.
pub fn pieces(response: reqwest::Response, silence: Duration) -> impl Stream<Item = Result<Piece, Failure>> {
    let events = response.bytes_stream().eventsource();
    // The state is the events still to come; `None` once the answer has ended, well or badly.
    futures_util::stream::unfold(Some(Box::pin(events)), move |events| async move {
        let mut events = events?;
        loop {
            let piece = match tokio::time::timeout(silence, events.next()).await {
                Err(_) => Err(silent(silence)),
                Ok(Some(Ok(event))) if event.data == "[DONE]" => return None,
                Ok(Some(Ok(event))) => match read_event(&event.data) {
                    Ok(None) => continue,
                    Ok(Some(piece)) => return Some((Ok(piece), Some(events))),
                    Err(failure) => Err(failure),
                },
                Ok(Some(Err(error))) => Err(cut().because(error)),
                Ok(None) => Err(cut()),
            };
            return Some((piece, None));
        }
    })
}

fn read_event(data: &str) -> Result<Option<Piece>, Failure> {
    let event: Value = serde_json::from_str(data).map_err(|error| cut().because(error))?;
    if event.get("error").is_some() {
        return Err(refused(StatusCode::OK, data.as_bytes()));
    }
    let choice = &event["choices"][0];
    if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
        return Ok(Some(Piece::Text(text.to_owned())));
    }
    Ok(choice["finish_reason"]
        .as_str()
        .map(|reason| Piece::Finish(reason.to_owned())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn events_become_pieces_and_error_events_become_failures() {
        let text = r#"{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}"#;
        assert_eq!(read_event(text).unwrap(), Some(Piece::Text("Hi".into())));
        let role = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
        assert_eq!(read_event(role).unwrap(), None);
        let end = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
        assert_eq!(read_event(end).unwrap(), Some(Piece::Finish("stop".into())));
        assert_eq!(read_event(r#"{"choices":[],"usage":{}}"#).unwrap(), None);
        let lost =
            r#"{"error":{"message":"the worker died","type":"upstream_error","param":null,"code":"worker_lost"}}"#;
        let failure = read_event(lost).unwrap_err();
        assert_eq!((failure.what(), failure.exit_code()), ("the worker died", 1));
    }
}
