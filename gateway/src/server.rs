//! The accept loop: connections with limits and timers, closed gently when the program drains.
//!
//! hyper's own head timer also runs while a connection idles, so the timers are ours: a clock that the
//! socket and the request tell what they do, and a watch that ends the connection when it shows too long.

mod timed;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderValue, Uri, Version, header, uri::PathAndQuery},
};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::timed::{Busy, BusyBody, Clock, End, Streams, TimedIo};
use crate::{config, leftover::Shared, shutdown::Lifecycle, tls::Tls};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// What the kernel may hold for a client that does not read, in bytes; left to itself it takes megabytes.
const SEND_BUFFER: usize = 64 * 1024;
/// How long a connection on which nothing comes is kept once another process accepts.
const LINGER: Duration = Duration::from_secs(7);

/// How long a client of HTTP/2 that was told to send no more has to hear it.
const GOODBYE: Duration = Duration::from_secs(1);

/// The address a request came from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The timers and limits of connections.
#[derive(Debug, Clone)]
pub struct Limits {
    head: Duration,
    idle: Duration,
    body: Duration,
    slow_client: Duration,
    gate: Arc<Gate>,
}

/// Counts connections, in all and from each address.
#[derive(Debug)]
struct Gate {
    open: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    most: usize,
    most_per_address: usize,
    /// Whose connections are counted by the sum alone.
    proxies: Vec<IpNet>,
}

impl Limits {
    /// Those of the configuration; clones share one count of connections.
    pub fn new(server: &config::Server, relay: &config::Relay) -> Self {
        let gate = Gate {
            open: AtomicUsize::new(0),
            by_address: Mutex::default(),
            most: server.max_connections,
            most_per_address: server.max_connections_per_address,
            proxies: server.trusted_proxies.clone(),
        };
        Self {
            head: server.head_timeout,
            idle: server.idle_timeout,
            body: server.body_timeout,
            slow_client: relay.slow_client,
            gate: Arc::new(gate),
        }
    }
}

/// Binds one listener for each of `count` threads, all on the same port; a port somebody else holds is an error.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    // Without SO_REUSEPORT first: with it, two hives of one user would silently share a port.
    let probe = std::net::TcpListener::bind(address)?;
    let address = probe.local_addr()?;
    drop(probe);
    (0..count)
        .map(|_| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.set_nonblocking(true)?;
            // Whoever is accepted inherits it.
            socket.set_send_buffer_size(SEND_BUFFER)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

/// A plane that stops accepting, and begins again, without its sockets being closed.
pub struct Plane {
    sockets: Vec<std::net::TcpListener>,
    tls: Option<Arc<Tls>>,
    app: Router,
    limits: Limits,
    lifecycle: Lifecycle,
}

impl Plane {
    /// One that is not open yet.
    pub fn new(sockets: Vec<std::net::TcpListener>, tls: Option<Arc<Tls>>, app: Router, limits: Limits) -> Self {
        Self {
            sockets,
            tls,
            app,
            limits,
            lifecycle: Lifecycle::default(),
        }
    }

    /// Where it listens.
    pub fn sockets(&self) -> &[std::net::TcpListener] {
        &self.sockets
    }

    /// Makes all that it takes to accept, on this runtime.
    pub fn prepare(&mut self) -> io::Result<()> {
        self.lifecycle = Lifecycle::default();
        for socket in &self.sockets {
            let (socket, tls, app) = (socket.try_clone()?, self.tls.clone(), self.app.clone());
            tokio::spawn(serve(socket, tls, app, self.limits.clone(), self.lifecycle.clone()));
        }
        Ok(())
    }

    /// Accepts from now on; it must be prepared.
    pub fn open(&self) {
        self.lifecycle.opened.cancel();
    }

    /// Gives its sockets up: they are another process's.
    pub fn shut(&mut self) {
        self.sockets.clear();
    }

    /// Accepts nothing more, and waits until all that runs has ended; what takes longer than this is cut.
    pub async fn close(&self, patience: Duration) {
        self.lifecycle.drain.cancel();
        self.lifecycle.connections.close();
        let _ = tokio::time::timeout(patience, self.lifecycle.connections.wait()).await;
        self.lifecycle.end().await;
    }
}

/// Accepts connections from when it is opened until the program drains or hands over, each in a task of this thread.
pub async fn serve(
    listener: std::net::TcpListener,
    tls: Option<Arc<Tls>>,
    app: Router,
    limits: Limits,
    lifecycle: Lifecycle,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    lifecycle.opened.cancelled().await;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = lifecycle.closed() => return Ok(()),
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(pass) = Pass::take(&limits.gate, peer.ip()) else {
                    continue;
                };
                // Without it, Nagle's algorithm and delayed acknowledgements hold small chunks back for 40 ms.
                let _ = stream.set_nodelay(true);
                let (app, limits, tls) = (app.clone(), limits.clone(), tls.clone());
                let connection = greeted(stream, tls, peer, app, limits, lifecycle.clone(), pass);
                lifecycle.connections.spawn(connection);
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                // Out of descriptors or memory: what is open must end first, so pause instead of spinning.
                tracing::error!(cause = %error, "cannot accept connections; trying again in 0.2 s");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// A connection from its first byte on; a TLS handshake has as long as a request's head.
async fn greeted(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    peer: SocketAddr,
    app: Router,
    limits: Limits,
    lifecycle: Lifecycle,
    _pass: Pass,
) {
    let clock = Arc::new(Clock::new());
    let greeting = async {
        match tls {
            None => {
                let is_http1 = is_http1(&stream).await?;
                Ok(Greeted::Plain(TimedIo::new(stream, &clock), is_http1))
            }
            Some(tls) => {
                let io = tls.acceptor().accept(TimedIo::new(stream, &clock)).await?;
                Ok::<_, io::Error>(Greeted::Tls(Box::new(io)))
            }
        }
    };
    let greeted = tokio::select! {
        greeted = Box::pin(greeting) => greeted,
        _ = clock.watch(&limits) => return,
        () = lifecycle.drain.cancelled() => return,
    };
    match greeted {
        Ok(Greeted::Plain(io, is_http1)) => connection(io, is_http1, clock, peer, app, limits, lifecycle).await,
        Ok(Greeted::Tls(io)) => {
            let is_http1 = io.get_ref().1.alpn_protocol() != Some(b"h2");
            Box::pin(connection(io, is_http1, clock, peer, app, limits, lifecycle)).await;
        }
        Err(_) => {}
    }
}

/// A connection that has said what it speaks.
enum Greeted {
    Plain(TimedIo, bool),
    Tls(Box<TlsStream<TimedIo>>),
}

/// Whether the first bytes cannot be the preface of HTTP/2. hyper would find out too, but reads the beginning of the
/// head by itself for that, and then makes its buffer twice as large for the rest.
async fn is_http1(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; 2];
    let count = stream.peek(&mut first).await?;
    Ok(!b"PR".starts_with(&first[..count]))
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: S,
    is_http1: bool,
    clock: Arc<Clock>,
    peer: SocketAddr,
    app: Router,
    limits: Limits,
    lifecycle: Lifecycle,
) {
    let io = TokioIo::new(io);
    let speaks_h2 = CancellationToken::new();
    let service = hyper::service::service_fn({
        let clock = clock.clone();
        let (handed_over, speaks_h2) = (lifecycle.handed_over.clone(), speaks_h2.clone());
        let time = limits.body;
        move |request: hyper::Request<Incoming>| {
            let is_h2 = request.version() == Version::HTTP_2;
            let busy = Busy::begin(&clock, is_h2);
            let (head, body) = request.into_parts();
            // One that waits for `100 Continue` sends nothing that nobody asked for.
            let waits = head.headers.contains_key(header::EXPECT);
            if is_h2 {
                speaks_h2.cancel();
            }
            let handed_over = handed_over.clone();
            let body = Shared::new(body);
            let mut request = Request::from_parts(head, Body::new(body.clone()));
            request.extensions_mut().insert(Peer(peer));
            normalise(request.uri_mut());
            let answer = app.clone().oneshot(request);
            async move {
                let mut response = answer.await?;
                if handed_over.is_cancelled() && !is_h2 {
                    let headers = response.headers_mut();
                    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                if !waits && !response.status().is_success() {
                    body.swallow(time).await;
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| BusyBody::new(body, busy)))
            }
        }
    });
    let mut builder = auto::Builder::new(Streams);
    if is_http1 {
        builder = builder.http1_only();
    }
    // Above our own limits, which answer with an envelope.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(128)
        .max_buf_size(64 * 1024 + 8192);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(64 * 1024)
        .max_header_list_size(64 * 1024)
        .keep_alive_interval(Duration::from_secs(60));
    let connection = builder.serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let too_long = async {
        // A client that keeps a connection may send its next request at any moment: it must not meet a closed door.
        let lingered = async {
            lifecycle.handed_over.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            end = clock.watch(&limits) => return end,
            () = lingered => {}
        }
        let idle = limits.idle.min(LINGER);
        clock.watch(&Limits { idle, ..limits.clone() }).await
    };
    let goodbye = async {
        tokio::select! {
            () = lifecycle.drain.cancelled() => {}
            // Under HTTP/2 a client is told which of its requests came too late.
            _ = futures_util::future::join(lifecycle.handed_over.cancelled(), speaks_h2.cancelled()) => {}
        }
    };
    let mut too_long = std::pin::pin!(too_long);
    tokio::select! {
        _ = connection.as_mut() => return,
        end = &mut too_long => {
            if end == End::Stuck || !speaks_h2.is_cancelled() {
                return;
            }
            // A request that crosses this word is answered.
            connection.as_mut().graceful_shutdown();
            clock.rest();
            let limits = Limits { idle: GOODBYE, ..limits.clone() };
            tokio::select! {
                _ = connection => {}
                _ = clock.watch(&limits) => {}
            }
            return;
        }
        () = goodbye => connection.as_mut().graceful_shutdown(),
    }
    // Dropping a connection drops its requests, their upstream connections and their leases.
    tokio::select! {
        _ = connection => (),
        _ = too_long => (),
    }
}

/// Double slashes and a trailing one are common slips of clients that glue URLs together.
fn normalise(uri: &mut Uri) {
    let path = uri.path();
    let trailing = path.len() > 1 && path.ends_with('/') && path.starts_with("/v1");
    if !path.contains("//") && !trailing {
        return;
    }
    let mut clean = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty()) {
        clean.push('/');
        clean.push_str(part);
    }
    if clean.is_empty() || (path.ends_with('/') && !path.starts_with("/v1") && !path.starts_with("//v1")) {
        clean.push('/');
    }
    if let Some(query) = uri.query() {
        clean.push('?');
        clean.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(clean).ok();
    if let Ok(normalised) = Uri::from_parts(parts) {
        *uri = normalised;
    }
}

// === Connections counted ===

impl Gate {
    /// What connections from there are counted under, if they are: whoever has one IPv6 address has all of its network.
    fn counted(&self, address: IpAddr) -> Option<IpAddr> {
        let address = address.to_canonical();
        if address.is_loopback() || self.proxies.iter().any(|net| net.contains(&address)) {
            return None;
        }
        Some(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(of_64) => Ipv6Addr::from_bits(of_64.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}

/// A connection's place under the limits.
struct Pass {
    gate: Arc<Gate>,
    address: Option<IpAddr>,
}

impl Pass {
    fn take(gate: &Arc<Gate>, address: IpAddr) -> Option<Self> {
        if gate.open.fetch_add(1, Ordering::Relaxed) >= gate.most {
            gate.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let mut pass = Self {
            gate: gate.clone(),
            address: None,
        };
        if let Some(address) = gate.counted(address) {
            let mut by_address = gate.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            let count = by_address.entry(address).or_default();
            if *count >= gate.most_per_address {
                return None;
            }
            *count += 1;
            pass.address = Some(address);
        }
        Some(pass)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.open.fetch_sub(1, Ordering::Relaxed);
        let Some(address) = self.address else { return };
        let mut by_address = self.gate.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glued_urls_reach_the_route_they_mean() {
        for (path, clean) in [
            ("//v1//models", "/v1/models"),
            ("/v1/models/", "/v1/models"),
            ("/v1//chat/completions?x=//", "/v1/chat/completions?x=//"),
            ("/docs/", "/docs/"),
            ("/docs//x/", "/docs/x/"),
            ("/", "/"),
            ("//", "/"),
            ("/v1/models/a%2Fb", "/v1/models/a%2Fb"),
        ] {
            let mut uri: Uri = format!("http://h{path}").parse().unwrap();
            normalise(&mut uri);
            assert_eq!(uri.path_and_query().unwrap().as_str(), clean, "{path}");
        }
    }

    #[test]
    fn a_port_somebody_holds_is_an_error_and_a_free_one_is_shared_by_our_threads() {
        let listeners = bind(([127, 0, 0, 1], 0).into(), 2).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert_eq!(listeners[1].local_addr().unwrap(), address);
        assert_eq!(bind(address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn one_address_cannot_take_every_connection() {
        let server = config::Server {
            max_connections: 3,
            max_connections_per_address: 2,
            ..config::Server::default()
        };
        let gate = Limits::new(&server, &config::Relay::default()).gate;
        let (far, near): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "127.0.0.1".parse().unwrap());
        let held = [Pass::take(&gate, far).unwrap(), Pass::take(&gate, far).unwrap()];
        assert!(Pass::take(&gate, far).is_none());
        let other = Pass::take(&gate, near).unwrap();
        assert!(Pass::take(&gate, near).is_none());
        drop(held);
        drop(other);
        assert!(Pass::take(&gate, far).is_some());
        assert!(gate.by_address.lock().unwrap().is_empty());
    }

    #[test]
    fn proxies_are_not_counted_and_ipv6_is_by_its_network() {
        let server = config::Server {
            trusted_proxies: vec!["10.0.0.0/30".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()],
            ..config::Server::default()
        };
        let gate = Limits::new(&server, &config::Relay::default()).gate;
        for (address, counted) in [
            ("10.0.0.3", None),
            ("::ffff:10.0.0.3", None),
            ("10.0.0.4", Some("10.0.0.4")),
            ("::ffff:10.0.0.4", Some("10.0.0.4")),
            ("2001:db8:1::7", None),
            ("2001:db8:2::7", Some("2001:db8:2::")),
            ("2001:db8:2:0:8000::1", Some("2001:db8:2::")),
            ("2001:db8:2:1::7", Some("2001:db8:2:1::")),
            ("::1", None),
        ] {
            let counted = counted.map(|address: &str| address.parse().unwrap());
            assert_eq!(gate.counted(address.parse().unwrap()), counted, "{address}");
        }
    }
}
