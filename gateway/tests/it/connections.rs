//! Connections as they come: slow, silent, flooded, pipelined, too many.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    client::{Reply, exchange, text_of},
    harness::{Hive, soon},
    script::{Gate, Script},
    shapes,
};

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";

#[tokio::test]
async fn slow_heads_and_silent_connections_are_closed() {
    let hive = Hive::with(&[("server.head_timeout", "300ms")]).await;
    for begun in ["", "GET /v1/models HTTP/1.1\r\nhost: loc"] {
        let answer = exchange(&mut hive.connect().await, begun.as_bytes()).await;
        assert_eq!(answer, "", "after {begun:?}");
    }
    // One byte at a time is no progress.
    let mut stream = hive.connect().await;
    let dripping = async {
        for byte in HEALTH.bytes().cycle() {
            if stream.write_all(&[byte | 0x20]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("a dripping head is cut off", dripping).await;
    assert_eq!(Reply::to(hive.on_data("GET", "/v1/models")).await.status, 200);
}

#[tokio::test]
async fn an_idle_connection_is_closed_but_not_while_it_is_used() {
    let hive = Hive::with(&[("server.idle_timeout", "300ms"), ("server.head_timeout", "30s")]).await;
    let gate = Gate::new();
    hive.worker("a")
        .script([Script::begins(&["a"]).wait(&gate).token("b").ends(2)])
        .join()
        .await;
    let mut streaming = hive.chat("m").stream().send().await;
    streaming.until("a").await;
    // This one is closed for being idle, while the stream says nothing for longer.
    let answer = exchange(&mut hive.connect().await, HEALTH.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    gate.open();
    assert_eq!(text_of(&streaming.events().await), "b");
}

#[tokio::test]
async fn a_flood_of_headers_is_told_so_in_the_envelope() {
    let hive = Hive::start().await;
    let many = "x-more: y\r\n".repeat(64);
    let long = format!("x-long: {}\r\n", "y".repeat(33 * 1024));
    for flood in [many, long] {
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{flood}\r\n");
        let answer = exchange(&mut hive.connect().await, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        assert!(answer.contains("x-request-id"), "{answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(
            shapes::error(&serde_json::from_str(body).unwrap())["code"],
            "request_too_large"
        );
    }
    let beyond = format!(
        "GET / HTTP/1.1\r\nhost: localhost\r\nx-long: {}\r\n\r\n",
        "y".repeat(200 * 1024)
    );
    let mut stream = hive.connect().await;
    let _cut_off = stream.write_all(beyond.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset = soon("the connection ends", stream.read_to_end(&mut answer)).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test]
async fn what_is_no_http_is_refused_and_closed() {
    let hive = Hive::start().await;
    for garbage in [
        "hello\r\n\r\n",
        "\u{16}\u{3}\u{1}\0\u{a5}",
        "GET / HTTP/9.9\r\n\r\n",
        "GET  HTTP/1.1\r\nhost localhost\r\n\r\n",
    ] {
        let answer = exchange(&mut hive.connect().await, garbage.as_bytes()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{garbage:?}: {answer}"
        );
    }
    assert_eq!(Reply::to(hive.on_data("GET", "/v1/models")).await.status, 200);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order_on_one_connection() {
    let hive = Hive::start().await;
    let ask = |path: &str, id: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nx-request-id: {id}\r\n\r\n");
    let last = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-request-id: four\r\n\r\n";
    let asked = [
        ask("/healthz", "one"),
        ask("/nope", "two"),
        ask("/v1/models", "three"),
        last.to_owned(),
    ]
    .concat();
    let answer = exchange(&mut hive.connect().await, asked.as_bytes()).await;
    let statuses: Vec<&str> = answer.matches("HTTP/1.1 ").map(|_| "").collect();
    assert_eq!(statuses.len(), 4, "{answer}");
    let places: Vec<usize> = ["one", "two", "three", "four"]
        .iter()
        .map(|id| answer.find(&format!("x-request-id: {id}")).unwrap())
        .collect();
    assert!(places.is_sorted(), "{answer}");
    assert!(
        answer.contains("404 Not Found") && answer.contains("401 Unauthorized"),
        "{answer}"
    );
}

#[tokio::test]
async fn http_1_0_without_a_host_is_answered() {
    let hive = Hive::start().await;
    let answer = exchange(&mut hive.connect().await, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"),
        "{answer}"
    );
}

#[tokio::test]
async fn connections_beyond_the_most_are_closed_and_places_come_free_again() {
    let hive = Hive::with(&[("server.max_connections", "4"), ("server.threads", "1")]).await;
    let mut held = Vec::new();
    for _connection in 0..4 {
        let mut stream = hive.connect().await;
        stream.write_all(HEALTH.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        held.push(stream);
    }
    let mut surplus = hive.connect().await;
    let mut answer = Vec::new();
    let _reset = soon("the fifth is closed", surplus.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"");
    let looked = Reply::to(hive.on_control("GET", "/control/v1/workers")).await;
    assert_eq!(looked.status, 200, "the other plane is open");
    drop(held);
    crate::harness::eventually("a place is free", async || {
        let mut stream = hive.connect().await;
        stream.write_all(HEALTH.as_bytes()).await.ok()?;
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.ok().map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_gateway_out_of_descriptors_waits_blames_nobody_and_recovers() {
    let hive = Hive::with(&[("server.threads", "1")]).await;
    hive.worker("a").join().await;
    let mut kept = hive.connect().await;
    kept.write_all(HEALTH.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    kept.read_exact(&mut first).await.unwrap();
    hive.spare_descriptors(8);
    let mut held = Vec::new();
    for _connection in 0..32 {
        held.push(hive.connect().await);
    }
    let is_cause = |line: &serde_json::Value| {
        line["cause"]
            .as_str()
            .is_some_and(|cause| cause.contains("os error 24"))
    };
    hive.logged("it is out of descriptors", is_cause).await;
    // Whoever is connected is answered; for a worker there is no descriptor left, and that is not its fault.
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
    let ask = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        hive.admin,
        body.len()
    );
    let began = hive.ticks();
    let answer = exchange(&mut kept, ask.as_bytes()).await;
    assert!(
        answer.contains("HTTP/1.1 503") && answer.contains("retry-after"),
        "{answer}"
    );
    // That wait was no spinning: 1 s of it would be 100 ticks.
    let until = std::time::Instant::now() + Duration::from_secs(1);
    crate::harness::eventually("a second is over", async || {
        (std::time::Instant::now() > until).then_some(())
    })
    .await;
    let spent = hive.ticks() - began;
    assert!(spent < 50, "{spent} ticks");
    drop(held);
    crate::harness::eventually("it answers again", async || {
        let answer = hive.http.get(format!("{}/healthz", hive.data)).send().await;
        answer.ok().filter(|answer| answer.status() == 200)
    })
    .await;
    assert_eq!(hive.worker_view("a").await["state"], "ready");
    assert_eq!(hive.chat("m").send().await.status, 200);
}
