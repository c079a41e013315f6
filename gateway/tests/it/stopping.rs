//! Going down on a signal: nothing new, what runs may end, and an honest last word for what may not.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::net::TcpStream;

use crate::{
    client::text_of,
    harness::{Hive, Signal, eventually},
    script::{Gate, Script},
};

async fn until_closed(hive: &Hive) {
    eventually("the data plane's listener is closed", async || {
        TcpStream::connect(hive.data_address()).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_idle_gateway_ends_at_once_and_cleans_up() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut hive = Hive::start().await;
        hive.worker("a").join().await;
        assert_eq!(hive.chat("m").send().await.status, 200);
        hive.signal(signal);
        assert_eq!(hive.exit().await.code(), Some(0));
        assert!(!hive.home().join("run/gateway.json").exists());
        assert!(TcpStream::connect(hive.control_address()).await.is_err());
    }
}

#[tokio::test]
async fn what_runs_may_finish_and_nothing_new_begins() {
    let mut hive = Hive::start().await;
    let gate = Gate::new();
    hive.worker("a")
        .script([Script::begins(&["a"]).wait(&gate).token("b").ends(2)])
        .join()
        .await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let waiting = hive.chat("m").spawn();
    eventually("one waits", async || {
        hive.requests()
            .await
            .iter()
            .any(|r| r["state"] == "queued")
            .then_some(())
    })
    .await;
    hive.signal(Signal::SIGTERM);
    until_closed(&hive).await;
    gate.open();
    assert_eq!(text_of(&running.events().await), "b");
    assert_eq!(waiting.await.unwrap().status, 200, "it was admitted before");
    assert_eq!(hive.exit().await.code(), Some(0));
    let hive = hive.again(&[]).await;
    assert!(hive.requests().await.iter().all(|r| r["state"] == "completed"));
}

#[tokio::test]
async fn what_runs_too_long_is_told_in_band_or_by_status() {
    let mut hive = Hive::with(&[("server.drain_timeout", "300ms")]).await;
    hive.worker("a")
        .slots(2)
        .script([Script::begins(&["a"]).hang()])
        .join()
        .await;
    let mut streaming = hive.chat("m").stream().send().await;
    streaming.until("a").await;
    let collecting = hive.chat("m").spawn();
    hive.until_in_flight("a", 2).await;
    let waiting = hive.chat("m").spawn();
    eventually("one waits", async || {
        hive.requests()
            .await
            .iter()
            .any(|r| r["state"] == "queued")
            .then_some(())
    })
    .await;
    hive.signal(Signal::SIGTERM);
    streaming.broken("shutting_down").await;
    collecting.await.unwrap().refused(503, "shutting_down").await;
    waiting.await.unwrap().refused(503, "shutting_down").await;
    assert_eq!(hive.exit().await.code(), Some(0));
    let hive = hive.again(&[]).await;
    let ends: Vec<Value> = hive
        .requests()
        .await
        .into_iter()
        .map(|r| json!([r["state"], r["error"]]))
        .collect();
    assert_eq!(ends, vec![json!(["aborted", "shutting_down"]); 3]);
}

#[tokio::test]
async fn a_second_signal_means_now() {
    let mut hive = Hive::start().await;
    hive.worker("a").script([Script::begins(&["a"]).hang()]).join().await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    hive.signal(Signal::SIGTERM);
    until_closed(&hive).await;
    let started = Instant::now();
    hive.signal(Signal::SIGTERM);
    running.broken("shutting_down").await;
    assert_eq!(hive.exit().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_second_signal_waits_for_no_database_and_what_is_not_written_is_counted() {
    let mut hive = Hive::start().await;
    hive.worker("a").join().await;
    let file = SqliteConnectOptions::new().filename(hive.home().join("hive.db"));
    let mut locker = SqliteConnection::connect_with(&file).await.unwrap();
    locker.execute("BEGIN IMMEDIATE").await.unwrap();
    for _request in 0..5 {
        assert_eq!(hive.chat("m").send().await.status, 200);
    }
    hive.signal(Signal::SIGTERM);
    until_closed(&hive).await;
    let started = Instant::now();
    hive.signal(Signal::SIGTERM);
    assert_eq!(hive.exit().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    hive.logged("what is missing is counted", |line| {
        line["rows"] == 5 && line["level"] == "ERROR"
    })
    .await;
}

#[tokio::test]
async fn a_client_that_keeps_its_connection_does_not_keep_the_gateway() {
    let mut hive = Hive::start().await;
    let mut idle = hive.connect().await;
    let silent = hive.connect().await;
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut idle, request).await.unwrap();
    let mut first = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut idle, &mut first)
        .await
        .unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let started = Instant::now();
    hive.signal(Signal::SIGTERM);
    assert_eq!(hive.exit().await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    drop((idle, silent));
}
