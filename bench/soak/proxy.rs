//! The fault proxy: stands between the gateway and one worker, and spoils an event stream when it is told to.
//!
//! It knows just enough HTTP to find heads and chunks of responses. Armed with a fault, it lets the next event stream
//! begin, and spoils it; everything else passes as it is.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// What is done to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Spoil {
    /// Closes the connection with FIN.
    Fin,
    /// Closes the connection with RST.
    Reset,
    /// Half an event, then FIN.
    HalfEvent,
    /// `[DONE]` where a token should be, and a proper end.
    DoneWithoutFinish,
    /// A proper end where a token should be.
    EndWithoutFinish,
    /// Everything but the last chunk of the body, then FIN.
    NoTerminator,
    /// Nothing more, and the connection stays.
    Silence,
    /// One event of a megabyte.
    GiantEvent,
    /// Bytes that are no UTF-8.
    NotUtf8,
    /// A chunk header that is none.
    BrokenChunk,
    /// A head that says `content-encoding: gzip`, and a body that is.
    Gzip,
    /// A redirect instead of the head.
    Redirect,
    /// Ten thousand interim responses instead of the head.
    Interim,
    /// A head with a header of a megabyte.
    HugeHead,
}

impl Spoil {
    /// Every one of them.
    pub const ALL: [Self; 14] = [
        Self::Fin,
        Self::Reset,
        Self::HalfEvent,
        Self::DoneWithoutFinish,
        Self::EndWithoutFinish,
        Self::NoTerminator,
        Self::Silence,
        Self::GiantEvent,
        Self::NotUtf8,
        Self::BrokenChunk,
        Self::Gzip,
        Self::Redirect,
        Self::Interim,
        Self::HugeHead,
    ];
}

/// A fault and when it strikes.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// What is done.
    pub spoil: Spoil,
    /// After so many events; those that replace the head do not wait.
    pub after: usize,
}

/// A proxy of one worker.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    armed: Armed,
    accept: tokio::task::AbortHandle,
}

type Armed = Arc<Mutex<Option<Fault>>>;

impl Proxy {
    /// A proxy on a port of its own before the worker at `to`.
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((to.ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let armed = Armed::default();
        let accept = tokio::spawn(accept(listener, to, armed.clone())).abort_handle();
        Self { address, armed, accept }
    }

    /// Spoils the next event stream.
    pub fn arm(&self, fault: Fault) {
        *self.armed.lock().unwrap() = Some(fault);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, armed: Armed) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((gateway, _)) = accepted {
                connections.spawn(connection(gateway, to, armed.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(gateway: TcpStream, to: SocketAddr, armed: Armed) {
    // A worker that is dead is a connection closed at once.
    let Ok(worker) = TcpStream::connect(to).await else {
        return;
    };
    let _ = (gateway.set_nodelay(true), worker.set_nodelay(true));
    let (mut from_gateway, to_gateway) = gateway.into_split();
    let (from_worker, mut to_worker) = worker.into_split();
    // Whichever side ends first ends both.
    tokio::select! {
        _ = tokio::io::copy(&mut from_gateway, &mut to_worker) => {}
        _ = Responses { from: from_worker, buffer: BytesMut::new(), to: to_gateway, armed }.pass() => {}
    }
}

/// A worker's responses on one connection.
struct Responses {
    from: OwnedReadHalf,
    buffer: BytesMut,
    to: OwnedWriteHalf,
    armed: Armed,
}

impl Responses {
    /// Returns when the connection is of no more use.
    async fn pass(mut self) -> io::Result<()> {
        loop {
            let head = self.until(b"\r\n\r\n").await?;
            let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let stream = text.contains("text/event-stream");
            let fault = if stream {
                self.armed.lock().unwrap().take()
            } else {
                None
            };
            if let Some(fault) = fault
                && self.spoil_head(fault.spoil, &head).await?
            {
                return Ok(());
            }
            self.to.write_all(&head).await?;
            if text.contains("transfer-encoding: chunked") {
                if self.pass_chunks(fault).await? {
                    return Ok(());
                }
            } else {
                let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
                let body = self
                    .take(length.map_or(0, |length| length.trim().parse().unwrap()))
                    .await?;
                self.to.write_all(&body).await?;
            }
        }
    }

    /// Whether it was one for the head; then nothing more comes.
    async fn spoil_head(&mut self, spoil: Spoil, head: &[u8]) -> io::Result<bool> {
        let without_end = &head[..head.len() - 2];
        let bytes = match spoil {
            Spoil::Gzip => [without_end, b"content-encoding: gzip\r\n\r\n4\r\n\x1f\x8b\x08\x00\r\n"].concat(),
            Spoil::Redirect => {
                b"HTTP/1.1 307 X\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n".to_vec()
            }
            Spoil::Interim => b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(10_000),
            Spoil::HugeHead => [without_end, b"x-huge: ", "y".repeat(1 << 20).as_bytes(), b"\r\n\r\n"].concat(),
            _ => return Ok(false),
        };
        self.to.write_all(&bytes).await?;
        if spoil == Spoil::Gzip {
            // A bomb is what goes on and on.
            let piece = frame(&vec![0; 64 * 1024]);
            for _piece in 0..64 {
                self.to.write_all(&piece).await?;
            }
        }
        Ok(true)
    }

    /// Whether the fault struck; then nothing more comes.
    async fn pass_chunks(&mut self, fault: Option<Fault>) -> io::Result<bool> {
        let mut passed = 0;
        loop {
            let chunk = self.chunk().await?;
            let is_last = chunk.starts_with(b"0\r\n");
            if let Some(fault) = fault {
                let due = if fault.spoil == Spoil::NoTerminator {
                    is_last
                } else {
                    passed >= fault.after || is_last
                };
                if due {
                    self.spoil(fault.spoil, &chunk).await?;
                    return Ok(true);
                }
            }
            self.to.write_all(&chunk).await?;
            if is_last {
                return Ok(false);
            }
            passed += 1;
        }
    }

    async fn spoil(&mut self, spoil: Spoil, chunk: &[u8]) -> io::Result<()> {
        let end = b"0\r\n\r\n";
        match spoil {
            Spoil::Reset => {
                socket2::SockRef::from(self.to.as_ref()).set_linger(Some(Duration::ZERO))?;
            }
            Spoil::HalfEvent => self.to.write_all(&chunk[..chunk.len() / 2]).await?,
            Spoil::DoneWithoutFinish => {
                self.to
                    .write_all(&[frame(b"data: [DONE]\n\n").as_slice(), end].concat())
                    .await?;
            }
            Spoil::EndWithoutFinish => self.to.write_all(end).await?,
            Spoil::GiantEvent => {
                let event = format!("data: {}\n\n", "x".repeat(1 << 20));
                self.to.write_all(&frame(event.as_bytes())).await?;
            }
            Spoil::NotUtf8 => self.to.write_all(&frame(b"data: {\"x\":\"\xff\"}\n\n")).await?,
            Spoil::BrokenChunk => self.to.write_all(b"zz\r\nhello\r\n").await?,
            Spoil::Silence => std::future::pending().await,
            _ => {}
        }
        Ok(())
    }

    /// One chunk with its frame.
    async fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let mut whole = self.until(b"\r\n").await?;
        let size = std::str::from_utf8(&whole[..whole.len() - 2]).ok();
        let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.ok_or(io::ErrorKind::InvalidData)?;
        whole.extend(self.take(size + 2).await?);
        Ok(whole)
    }

    async fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(found) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(self.buffer.split_to(found + end.len()).to_vec());
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.more().await?;
        }
        Ok(self.buffer.split_to(count).to_vec())
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.from.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}
