//! How a worker gets in: single-use tokens, the dial-back, epochs, and ids that somebody holds already.

use gateway::auth::api_key;
use serde_json::{Value, json};

use crate::{
    client::{Reply, text_of},
    harness::{Hive, eventually},
    script::{Gate, Script},
    server::Server,
    worker::registration,
};

#[tokio::test]
async fn a_join_token_is_good_once() {
    let hive = Hive::start().await;
    let token = hive.join_token(None).await;
    let (a, b) = (Server::unregistered("a").await, Server::unregistered("b").await);
    let registered = hive.register(&token, &registration("a", &a)).await.json().await;
    assert_eq!((&registered["id"], &registered["epoch"]), (&json!("a"), &json!(1)));
    assert!(registered["credential"].as_str().unwrap().len() > 32);
    hive.register(&token, &registration("b", &b))
        .await
        .refused(401, "invalid_api_key")
        .await;
    hive.register(&token, &registration("a", &a))
        .await
        .refused(401, "invalid_api_key")
        .await;
    assert_eq!(b.connections(), 0, "nobody is dialled for a bad token");
}

#[tokio::test]
async fn of_many_that_race_with_one_token_one_gets_in() {
    let hive = Hive::start().await;
    let token = hive.join_token(None).await;
    let mut servers = Vec::new();
    for number in 0..6 {
        servers.push((format!("w{number}"), Server::unregistered(&format!("w{number}")).await));
    }
    let racing = servers.iter().map(|(id, server)| {
        let registration = registration(id, server);
        let (hive, token) = (&hive, &token);
        async move { hive.register(token, &registration).await.status }
    });
    let mut statuses = futures_util::future::join_all(racing).await;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401, 401, 401, 401, 401]);
    assert_eq!(hive.workers().await.len(), 1);
}

#[tokio::test]
async fn no_other_credential_lets_a_worker_in() {
    let hive = Hive::start().await;
    let server = Server::unregistered("a").await;
    let worker = hive.worker("b").join().await;
    for bearer in [
        "hvj_junk",
        hive.admin.as_str(),
        &worker.registered.credential,
        "dispatch-token-of-a",
    ] {
        hive.register(bearer, &registration("a", &server))
            .await
            .refused(401, "invalid_api_key")
            .await;
    }
    assert_eq!(server.connections(), 0);
    // Nor is anything read of what a stranger sends.
    for (route, bearer) in [
        ("register", "hvj_junk"),
        ("b/heartbeat", hive.admin.as_str()),
        ("b/leave", "hvj_junk"),
        ("nobody/heartbeat", "hvw_junk"),
        ("-/leave", "hvj_junk"),
    ] {
        let junk = hive
            .http
            .post(format!("{}/control/v1/workers/{route}", hive.control))
            .bearer_auth(bearer)
            .body("junk");
        Reply::to(junk).await.refused(401, "invalid_api_key").await;
    }
    // And a join token opens nothing else.
    let token = hive.join_token(None).await;
    Reply::to(hive.stranger("GET", "/v1/models").bearer_auth(&token))
        .await
        .refused(401, "invalid_api_key")
        .await;
}

#[tokio::test]
async fn a_join_token_expires() {
    let hive = Hive::start().await;
    let made = hive
        .on_control("POST", "/control/v1/join-tokens")
        .json(&json!({"ttl_s": 1}));
    let made = Reply::to(made).await.json().await;
    let expires = made["expires_at_ms"].as_i64().unwrap();
    eventually("its second is over", async || {
        (gateway::now_ms() > expires).then_some(())
    })
    .await;
    let server = Server::unregistered("a").await;
    let reply = hive
        .register(made["token"].as_str().unwrap(), &registration("a", &server))
        .await;
    reply.refused(401, "invalid_api_key").await;
    for ttl in [0, 901] {
        let long = hive
            .on_control("POST", "/control/v1/join-tokens")
            .json(&json!({ "ttl_s": ttl }));
        assert_eq!(
            Reply::to(long).await.refused(400, "invalid_request").await["param"],
            "ttl_s"
        );
    }
}

#[tokio::test]
async fn a_token_for_one_id_lets_no_other_in() {
    let hive = Hive::start().await;
    let token = hive.join_token(Some("a")).await;
    let (a, b) = (Server::unregistered("a").await, Server::unregistered("b").await);
    let error = hive
        .register(&token, &registration("b", &b))
        .await
        .refused(400, "invalid_request")
        .await;
    assert_eq!(error["param"], "id");
    assert_eq!(b.connections(), 0);
    assert_eq!(
        hive.register(&token, &registration("a", &a)).await.status,
        200,
        "the token is still good"
    );
}

#[tokio::test]
async fn whoever_does_not_answer_the_dial_back_stays_out_and_keeps_its_token() {
    let hive = Hive::start().await;
    let token = hive.join_token(None).await;
    let server = Server::unregistered("a").await;
    let nobody = Server::nobody();
    let mut unreachable = registration("a", &server);
    unreachable["url"] = json!(format!("http://{nobody}"));
    let mut wrong_secret = registration("a", &server);
    wrong_secret["dispatch_token"] = json!("another-dispatch-token");
    let mut wrong_name = registration("b", &server);
    wrong_name["dispatch_token"] = json!("dispatch-token-of-a");
    let mut ourselves = registration("a", &server);
    ourselves["url"] = json!(hive.control);
    for stranger in [unreachable, wrong_secret, wrong_name, ourselves] {
        let error = hive
            .register(&token, &stranger)
            .await
            .refused(400, "invalid_request")
            .await;
        assert_eq!(error["param"], "url", "{error}");
    }
    assert_eq!(hive.workers().await, Vec::<Value>::new());
    assert_eq!(hive.register(&token, &registration("a", &server)).await.status, 200);
}

#[tokio::test]
async fn a_registration_that_makes_no_sense_is_refused() {
    let hive = Hive::start().await;
    let server = Server::unregistered("a").await;
    let token = hive.join_token(None).await;
    for (field, value) in [
        ("slots", json!(0)),
        ("slots", json!(1025)),
        ("slots", json!(-1)),
        ("dispatch_token", json!("short")),
        ("dispatch_token", json!("x".repeat(257))),
        ("id", json!("../a")),
        ("id", json!("")),
        ("model", json!("a b")),
        ("state", json!("dancing")),
        ("url", json!("here")),
        ("host", json!("a\nb")),
        ("host", json!("\u{202e}b")),
        ("device", json!("\u{1b}]0;x\u{7}")),
        ("version", json!("1".repeat(254))),
        ("id", json!(api_key::generate())),
    ] {
        let mut odd = registration("a", &server);
        odd[field] = value;
        hive.register(&token, &odd).await.refused(400, "invalid_request").await;
    }
    assert_eq!(server.connections(), 0);
    assert_eq!(hive.register(&token, &registration("a", &server)).await.status, 200);
}

#[tokio::test]
async fn an_unspecified_address_means_the_one_it_calls_from() {
    let hive = Hive::start().await;
    let server = Server::unregistered("a").await;
    let mut anywhere = registration("a", &server);
    anywhere["url"] = json!(format!("http://0.0.0.0:{}", server.address.port()));
    let from_there = reqwest::Client::builder()
        .no_proxy()
        .local_address(server.address.ip())
        .build()
        .unwrap();
    let register = from_there
        .post(format!("{}/control/v1/workers/register", hive.control))
        .bearer_auth(hive.join_token(None).await)
        .json(&anywhere);
    assert_eq!(Reply::to(register).await.status, 200);
    assert_eq!(hive.worker_view("a").await["url"], server.url());
}

#[tokio::test]
async fn the_id_of_a_live_worker_is_taken_only_with_a_token_for_it() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    let old = hive
        .worker("a")
        .script([Script::begins(&["a"]).wait(&gate).token("b").ends(2)])
        .join()
        .await;
    let intruder = Server::unregistered("a").await;
    let reply = hive
        .register(&hive.join_token(None).await, &registration("a", &intruder))
        .await;
    reply.refused(409, "worker_exists").await;
    assert_eq!(intruder.connections(), 0);
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;

    let token = hive.join_token(Some("a")).await;
    let new = hive
        .worker("a")
        .script([Script::says(&["new"])])
        .join_with(&token)
        .await;
    assert_eq!(new.registered.epoch, 2);
    assert_ne!(new.registered.credential, old.registered.credential);
    // The old one is told to exit, whatever it says; what it runs may end well.
    let beat = old.beat.lock().unwrap().clone();
    hive.heartbeat("a", &old.registered.credential, &beat)
        .await
        .refused(409, "stale_epoch")
        .await;
    hive.register(&old.registered.credential, &old.registration)
        .await
        .refused(401, "invalid_api_key")
        .await;
    assert_eq!(text_of(&hive.chat("m").stream().send().await.events().await), "new");
    assert_eq!(new.server.call(0).await.header("x-hive-epoch"), Some("2"));
    gate.open();
    assert_eq!(text_of(&running.events().await), "b");
    assert_eq!(hive.worker_view("a").await["in_flight"], 0);
}

#[tokio::test]
async fn a_worker_registers_again_with_its_own_credential_under_a_new_epoch() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let credential = &worker.registered.credential;
    // It keeps it, so that an answer that is lost on its way costs nothing but an epoch.
    for epoch in [2, 3] {
        let again = hive.register(credential, &worker.registration).await.json().await;
        assert_eq!(
            (&again["epoch"], &again["credential"]),
            (&json!(epoch), &json!(credential))
        );
    }
    let beat = worker.beat.lock().unwrap().clone();
    hive.heartbeat("a", credential, &beat)
        .await
        .refused(409, "stale_epoch")
        .await;
    let now = wire::Heartbeat { epoch: 3, ..beat };
    assert_eq!(hive.heartbeat("a", credential, &now).await.status, 200);
}
