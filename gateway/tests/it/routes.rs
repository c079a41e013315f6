//! What browsers and gluing clients need of the routes.

use serde_json::{Value, json};

use crate::{client::Reply, harness::Hive, script::Script};

#[tokio::test]
async fn probes_need_no_key_and_tell_the_version_and_whether_there_is_a_record() {
    let hive = Hive::start().await;
    for plane in [&hive.data, &hive.control] {
        for path in ["/healthz", "/health", "/readyz"] {
            let health = Reply::to(hive.http.get(format!("{plane}{path}"))).await.json().await;
            assert_eq!(
                health,
                json!({"status": "ok", "version": env!("CARGO_PKG_VERSION"), "audit": "metadata"})
            );
        }
    }
}

#[tokio::test]
async fn the_docs_come_from_inside_the_binary_and_load_the_document_beside_them() {
    let hive = Hive::start().await;
    for plane in [&hive.data, &hive.control] {
        let redirect = Reply::to(hive.http.get(format!("{plane}/docs"))).await;
        assert_eq!((redirect.status, redirect.header("location")), (303, "/docs/"));
        let page = Reply::to(hive.http.get(format!("{plane}/docs/"))).await;
        assert!(page.header("content-type").starts_with("text/html"));
        let page = page.text().await;
        assert!(
            page.contains("swagger-ui-bundle.js") && !page.contains("https://"),
            "{page}"
        );
        for (asset, kind) in [
            ("swagger-ui-bundle.js", "javascript"),
            ("swagger-ui.css", "css"),
            ("swagger-initializer.js", "javascript"),
        ] {
            let reply = Reply::to(hive.http.get(format!("{plane}/docs/{asset}"))).await;
            assert!(
                reply.status == 200 && reply.header("content-type").contains(kind),
                "{asset}"
            );
            if asset == "swagger-initializer.js" {
                assert!(reply.text().await.contains("/openapi.json"));
            }
        }
    }
}

#[tokio::test]
async fn the_document_lets_a_browser_try_it_out_with_a_key() {
    let hive = Hive::start().await;
    let document = Reply::to(hive.stranger("GET", "/openapi.json")).await.json().await;
    assert_eq!(document["components"]["securitySchemes"]["key"]["scheme"], "bearer");
    assert_eq!(document["security"], json!([{"key": []}, {"key_in_header": []}]));
    assert_eq!(document["paths"]["/healthz"]["get"]["security"], json!([{}]));
    let body = &document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"];
    assert!(body["application/json"]["schema"].is_object(), "{body}");
}

#[tokio::test]
async fn a_browser_may_ask_from_anywhere_before_it_shows_a_key() {
    let hive = Hive::start().await;
    hive.worker("a").script([Script::says(&["Hello"])]).join().await;
    let wanted = "authorization,content-type,x-stainless-os,x-anything";
    let preflight = hive
        .stranger("OPTIONS", "/v1/chat/completions")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", wanted);
    let reply = Reply::to(preflight).await;
    assert!(reply.status == 200 || reply.status == 204, "{}", reply.status);
    assert_eq!(reply.header("access-control-allow-origin"), "*");
    assert_eq!(reply.header("access-control-allow-headers"), wanted);
    assert!(reply.header("access-control-allow-methods").contains("POST"));
    assert!(!reply.headers.contains_key("access-control-allow-credentials"));
    let answers = [
        hive.chat("m").header("origin", "https://app.example").send().await,
        Reply::to(hive.stranger("GET", "/v1/models").header("origin", "null")).await,
        Reply::to(hive.on_data("GET", "/nope").header("origin", "https://app.example")).await,
    ];
    for (reply, status) in answers.into_iter().zip([200, 401, 404]) {
        assert_eq!(
            (reply.status, reply.header("access-control-allow-origin")),
            (status, "*")
        );
        for name in ["x-request-id", "retry-after", "x-should-retry", "x-hive-worker"] {
            assert!(reply.header("access-control-expose-headers").contains(name), "{name}");
        }
    }
}

#[tokio::test]
async fn the_control_plane_is_not_for_browsers_of_other_origins() {
    let hive = Hive::start().await;
    let preflight = hive
        .on_control("OPTIONS", "/control/v1/keys")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST");
    let get = hive
        .on_control("GET", "/control/v1/keys")
        .header("origin", "https://app.example");
    for request in [preflight, get] {
        let reply = Reply::to(request).await;
        assert!(
            !reply
                .headers
                .keys()
                .any(|name| name.as_str().starts_with("access-control-"))
        );
        let refused = reply.refused(400, "invalid_request").await;
        let told = refused["message"].as_str().unwrap();
        assert!(
            told.contains("Origin") && told.contains("control.allowed_hosts"),
            "{told}"
        );
    }
}

#[tokio::test]
async fn no_page_of_another_origin_acts_on_the_control_plane_whatever_its_name_resolves_to() {
    let hive = Hive::with(&[("control.allowed_hosts", "[\"hive.example\"]")]).await;
    let made = async || {
        let keys = Reply::to(hive.on_control("GET", "/control/v1/keys")).await.json().await;
        keys.as_array().unwrap().len()
    };
    // A request that a browser sends without asking first.
    let make = |origin: &str| {
        hive.on_control("POST", "/control/v1/keys")
            .header("origin", origin)
            .header("content-type", "text/plain")
            .body(r#"{"name": "k", "scopes": ["infer"]}"#)
    };
    let before = made().await;
    for origin in [
        "https://evil.example",
        "http://127.0.0.1.evil.example",
        "null",
        "http://10.0.0.9:7412",
        "file://",
    ] {
        Reply::to(make(origin)).await.refused(400, "invalid_request").await;
    }
    // A page whose own name was made to mean this address.
    let rebound = make("http://evil.example:7412").header("host", "evil.example:7412");
    Reply::to(rebound).await.refused(400, "invalid_request").await;
    assert_eq!(made().await, before);
    for (number, origin) in ["http://localhost:7412", "https://hive.example", "http://[::1]:7412"]
        .iter()
        .enumerate()
    {
        assert_eq!(Reply::to(make(origin)).await.status, 201, "{origin}");
        assert_eq!(made().await, before + number + 1);
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    for path in ["/v1/models", "/v1/models/m", "/healthz", "/openapi.json"] {
        let reply = Reply::to(hive.on_data("HEAD", path)).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.headers.contains_key("x-request-id"));
        assert_eq!(reply.text().await, "", "{path}");
    }
    assert_eq!(Reply::to(hive.stranger("HEAD", "/v1/models")).await.status, 401);
}

#[tokio::test]
async fn glued_urls_reach_the_route_they_mean() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    for path in [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "//v1//models//",
        "/v1/models?x=//",
    ] {
        let list = Reply::to(hive.on_data("GET", path)).await.json().await;
        assert_eq!(list["object"], "list", "{path}");
    }
    for path in ["/v1/chat/completions/", "//v1/chat//completions"] {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        let answer: Value = Reply::to(hive.on_data("POST", path).json(&body)).await.json().await;
        assert_eq!(answer["object"], "chat.completion", "{path}");
    }
    for path in ["//v1//completions/", "/v1/completions/"] {
        let body = json!({"model": "m", "prompt": "x"});
        let reply = Reply::to(hive.on_data("POST", path).json(&body)).await;
        assert_eq!(reply.status, 200, "{path}");
    }
    let workers = Reply::to(hive.on_control("GET", "//control//v1/workers"))
        .await
        .json()
        .await;
    assert_eq!(workers.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn json_is_compressed_for_whoever_takes_it_and_events_never_are() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let gzip = |ask: crate::client::Ask| ask.header("accept-encoding", "gzip, deflate, br");
    for reply in [
        gzip(hive.chat("m")).send().await,
        Reply::to(hive.on_data("GET", "/v1/models").header("accept-encoding", "gzip")).await,
    ] {
        assert_eq!((reply.status, reply.header("content-encoding")), (200, "gzip"));
        assert!(reply.header("vary").contains("accept-encoding"), "{:?}", reply.headers);
        assert_eq!(&reply.bytes().await[..2], [0x1f, 0x8b], "gzip's mark");
    }
    let plain = hive.chat("m").send().await;
    assert_eq!(plain.header("content-encoding"), "");
    for plainly in [
        "",
        "identity",
        "br;q=1",
        "gzip;q=0",
        "gzip;q=0.5, identity",
        "*;q=0, identity",
    ] {
        let reply = hive.chat("m").header("accept-encoding", plainly).send().await;
        assert_eq!((reply.status, reply.header("content-encoding")), (200, ""), "{plainly}");
    }
    for nothing in [
        "identity;q=0,*;q=0",
        "*;q=0",
        "identity;q=0, gzip;q=x",
        "br, identity;q=0",
    ] {
        let refused = hive.chat("m").header("accept-encoding", nothing).send().await;
        assert_eq!(
            refused.refused(400, "invalid_request").await["param"],
            "accept-encoding",
            "{nothing}"
        );
    }
    let stream = gzip(hive.chat("m")).stream().send().await;
    assert_eq!(stream.header("content-encoding"), "");
    assert_eq!(stream.events().await.last().unwrap(), "[DONE]");
}
