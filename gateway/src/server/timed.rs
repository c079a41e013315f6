//! Connections timed: what each is doing and since when, and how much may wait to be written to it.
//!
//! It closes nothing: [`Clock::watch`] returns when somebody should.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use axum::body::{Body, Bytes, HttpBody};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::Instant,
};

use super::Limits;
use crate::metrics;

/// What may wait in memory to be written to one client, in bytes; the frame that exceeds it still goes.
const WRITE_AHEAD: usize = 8 * 1024;
/// What is read of a body at a time, in bytes: a read of 8 KiB would make hyper double its buffer, which stays as large
/// as the longest body has made it.
const READ_AT_ONCE: usize = 8 * 1024 - 1;

/// What a connection is doing, and since when.
#[derive(Debug)]
pub(super) struct Clock {
    doing: Mutex<Doing>,
    /// Its time may end sooner than the watch believes.
    sooner: Notify,
}

#[derive(Debug)]
struct Doing {
    phase: Phase,
    requests: usize,
    /// Set while the client takes nothing of what is written to it.
    blocked: Option<Blocked>,
    /// Bytes handed over for it since it last took something.
    handed: usize,
    /// Bodies that wait for that.
    waiting: Vec<Waker>,
    /// Bodies whose last frame nobody has asked to follow yet, with since when: under HTTP/2 a client that reads
    /// nothing leaves the socket writable and one stream stuck.
    unread: Vec<(u64, Instant)>,
    bodies: u64,
}

/// A client takes nothing: since when, and how many bytes wait for it. Counted as such while it lives.
#[derive(Debug)]
struct Blocked {
    since: Instant,
    bytes: usize,
}

impl Blocked {
    fn begin(bytes: usize) -> Self {
        metrics::blocked(bytes);
        let since = Instant::now();
        Self { since, bytes }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        metrics::unblocked(self.bytes);
    }
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Nothing has come yet.
    New(Instant),
    /// A head has begun.
    Head(Instant),
    /// Requests run.
    Busy,
    /// Between requests.
    Idle(Instant),
}

impl Clock {
    pub(super) fn new() -> Self {
        let doing = Doing {
            phase: Phase::New(Instant::now()),
            requests: 0,
            blocked: None,
            handed: 0,
            waiting: Vec::new(),
            unread: Vec::new(),
            bodies: 0,
        };
        Self {
            doing: Mutex::new(doing),
            sooner: Notify::new(),
        }
    }

    fn doing(&self) -> std::sync::MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the connection has done one thing for too long; a slow client is counted then.
    pub(super) async fn watch(&self, limits: &Limits) {
        loop {
            match self.end(limits) {
                Some(end) if end <= Instant::now() => {
                    if self.doing().stuck().is_some() {
                        metrics::slow_client();
                    }
                    return;
                }
                // It may have moved on by then, so look again.
                Some(end) => tokio::select! {
                    () = tokio::time::sleep_until(end) => {}
                    () = self.sooner.notified() => {}
                },
                // Bodies do not knock for every frame: whether one is stuck is looked up now and then.
                None => tokio::select! {
                    () = tokio::time::sleep(limits.slow_client / 2) => {}
                    () = self.sooner.notified() => {}
                },
            }
        }
    }

    fn end(&self, limits: &Limits) -> Option<Instant> {
        let doing = self.doing();
        if let Some(since) = doing.stuck() {
            return Some(since + limits.slow_client);
        }
        match doing.phase {
            Phase::New(since) | Phase::Head(since) => Some(since + limits.head),
            Phase::Idle(since) => Some(since + limits.idle),
            Phase::Busy => None,
        }
    }
}

impl Doing {
    /// Since when the client takes nothing, if that is so.
    fn stuck(&self) -> Option<Instant> {
        let unread = || self.unread.iter().map(|(_, since)| *since).min();
        self.blocked.as_ref().map(|blocked| blocked.since).or_else(unread)
    }
}

/// A request runs as long as this lives.
pub(super) struct Busy(Arc<Clock>);

impl Busy {
    pub(super) fn begin(clock: &Arc<Clock>) -> Self {
        let mut doing = clock.doing();
        doing.requests += 1;
        doing.phase = Phase::Busy;
        drop(doing);
        Self(clock.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut doing = self.0.doing();
        doing.requests -= 1;
        if doing.requests == 0 {
            doing.phase = Phase::Idle(Instant::now());
            self.0.sooner.notify_one();
        }
    }
}

pub(super) struct BusyBody {
    body: Body,
    number: u64,
    busy: Busy,
}

impl BusyBody {
    pub(super) fn new(body: Body, busy: Busy) -> Self {
        let mut doing = busy.0.doing();
        doing.bodies += 1;
        let number = doing.bodies;
        drop(doing);
        Self { body, number, busy }
    }

    /// Notes whether a frame of this body, of so many bytes, waits to be followed.
    fn note(&self, given: Option<usize>) {
        let mut doing = self.busy.0.doing();
        doing.unread.retain(|(number, _)| *number != self.number);
        if let Some(bytes) = given {
            doing.unread.push((self.number, Instant::now()));
            doing.handed += bytes;
        }
    }
}

impl Drop for BusyBody {
    fn drop(&mut self) {
        self.note(None);
    }
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        {
            // hyper takes what it gets before it writes, so what is handed over now would only pile up.
            let mut doing = self.busy.0.doing();
            if doing.blocked.is_some() || doing.handed >= WRITE_AHEAD {
                doing.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let given = match &polled {
            Poll::Ready(Some(Ok(frame))) => Some(frame.data_ref().map_or(0, Bytes::len)),
            _ => None,
        };
        self.note(given);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// A socket that tells the clock when bytes come and when the client takes none.
pub(super) struct TimedIo {
    inner: TcpStream,
    clock: Arc<Clock>,
}

impl TimedIo {
    pub(super) fn new(inner: TcpStream, clock: &Arc<Clock>) -> Self {
        let clock = clock.clone();
        Self { inner, clock }
    }

    /// What became of so many bytes.
    fn wrote<T>(&self, bytes: usize, polled: Poll<T>) -> Poll<T> {
        let mut doing = self.clock.doing();
        match polled {
            Poll::Pending if doing.blocked.is_none() => {
                doing.blocked = Some(Blocked::begin(bytes));
                self.clock.sooner.notify_one();
            }
            Poll::Pending => {}
            Poll::Ready(_) => {
                doing.blocked = None;
                doing.handed = 0;
                doing.waiting.drain(..).for_each(Waker::wake);
            }
        }
        polled
    }
}

impl AsyncRead for TimedIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.remaining();
        let is_body = matches!(self.clock.doing().phase, Phase::Busy);
        let polled = if is_body && room > READ_AT_ONCE {
            // Memory that is only waited with is better not touched.
            ready!(self.inner.poll_read_ready(cx))?;
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(READ_AT_ONCE));
            let polled = Pin::new(&mut self.inner).poll_read(cx, &mut part);
            let count = part.filled().len();
            buf.advance(count);
            polled
        } else {
            Pin::new(&mut self.inner).poll_read(cx, buf)
        };
        if polled.is_ready() && buf.remaining() < room {
            let mut doing = self.clock.doing();
            if let Phase::New(_) | Phase::Idle(_) = doing.phase {
                doing.phase = Phase::Head(Instant::now());
                self.clock.sooner.notify_one();
            }
        }
        polled
    }
}

impl AsyncWrite for TimedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(buf.len(), polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(bufs.iter().map(|buf| buf.len()).sum(), polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
