//! Tokens of an identity provider: who gets in with one, and everything that gets nobody in.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    client::Reply,
    harness::{Hive, eventually},
    issuer::{KeyServer, Signer, claims, encode, now},
};

/// A hive that takes tokens by the keys at this place.
async fn hive(keys: &str, more: &[(&str, &str)]) -> Hive {
    let settings = [
        ("jwt.issuer", "https://id.example"),
        ("jwt.audience", "hive"),
        ("jwt.keys", keys),
    ];
    let settings: Vec<_> = settings.into_iter().chain(more.iter().copied()).collect();
    Hive::with(&settings).await
}

/// A file only we can read.
fn file(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    gateway::secret_file::create(&path, text).unwrap();
    (dir, path)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The status of a list of models with this token.
async fn lists(hive: &Hive, token: &str) -> u16 {
    Reply::to(hive.stranger("GET", "/v1/models").bearer_auth(token))
        .await
        .status
}

async fn refused(hive: &Hive, token: &str) -> String {
    let reply = Reply::to(hive.stranger("GET", "/v1/models").bearer_auth(token)).await;
    let error = reply.refused(401, "invalid_api_key").await;
    error["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_gets_in_by_any_kind_of_key() {
    let (ed, ec, rsa) = (Signer::ed(), Signer::ec(), Signer::rsa());
    let set = json!({"keys": [ed.jwk("ed"), ec.jwk("ec"), rsa.jwk("rsa")]}).to_string();
    let (_set, path) = file(&set);
    let of_a_set = hive(text(&path), &[]).await;
    for (signer, kid) in [(&ed, "ed"), (&ec, "ec"), (&rsa, "rsa")] {
        assert_eq!(lists(&of_a_set, &signer.token(kid, &claims("ann"))).await, 200, "{kid}");
        // A key is one thing: it is not looked for under another's name.
        refused(&of_a_set, &signer.token("other", &claims("ann"))).await;
    }
    refused(&of_a_set, &ed.token("rsa", &claims("ann"))).await;
    let (_pem, path) = file(&rsa.pem());
    let of_a_key = hive(text(&path), &[("jwt.algorithm", "RS256")]).await;
    assert_eq!(lists(&of_a_key, &rsa.token("any", &claims("ann"))).await, 200);
    let secret = b"a secret of at least thirty-two bytes".to_vec();
    let (_secret, path) = file(std::str::from_utf8(&secret).unwrap());
    let of_a_secret = hive(text(&path), &[("jwt.algorithm", "HS256")]).await;
    assert_eq!(
        lists(&of_a_secret, &Signer::Hmac(secret).token("any", &claims("ann"))).await,
        200
    );
    // And keys of ours are keys as before.
    assert_eq!(lists(&of_a_secret, &of_a_secret.admin).await, 200);
}

#[tokio::test]
async fn a_forged_token_gets_nobody_in_however_it_is_forged() {
    let (rsa, forger) = (Signer::rsa(), Signer::rsa());
    let lure = KeyServer::start(&[forger.jwk("k")]).await;
    let (_pem, path) = file(&rsa.pem());
    let hive = hive(text(&path), &[("jwt.algorithm", "RS256")]).await;
    let good = rsa.token("k", &claims("ann"));
    assert_eq!(lists(&hive, &good).await, 200);
    let said = claims("ann").to_string();
    let parts: Vec<&str> = good.split('.').collect();
    let header = |fields: Value| {
        let mut header = json!({"alg": "RS256", "kid": "k"});
        header
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        header.to_string()
    };
    let confused = Signer::Hmac(rsa.pem().into_bytes());
    let twice = |claims: &str| claims.replace("\"sub\":\"ann\"", "\"sub\":\"ann\",\"sub\":\"root\"");
    let forged = [
        Signer::Nothing.token("k", &claims("ann")),
        Signer::Nothing.token_of(&header(json!({"alg": "NONE"})), &said),
        format!("{}.{}.", parts[0], parts[1]),
        // The public key as if it were a secret (RFC 8725, section 2.1).
        confused.token("k", &claims("ann")),
        confused.token_of(&header(json!({"alg": "RS256"})), &said),
        forger.token("k", &claims("ann")),
        forger.token_of(&header(json!({"jwk": forger.jwk("k")})), &said),
        forger.token_of(&header(json!({"jku": lure.url(), "x5u": lure.url()})), &said),
        rsa.token_of(&header(json!({"alg": "RS512"})), &said),
        rsa.token_of(&header(json!({"alg": ["RS256"]})), &said),
        rsa.token_of(&header(json!({"kid": 7})), &said),
        rsa.token_of(&header(json!({"crit": ["exp"]})), &said),
        rsa.token_of(&header(json!({"crit": []})), &said),
        rsa.token_of(&header(json!({"typ": "logout+jwt"})), &said),
        rsa.token_of(&header(json!({"zip": "DEF"})), &said),
        rsa.token_of(r#"{"alg":"none","alg":"RS256"}"#, &said),
        rsa.token_of(&header(json!({})), &twice(&said)),
        rsa.token_of(&header(json!({})), "[]"),
        rsa.token_of(&header(json!({})), &said[..said.len() - 1]),
        format!("{}.{}.{}", parts[0], encode(said.replace("ann", "root")), parts[2]),
        format!("{good}="),
        format!("{}.{}.{}", parts[0], parts[1], encode([0; 256])),
        good[..good.len() - 2].to_owned(),
        format!("{}.{}", parts[0], parts[1]),
        format!("{good}.{}", parts[2]),
        "..".to_owned(),
        rsa.token("k", &json!({"pad": "x".repeat(9000), "iss": "https://id.example"})),
    ];
    let expected = refused(&hive, &forged[0]).await;
    for token in forged {
        let told = refused(&hive, &token).await;
        let is_a_key_to_us = token.matches('.').count() != 2;
        assert!(told == expected || is_a_key_to_us, "{token}: {told}");
    }
    assert_eq!(lure.fetches(), 0);
}

#[tokio::test]
async fn a_signed_token_gets_nobody_in_unless_its_claims_are_right() {
    let ed = Signer::ed();
    let (_set, path) = file(&json!({"keys": [ed.jwk("k")]}).to_string());
    let hive = hive(text(&path), &[]).await;
    for (claim, value, word) in [
        ("exp", json!(now() - 31), "expired"),
        ("exp", json!((now() + 600).to_string()), "not taken"),
        ("exp", json!(null), "not taken"),
        ("exp", json!(now() + 86_400), "not taken"),
        ("nbf", json!(now() + 60), "not good yet"),
        ("nbf", json!("999"), "not taken"),
        ("aud", json!(["other", "others"]), "not taken"),
        ("aud", json!("hive2"), "not taken"),
        ("iss", json!(["https://id.example"]), "not taken"),
        ("iss", json!("https://id.example/"), "not taken"),
        ("sub", json!(null), "not taken"),
        ("sub", json!(""), "not taken"),
    ] {
        let mut claims = claims("ann");
        claims[claim] = value.clone();
        let told = refused(&hive, &ed.token("k", &claims)).await;
        assert!(told.contains(word), "{claim} {value}: {told}");
        claims.as_object_mut().unwrap().remove(claim);
        if claim != "nbf" {
            refused(&hive, &ed.token("k", &claims)).await;
        }
    }
    let mut claims = claims("ann");
    claims["aud"] = json!(["other", "hive"]);
    claims["exp"] = json!(now() - 10);
    assert_eq!(lists(&hive, &ed.token("k", &claims)).await, 200);
    // Nobody who is refused is told by the log who they are, and the log says why.
    let line = hive
        .logged("why a token was refused", |line| {
            line["cause"] == "the token: it has expired"
        })
        .await;
    assert_eq!(
        (&line["status"], &line["code"]),
        (&json!(401), &json!("invalid_api_key"))
    );
}

#[tokio::test]
async fn a_token_opens_what_its_claims_say_and_no_more() {
    let ed = Signer::ed();
    let (_set, path) = file(&json!({"keys": [ed.jwk("k")]}).to_string());
    let more = [
        ("jwt.scopes_claim", "/realm/roles"),
        ("jwt.scopes", "{ staff = [\"infer\"], boss = [\"admin\"] }"),
        ("jwt.models_claim", "models"),
        ("jwt.limits", "{ requests_per_minute = 2 }"),
    ];
    let hive = hive(text(&path), &more).await;
    hive.worker("a").model("m").join().await;
    hive.worker("b").model("other").join().await;
    let token = |sub: &str, roles: Value, models: Value| {
        let mut claims = claims(sub);
        claims["realm"] = json!({ "roles": roles });
        claims["models"] = models;
        ed.token("k", &claims)
    };
    let staff = token("ann", json!(["staff"]), json!(["m"]));
    assert_eq!(hive.chat("m").key(&staff).send().await.status, 200);
    hive.chat("other")
        .key(&staff)
        .send()
        .await
        .refused(403, "model_not_allowed")
        .await;
    let workers = hive.http.get(format!("{}/control/v1/workers", hive.control));
    Reply::to(workers.bearer_auth(&staff))
        .await
        .refused(403, "insufficient_scope")
        .await;
    let none = token("ann", json!(["admin"]), json!(["m"]));
    hive.chat("m")
        .key(&none)
        .send()
        .await
        .refused(403, "insufficient_scope")
        .await;
    refused(&hive, &token("ann", json!(["staff"]), json!([]))).await;
    let boss = token("eve", json!(["boss"]), json!("m other"));
    let workers = hive.http.get(format!("{}/control/v1/workers", hive.control));
    assert_eq!(Reply::to(workers.bearer_auth(&boss)).await.status, 200);
    // Each person has limits of their own, whichever token they show.
    assert_eq!(hive.chat("m").key(&staff).send().await.status, 200);
    let again = token("ann", json!(["staff"]), json!("m"));
    hive.chat("m")
        .key(&again)
        .send()
        .await
        .refused(429, "rate_limit_exceeded")
        .await;
    assert_eq!(hive.chat("m").key(&boss).send().await.status, 200);
}

#[tokio::test]
async fn who_holds_a_token_is_a_pseudonym_in_log_books_and_record_until_it_is_destroyed() {
    let ed = Signer::ed();
    let (_set, path) = file(&json!({"keys": [ed.jwk("k")]}).to_string());
    let hive = hive(text(&path), &[]).await;
    hive.worker("a").model("m").join().await;
    let token = ed.token("k", &claims("ann@example.org"));
    let call = async || {
        assert_eq!(hive.chat("m").key(&token).send().await.status, 200);
        hive.requests().await[0]["key_id"].as_str().unwrap().to_owned()
    };
    let first = call().await;
    assert_eq!((call().await, &first[..4]), (first.clone(), "jwt_"));
    let subject = json!({"subject": "ann@example.org"});
    let found = Reply::to(hive.on_control("POST", "/control/v1/audit/export").json(&subject))
        .await
        .json()
        .await;
    assert!(found["records"].as_array().unwrap().len() >= 2, "{found}");
    assert!(found["pseudonym"].as_str().unwrap().starts_with(&first[4..]), "{found}");
    let erased = Reply::to(hive.on_control("POST", "/control/v1/audit/erase").json(&subject))
        .await
        .json()
        .await;
    assert_eq!(erased["erased"], true);
    assert_ne!(call().await, first);
    assert!(!hive.log().contains("ann@example.org") && !hive.log().contains(&token));
    // A request that is refused is on the record too, folded, without a word of the token.
    for _refusal in 0..5 {
        refused(&hive, &Signer::ed().token("k", &claims("ann@example.org"))).await;
    }
    let denied = eventually("the refusals are on the record", async || {
        let records = Reply::to(hive.on_control("GET", "/control/v1/audit?limit=1000"))
            .await
            .json()
            .await;
        let records = records.as_array().unwrap().clone();
        records.into_iter().find(|record| record["kind"] == "auth.fail")
    })
    .await;
    assert!(
        denied["actor"].get("key_id").is_none() && !denied.to_string().contains("ann"),
        "{denied}"
    );
}

#[tokio::test]
async fn a_flood_of_unknown_keys_leads_to_one_fetch_a_minute() {
    let ed = Signer::ed();
    let server = KeyServer::start(&[ed.jwk("k")]).await;
    let hive = hive(&server.url(), &[]).await;
    assert_eq!(lists(&hive, &ed.token("k", &claims("ann"))).await, 200);
    let floods = (0..8).map(|flood| {
        let (hive, ed) = (&hive, &ed);
        async move {
            for kid in 0..50 {
                refused(hive, &ed.token(&format!("{flood}-{kid}"), &claims("ann"))).await;
            }
        }
    });
    futures_util::future::join_all(floods).await;
    assert_eq!(server.fetches(), 1);
}

#[tokio::test]
async fn keys_that_the_issuer_rotates_are_followed_and_stay_good_while_it_is_away() {
    let (old, new) = (Signer::ed(), Signer::ed());
    let server = KeyServer::start(&[old.jwk("old")]).await;
    let hive = hive(&server.url(), &[("jwt.pause", "50ms"), ("jwt.refresh", "100ms")]).await;
    let [by_old, by_new] = [old.token("old", &claims("ann")), new.token("new", &claims("ann"))];
    assert_eq!((lists(&hive, &by_old).await, lists(&hive, &by_new).await), (200, 401));
    server.hands_out(&[old.jwk("old"), new.jwk("new")]);
    let becomes = async |token: &str, status: u16| {
        eventually("the keys are followed", async || {
            (lists(&hive, token).await == status).then_some(())
        })
        .await;
    };
    becomes(&by_new, 200).await;
    assert_eq!(lists(&hive, &by_old).await, 200);
    server.hands_out(&[new.jwk("new")]);
    becomes(&by_old, 401).await;
    let lure = KeyServer::start(&[old.jwk("old")]).await;
    let large = "x".repeat(300_000);
    for answer in [
        "503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".to_owned(),
        format!("200 OK\r\ncontent-length: 300000\r\nconnection: close\r\n\r\n{large}"),
        format!("302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", lure.url()),
        "garbage".to_owned(),
    ] {
        server.says(&answer);
        let before = server.fetches();
        eventually("it was asked again", async || {
            (server.fetches() > before + 1).then_some(())
        })
        .await;
        assert_eq!(
            (lists(&hive, &by_new).await, lists(&hive, &by_old).await),
            (200, 401),
            "{answer:.40}"
        );
    }
    assert_eq!(lure.fetches(), 0);
    hive.logged("that the keys could not be read", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("those that are known stay good"))
    })
    .await;
}

#[tokio::test]
async fn an_operator_is_told_what_the_gateway_makes_of_a_token() {
    let ed = Signer::ed();
    let (_set, path) = file(&json!({"keys": [ed.jwk("k")]}).to_string());
    let hive = hive(text(&path), &[]).await;
    let ask = async |token: &str| {
        let ask = hive
            .on_control("POST", "/control/v1/tokens/verify")
            .json(&json!({ "token": token }));
        Reply::to(ask).await.json().await
    };
    let verdict = ask(&ed.token("k", &claims("ann"))).await;
    assert_eq!((&verdict["accepted"], &verdict["signed"]), (&json!(true), &json!(true)));
    assert_eq!(
        (&verdict["scopes"], &verdict["claims"]["sub"]),
        (&json!(["infer"]), &json!("ann"))
    );
    let mut old = claims("ann");
    old["exp"] = json!(now() - 3600);
    let verdict = ask(&ed.token("k", &old)).await;
    assert_eq!(
        (&verdict["accepted"], &verdict["signed"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(verdict["reason"], "it has expired");
    let verdict = ask(&Signer::ed().token("k", &claims("ann"))).await;
    assert_eq!(
        (&verdict["accepted"], &verdict["signed"]),
        (&json!(false), &json!(false))
    );
    assert!(verdict["reason"].as_str().unwrap().contains("signature"), "{verdict}");
    assert_eq!(ask(&hive.admin).await["scopes"], json!(["admin"]));
    assert_eq!(ask("hvk_junk").await["accepted"], false);
}

#[tokio::test]
async fn keys_that_cannot_be_used_stop_the_start_with_the_reason() {
    let (_dir, path) = file("too short");
    let base = [("jwt.issuer", "i"), ("jwt.audience", "a")];
    let path_keys = ("jwt.keys", text(&path));
    for (more, code, word) in [
        (vec![path_keys, ("jwt.algorithm", "HS256")], 1, "32 bytes"),
        (vec![("jwt.keys", "/nowhere/keys")], 1, "/nowhere/keys"),
        (vec![("jwt.keys", "http://login.example.org/jwks")], 2, "https://"),
        (
            vec![("jwt.keys", "https://h/jwks"), ("jwt.algorithm", "HS256")],
            2,
            "secret",
        ),
        (vec![("jwt.keys", "credential:jwks")], 2, "LoadCredential=jwks"),
        (vec![path_keys, ("jwt.algorithm", "none")], 2, "ALGORITHM"),
        (vec![], 2, "jwt.keys"),
    ] {
        let settings: Vec<_> = base.into_iter().chain(more).collect();
        let said = crate::starting::fails(&crate::harness::new_home(), &crate::starting::FREE, &settings, code).await;
        assert!(said.contains(word), "{word}: {said}");
    }
}
