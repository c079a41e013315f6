//! What a client still sends when it is refused: read and thrown away before the answer goes out.
//!
//! Closing a connection on bytes that nobody read resets it, and a reset overtakes the answer: the client
//! would see a broken connection and send everything again. It never keeps a byte, and never waits long.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

/// The most that is read for nothing, in bytes.
const MOST: u64 = 32 * 1024 * 1024;
/// A client that pauses for this long waits for its answer.
const PAUSE: Duration = Duration::from_secs(1);

/// A request's body that can still be read when its handler is done with it.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<Incoming>>);

impl Shared {
    /// Takes a body.
    pub fn new(body: Incoming) -> Self {
        Self(Arc::new(Mutex::new(body)))
    }

    /// Reads the rest within `time`, unless it is announced as too much.
    pub async fn swallow(self, time: Duration) {
        let mut left = MOST;
        if self.lock().is_end_stream() || self.lock().size_hint().lower() > left {
            return;
        }
        let rest = async {
            loop {
                let frame = poll_fn(|cx| Pin::new(&mut *self.lock()).poll_frame(cx));
                let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE, frame).await else {
                    return;
                };
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(rest) = left.checked_sub(length) else { return };
                left = rest;
            }
        };
        // Out of time or not: the answer goes out now.
        let _ = tokio::time::timeout(time, rest).await;
    }

    fn lock(&self) -> MutexGuard<'_, Incoming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut *self.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().size_hint()
    }
}
