//! What every inference passes before it may wait for a slot: the model is among the key's, and its limits have room.
//!
//! It speaks to no worker; an entry in the books is the proof that a request was admitted.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use wire::ModelName;

use crate::{
    auth::{caller::still_good, keyring::Identity},
    books::Entry,
    error::ApiError,
    limits::{self, Share, Standing},
    state::AppState,
};

/// An answer's tokens where the request names no limit.
const USUAL_ANSWER: u64 = 256;
/// A prompt's most tokens where the model's context is not known.
const USUAL_CONTEXT: u64 = 128 * 1024;

/// A request that may go on.
#[derive(Debug)]
pub struct Admitted {
    /// Its entry in the books; it also settles what the key is charged.
    pub entry: Entry,
    /// How the key stands with its limits, if it has any.
    pub standing: Option<Standing>,
    /// Tokens that prompt and answer are expected to take.
    pub tokens: u64,
}

/// Admits a request of so many bytes that wants at most so many tokens for an answer.
pub fn admit(
    state: &AppState,
    identity: &Identity,
    id: &str,
    model: &ModelName,
    bytes: usize,
    answer: Option<u32>,
) -> Result<Admitted, ApiError> {
    if !identity.may_call(model) {
        return Err(ApiError::ModelNotAllowed(model.to_string()));
    }
    let known = state.dispatcher.model(model);
    let is_known_model = known.is_some();
    let context = known.and_then(|view| view.facts.context_length);
    let prompt = limits::estimate(bytes).min(context.map_or(USUAL_CONTEXT, u64::from));
    let (tokens, unsure) = match answer {
        Some(most) => (prompt + u64::from(most), 0),
        None => (prompt + USUAL_ANSWER, USUAL_ANSWER),
    };
    let reservation = state.meters.reserve(identity, tokens, unsure)?;
    let standing = reservation.as_ref().map(|reservation| reservation.standing);
    let mut entry = state.books.admit(id, &identity.id, model.as_str());
    entry.reservation = reservation;
    entry.prompt_guess = prompt;
    entry.is_known_model = is_known_model;
    // Only now: a key that is revoked from here on finds the entry, and ends it.
    still_good(identity, state)?;
    Ok(Admitted {
        entry,
        standing,
        tokens,
    })
}

/// Says how a key stands in OpenAI's `x-ratelimit-*` headers.
pub fn tell(standing: &Standing, headers: &mut HeaderMap) {
    for (unit, share) in [("requests", standing.requests), ("tokens", standing.tokens)] {
        let Some(Share { most, left, full_in }) = share else {
            continue;
        };
        let facts = [
            ("limit", Some(most.to_string())),
            ("remaining", Some(left.to_string())),
            ("reset", full_in.map(reset)),
        ];
        for (what, value) in facts {
            let Some(value) = value else { continue };
            let name = HeaderName::try_from(format!("x-ratelimit-{what}-{unit}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
    }
}

/// A time as OpenAI writes it: `1s`, `6m0s`, `20ms`.
fn reset(time: std::time::Duration) -> String {
    match (time.as_secs(), time.subsec_millis()) {
        (0, ms) => format!("{ms}ms"),
        (s @ 1..60, _) => format!("{s}s"),
        (s @ 60..3600, _) => format!("{}m{}s", s / 60, s % 60),
        (s, _) => format!("{}h{}m{}s", s / 3600, s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_reset_is_written_as_openai_does() {
        for (ms, text) in [
            (0, "0ms"),
            (20, "20ms"),
            (1000, "1s"),
            (59_999, "59s"),
            (360_000, "6m0s"),
            (7_384_000, "2h3m4s"),
        ] {
            assert_eq!(reset(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn only_limits_that_there_are_are_told() {
        let share = Share {
            most: 60,
            left: 59,
            full_in: Some(Duration::from_secs(1)),
        };
        let mut headers = HeaderMap::new();
        tell(
            &Standing {
                requests: Some(share),
                tokens: None,
            },
            &mut headers,
        );
        assert_eq!(headers["x-ratelimit-limit-requests"], "60");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "59");
        assert_eq!(headers["x-ratelimit-reset-requests"], "1s");
        assert_eq!(headers.len(), 3);
    }
}
