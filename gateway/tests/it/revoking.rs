//! Who was let in and is shut out again: keys in the middle of a request, holders of tokens, workers.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    client::{Reply, text_of},
    harness::{Hive, eventually, soon},
    issuer::{Signer, claims, now},
    script::Script,
};

/// A request whose head has been read and judged: the gateway has asked for its body.
async fn begun(address: SocketAddr, path: &str, key: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    answered(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
    stream
}

async fn answered(stream: &mut TcpStream, words: &str) -> String {
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains(words) {
        let more = soon("an answer", stream.read_buf(&mut said)).await.unwrap();
        assert!(more > 0, "{}", String::from_utf8_lossy(&said));
    }
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn a_key_that_is_revoked_while_a_body_comes_lets_nothing_in() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let dialled = worker.server.connections();
    let revoke = async |id: &str| {
        let path = format!("/control/v1/keys/{id}");
        assert_eq!(Reply::to(hive.on_control("DELETE", &path)).await.status, 204);
    };
    let (id, key) = hive.key(&["infer"]).await;
    let chat = r#"{"model": "m", "messages": [{"role": "user", "content": "hi"}]}"#;
    let mut asking = begun(hive.data_address(), "/v1/chat/completions", &key, chat).await;
    revoke(&id).await;
    asking.write_all(chat.as_bytes()).await.unwrap();
    let said = answered(&mut asking, "invalid_api_key").await;
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    assert_eq!(worker.server.connections(), dialled, "no worker is called");

    let (id, key) = hive.key(&["admin"]).await;
    let new = r#"{"name": "for later", "scopes": ["admin"]}"#;
    let mut making = begun(hive.control_address(), "/control/v1/keys", &key, new).await;
    revoke(&id).await;
    making.write_all(new.as_bytes()).await.unwrap();
    let said = answered(&mut making, "invalid_api_key").await;
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    let keys = Reply::to(hive.on_control("GET", "/control/v1/keys")).await.text().await;
    assert!(!keys.contains("for later"), "{keys}");
}

#[tokio::test]
async fn a_hive_whose_last_operator_was_revoked_has_a_new_one_at_its_next_start() {
    let hive = Hive::start().await;
    let (_, others) = hive.key(&["infer"]).await;
    let path = format!("/control/v1/keys/{}", &hive.admin[4..12]);
    assert_eq!(Reply::to(hive.on_control("DELETE", &path)).await.status, 204);
    let keys = async |hive: &Hive| Reply::to(hive.on_control("GET", "/control/v1/keys")).await;
    keys(&hive).await.refused(401, "invalid_api_key").await;
    let revoked = hive.admin.clone();
    let hive = hive.again(&[]).await;
    assert_ne!(hive.admin, revoked);
    assert_eq!(keys(&hive).await.json().await.as_array().unwrap().len(), 3);
    let list = hive.stranger("GET", "/v1/models").bearer_auth(&others);
    assert_eq!(Reply::to(list).await.status, 200);
    // And no other as long as there is one.
    let admin = hive.admin.clone();
    assert_eq!(hive.again(&[]).await.admin, admin);
}

#[tokio::test]
async fn a_holders_tokens_are_revoked_at_once_and_for_good_with_what_runs() {
    let ed = Signer::ed();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    gateway::secret_file::create(&path, &json!({"keys": [ed.jwk("k")]}).to_string()).unwrap();
    let settings = [
        ("jwt.issuer", "https://id.example"),
        ("jwt.audience", "hive"),
        ("jwt.keys", path.to_str().unwrap()),
        ("jwt.leeway", "0s"),
    ];
    let hive = Hive::with(&settings).await;
    let endless = || Script::begins(&["a"]).hang();
    hive.worker("a").slots(2).script([endless(), endless()]).join().await;
    let token = |sub: &str, issued: i64| {
        let mut claims = claims(sub);
        claims["iat"] = json!(issued);
        ed.token("k", &claims)
    };
    let (anns, bobs) = (token("ann", now()), token("bob", now()));
    let mut running = hive.chat("m").key(&anns).stream().send().await;
    running.until("a").await;
    let mut anothers = hive.chat("m").key(&bobs).stream().send().await;
    anothers.until("a").await;
    let id = hive.requests().await[1]["key_id"].as_str().unwrap().to_owned();
    let revoke = async |hive: &Hive, body: Value| {
        Reply::to(hive.on_control("POST", "/control/v1/tokens/revoke").json(&body)).await
    };
    for bad in [
        json!({}),
        json!({"id": "jwt_"}),
        json!({"id": "abcdefgh"}),
        json!({"id": id, "subject": "ann"}),
    ] {
        revoke(&hive, bad).await.refused(400, "invalid_request").await;
    }
    let revoked = revoke(&hive, json!({ "id": id })).await.json().await;
    assert_eq!((&revoked["id"], &revoked["cancelled"]), (&json!(id), &json!(1)));
    let events = running.events().await;
    assert!(format!("{events:?}").contains("cancelled"), "{events:?}");
    hive.until_in_flight("a", 1).await;

    let lists = async |hive: &Hive, token: &str| {
        let list = hive.stranger("GET", "/v1/models").bearer_auth(token);
        Reply::to(list).await
    };
    let is_shut_out = async |hive: &Hive| {
        for old in [&anns, &ed.token("k", &claims("ann"))] {
            let told = lists(hive, old).await.refused(401, "invalid_api_key").await;
            assert!(told["message"].as_str().unwrap().contains("revoked"), "{told}");
        }
    };
    is_shut_out(&hive).await;
    assert_eq!(lists(&hive, &bobs).await.status, 200);
    // The person is let in again with what the issuer gives out from now on.
    eventually("a new token is good", async || {
        let new = token("ann", now());
        (lists(&hive, &new).await.status == 200).then_some(())
    })
    .await;
    let records = Reply::to(hive.on_control("GET", "/control/v1/audit?limit=1000"))
        .await
        .json()
        .await;
    let acts: Vec<_> = records
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["kind"] == "token.revoke")
        .collect();
    assert_eq!((acts.len(), &acts[0]["object"]), (1, &json!({ "key_id": id })));
    assert_eq!(acts[0]["actor"]["key_id"], hive.admin[4..12]);

    let hive = hive.again(&settings).await;
    is_shut_out(&hive).await;
    let by_name = revoke(&hive, json!({"subject": "bob"})).await.json().await;
    assert!(
        by_name["id"].as_str().unwrap().starts_with("jwt_") && by_name["id"] != id,
        "{by_name}"
    );
    lists(&hive, &bobs).await.refused(401, "invalid_api_key").await;
    // Erased, under a pseudonym that nobody has seen, they are still cut off, and let in by a new token.
    let erase = hive
        .on_control("POST", "/control/v1/audit/erase")
        .json(&json!({"subject": "bob"}));
    assert_eq!(Reply::to(erase).await.json().await["erased"], true);
    lists(&hive, &bobs).await.refused(401, "invalid_api_key").await;
    eventually("a new token is good after an erasure", async || {
        let new = token("bob", now());
        (lists(&hive, &new).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_is_shut_out_comes_back_only_with_a_new_join_token() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let credential = &worker.registered.credential;
    let remove = async |query: &str| {
        let path = format!("/control/v1/workers/a{query}");
        Reply::to(hive.on_control("DELETE", &path)).await
    };
    remove("").await.refused(409, "worker_exists").await;
    remove("?force=maybe").await.refused(400, "invalid_request").await;
    assert_eq!(remove("?force=true").await.status, 204);
    assert_eq!(hive.workers().await.len(), 0);
    let beat = worker.beat.lock().unwrap().clone();
    hive.heartbeat("a", credential, &beat)
        .await
        .refused(401, "invalid_api_key")
        .await;
    hive.register(credential, &worker.registration)
        .await
        .refused(401, "invalid_api_key")
        .await;
    let hive = hive.again(&[]).await;
    hive.register(credential, &worker.registration)
        .await
        .refused(401, "invalid_api_key")
        .await;
    let back = hive.worker("a").script([Script::says(&["back"])]).join().await;
    assert_eq!(back.registered.epoch, 2, "an epoch never comes twice");
    assert_eq!(text_of(&hive.chat("m").stream().send().await.events().await), "back");
}
