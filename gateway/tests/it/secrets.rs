//! Marked secrets planted everywhere, and looked for everywhere else.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use crate::{
    certificate::Certificate,
    client::Reply,
    harness::{Hive, Signal},
    issuer::{Signer, claims},
    server::Server,
    tls::over_http2,
};

/// A secret, and whose it is.
type Planted = (&'static str, String);

/// A file outside the state folder that its owner alone reads.
fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    gateway::secret_file::create(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Every file below a folder but those of `keys/`, where secrets belong.
fn files(home: &Path) -> Vec<PathBuf> {
    let (mut open, mut found) = (vec![home.to_owned()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path != home.join("keys") => open.push(path),
                true => {}
                false => found.push(path),
            }
        }
    }
    found
}

fn find(bytes: &[u8], planted: &[Planted], place: &str) {
    for (whose, secret) in planted {
        let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!found, "the {whose} is in {place}");
    }
}

/// Shows a credential at every door, in every header; what is said to it.
async fn tried(hive: &Hive, certificate: &Certificate, credential: &str, status: u16) -> String {
    let root = reqwest::Certificate::from_pem(certificate.certificate.as_bytes()).unwrap();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([root]);
    let http = http.resolve("localhost", hive.data_address()).build().unwrap();
    let url = format!("https://localhost:{}/v1/models", hive.data_address().port());
    let mut told = String::new();
    for (header, value) in [
        ("authorization", format!("Bearer {credential}")),
        ("x-api-key", credential.to_owned()),
    ] {
        let answer = http.get(&url).header(header, value).send().await.unwrap();
        assert_eq!(answer.status(), status, "{credential}");
        told.push_str(&answer.text().await.unwrap());
    }
    // Over HTTP/2 too, whose library logs frames at the level of traces.
    let answer = over_http2(hive.data_address(), certificate, "/v1/models", credential).await;
    assert_eq!(answer, status, "{credential}");
    let ask = hive.on_control("POST", "/control/v1/tokens/verify");
    Reply::to(ask.json(&json!({"token": credential}))).await.json().await;
    told
}

#[tokio::test]
async fn secrets_are_in_no_log_error_metric_record_database_or_process_list() {
    let outside = tempfile::tempdir().unwrap();
    let shared = "MARK-shared-with-the-issuer-of-tokens";
    let certificate = Certificate::new([127, 0, 0, 1].into(), 1);
    let [secret, tls_cert, tls_key] = [
        ("jwt", shared),
        ("cert", certificate.certificate.trim()),
        ("key", certificate.key.trim()),
    ]
    .map(|(name, text)| file(outside.path(), name, text));
    let hive = Hive::with(&[
        ("log.filter", "trace"),
        ("jwt.issuer", "https://id.example"),
        ("jwt.audience", "hive"),
        ("jwt.algorithm", "HS256"),
        ("jwt.keys", &secret),
        ("server.tls_cert", &tls_cert),
        ("server.tls_key", &tls_key),
    ])
    .await;
    let issuer = Signer::Hmac(shared.into());
    let [good, forged] = [
        issuer.token("k", &claims("ann")),
        Signer::Hmac(vec![7; 32]).token("k", &claims("ann")),
    ];
    let worker = hive.worker("a").join().await;
    let attached = Server::to_attach(&["far"], Some("MARK-key-of-an-attached-server"), vec![]).await;
    let attach = json!({"url": attached.url(), "api_key": "MARK-key-of-an-attached-server"});
    let attach = Reply::to(hive.on_control("POST", "/control/v1/workers").json(&attach)).await;
    assert_eq!(attach.status, 201);
    let (id, key) = hive.key(&["infer"]).await;
    let rotated = hive
        .on_control("POST", &format!("/control/v1/keys/{id}/rotate"))
        .json(&json!({}));
    let rotated = Reply::to(rotated).await.json().await["key"]
        .as_str()
        .unwrap()
        .to_owned();
    let join = hive.join_token(None).await;
    let wrong = ["hvk_MARKMARK", "MARK.wrong.token", "MARK-wrong-key", &forged, &join];
    let mut told = String::new();
    for (credential, status) in [(good.as_str(), 200), (&key, 200), (&rotated, 200)]
        .into_iter()
        .chain(wrong.map(|wrong| (wrong, 401)))
    {
        told.push_str(&tried(&hive, &certificate, credential, status).await);
    }
    let garbled = hive
        .on_control("POST", "/control/v1/tokens/verify")
        .body("{\"token\": \"MARK-in-a-body\", 7}");
    told.push_str(&Reply::to(garbled).await.text().await);
    let metrics = Reply::to(hive.on_control("GET", "/metrics")).await.text().await;
    let pepper = std::fs::read_to_string(hive.home().join("keys/pepper"))
        .unwrap()
        .trim()
        .to_owned();
    let signature = |token: &str| token.rsplit_once('.').unwrap().1.to_owned();
    let planted = [
        ("secret of the issuer", shared.to_owned()),
        (
            "private key of the certificate",
            certificate.key.lines().nth(1).unwrap()[40..120].to_owned(),
        ),
        ("first key", hive.admin[13..45].to_owned()),
        ("made key", key[13..45].to_owned()),
        ("rotated key", rotated[13..45].to_owned()),
        ("good token", signature(&good)),
        ("forged token", signature(&forged)),
        ("join token", join[4..].to_owned()),
        ("worker's credential", worker.registered.credential[4..].to_owned()),
        ("dispatch token", "dispatch-token-of-a".to_owned()),
        ("attached server's key", "MARK-key-of-an-attached-server".to_owned()),
        ("pepper", pepper),
        ("wrong key", "hvk_MARKMARK".to_owned()),
        ("wrong token", "MARK.wrong.token".to_owned()),
        ("key of another form", "MARK-wrong-key".to_owned()),
        ("garbled body", "MARK-in-a-body".to_owned()),
    ];
    find(told.as_bytes(), &planted, "an answer");
    find(metrics.as_bytes(), &planted, "the metrics");
    for file in ["cmdline", "environ"] {
        // Unreadable for everybody but root.
        if let Ok(bytes) = std::fs::read(hive.proc(file)) {
            find(&bytes, &planted, file);
        }
    }
    let request = Reply::to(hive.on_control("GET", "/control/v1/keys"))
        .await
        .header("x-request-id")
        .to_owned();
    hive.logged("the last line", |line| line["request_id"] == request.as_str())
        .await;
    assert!(hive.log().contains("TRACE"), "the log is at its most talkative");
    for path in files(hive.home()) {
        find(&std::fs::read(&path).unwrap(), &planted, &path.display().to_string());
    }
}

#[tokio::test]
async fn a_key_in_the_wrong_place_is_written_nowhere() {
    let hive = Hive::with(&[("log.filter", "trace")]).await;
    hive.worker("a").join().await;
    let (_, key) = hive.key(&["infer"]).await;
    let join = hive.join_token(None).await;
    let mut told = String::new();
    for secret in [&key, &join] {
        let asked = [
            (hive.on_data("GET", &format!("/v1/models/{secret}")), 404),
            (hive.on_data("GET", &format!("/v1/a/{secret}/b")), 404),
            (hive.on_control("GET", &format!("/control/v1/workers/{secret}")), 404),
            (hive.on_control("DELETE", &format!("/control/v1/keys/{secret}")), 404),
            (
                hive.on_control("POST", "/control/v1/join-tokens")
                    .json(&json!({"worker_id": secret})),
                400,
            ),
            (
                hive.on_control("POST", "/control/v1/keys")
                    .json(&json!({"name": secret, "scopes": ["infer"]})),
                400,
            ),
            (
                hive.on_control("POST", "/control/v1/audit/erase")
                    .json(&json!({"subject": "nobody", "ticket": secret})),
                400,
            ),
        ];
        for (ask, status) in asked {
            let answer = Reply::to(ask).await;
            assert_eq!(answer.status, status);
            told.push_str(&answer.text().await);
        }
        let unknown = hive.chat(secret).send().await.refused(404, "model_not_found").await;
        told.push_str(&unknown.to_string());
        let named = hive.chat("m").header("x-request-id", secret).send().await;
        assert!(named.status == 200 && named.header("x-request-id").starts_with("req_"));
    }
    let planted = [("key", key[13..45].to_owned()), ("join token", join[4..].to_owned())];
    find(told.as_bytes(), &planted, "an answer");
    let request = Reply::to(hive.on_control("GET", "/control/v1/keys")).await;
    let request = request.header("x-request-id").to_owned();
    hive.logged("the last line", |line| line["request_id"] == request.as_str())
        .await;
    assert!(hive.log().contains(&key[..13]), "its public id may be there");
    for path in files(hive.home()) {
        find(&std::fs::read(&path).unwrap(), &planted, &path.display().to_string());
    }
}

#[tokio::test]
async fn a_crash_leaves_no_core_file() {
    let mut hive = Hive::start().await;
    let pid = hive.pid().to_string();
    let unlimited = Command::new("prlimit")
        .args(["--pid", &pid, "--core=unlimited"])
        .status();
    assert!(unlimited.unwrap().success());
    hive.signal(Signal::SIGABRT);
    let status = hive.exit().await;
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}
