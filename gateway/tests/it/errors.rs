//! What callers are told when they get no answer: always OpenAI's envelope, with a request id.

use reqwest::Body;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    client::{Reply, exchange},
    harness::Hive,
    script::Script,
    strays::attached,
};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_url_that_is_not_there_is_an_envelope_on_both_planes() {
    let hive = Hive::start().await;
    for path in [
        "/",
        "/nope",
        "/v1",
        "/v1/nope",
        "/v1/chat",
        "/control/v1/workers",
        "/v1/models%2f",
        "/index.html",
    ] {
        Reply::to(hive.on_data("GET", path))
            .await
            .refused(404, "unknown_url")
            .await;
    }
    for path in [
        "/",
        "/nope",
        "/control",
        "/control/v1",
        "/control/v1/nope",
        "/v1/models",
        CHAT,
    ] {
        Reply::to(hive.on_control("GET", path))
            .await
            .refused(404, "unknown_url")
            .await;
    }
    let error = Reply::to(hive.on_data("POST", "/v1/responses"))
        .await
        .refused(404, "unknown_url")
        .await;
    assert!(
        error["message"].as_str().unwrap().contains("POST /v1/responses"),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let hive = Hive::start().await;
    for (request, allowed) in [
        (hive.on_data("GET", CHAT), "POST"),
        (hive.on_data("GET", "/v1/completions"), "POST"),
        (hive.on_data("DELETE", "/v1/embeddings"), "POST"),
        (hive.on_data("DELETE", "/v1/models"), "GET,HEAD"),
        (hive.on_data("POST", "/v1/models/m"), "GET,HEAD"),
        (hive.on_data("POST", "/healthz"), "GET,HEAD"),
        (hive.on_data("POST", "/openapi.json"), "GET,HEAD"),
        (hive.on_control("PUT", "/control/v1/keys"), "GET,HEAD,POST"),
        (hive.on_control("GET", "/control/v1/workers/register"), "POST"),
        (hive.on_control("OPTIONS", "/control/v1/keys"), "GET,HEAD,POST"),
        (hive.on_control("BREW", "/control/v1/workers/a"), "GET,HEAD,DELETE"),
    ] {
        let reply = Reply::to(request).await;
        let mut listed: Vec<_> = reply.header("allow").split(',').map(str::trim).collect();
        let mut allowed: Vec<_> = allowed.split(',').collect();
        listed.sort_unstable();
        allowed.sort_unstable();
        assert_eq!(listed, allowed);
        reply.refused(405, "method_not_allowed").await;
    }
}

#[tokio::test]
async fn a_body_that_is_no_chat_request_is_refused_and_its_field_named() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let messages = r#""messages":[{"role":"user","content":"x"}]"#;
    let deep = format!(r#"{{"model":"m","messages":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    let many = format!(r#"{{"model":"m","messages":[{}1]}}"#, "1,".repeat(2048));
    let tools = format!(r#"{{"model":"m",{messages},"tools":[{}1]}}"#, "1,".repeat(128));
    let surplus = format!(r#"{{"model":"m",{messages}}} {{}}"#);
    for (body, param) in [
        ("", None),
        ("{", None),
        ("[]", None),
        ("\"x\"", None),
        ("{\"model\":NaN}", Some("model")),
        ("\u{feff}{}", None),
        (&surplus, None),
        (&deep, Some("messages")),
        ("{}", Some("model")),
        (&format!(r#"{{"model":null,{messages}}}"#), Some("model")),
        (&format!(r#"{{"model":["m"],{messages}}}"#), Some("model")),
        (r#"{"model":"m"}"#, Some("messages")),
        (r#"{"model":"m","messages":[]}"#, Some("messages")),
        (r#"{"model":"m","messages":{"role":"user"}}"#, Some("messages")),
        (&many, Some("messages")),
        (&tools, Some("tools")),
        (
            &format!(r#"{{"model":"m",{messages},"stream":"true"}}"#),
            Some("stream"),
        ),
        (
            &format!(r#"{{"model":"m",{messages},"stream_options":[]}}"#),
            Some("stream_options"),
        ),
    ] {
        let reply = Reply::to(hive.on_data("POST", CHAT).body(body.to_owned())).await;
        let error = reply.refused(400, "invalid_request").await;
        assert_eq!(error["param"].as_str(), param, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let invalid = b"{\"model\":\"m\",\"messages\":[\"\xff\"]}".to_vec();
    Reply::to(hive.on_data("POST", CHAT).body(invalid))
        .await
        .refused(400, "invalid_request")
        .await;
    assert_eq!(worker.server.calls(), 0);
}

#[tokio::test]
async fn a_compressed_body_is_refused_by_its_name() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let reply = hive.chat("m").header("content-encoding", "gzip").send().await;
    let error = reply.refused(400, "invalid_request").await;
    assert_eq!(error["param"], "content-encoding");
    assert!(error["message"].as_str().unwrap().contains("`gzip`"), "{error}");
    assert_eq!(worker.server.calls(), 0);
    let plain = hive.chat("m").header("content-encoding", "identity").send().await;
    assert_eq!(plain.status, 200);
}

#[tokio::test]
async fn a_body_the_control_plane_cannot_read_is_refused() {
    let hive = Hive::start().await;
    for path in ["/control/v1/keys", "/control/v1/join-tokens", "/control/v1/workers"] {
        for body in [
            "",
            "{",
            "[]",
            r#"{"surprise":1}"#,
            r#"{"name":7,"worker_id":7,"url":7}"#,
        ] {
            Reply::to(hive.on_control("POST", path).body(body))
                .await
                .refused(400, "invalid_request")
                .await;
        }
        let large = hive.on_control("POST", path).body(vec![b' '; 64 * 1024 + 1]);
        Reply::to(large).await.refused(413, "request_too_large").await;
    }
    for path in [
        "/control/v1/requests?limit=0",
        "/control/v1/requests?limit=x",
        "/control/v1/requests?limit=1001",
    ] {
        let error = Reply::to(hive.on_control("GET", path))
            .await
            .refused(400, "invalid_request")
            .await;
        assert_eq!(error["param"], "limit");
    }
}

#[tokio::test]
async fn what_axum_or_the_docs_refuse_is_in_the_envelope_too() {
    let hive = Hive::start().await;
    for path in ["/v1/models/%FF", "/docs/nope.js", "/docs/..%2f..%2fetc%2fpasswd"] {
        Reply::to(hive.on_data("GET", path))
            .await
            .refused(404, "unknown_url")
            .await;
    }
    for (method, path) in [
        ("GET", "/control/v1/workers/%FF"),
        ("DELETE", "/control/v1/keys/%FF"),
        ("POST", "/control/v1/requests/%FF/cancel"),
        ("POST", "/control/v1/workers/%FF/leave"),
        ("GET", "/docs/nope.js"),
    ] {
        Reply::to(hive.on_control(method, path))
            .await
            .refused(404, "unknown_url")
            .await;
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_by_its_length_and_while_it_comes() {
    let hive = Hive::start().await;
    let most = 8 * 1024 * 1024;
    let announced = hive.on_data("POST", CHAT).body(vec![b' '; most + 1]);
    let error = Reply::to(announced).await.refused(413, "request_too_large").await;
    assert!(error["message"].as_str().unwrap().contains("8388608"), "{error}");
    let pieces = futures_util::stream::iter((0..=16).map(|_| Ok::<_, std::io::Error>(vec![b' '; 512 * 1024])));
    let chunked = hive.on_data("POST", CHAT).body(Body::wrap_stream(pieces));
    Reply::to(chunked).await.refused(413, "request_too_large").await;
    // One that just fits is read.
    Reply::to(hive.on_data("POST", CHAT).body(vec![b' '; most]))
        .await
        .refused(400, "invalid_request")
        .await;
}

#[tokio::test]
async fn a_client_that_sends_everything_first_still_reads_why_it_was_too_much() {
    let hive = Hive::start().await;
    let length = 12 * 1024 * 1024;
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n",
        hive.admin
    );
    let mut stream: TcpStream = hive.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = exchange(&mut stream, &vec![b' '; length]).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("request_too_large"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_awaited_for_ever() {
    let hive = Hive::with(&[("server.body_timeout", "200ms")]).await;
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: 100\r\n\r\n{{",
        hive.admin
    );
    let answer = exchange(&mut hive.connect().await, head.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("did not arrive within"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_sane_request_id_comes_back_and_a_strange_one_is_replaced() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let sane = hive.chat("m").header("x-request-id", "my-trace:7").send().await;
    assert_eq!(sane.header("x-request-id"), "my-trace:7");
    let long = "x".repeat(129);
    for strange in ["", "a b", "a\"b", "{}", long.as_str()] {
        let reply = hive.chat("nope").header("x-request-id", strange).send().await;
        assert!(
            reply.header("x-request-id").starts_with("req_"),
            "{}",
            reply.header("x-request-id")
        );
        reply.refused(404, "model_not_found").await;
    }
}

#[tokio::test]
async fn hosts_that_are_not_ours_are_not_answered() {
    let hive = Hive::with(&[("control.allowed_hosts", "[\"hive.example\"]")]).await;
    for host in ["evil.example", "127.0.0.1.evil.example:80", "169.254.169.254"] {
        for (request, setting) in [
            (hive.on_data("GET", "/v1/models"), "server.allowed_hosts"),
            (hive.on_control("GET", "/control/v1/keys"), "control.allowed_hosts"),
        ] {
            let reply = Reply::to(request.header("host", host)).await;
            let error = reply.refused(400, "invalid_request").await;
            assert!(error["message"].as_str().unwrap().contains(setting), "{error}");
        }
    }
    let two = hive
        .on_control("GET", "/control/v1/keys")
        .header("host", "localhost")
        .header("host", "evil.example");
    Reply::to(two).await.refused(400, "invalid_request").await;
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:7411"] {
        assert_eq!(
            Reply::to(hive.on_data("GET", "/v1/models").header("host", host))
                .await
                .status,
            200,
            "{host}"
        );
    }
    assert_eq!(
        Reply::to(
            hive.on_control("GET", "/control/v1/keys")
                .header("host", "Hive.Example:7412")
        )
        .await
        .status,
        200
    );
}

#[tokio::test]
async fn a_server_that_cannot_serve_now_says_when_to_come_again() {
    for (status, asked, told) in [
        (429, "7", "7"),
        (503, "7", "7"),
        (503, "0.2", "1"),
        (503, "86400", "60"),
        (503, "Mon", "2"),
    ] {
        let headers = format!("retry-after: {asked}\r\ncontent-length: 0\r\n");
        let (hive, _server) = attached(vec![Script::head(status, &headers)]).await;
        for ask in [hive.chat("x"), hive.chat("x").stream()] {
            let reply = ask.send().await;
            assert_eq!(reply.header("retry-after"), told, "{status} {asked}");
            reply.refused(503, "queue_full").await;
        }
    }
}

#[tokio::test]
async fn a_server_that_is_out_of_service_counts_as_failing() {
    let loading = r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;
    let (hive, _server) = attached(vec![Script::answers(503, "application/json", loading)]).await;
    for _as_many_as_an_ejection_needs in 0..3 {
        hive.chat("x").send().await.refused(503, "queue_full").await;
    }
    let view = hive.worker_view("far").await;
    assert_eq!(view["state"], "suspect", "{view}");
    assert!(view["message"].as_str().unwrap().contains("503"), "{view}");
}
