//! HTTP/2: streams beside each other, and what a client can do with it that it could not before.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{
    client::Reply,
    harness::{Hive, soon},
    script::{Gate, Script},
};

/// What every HTTP/2 client says first: the preface and its settings (RFC 9113, section 3.4).
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of this type, with these flags, on this stream.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [head.as_slice(), payload].concat()
}

/// The fields of `GET / HTTP/2` for localhost (RFC 7541: three of the static table, one literal).
fn get() -> Vec<u8> {
    [b"\x82\x84\x86\x41\x09".as_slice(), b"localhost"].concat()
}

/// Writes pieces until there are no more or the other side refuses; everything it said until it closed.
async fn flood(stream: TcpStream, pieces: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let (mut from, mut to) = stream.into_split();
    let hearing = tokio::spawn(async move {
        let mut said = Vec::new();
        let _reset = from.read_to_end(&mut said).await;
        said
    });
    for piece in pieces {
        if to.write_all(&piece).await.is_err() {
            break;
        }
    }
    soon("the connection is closed", hearing).await.unwrap()
}

/// The whole frames in what was said: type, flags, payload.
fn frames(mut said: &[u8]) -> impl Iterator<Item = (u8, u8, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes([0, *said.first()?, *said.get(1)?, *said.get(2)?]) as usize;
        let (kind, flags, payload) = (*said.get(3)?, *said.get(4)?, said.get(9..9 + length)?);
        said = &said[9 + length..];
        Some((kind, flags, payload))
    })
}

/// The error code of the GOAWAY among these frames, if there is one.
fn goodbye(said: &[u8]) -> Option<u32> {
    let (.., payload) = frames(said).find(|(kind, ..)| *kind == GOAWAY)?;
    Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))
}

/// It serves on.
async fn is_well(hive: &Hive) {
    assert_eq!(Reply::to(hive.on_data("GET", "/v1/models")).await.status, 200);
}

#[tokio::test]
async fn streams_that_are_reset_as_fast_as_they_are_opened_end_the_connection() {
    let hive = Hive::start().await;
    let pairs = (0..100_000).map(|n| {
        let stream = 2 * n + 1;
        let open = frame(HEADERS, END_HEADERS | END_STREAM, stream, &get());
        [open, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    let said = flood(hive.connect().await, std::iter::once(HELLO.to_vec()).chain(pairs)).await;
    // ENHANCE_YOUR_CALM, unless the reset of the socket was faster.
    assert!(matches!(goodbye(&said), None | Some(11)), "{:?}", goodbye(&said));
    is_well(&hive).await;
}

#[tokio::test]
async fn a_head_that_is_continued_for_ever_ends_the_connection() {
    let hive = Hive::start().await;
    let before = hive.memory_kib();
    let begun = [HELLO, &frame(HEADERS, END_STREAM, 1, &get())].concat();
    // A literal field that no table keeps, 16 KiB of them a frame.
    let field = [b"\0\x01x\x7f\x81\x01".as_slice(), &[b'y'; 256]].concat();
    let more = frame(CONTINUATION, 0, 1, &field.repeat(62));
    let said = flood(
        hive.connect().await,
        std::iter::once(begun).chain(std::iter::repeat_n(more, 100_000)),
    )
    .await;
    assert!(goodbye(&said).is_none_or(|code| code != 0), "{:?}", goodbye(&said));
    let grown = hive.memory_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB");
    is_well(&hive).await;
}

#[tokio::test]
async fn a_client_that_asks_for_acknowledgements_and_reads_none_is_not_listened_to() {
    let hive = Hive::start().await;
    let before = hive.memory_kib();
    for ask in [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8])] {
        let socket = TcpSocket::new_v4().unwrap();
        // Little room on our side, so that it is soon full.
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(hive.data_address()).await.unwrap();
        stream.write_all(HELLO).await.unwrap();
        let asks = ask.repeat(10_000);
        let taken = async { while let Ok(Ok(())) = timeout(Duration::from_secs(1), stream.write_all(&asks)).await {} };
        soon("no more is taken", taken).await;
        let grown = hive.memory_kib().saturating_sub(before);
        assert!(grown < 32 * 1024, "{grown} KiB");
    }
    is_well(&hive).await;
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_however_often_it_pings() {
    let hive = Hive::with(&[("server.idle_timeout", "500ms"), ("server.head_timeout", "500ms")]).await;
    let pings = std::iter::repeat_with(|| frame(PING, 0, 0, &[0; 8]));
    let (mut from, mut to) = hive.connect().await.into_split();
    to.write_all(HELLO).await.unwrap();
    let pinging = async {
        for ping in pings {
            if to.write_all(&ping).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let closed = async {
        let mut said = Vec::new();
        let _reset = from.read_to_end(&mut said).await;
    };
    soon("the connection is closed", async {
        tokio::select! { () = pinging => {}, () = closed => {} }
    })
    .await;
}

#[tokio::test]
async fn a_connection_between_requests_is_kept_whatever_frames_come_and_told_before_it_is_closed() {
    let hive = Hive::with(&[("server.idle_timeout", "1500ms"), ("server.head_timeout", "300ms")]).await;
    let mut stream = hive.connect().await;
    let begun = Instant::now();
    let open = frame(HEADERS, END_HEADERS | END_STREAM, 1, &get());
    stream.write_all(&[HELLO, &open].concat()).await.unwrap();
    let mut said = Vec::new();
    let is_over =
        |said: &[u8]| frames(said).any(|(kind, flags, _)| [DATA, HEADERS].contains(&kind) && flags & END_STREAM != 0);
    while !is_over(&said) {
        let read = soon("an answer", stream.read_buf(&mut said)).await.unwrap();
        assert!(read > 0, "{said:?}");
    }
    stream.write_all(&frame(PING, 0, 0, &[0; 8])).await.unwrap();
    let _reset = soon("the connection is closed", stream.read_to_end(&mut said)).await;
    assert_eq!(goodbye(&said), Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_fails_alone() {
    let hive = Hive::with(&[("relay.slow_client", "400ms")]).await;
    let gate = Gate::new();
    let flood = Script::begins(&["a"]).babble(Duration::ZERO, &"x".repeat(60_000));
    let waits = Script::begins(&["a"]).wait(&gate).token("b").ends(2);
    let worker = hive.worker("a").slots(2).script([flood, waits]).join().await;
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(64 * 1024)
        .handshake(TokioIo::new(hive.connect().await));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let unread = soon("an answer", sender.send_request(chat(&hive))).await.unwrap();
    let read = soon("another", sender.send_request(chat(&hive))).await.unwrap();
    worker.server.call(0).await.gone().await;
    gate.open();
    let body = soon("the body", read.into_body().collect()).await.unwrap().to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"), "{body:?}");
    let cut = soon("a reset", unread.into_body().collect()).await;
    assert!(cut.is_err(), "no clean end");
    hive.until_in_flight("a", 0).await;
}

#[tokio::test]
async fn a_stream_whose_window_is_shut_from_the_start_is_dropped() {
    let hive = Hive::with(&[("relay.slow_client", "400ms")]).await;
    let flood = Script::begins(&["a"]).babble(Duration::ZERO, &"x".repeat(60_000));
    let worker = hive.worker("a").script([flood]).join().await;
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(TokioIo::new(hive.connect().await));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let answer = soon("an answer", sender.send_request(chat(&hive))).await.unwrap();
    worker.server.call(0).await.gone().await;
    hive.until_in_flight("a", 0).await;
    drop(answer);
}

fn chat(hive: &Hive) -> hyper::Request<Full<Bytes>> {
    let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": true});
    hyper::Request::post(format!("{}/v1/chat/completions", hive.data))
        .header("authorization", format!("Bearer {}", hive.admin))
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap()
}

#[tokio::test]
async fn without_tls_streams_run_beside_each_other() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    hive.worker("a")
        .slots(2)
        .script([Script::begins(&["a"]).wait(&gate).token("b").ends(2)])
        .join()
        .await;
    let stream = hive.connect().await;
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let ask = async || {
        soon("an answer", sender.clone().send_request(chat(&hive)))
            .await
            .unwrap()
    };
    // Both are under way on one connection before either ends.
    let (first, second) = (ask().await, ask().await);
    assert_eq!(
        (first.status().as_u16(), second.status().as_u16(), first.version()),
        (200, 200, hyper::Version::HTTP_2)
    );
    gate.open();
    for response in [first, second] {
        let body = soon("the body", response.into_body().collect())
            .await
            .unwrap()
            .to_bytes();
        assert!(body.ends_with(b"data: [DONE]\n\n"), "{body:?}");
    }
    hive.until_in_flight("a", 0).await;
}

#[tokio::test]
async fn a_stream_whose_client_reads_nothing_is_dropped() {
    let hive = Hive::with(&[("relay.slow_client", "400ms")]).await;
    let flood = Script::begins(&["a"]).babble(Duration::ZERO, &"x".repeat(60_000));
    let worker = hive.worker("a").script([flood]).join().await;
    let io = TokioIo::new(hive.connect().await);
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(64 * 1024)
        .handshake(io);
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    // The socket stays writable; it is the stream's window that is full.
    let answer = soon("an answer", sender.send_request(chat(&hive))).await.unwrap();
    worker.server.call(0).await.gone().await;
    hive.until_in_flight("a", 0).await;
    drop(answer);
}
