//! Who gets in: keys of every kind of wrong, scopes, and keys that are made and revoked while all runs.

use std::os::unix::fs::PermissionsExt as _;

use gateway::auth::api_key;
use serde_json::json;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    client::Reply,
    harness::{Hive, eventually, soon},
    script::Script,
};

#[tokio::test]
async fn without_a_good_key_nobody_gets_in() {
    let hive = Hive::start().await;
    let junk = "x".repeat(8192);
    let cut = &hive.admin[..hive.admin.len() - 1];
    let other = api_key::generate();
    let basic = format!("Basic {}", hive.admin);
    let bare = hive.admin.clone();
    for credential in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        &format!("Bearer {junk}"),
        &format!("Bearer {cut}"),
        &format!("Bearer {other}"),
        &basic,
        &bare,
    ] {
        for url in [
            format!("{}/v1/models", hive.data),
            format!("{}/control/v1/workers", hive.control),
        ] {
            let reply = Reply::to(hive.http.get(url).header("authorization", credential)).await;
            assert_eq!(reply.header("www-authenticate"), "Bearer");
            let error = reply.refused(401, "invalid_api_key").await;
            assert_eq!(error["type"], "invalid_request_error");
            assert!(
                !error["message"].as_str().unwrap().contains(&hive.admin[4..20]),
                "{error}"
            );
        }
    }
    Reply::to(hive.stranger("GET", "/v1/models"))
        .await
        .refused(401, "invalid_api_key")
        .await;
    let blob = reqwest::header::HeaderValue::from_bytes(b"Bearer \xff\xfe").unwrap();
    Reply::to(hive.stranger("GET", "/v1/models").header("authorization", blob))
        .await
        .refused(401, "invalid_api_key")
        .await;
}

#[tokio::test]
async fn a_key_may_come_in_either_header_and_the_scheme_in_any_case() {
    let hive = Hive::start().await;
    let key = &hive.admin;
    for (name, value) in [
        ("authorization", format!("bearer {key}")),
        ("authorization", format!("BEARER  {key}")),
        ("x-api-key", key.clone()),
    ] {
        let reply = Reply::to(hive.stranger("GET", "/v1/models").header(name, value)).await;
        assert_eq!(reply.status, 200);
    }
    let twice = hive.on_data("GET", "/v1/models").header("x-api-key", key);
    assert_eq!(Reply::to(twice).await.status, 200);
    let different = hive
        .on_data("GET", "/v1/models")
        .header("x-api-key", api_key::generate());
    Reply::to(different).await.refused(400, "invalid_request").await;
    let different = hive
        .on_data("GET", "/v1/models")
        .header("authorization", "Bearer other");
    Reply::to(different).await.refused(400, "invalid_request").await;
}

#[tokio::test]
async fn a_key_opens_what_its_scopes_say_and_nothing_else() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    for (scope, lists, chats, operates) in [
        ("infer", 200, 200, 403),
        ("models:read", 200, 403, 403),
        ("metrics:read", 403, 403, 403),
        ("admin", 200, 200, 200),
    ] {
        let (_, key) = hive.key(&[scope]).await;
        let list = Reply::to(hive.stranger("GET", "/v1/models").bearer_auth(&key)).await;
        let chat = hive.chat("m").key(&key).send().await;
        let workers = Reply::to(
            hive.http
                .get(format!("{}/control/v1/workers", hive.control))
                .bearer_auth(&key),
        )
        .await;
        assert_eq!(
            (list.status, chat.status, workers.status),
            (lists, chats, operates),
            "{scope}"
        );
        for reply in [list, chat, workers] {
            if reply.status == 403 {
                reply.refused(403, "insufficient_scope").await;
            }
        }
    }
}

#[tokio::test]
async fn a_revoked_key_is_dead_at_once_on_both_planes() {
    let hive = Hive::start().await;
    let (id, key) = hive.key(&["admin"]).await;
    let path = format!("/control/v1/keys/{id}");
    for _again in 0..2 {
        assert_eq!(Reply::to(hive.on_control("DELETE", &path)).await.status, 204);
        Reply::to(hive.stranger("GET", "/v1/models").bearer_auth(&key))
            .await
            .refused(401, "invalid_api_key")
            .await;
        let workers = hive
            .http
            .get(format!("{}/control/v1/workers", hive.control))
            .bearer_auth(&key);
        Reply::to(workers).await.refused(401, "invalid_api_key").await;
    }
    Reply::to(hive.on_control("DELETE", "/control/v1/keys/nobodys"))
        .await
        .refused(404, "not_found")
        .await;
    let listed = Reply::to(hive.on_control("GET", "/control/v1/keys")).await.json().await;
    let revoked = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|view| view["id"] == id.as_str())
        .unwrap();
    assert!(revoked["revoked_at_ms"].is_u64(), "{revoked}");
}

#[tokio::test]
async fn a_key_is_shown_once_and_kept_nowhere() {
    let hive = Hive::start().await;
    let (id, key) = hive.key(&["infer", "infer"]).await;
    assert!(key.starts_with(&format!("hvk_{id}_")) && key.len() == 52, "{key}");
    let list = Reply::to(hive.on_control("GET", "/control/v1/keys")).await.text().await;
    let secret = &key[13..45];
    assert!(list.contains(&id) && !list.contains(secret), "{list}");
    for file in std::fs::read_dir(hive.home()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(
                !bytes.windows(secret.len()).any(|w| w == secret.as_bytes()),
                "{}",
                path.display()
            );
        }
    }
}

#[tokio::test]
async fn keys_and_the_database_are_their_owners_alone() {
    let hive = Hive::start().await;
    let mode = |path: &str| std::fs::metadata(hive.home().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("keys"), mode("keys/admin"), mode("keys/pepper"), mode("hive.db")),
        (0o700, 0o600, 0o600, 0o600)
    );
    hive.logged("where the key lies", |line| {
        line["file"].as_str().is_some_and(|file| file.ends_with("keys/admin"))
    })
    .await;
    assert!(!hive.log().contains(&hive.admin));
}

#[tokio::test]
async fn a_key_without_a_name_or_a_scope_is_not_made() {
    let hive = Hive::start().await;
    let long = "n".repeat(101);
    for (body, param) in [
        (json!({"name": "", "scopes": ["infer"]}), Some("name")),
        (json!({"name": long, "scopes": ["infer"]}), Some("name")),
        (json!({"name": "a\u{1b}[2J", "scopes": ["infer"]}), Some("name")),
        (json!({"name": "a", "scopes": []}), Some("scopes")),
        (json!({"name": "a", "scopes": ["root"]}), None),
        (json!({"name": "a"}), None),
    ] {
        let reply = Reply::to(hive.on_control("POST", "/control/v1/keys").json(&body)).await;
        assert_eq!(
            reply.refused(400, "invalid_request").await["param"].as_str(),
            param,
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_first_key_that_is_in_its_file_but_not_in_the_database_is_taken() {
    let mut hive = Hive::start().await;
    hive.kill();
    // As after a crash between the two.
    for file in ["hive.db", "hive.db-wal", "hive.db-shm"] {
        let _perhaps = std::fs::remove_file(hive.home().join(file));
    }
    let before = hive.admin.clone();
    let hive = hive.again(&[]).await;
    assert_eq!(hive.admin, before);
    assert_eq!(Reply::to(hive.on_control("GET", "/control/v1/keys")).await.status, 200);
}

#[tokio::test]
async fn a_rotated_key_and_its_successor_are_both_good_for_a_while() {
    let hive = Hive::start().await;
    let made =
        json!({"name": "k", "scopes": ["infer"], "models": ["m"], "owner": "ann", "limits": {"token_budget": 5}});
    let old = Reply::to(hive.on_control("POST", "/control/v1/keys").json(&made))
        .await
        .json()
        .await;
    let rotate = |id: &str, grace_s: i64| {
        hive.on_control("POST", &format!("/control/v1/keys/{id}/rotate"))
            .json(&json!({ "grace_s": grace_s }))
    };
    let id = old["id"].as_str().unwrap();
    let new = Reply::to(rotate(id, 60)).await.json().await;
    for field in ["name", "scopes", "models", "owner", "limits", "family"] {
        assert_eq!(new[field], old[field], "{field}");
    }
    let lists = async |key: &serde_json::Value| {
        Reply::to(hive.stranger("GET", "/v1/models").bearer_auth(key.as_str().unwrap()))
            .await
            .status
    };
    assert_eq!((lists(&old["key"]).await, lists(&new["key"]).await), (200, 200));
    let newest = Reply::to(rotate(new["id"].as_str().unwrap(), 0)).await.json().await;
    assert_eq!((lists(&new["key"]).await, lists(&newest["key"]).await), (401, 200));
    assert_eq!(newest["family"], old["id"]);
    Reply::to(rotate(new["id"].as_str().unwrap(), 0))
        .await
        .refused(404, "not_found")
        .await;
    let seen = Reply::to(hive.on_control("GET", &format!("/control/v1/keys/{id}")))
        .await
        .json()
        .await;
    assert!(
        seen["last_used_at_ms"].is_i64() && seen["expires_at_ms"].is_i64(),
        "{seen}"
    );
    assert!(seen.get("key").is_none() && seen.get("hmac").is_none(), "{seen}");
}

#[tokio::test]
async fn a_key_expires_and_its_terms_must_make_sense() {
    let hive = Hive::start().await;
    let make = async |body: serde_json::Value| Reply::to(hive.on_control("POST", "/control/v1/keys").json(&body)).await;
    let made = make(json!({"name": "k", "scopes": ["infer"], "expires_in_s": 1}))
        .await
        .json()
        .await;
    let expires = made["expires_at_ms"].as_i64().unwrap();
    eventually("its second is over", async || {
        (gateway::now_ms() > expires).then_some(())
    })
    .await;
    Reply::to(
        hive.stranger("GET", "/v1/models")
            .bearer_auth(made["key"].as_str().unwrap()),
    )
    .await
    .refused(401, "invalid_api_key")
    .await;
    for (field, value, param) in [
        ("expires_in_s", json!(0), "expires_in_s"),
        ("expires_in_s", json!(u64::MAX), "expires_in_s"),
        ("owner", json!(" "), "owner"),
        (
            "limits",
            json!({"requests_per_minute": 0}),
            "limits.requests_per_minute",
        ),
    ] {
        let error = make(json!({"name": "k", "scopes": ["infer"], field: value})).await;
        assert_eq!(error.refused(400, "invalid_request").await["param"], param);
    }
}

#[tokio::test]
async fn a_key_that_invites_workers_does_nothing_else_and_takes_no_id_over() {
    let hive = Hive::start().await;
    let (_, key) = hive.key(&["worker:join"]).await;
    let invite = |body: serde_json::Value| {
        let request = hive.http.post(format!("{}/control/v1/join-tokens", hive.control));
        Reply::to(request.bearer_auth(&key).json(&body))
    };
    assert_eq!(invite(json!({})).await.status, 201);
    invite(json!({"worker_id": "a"}))
        .await
        .refused(403, "insufficient_scope")
        .await;
    let workers = hive.http.get(format!("{}/control/v1/workers", hive.control));
    Reply::to(workers.bearer_auth(&key))
        .await
        .refused(403, "insufficient_scope")
        .await;
}

#[tokio::test]
async fn a_key_calls_and_sees_the_models_it_is_for_alone() {
    let hive = Hive::start().await;
    hive.worker("a").model("m").join().await;
    hive.worker("b").model("other").join().await;
    let made = json!({"name": "k", "scopes": ["infer"], "models": ["m"]});
    let made = Reply::to(hive.on_control("POST", "/control/v1/keys").json(&made))
        .await
        .json()
        .await;
    let key = made["key"].as_str().unwrap();
    assert_eq!(hive.chat("m").key(key).send().await.status, 200);
    for model in ["other", "nobody-s"] {
        let error = hive
            .chat(model)
            .key(key)
            .send()
            .await
            .refused(403, "model_not_allowed")
            .await;
        assert_eq!(error["param"], "model");
    }
    let listed = Reply::to(hive.stranger("GET", "/v1/models").bearer_auth(key))
        .await
        .json()
        .await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["data"][0]["id"], "m");
}

#[tokio::test]
async fn what_runs_with_a_key_ends_when_it_is_revoked() {
    let hive = Hive::start().await;
    hive.worker("a")
        .slots(2)
        .script([Script::begins(&["a"]).hang(), Script::begins(&["a"]).hang()])
        .join()
        .await;
    let (id, key) = hive.key(&["infer"]).await;
    let mut running = hive.chat("m").key(&key).stream().send().await;
    running.until("a").await;
    let mut anothers = hive.chat("m").stream().send().await;
    anothers.until("a").await;
    assert_eq!(
        Reply::to(hive.on_control("DELETE", &format!("/control/v1/keys/{id}")))
            .await
            .status,
        204
    );
    let events = running.events().await;
    assert!(
        events.iter().any(|event| format!("{event:?}").contains("cancelled")),
        "{events:?}"
    );
    hive.until_in_flight("a", 1).await;
}

#[tokio::test]
async fn good_and_bad_keys_at_once_are_not_mixed_up() {
    const EACH: usize = 50;
    let hive = Hive::start().await;
    hive.worker("a").slots(50).join().await;
    let mut good = Vec::new();
    for _key in 0..EACH {
        good.push(hive.key(&["infer"]).await);
    }
    let asked = good
        .iter()
        .flat_map(|(id, key)| [(200, id.clone(), key.clone()), (401, id.clone(), api_key::generate())]);
    let answers = asked.map(|(status, id, key)| {
        let ask = hive.chat("m").key(&key).send();
        async move { (ask.await.status, status, id) }
    });
    let answers = futures_util::future::join_all(answers).await;
    for (found, expected, id) in answers {
        assert_eq!(found, expected, "{id}");
    }
    let requests = hive.requests().await;
    let mut ids: Vec<_> = requests
        .iter()
        .map(|request| request["key_id"].as_str().unwrap())
        .collect();
    let mut expected: Vec<_> = good.iter().map(|(id, _)| id.as_str()).collect();
    ids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ids, expected);
}

/// `HIVE_TEST_KEYS=1000000` tries as many keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_keys_reach_no_database() {
    const AT_ONCE: usize = 100;
    let keys = std::env::var("HIVE_TEST_KEYS").map_or(20_000, |keys| keys.parse().unwrap());
    let hive = Hive::with(&[("log.filter", "error")]).await;
    let look = async || {
        Reply::to(hive.on_control("GET", "/control/v1/requests"))
            .await
            .json()
            .await;
    };
    look().await;
    let before = at_rest(&hive).await;
    look().await;
    let asked = at_rest(&hive).await;
    assert!(asked > before, "a list of requests is read from the database");
    let (host, door) = (hive.data_address(), hive.control_address());
    let (mut models, mut register) = (hive.connect().await, TcpStream::connect(door).await.unwrap());
    for round in 0..keys / AT_ONCE {
        let junk = |number: usize, good: fn() -> String, prefix: &str| match number % 4 {
            0 => good().replace(prefix, "hvx_"),
            1 => format!("{}x", good()),
            2 => format!("' OR 1=1 -- {round} {number}"),
            // Well-formed and nobody's: that a key is none of ours is told from memory.
            _ => api_key::generate(),
        };
        let half = 0..AT_ONCE / 2;
        let list = half.clone().map(|number| {
            let key = junk(number, api_key::generate, "hvk_");
            format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\n\r\n")
        });
        let join = half.map(|number| {
            let key = junk(number, api_key::join_token, "hvj_");
            let path = "/control/v1/workers/register";
            format!("POST {path} HTTP/1.1\r\nhost: {door}\r\nauthorization: Bearer {key}\r\ncontent-length: 0\r\n\r\n")
        });
        let (list, join): (String, String) = (list.collect(), join.collect());
        tokio::join!(all_refused(&mut models, &list), all_refused(&mut register, &join));
    }
    // A run of minutes sees what is noted once a minute.
    let woken = at_rest(&hive).await - asked;
    assert!(woken <= keys as u64 / 50_000, "the database was woken {woken} times");
}

/// Sends requests of which each is refused.
async fn all_refused(stream: &mut TcpStream, requests: &str) {
    let sent = requests.matches("HTTP/1.1\r\n").count();
    stream.write_all(requests.as_bytes()).await.unwrap();
    let (mut refused, mut text) = (0, Vec::new());
    while refused < sent {
        soon("an answer", stream.read_buf(&mut text)).await.unwrap();
        let said = String::from_utf8_lossy(&text);
        refused = said.matches("HTTP/1.1 401").count();
        assert_eq!(refused, said.matches("HTTP/1.1").count(), "{said}");
    }
}

/// How often the database was woken, once it has gone back to sleep.
async fn at_rest(hive: &Hive) -> u64 {
    let mut seen = (0, 0);
    eventually("the database rests", async || {
        let wakes = hive.database_wakes();
        seen = if wakes == seen.0 {
            (wakes, seen.1 + 1)
        } else {
            (wakes, 0)
        };
        (seen.1 == 10).then_some(wakes)
    })
    .await
}
