//! Reading request bodies: bounded in bytes and time, with errors in the envelope.

use axum::{
    body::{Body, HttpBody as _},
    extract::{FromRequest, Request},
};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::{
    auth::{caller::still_good, keyring::Identity},
    error::ApiError,
    state::AppState,
};

/// The largest body of the data plane, in bytes.
pub const DATA_LIMIT: usize = 8 * 1024 * 1024;
/// The largest body of the control plane, in bytes.
pub const CONTROL_LIMIT: usize = 64 * 1024;

/// A body of the control plane, read as JSON of one type; whose key is revoked while it is read is not let in after all.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let caller = request.extensions().get::<Identity>().cloned();
        let read = json(request.into_body(), state).await?;
        caller.map_or(Ok(()), |caller| still_good(&caller, state))?;
        Ok(Self(read))
    }
}

/// A body of the control plane as JSON of one type, for handlers that look at the credential first.
pub async fn json<T: DeserializeOwned>(body: Body, state: &AppState) -> Result<T, ApiError> {
    let bytes = read(body, CONTROL_LIMIT, state).await?;
    // Left to itself, serde takes a list of values for the fields in their order.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::Invalid {
            message: "The body must be a JSON object.".into(),
            param: None,
        });
    }
    serde_json::from_slice(&bytes).map_err(|error| ApiError::Invalid {
        message: format!("The body does not fit: {error}."),
        param: None,
    })
}

/// The whole body, if it is not too large and comes in time.
pub async fn read(body: Body, limit: usize, state: &AppState) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::TooLarge(limit));
    }
    let time = state.config.server.body_timeout;
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut body = Limited::new(body, limit);
    let mut whole = BytesMut::with_capacity(expected.min(CONTROL_LIMIT));
    // Copied at once: each piece, be it one byte, keeps the 8 KiB that it was read into.
    let reading = async {
        while let Some(frame) = body.frame().await {
            whole.extend_from_slice(frame?.data_ref().map_or(&[], |data| data));
        }
        Ok::<_, axum::BoxError>(())
    };
    match tokio::time::timeout(time, reading).await {
        Err(_) => Err(ApiError::BodyTimeout(time)),
        Ok(Ok(())) => Ok(whole.freeze()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge(limit)),
        Ok(Err(_)) => Err(ApiError::Invalid {
            message: "The body broke off. Send it again.".into(),
            param: None,
        }),
    }
}
