//! Connections timed: what each is doing and since when, and how much may wait to be written to it.
//!
//! It closes none: [`Clock::watch`] returns when somebody should. But of many streams of one connection it ends the one
//! that nobody reads.

use std::{
    io,
    ops::ControlFlow,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::rt::Executor;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

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
    /// Bodies whose last frame nobody has asked to follow yet: under HTTP/2 a client that reads nothing leaves the
    /// socket writable and one stream stuck.
    unread: Vec<Unread>,
    bodies: u64,
    /// Under HTTP/2 bytes may come that begin no request.
    speaks_h2: bool,
}

#[derive(Debug)]
struct Unread {
    body: u64,
    since: Instant,
    /// Ends its stream alone, where it has one.
    stream: Option<CancellationToken>,
}

/// Why a connection should be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It was between requests for too long.
    Idle,
    /// Its client sends no request, or takes nothing.
    Stuck,
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
            speaks_h2: false,
        };
        Self {
            doing: Mutex::new(doing),
            sooner: Notify::new(),
        }
    }

    fn doing(&self) -> std::sync::MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the connection has done one thing for too long; slow clients are counted, and their streams ended.
    pub(super) async fn watch(&self, limits: &Limits) -> End {
        loop {
            let looked = self.doing().look(limits);
            match looked {
                ControlFlow::Break(end) => return end,
                // It may have moved on by then, so look again.
                ControlFlow::Continue(Some(next)) => tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = self.sooner.notified() => {}
                },
                // Bodies do not knock for every frame: whether one is stuck is looked up now and then.
                ControlFlow::Continue(None) => tokio::select! {
                    () = tokio::time::sleep(limits.slow_client / 2) => {}
                    () = self.sooner.notified() => {}
                },
            }
        }
    }

    /// Begins to idle anew.
    pub(super) fn rest(&self) {
        let mut doing = self.doing();
        if let Phase::Idle(since) = &mut doing.phase {
            *since = Instant::now();
        }
    }
}

impl Doing {
    /// Ends streams that have taken too long. Why the whole connection should end, or else when that may be.
    fn look(&mut self, limits: &Limits) -> ControlFlow<End, Option<Instant>> {
        let now = Instant::now();
        let blocked = self.blocked.as_ref().map(|blocked| blocked.since);
        if blocked.is_none() {
            let is_late = |unread: &mut Unread| unread.since + limits.slow_client <= now;
            for late in self.unread.extract_if(.., is_late) {
                metrics::slow_client();
                match late.stream {
                    Some(stream) => stream.cancel(),
                    None => return ControlFlow::Break(End::Stuck),
                }
            }
        }
        let stuck = blocked.or_else(|| self.unread.iter().map(|unread| unread.since).min());
        let (at, end) = match (stuck, self.phase) {
            (Some(since), _) => (since + limits.slow_client, End::Stuck),
            (None, Phase::New(since) | Phase::Head(since)) => (since + limits.head, End::Stuck),
            (None, Phase::Idle(since)) => (since + limits.idle, End::Idle),
            (None, Phase::Busy) => return ControlFlow::Continue(None),
        };
        if at > now {
            return ControlFlow::Continue(Some(at));
        }
        if stuck.is_some() {
            metrics::slow_client();
        }
        ControlFlow::Break(end)
    }
}

tokio::task_local! {
    /// Ends the stream of HTTP/2 whose task this is.
    static STREAM: CancellationToken;
}

/// Runs each stream of HTTP/2 in a task of its own, which can be ended; the client is told by a reset of that stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams;

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let end = CancellationToken::new();
        let stream = STREAM.scope(end.clone(), stream);
        tokio::spawn(async move {
            tokio::select! {
                _ = stream => {}
                () = end.cancelled() => {}
            }
        });
    }
}

/// A request runs as long as this lives.
pub(super) struct Busy(Arc<Clock>);

impl Busy {
    pub(super) fn begin(clock: &Arc<Clock>, is_h2: bool) -> Self {
        let mut doing = clock.doing();
        doing.speaks_h2 = is_h2;
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
    stream: Option<CancellationToken>,
    busy: Busy,
}

impl BusyBody {
    pub(super) fn new(body: Body, busy: Busy) -> Self {
        let mut doing = busy.0.doing();
        doing.bodies += 1;
        let number = doing.bodies;
        drop(doing);
        let stream = STREAM.try_with(Clone::clone).ok();
        Self {
            body,
            number,
            stream,
            busy,
        }
    }

    /// Notes whether a frame of this body, of so many bytes, waits to be followed.
    fn note(&self, given: Option<usize>) {
        let mut doing = self.busy.0.doing();
        doing.unread.retain(|unread| unread.body != self.number);
        if let Some(bytes) = given {
            doing.unread.push(Unread {
                body: self.number,
                since: Instant::now(),
                stream: self.stream.clone(),
            });
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
            let begins = match doing.phase {
                Phase::New(_) => true,
                Phase::Idle(_) => !doing.speaks_h2,
                Phase::Head(_) | Phase::Busy => false,
            };
            if begins {
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
