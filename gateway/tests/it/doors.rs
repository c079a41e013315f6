//! Every route of both planes, walked as everybody who has no business there.

use axum::http::Method;
use gateway::auth::{
    access::{self, Access, Route},
    api_key,
};
use serde_json::json;
use wire::Scope;

use crate::{
    client::Reply,
    harness::{Hive, eventually},
};

const METHODS: [Method; 6] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
];

/// Both planes with their tables.
fn planes(hive: &Hive) -> [(String, &'static [Route]); 2] {
    [
        (hive.data.clone(), access::DATA),
        (hive.control.clone(), access::CONTROL),
    ]
}

/// A path as a client writes it.
fn path(route: &str) -> String {
    let path = route.replace("{id}", "some-id").replace("{*id}", "a/b");
    path.replace("{*rest}", "swagger-ui.css")
}

async fn code(reply: Reply) -> (u16, String) {
    let status = reply.status;
    let body = serde_json::from_str::<serde_json::Value>(&reply.text().await).unwrap_or_default();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn nobody_calls_a_route_that_is_not_theirs() {
    let hive = Hive::start().await;
    let mut keys = Vec::new();
    for scope in Scope::ALL {
        keys.push((scope, hive.key(&[scope.as_str()]).await.1));
    }
    let (id, revoked) = hive.key(&["admin"]).await;
    let revoke = hive.on_control("DELETE", &format!("/control/v1/keys/{id}"));
    assert_eq!(Reply::to(revoke).await.status, 204);
    let short = json!({"name": "short", "scopes": ["admin"], "expires_in_s": 1});
    let short = Reply::to(hive.on_control("POST", "/control/v1/keys").json(&short))
        .await
        .json()
        .await;
    let end = short["expires_at_ms"].as_i64().unwrap();
    eventually("its second is over", async || (gateway::now_ms() > end).then_some(())).await;
    let worker = hive.worker("a").join().await;
    let strangers = [
        "hvk_junk".to_owned(),
        "a.b.c".to_owned(),
        api_key::generate(),
        revoked,
        short["key"].as_str().unwrap().to_owned(),
        worker.registered.credential.clone(),
    ];
    for (plane, table) in planes(&hive) {
        for (method, route, access) in table {
            let url = format!("{plane}{}", path(route));
            let ask = |key: Option<&str>| {
                let request = hive.http.request(method.clone(), &url);
                Reply::to(match key {
                    Some(key) => request.bearer_auth(key),
                    None => request,
                })
            };
            let what = format!("{method} {url}");
            if *access == Access::Open {
                let status = ask(None).await.status;
                assert!(status == 200 || status == 303, "{what}: {status}");
                continue;
            }
            assert_eq!(code(ask(None).await).await, (401, "invalid_api_key".into()), "{what}");
            for stranger in &strangers {
                if *access == Access::Worker && *stranger == worker.registered.credential {
                    continue;
                }
                let answer = code(ask(Some(stranger)).await).await;
                assert_eq!(answer, (401, "invalid_api_key".into()), "{what} with {stranger}");
            }
            for (scope, key) in &keys {
                let (status, code) = code(ask(Some(key)).await).await;
                match access {
                    Access::Holder(needed) if scope.covers(*needed) => {
                        assert!(
                            ![401, 403, 405].contains(&status),
                            "{what} with {scope:?}: {status} {code}"
                        );
                    }
                    // A worker's own credential is no API key, so there any key is a bad one.
                    Access::Worker => assert_eq!(status, 401, "{what} with {scope:?}"),
                    _ => assert_eq!(
                        (status, code.as_str()),
                        (403, "insufficient_scope"),
                        "{what} with {scope:?}"
                    ),
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_in_the_table_is_nobodys_not_even_the_operators() {
    let hive = Hive::start().await;
    for (plane, table) in planes(&hive) {
        for (_, route, _) in table {
            for method in METHODS {
                if access::access(table, &method, route).is_some() {
                    continue;
                }
                let url = format!("{plane}{}", path(route));
                let request = hive.http.request(method.clone(), &url).bearer_auth(&hive.admin);
                let reply = Reply::to(request).await;
                assert_eq!(
                    (reply.status, reply.header("allow")),
                    (405, access::allowed(table, route).as_str()),
                    "{method} {url}"
                );
            }
        }
        let others: Vec<&str> = [access::DATA, access::CONTROL]
            .concat()
            .iter()
            .map(|route| route.1)
            .collect();
        for other in others {
            if !table.iter().any(|(_, route, _)| *route == other) {
                let request = hive
                    .http
                    .get(format!("{plane}{}", path(other)))
                    .bearer_auth(&hive.admin);
                let answer = code(Reply::to(request).await).await;
                assert_eq!(answer, (404, "unknown_url".into()), "{plane} {other}");
            }
        }
    }
}

#[tokio::test]
async fn the_table_is_what_the_documents_say() {
    let hive = Hive::start().await;
    for (plane, table) in planes(&hive) {
        let document = Reply::to(hive.http.get(format!("{plane}/openapi.json")))
            .await
            .json()
            .await;
        let mut told = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let is_open = operation["security"] == json!([{}]);
                told.push((method.to_uppercase(), path.clone(), is_open));
            }
        }
        // The document itself, its reader and a second name for a probe are in no document.
        let listed = table
            .iter()
            .filter(|(_, route, _)| !route.starts_with("/docs") && !["/openapi.json", "/health"].contains(route));
        let mut listed: Vec<_> = listed
            .map(|(method, route, access)| {
                (
                    method.to_string(),
                    route.replace("{*id}", "{id}"),
                    *access == Access::Open,
                )
            })
            .collect();
        told.sort();
        listed.sort();
        assert_eq!(told, listed, "{plane}");
    }
}

#[tokio::test]
async fn what_belongs_to_one_is_not_anothers() {
    let hive = Hive::start().await;
    let (one, other) = (
        hive.worker("a").model("m").join().await,
        hive.worker("b").model("other").join().await,
    );
    let beat = other.beat.lock().unwrap().clone();
    let foreign = hive.heartbeat("b", &one.registered.credential, &beat).await;
    assert_eq!(foreign.status, 401);
    let leave = hive.http.post(format!("{}/control/v1/workers/b/leave", hive.control));
    let leave = leave
        .bearer_auth(&one.registered.credential)
        .json(&json!({"epoch": other.registered.epoch, "reason": "x"}));
    assert_eq!(Reply::to(leave).await.status, 401);
    let made = json!({"name": "k", "scopes": ["infer"], "models": ["m"]});
    let made = Reply::to(hive.on_control("POST", "/control/v1/keys").json(&made))
        .await
        .json()
        .await;
    let key = made["key"].as_str().unwrap();
    for (path, status) in [
        ("/v1/models/m", 200),
        ("/v1/models/other", 403),
        ("/v1/models/nobodys", 403),
    ] {
        let shown = Reply::to(hive.stranger("GET", path).bearer_auth(key)).await;
        assert_eq!(shown.status, status, "{path}");
    }
}
