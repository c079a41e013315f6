//! Failures before a worker's first event: another worker takes the request, within limits, and nobody notices.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    client::text_of,
    harness::{Hive, eventually},
    script::Script,
    worker::Worker,
};

/// A worker that fails like this, chosen before a good one that is there too.
async fn bad_before_good(hive: &Hive, model: &str, bad: Script) -> (Worker, Worker) {
    let good = hive.worker(&format!("{model}-good")).model(model).join().await;
    // The one chosen longest ago comes first, so let the good one have been chosen.
    assert_eq!(hive.chat(model).send().await.status, 200);
    let bad = hive
        .worker(&format!("{model}-bad"))
        .model(model)
        .script([bad])
        .join()
        .await;
    (bad, good)
}

/// The worker has died, as far as the gateway can tell.
fn deaths() -> Vec<(&'static str, Script)> {
    vec![
        ("FIN before the head", Script(vec![]).fin()),
        ("RST before the head", Script(vec![]).reset()),
        ("no HTTP", Script(vec![]).raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").hang()),
        ("FIN after the head", Script::stream().fin()),
        ("an end after the head", Script::stream().end()),
        ("a comment and an end", Script::stream().chunk(b": ping\n\n").end()),
        ("half a first event", Script::stream().chunk(b"data: {").fin()),
        ("[DONE] at once", Script::stream().done().end()),
        ("garbage as the first event", Script::stream().data("oops").hang()),
        (
            "a flood of interim responses and an end",
            Script(vec![])
                .raw(&b"HTTP/1.1 103 X\r\nlink: </x>\r\n\r\n".repeat(10_000))
                .fin(),
        ),
        (
            "a header of a megabyte",
            Script::head(
                200,
                &format!("content-type: text/event-stream\r\nx-huge: {}\r\n", "y".repeat(1 << 20)),
            )
            .hang(),
        ),
        (
            "a thousand headers",
            Script::head(200, &"x-more: y\r\n".repeat(1000)).hang(),
        ),
        ("another epoch", Script::refuses(409, "stale_epoch", "not me")),
    ]
}

/// The worker lives and answers what no client should see.
fn bad_answers() -> Vec<(&'static str, Script)> {
    let gzip = "content-type: text/event-stream\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n";
    vec![
        (
            "gzip that nobody asked for",
            Script::head(200, gzip)
                .chunk(b"\x1f\x8b\x08\0\0\0\0\0\0\x03+\n\n")
                .hang(),
        ),
        ("500", Script::answers(500, "text/plain", "panic at /home/x")),
        (
            "a redirect",
            Script::head(302, "location: http://169.254.169.254/\r\ncontent-length: 0\r\n"),
        ),
        ("a page", Script::answers(200, "text/html", "<html>hello</html>")),
        (
            "JSON instead of a stream",
            Script::answers(200, "application/json", "{}"),
        ),
        (
            "an error as its first event",
            Script::stream().event(&json!({"error": {"message": "oom"}})).hang(),
        ),
        ("401", Script::refuses(401, "invalid_api_key", "no")),
        ("404", Script::answers(404, "text/plain", "")),
        ("503", Script::refuses(503, "draining", "no")),
    ]
}

#[tokio::test]
async fn a_worker_that_dies_before_its_first_event_is_replaced_unnoticed() {
    let hive = Hive::start().await;
    for (number, (what, death)) in deaths().into_iter().enumerate() {
        let (bad, good) = bad_before_good(&hive, &format!("m{number}"), death).await;
        let reply = hive.chat(&format!("m{number}")).stream().send().await;
        assert_eq!(
            (reply.status, reply.header("x-hive-worker")),
            (200, good.id()),
            "{what}"
        );
        assert_eq!(text_of(&reply.events().await), "Hello", "{what}");
        assert_eq!((bad.server.calls(), good.server.calls()), (1, 2), "{what}");
    }
}

#[tokio::test]
async fn a_bad_answer_is_never_shown_and_another_worker_asked() {
    for some in bad_answers().chunks(3) {
        // A fresh hive for every three: that is its retry budget.
        let hive = Hive::start().await;
        for (number, (what, bad)) in some.iter().enumerate() {
            let (bad, good) = bad_before_good(&hive, &format!("m{number}"), bad.clone()).await;
            let reply = hive.chat(&format!("m{number}")).send().await;
            assert_eq!(
                (reply.status, reply.header("x-hive-worker")),
                (200, good.id()),
                "{what}"
            );
            assert_eq!((bad.server.calls(), good.server.calls()), (1, 2), "{what}");
        }
    }
}

#[tokio::test]
async fn with_nobody_else_to_ask_it_is_a_502_that_tells_nothing_of_the_inside() {
    let hive = Hive::start().await;
    for (number, (what, script)) in deaths().into_iter().chain(bad_answers()).enumerate() {
        let id = format!("w{number}");
        let worker = hive.worker(&id).model(&id).script([script]).join().await;
        for ask in [hive.chat(&id), hive.chat(&id).stream()] {
            hive.until(&id, "ready").await;
            let error = ask.send().await.refused(502, "worker_failed").await;
            let message = error["message"].as_str().unwrap();
            assert!(
                !message.contains("127.0.0.1") && !message.contains("/home"),
                "{what}: {message}"
            );
        }
        assert_eq!(
            worker.server.calls(),
            2,
            "{what}: never the same worker twice for one request"
        );
    }
}

#[tokio::test]
async fn a_request_during_which_two_workers_died_is_not_given_to_a_third() {
    let hive = Hive::start().await;
    let good = hive.worker("good").join().await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    let poisoned = [
        hive.worker("a").script([Script::stream().fin()]).join().await,
        hive.worker("b").script([Script::stream().fin()]).join().await,
    ];
    hive.chat("m").send().await.refused(502, "worker_failed").await;
    assert_eq!(poisoned.map(|worker| worker.server.calls()), [1, 1]);
    assert_eq!(good.server.calls(), 1);
}

#[tokio::test]
async fn two_workers_that_cannot_be_reached_still_leave_a_third_attempt() {
    let hive = Hive::start().await;
    hive.worker("good").join().await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    let (a, b) = (hive.worker("a").join().await, hive.worker("b").join().await);
    let addresses = [a.server.address, b.server.address];
    a.dies();
    b.dies();
    for address in addresses {
        eventually("its port refuses", async || {
            TcpStream::connect(address).await.is_err().then_some(())
        })
        .await;
    }
    assert_eq!(hive.chat("m").send().await.status, 200);
    for dead in ["a", "b"] {
        assert_eq!(hive.worker_view(dead).await["state"], "suspect", "it was tried");
    }
}

#[tokio::test]
async fn retries_have_a_budget() {
    let hive = Hive::start().await;
    let mut statuses = Vec::new();
    for number in 0..4 {
        let model = format!("m{number}");
        let _pair = bad_before_good(&hive, &model, Script::answers(500, "text/plain", "")).await;
        statuses.push(hive.chat(&model).send().await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 502]);
}

#[tokio::test]
async fn a_workers_refusal_of_the_request_passes_and_is_not_retried() {
    let hive = Hive::start().await;
    let long = Script::refuses(
        400,
        "context_length_exceeded",
        "This model's context is 2048 tokens; yours has 3000.",
    );
    let (bad, good) = bad_before_good(&hive, "m", long).await;
    let error = hive
        .chat("m")
        .send()
        .await
        .refused(400, "context_length_exceeded")
        .await;
    assert_eq!(error["message"], "This model's context is 2048 tokens; yours has 3000.");
    assert_eq!((bad.server.calls(), good.server.calls()), (1, 1));
    for (status, told) in [(422, 400), (415, 400), (413, 413)] {
        bad.server.answers(Script::answers(
            status,
            "application/json",
            "{\"detail\":\"messages: field required\"}",
        ));
        good.server.answers(Script::answers(
            status,
            "application/json",
            "{\"detail\":\"messages: field required\"}",
        ));
        let error = hive
            .chat("m")
            .stream()
            .send()
            .await
            .refused(told, "invalid_request")
            .await;
        assert_eq!(error["message"], "messages: field required");
    }
    for worker in [bad, good] {
        assert_eq!(
            hive.worker_view(worker.id()).await["state"],
            "ready",
            "a client's fault is not the worker's"
        );
    }
}

#[tokio::test]
async fn a_worker_that_is_still_busy_is_asked_again_without_blame() {
    let hive = Hive::start().await;
    let busy = Script::refuses(503, "busy", "a slot is still taken");
    let worker = hive
        .worker("a")
        .script([busy.clone(), busy, Script::says(&["at last"])])
        .join()
        .await;
    assert_eq!(text_of(&hive.chat("m").stream().send().await.events().await), "at last");
    assert_eq!(worker.server.calls(), 3);
    assert_eq!(hive.worker_view("a").await["state"], "ready");
}

#[tokio::test]
async fn a_worker_that_keeps_failing_is_set_aside() {
    let hive = Hive::start().await;
    let (bad, _good) = bad_before_good(&hive, "m", Script::answers(500, "text/plain", "")).await;
    for _request in 0..3 {
        assert_eq!(hive.chat("m").send().await.status, 200);
    }
    let beats = hive.worker_view("m-bad").await;
    assert_eq!(beats["state"], "suspect", "also while its heartbeats come: {beats}");
    for _request in 0..3 {
        assert_eq!(hive.chat("m").send().await.header("x-hive-worker"), "m-good");
    }
    assert_eq!(bad.server.calls(), 3);
}

#[tokio::test]
async fn a_worker_without_a_first_event_in_time_is_given_up() {
    let hive = Hive::with(&[("relay.first_token_timeout", "1s")]).await;
    let (bad, good) = bad_before_good(&hive, "m", Script::stream().chunk(b": still thinking\n\n").hang()).await;
    assert_eq!(hive.chat("m").send().await.header("x-hive-worker"), good.id());
    bad.server.call(0).await.gone().await;
    hive.until_in_flight(bad.id(), 0).await;
    good.server
        .answers(Script::stream().babble(Duration::from_millis(50), "").hang());
    let mut alive = hive.chat("m").stream().send().await;
    assert!(alive.event().await.is_some(), "an event without a token is an event");
    drop(alive);
    hive.until_in_flight(good.id(), 0).await;
    good.server.answers(Script::stream().hang());
    let error = hive.chat("m").send().await.refused(502, "worker_failed").await;
    let told = error["message"].as_str().unwrap();
    assert!(
        told.contains("within 1 s") && told.contains("relay.first_token_timeout"),
        "{told}"
    );
}
