//! Many callers at once: what each of them may cost the gateway, in bytes, and that workers see only those they serve.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    client::exchange,
    harness::{Hive, eventually},
    metrics::{metrics, value},
    script::{Gate, Script},
};

/// What a stream may hold beyond the event in hand, in KiB.
const MOST_KIB: u64 = 64;
/// The event in hand, in KiB.
const EVENT_KIB: u64 = 8;

/// A request on the wire with this much JSON in its body.
fn request(hive: &Hive, body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        hive.admin,
        body.len()
    )
}

/// Streams that have begun, and of which nobody reads more than that.
async fn begun(hive: &Hive, count: usize) -> Vec<TcpStream> {
    let asked = request(
        hive,
        r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#,
    );
    let mut streams = Vec::new();
    for _stream in 0..count {
        let mut stream = hive.connect().await;
        stream.write_all(asked.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    for stream in &mut streams {
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
    }
    streams
}

#[tokio::test]
async fn clients_that_read_nothing_cost_at_most_64_kib_each_and_are_told_of() {
    const CROWD: u32 = 150;
    let hive = Hive::with(&[("relay.slow_client", "10m")]).await;
    let flood = Script::begins(&["a"]).babble(Duration::ZERO, &"x".repeat(8000));
    hive.worker("a").slots(CROWD).script([flood]).join().await;
    let blocked = async |count: u32| {
        eventually(&format!("{count} are blocked"), async || {
            let text = metrics(&hive).await;
            let told = value(&text, "hive_clients_blocked ").unwrap_or_default();
            ((told - f64::from(count)).abs() < 0.5).then_some(text)
        })
        .await
    };
    // Some before, so that what is made once is not counted.
    drop(begun(&hive, 20).await);
    hive.until_in_flight("a", 0).await;
    let before = hive.memory_kib();
    let streams = begun(&hive, CROWD as usize).await;
    let text = blocked(CROWD).await;
    // What their beginning took goes back to the system a little later.
    eventually("each costs little enough", async || {
        let each = (hive.memory_kib() - before) / u64::from(CROWD);
        (each <= MOST_KIB + EVENT_KIB).then_some(())
    })
    .await;
    let waiting = value(&text, "hive_clients_blocked_bytes ").unwrap() / f64::from(CROWD);
    assert!(
        waiting > 0.0 && waiting <= 24.0 * 1024.0,
        "{waiting} bytes wait for each"
    );
    drop(streams);
    blocked(0).await;
}

#[tokio::test]
async fn the_pieces_of_a_body_do_not_keep_what_they_were_read_into() {
    const PIECES: usize = 4000;
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    let before = hive.memory_kib();
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}]{}}}"#,
        " ".repeat(PIECES)
    );
    let whole = request(&hive, &body);
    let (head, pieces) = whole.split_at(whole.len() - PIECES);
    let mut stream = hive.connect().await;
    stream.set_nodelay(true).unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    for piece in pieces.as_bytes().chunks(1) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(exchange(&mut stream, b"").await.starts_with("HTTP/1.1 200"));
    // With 8 KiB for each it would be some 16 MiB and more.
    let grown = hive.memory_kib().saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB");
}

#[tokio::test]
async fn whoever_is_refused_in_a_rush_never_reaches_a_worker() {
    const RUSH: usize = 100;
    let hive = Hive::with(&[("scheduler.places_per_slot", "2")]).await;
    let gate = Gate::new();
    let worker = hive
        .worker("a")
        .slots(2)
        .script([Script::begins(&["a"]).wait(&gate).ends(1)])
        .join()
        .await;
    let asked: Vec<_> = (0..RUSH).map(|_| hive.chat("m").spawn()).collect();
    // Two slots and four places are taken, and all others are told so.
    eventually("the rest is refused", async || {
        let done = asked.iter().filter(|asked| asked.is_finished()).count();
        (done == RUSH - 6).then_some(())
    })
    .await;
    gate.open();
    let mut served = 0;
    for reply in asked {
        let reply = reply.await.unwrap();
        if reply.status == 200 {
            served += 1;
        } else {
            reply.refused(503, "queue_full").await;
        }
    }
    assert_eq!((served, worker.server.calls()), (6, 6));
    assert_eq!(worker.server.most_at_once(), 2);
}
