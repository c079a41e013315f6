//! The dial-back: whoever registers must answer at the address it names, with the token it registered.
//!
//! So a process that only re-used a dead worker's port cannot answer for it. No secret is sent.

use std::time::Duration;

use subtle::ConstantTimeEq as _;
use wire::{ChallengeAnswer, WorkerId};

use crate::auth::pepper::{hex, hmac_hex};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(3);

/// The largest answer, in bytes.
const LARGEST: usize = 4096;

/// Why the address did not prove itself; the text is for the worker's operator.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    /// Nobody answers there.
    #[error("the gateway cannot reach {0}; check the address and what lies between (the worker's --advertise-url)")]
    Unreachable(String),
    /// Somebody else answers there.
    #[error("whoever answers at {0} is not this worker; check the address (the worker's --advertise-url)")]
    Stranger(String),
}

/// Asks the address to prove that it holds the dispatch token.
pub async fn challenge(client: &reqwest::Client, url: &str, id: &WorkerId, token: &str) -> Result<(), ChallengeError> {
    let nonce = hex(&rand::random::<[u8; 16]>());
    let request = client
        .get(format!("{url}{}?nonce={nonce}", wire::CHALLENGE_PATH))
        .timeout(LIMIT);
    let response = request
        .send()
        .await
        .map_err(|_| ChallengeError::Unreachable(url.to_owned()))?;
    let expected = hmac_hex(token, &format!("{id}\n{nonce}"));
    let answer = if response.status().is_success() {
        read(response).await
    } else {
        None
    };
    match answer {
        Some(answer) if answer.proof.as_bytes().ct_eq(expected.as_bytes()).into() => Ok(()),
        _ => Err(ChallengeError::Stranger(url.to_owned())),
    }
}

/// The answer, unless it is larger than any answer is.
async fn read(mut response: reqwest::Response) -> Option<ChallengeAnswer> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST {
            return None;
        }
    }
    serde_json::from_slice(&body).ok()
}
