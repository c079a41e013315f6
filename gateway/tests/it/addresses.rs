//! Where the gateway never connects, in every spelling of the place.

use std::{net::SocketAddr, process::Command};

use serde_json::{Value, json};

use crate::{client::Reply, harness::Hive, script::Script, server::Server, worker::registration};

/// The clouds' metadata service and other places that are nobody's worker.
const NEVER: [&str; 14] = [
    "http://169.254.169.254:80",
    "http://169.254.0.1:80",
    "http://[::ffff:169.254.169.254]:80",
    "http://[::ffff:a9fe:a9fe]:80",
    "http://[::169.254.169.254]:80",
    "http://[64:ff9b::169.254.169.254]:80",
    "http://[2002:a9fe:a9fe::1]:80",
    "http://[fe80::1]:80",
    "http://[fd00:ec2::254]:80",
    "http://100.100.100.200:80",
    "http://224.0.0.1:80",
    "http://[ff02::1]:80",
    "http://255.255.255.255:80",
    "http://0.1.2.3:80",
];
const ANYWHERE: (&str, &str) = ("registry.allowed_cidrs", "[\"0.0.0.0/0\", \"::/0\"]");

#[tokio::test]
async fn a_worker_at_a_forbidden_address_is_refused_even_if_every_range_is_allowed() {
    let hive = Hive::with(&[ANYWHERE]).await;
    let token = hive.join_token(None).await;
    let server = Server::unregistered("a").await;
    for url in NEVER {
        let mut away = registration("a", &server);
        away["url"] = json!(url);
        let error = hive.register(&token, &away).await.refused(400, "invalid_request").await;
        assert!(
            error["message"].as_str().unwrap().contains("never connects"),
            "{url}: {error}"
        );
    }
}

#[tokio::test]
async fn a_server_at_a_forbidden_address_is_not_attached_in_any_spelling() {
    let hive = Hive::with(&[ANYWHERE]).await;
    let spelt = [
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/v1",
        "http://169.254.43518/",
        "https://169.254.169.254/v1",
    ];
    for url in NEVER.into_iter().chain(spelt) {
        let attach = hive
            .on_control("POST", "/control/v1/workers")
            .json(&json!({"url": url, "models": ["x"]}));
        let error = Reply::to(attach).await.refused(400, "invalid_request").await;
        assert_eq!(error["param"], "url");
        assert!(
            error["message"].as_str().unwrap().contains("never connects"),
            "{url}: {error}"
        );
    }
}

#[tokio::test]
async fn a_worker_names_itself_by_a_plain_address_and_nothing_around_it() {
    let hive = Hive::start().await;
    let token = hive.join_token(None).await;
    let server = Server::unregistered("a").await;
    let (address, port) = (server.address, server.address.port());
    let SocketAddr::V4(v4) = address else {
        panic!("{address}")
    };
    let [a, b, c, d] = v4.ip().octets();
    let number = u32::from(*v4.ip());
    for url in [
        format!("http://[::ffff:{}]:{port}", v4.ip()),
        format!("http://localhost:{port}"),
        format!("http://{number}:{port}"),
        format!("http://{number:#x}:{port}"),
        format!("http://{a}.{}:{port}", number & 0xff_ffff),
        format!("http://0{a:o}.{b}.{c}.{d}:{port}"),
        format!("https://{address}"),
        format!("HTTP://{address}"),
        format!("http://{address}/v1"),
        format!("http://user@{address}"),
        format!("http://{address}?x"),
        format!("http://{address}#x"),
        format!(" http://{address}"),
        format!("http://{address}\r\nhost: x"),
        format!("http://{}", v4.ip()),
        format!("http://{}:0", v4.ip()),
        "file:///etc/passwd".to_owned(),
    ] {
        let mut odd = registration("a", &server);
        odd["url"] = json!(url);
        let error = hive.register(&token, &odd).await.refused(400, "invalid_request").await;
        assert_eq!(error["param"], "url", "{url}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_range_nobody_allowed_is_refused_with_the_setting_that_would() {
    let hive = Hive::start().await;
    let token = hive.join_token(None).await;
    let server = Server::unregistered("a").await;
    for host in ["10.0.0.7", "192.168.1.2", "8.8.8.8", "[2001:db8::1]"] {
        let mut away = registration("a", &server);
        away["url"] = json!(format!("http://{host}:80"));
        let attach = hive
            .on_control("POST", "/control/v1/workers")
            .json(&json!({"url": away["url"]}));
        for reply in [hive.register(&token, &away).await, Reply::to(attach).await] {
            let error = reply.refused(400, "invalid_request").await;
            assert!(
                error["message"].as_str().unwrap().contains("registry.allowed_cidrs"),
                "{error}"
            );
        }
    }
    // The operator's own range excludes even loopback.
    let strict = Hive::with(&[("registry.allowed_cidrs", "[\"10.0.0.0/8\"]")]).await;
    let error = strict
        .register(&strict.join_token(None).await, &registration("a", &server))
        .await
        .refused(400, "invalid_request")
        .await;
    assert!(
        error["message"].as_str().unwrap().contains("registry.allowed_cidrs"),
        "{error}"
    );
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_redirect_leads_nowhere() {
    let hive = Hive::start().await;
    let lure = Server::unregistered("lure").await;
    let target = Server::to_attach(&["x"], None, vec![]).await;
    lure.lists(Script::head(
        302,
        &format!("location: {}/v1/models\r\ncontent-length: 0\r\n", target.url()),
    ));
    let attach = hive
        .on_control("POST", "/control/v1/workers")
        .json(&json!({"url": lure.url()}));
    Reply::to(attach).await.refused(502, "worker_failed").await;
    assert_eq!((lure.connections(), target.connections()), (1, 0));
}

/// In a network of its own, where somebody listens at these places.
#[cfg(target_os = "linux")]
#[test]
fn nobody_is_called_at_a_forbidden_address_even_where_it_answers() {
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/forbidden.py");
    let ended = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "python3", script])
        .arg(env!("CARGO_BIN_EXE_hive-gateway"))
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    let found: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert!(
        found["tried"].as_u64() >= Some(30) && found["reachable"] == 7,
        "{found}"
    );
    assert_eq!(
        (&found["taken"], &found["connects"]),
        (&json!([]), &json!([])),
        "{found}"
    );
    // A redirect is no model list; a name keeps the address it was attached with.
    assert_eq!(
        (&found["lured"], &found["shifted"]),
        (&json!(502), &json!(201)),
        "{found}"
    );
}
