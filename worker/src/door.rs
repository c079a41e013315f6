//! The door: connections as they come. Whoever has not shown the dispatch bearer in time is shown out, and from one address
//! only so many may try at once.
//!
//! It judges no bearer: whoever does says [`Guest::welcome`].

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::Sleep,
};

/// How long a connection may take to show the bearer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at once from one address, other than loopback, on which nobody has shown it.
const MOST_STRANGERS: usize = 256;

/// Where connections come in.
pub struct Door {
    listener: TcpListener,
    strangers: Strangers,
}

impl Door {
    /// The door at this address.
    pub fn new(listener: TcpListener) -> Self {
        let strangers = Strangers::default();
        Self { listener, strangers }
    }
}

impl Listener for Door {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let Some(place) = self.strangers.take(address.ip()) else {
                continue;
            };
            // Tokens are small and must leave at once.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "no TCP_NODELAY");
            }
            let visit = Visit {
                stream,
                guest: Guest(Arc::new(Mutex::new(Some(place)))),
                patience: Box::pin(tokio::time::sleep(PATIENCE)),
            };
            return (visit, address);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Who is at the other end; among the strangers until welcome.
#[derive(Debug, Clone)]
pub struct Guest(Arc<Mutex<Option<Place>>>);

impl Guest {
    /// May stay as long as they like.
    pub fn welcome(&self) {
        drop(self.place().take());
    }

    fn is_stranger(&self) -> bool {
        self.place().is_some()
    }

    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected<IncomingStream<'_, Door>> for Guest {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().guest.clone()
    }
}

/// A connection; once time is up, a stranger's says no more.
pub struct Visit {
    stream: TcpStream,
    guest: Guest,
    patience: Pin<Box<Sleep>>,
}

impl AsyncRead for Visit {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.guest.is_stranger() && self.patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How many strangers there are, by address; an IPv6 network of 64 bits is one.
#[derive(Debug, Clone, Default)]
struct Strangers(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Strangers {
    fn take(&self, address: IpAddr) -> Option<Place> {
        let address = match address.to_canonical() {
            IpAddr::V6(own) if !own.is_loopback() => Ipv6Addr::from_bits(own.to_bits() & !u128::from(u64::MAX)).into(),
            other => other,
        };
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        if *count >= MOST_STRANGERS && !address.is_loopback() {
            return None;
        }
        *count += 1;
        Some(Place {
            strangers: self.clone(),
            address,
        })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stranger's place, given back when dropped.
#[derive(Debug)]
struct Place {
    strangers: Strangers,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.strangers.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place_and_who_is_welcome_takes_none() {
        let strangers = Strangers::default();
        let take = |address: &str| strangers.take(address.parse().unwrap());
        let guest = Guest(Arc::new(Mutex::new(take("2001:db8::1"))));
        let others: Vec<_> = (1..MOST_STRANGERS).map(|_| take("2001:db8::2").unwrap()).collect();
        assert!(take("2001:db8::3").is_none());
        assert!(take("2001:db8:0:1::3").is_some() && take("10.0.0.1").is_some());
        guest.welcome();
        assert!(!guest.is_stranger() && take("2001:db8::3").is_some());
        drop(others);
        assert!(strangers.counts().is_empty());
        let local: Vec<_> = (0..=MOST_STRANGERS).map(|_| take("127.0.0.1")).collect();
        assert!(local.iter().all(Option::is_some));
    }
}
