//! The record: what is in the journal, what never is, and that it holds whatever happens to the gateway.

mod trouble;

use std::path::Path;

use gateway::audit::verify::{Inquiry, Report, Verdict, verify};
use serde_json::{Value, json};

use crate::{
    client::Reply,
    harness::{Hive, Signal, eventually},
    script::Script,
};

const STRICT: &str = "eu-strict";

/// All records in the state folder, in their order.
pub fn records(home: &Path) -> Vec<Value> {
    let mut files: Vec<_> = std::fs::read_dir(home.join("audit"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    let lines: Vec<_> = texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn of_kind(home: &Path, kind: &str) -> Vec<Value> {
    let of_kind = records(home).into_iter().filter(|record| record["kind"] == kind);
    of_kind.collect()
}

/// The first record that satisfies this, once it is there.
async fn recorded(hive: &Hive, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || records(hive.home()).into_iter().find(&wanted)).await
}

pub fn verified(home: &Path) -> Report {
    verify(&home.join("audit"), &Inquiry::default())
}

/// Ends the gateway in order; its journal must then be signed to the end.
async fn ends_intact(mut hive: Hive) -> Vec<Value> {
    hive.signal(Signal::SIGTERM);
    assert!(hive.exit().await.success());
    let report = verified(hive.home());
    assert_eq!(report.result, Verdict::Intact, "{report:?}");
    let records = records(hive.home());
    assert_eq!(records.last().unwrap()["kind"], "audit.stop");
    records
}

async fn strict() -> (tempfile::TempDir, Hive) {
    let elsewhere = tempfile::tempdir().unwrap();
    let anchors = elsewhere.path().join("anchors");
    let hive = Hive::on_a_small_disk(&[("audit.mode", STRICT), ("audit.anchor_file", anchors.to_str().unwrap())]).await;
    (elsewhere, hive)
}

#[tokio::test]
async fn every_inference_is_recorded_with_its_end_and_none_of_its_words() {
    let hive = Hive::start().await;
    let (key_id, key) = hive.key(&["infer"]).await;
    hive.worker("a")
        .script([Script::says(&["geheim-", "antwort"])])
        .join()
        .await;
    let reply = hive
        .chat("m")
        .key(&key)
        .with("messages", json!([{"role": "user", "content": "geheim-frage"}]))
        .header("x-request-id", "my-own-id")
        .send()
        .await;
    assert_eq!(reply.status, 200);
    reply.text().await;
    let end = recorded(&hive, "the end is recorded", |record| record["kind"] == "req.end").await;
    let start = recorded(&hive, "the start is recorded", |record| record["kind"] == "req.start").await;
    assert_eq!(start["req"], end["req"]);
    assert_eq!(start["correlation"], "my-own-id");
    assert!(start["seq"].as_u64() < end["seq"].as_u64());
    assert_eq!(end["actor"]["key_id"], key_id.as_str());
    assert_eq!(end["actor"], start["actor"], "an end can be found by its person, too");
    assert_eq!(end["object"], json!({"model": "m", "worker": "a", "epoch": 1}));
    assert_eq!(end["outcome"], json!({"state": "completed"}));
    assert!(end["usage"]["in"].is_u64() && end["usage"]["out"] == 2, "{end}");
    for time in ["queue", "ttft", "total"] {
        assert!(end["t"][time].is_u64(), "{end}");
    }
    let psub = start["actor"]["psub"].as_str().unwrap();
    assert!(psub.len() == 32 && psub != key_id, "{start}");
    let home = hive.home().to_owned();
    let text = serde_json::to_string(&ends_intact(hive).await).unwrap();
    for secret in ["geheim", &key, &key[13..45], home.to_str().unwrap(), "127."] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn refused_credentials_are_recorded_with_counts_and_without_addresses() {
    let hive = Hive::start().await;
    let (reader_id, reader) = hive.key(&["models:read"]).await;
    for _ in 0..20 {
        let wrong = hive.stranger("GET", "/v1/models").bearer_auth("hvk_junk");
        Reply::to(wrong).await.refused(401, "invalid_api_key").await;
    }
    hive.chat("m")
        .key(&reader)
        .send()
        .await
        .refused(403, "insufficient_scope")
        .await;
    hive.register("hvj_junk", &json!({}))
        .await
        .refused(401, "invalid_api_key")
        .await;
    let records = ends_intact(hive).await;
    let failed: Vec<_> = records.iter().filter(|record| record["kind"] == "auth.fail").collect();
    let of = |code: &str, route: &str| -> Vec<_> {
        let these = failed
            .iter()
            .filter(|record| record["outcome"]["code"] == code && record["object"]["route"] == route);
        these.collect()
    };
    let strangers = of("invalid_api_key", "/v1/models");
    assert_eq!(strangers.len(), 2, "the first at once, the others in one: {failed:?}");
    assert_eq!(
        strangers
            .iter()
            .filter_map(|record| record["count"].as_u64())
            .sum::<u64>(),
        20
    );
    assert!(
        strangers[0]["net"].as_str().is_some_and(|net| net.len() == 16),
        "{strangers:?}"
    );
    let known = of("insufficient_scope", "/v1/chat/completions");
    assert_eq!(known[0]["actor"]["key_id"], reader_id.as_str());
    assert_eq!(of("invalid_api_key", "/control/v1/workers/register").len(), 1);
    let text = serde_json::to_string(&failed).unwrap();
    assert!(!text.contains("127.") && !text.contains("junk"), "{text}");
}

#[tokio::test]
async fn every_operator_act_is_recorded_once_with_who_did_it() {
    let hive = Hive::start().await;
    let admin = hive.admin[4..12].to_owned();
    let (operator_id, operator) = hive.key(&["admin"]).await;
    let by_operator = |method: &str, path: &str| {
        hive.http
            .request(method.parse().unwrap(), format!("{}/control/v1{path}", hive.control))
            .bearer_auth(&operator)
    };
    let (key_id, _) = hive.key(&["infer"]).await;
    let rotated = by_operator("POST", &format!("/keys/{key_id}/rotate")).json(&json!({}));
    let rotated = Reply::to(rotated).await.json().await["id"].clone();
    assert_eq!(
        Reply::to(by_operator("DELETE", &format!("/keys/{key_id}")))
            .await
            .status,
        204
    );
    let worker = hive.worker("a").join().await;
    assert_eq!(Reply::to(by_operator("POST", "/workers/a/drain")).await.status, 200);
    let file = "ab".repeat(32);
    let download =
        |sha256: &str| by_operator("POST", "/audit/downloads").json(&json!({"model": "m", "sha256": sha256}));
    assert_eq!(Reply::to(download(&file)).await.status, 204);
    Reply::to(download("geheim"))
        .await
        .refused(400, "invalid_request")
        .await;
    drop(worker);
    let records = ends_intact(hive).await;
    let acts = |kind: &str| -> Vec<(Value, Value)> {
        let of_kind = records.iter().filter(|record| record["kind"] == kind);
        of_kind
            .map(|record| (record["actor"]["key_id"].clone(), record["object"].clone()))
            .collect()
    };
    let created = acts("key.create");
    assert_eq!(created.len(), 3, "the first admin key has no maker: {created:?}");
    assert_eq!(created[0], (Value::Null, json!({"key_id": admin, "scopes": ["admin"]})));
    assert_eq!(
        created[1],
        (json!(admin), json!({"key_id": operator_id, "scopes": ["admin"]}))
    );
    assert_eq!(
        acts("key.rotate"),
        [(json!(operator_id), json!({"key_id": rotated, "scopes": ["infer"]}))]
    );
    assert_eq!(acts("key.revoke"), [(json!(operator_id), json!({"key_id": key_id}))]);
    assert_eq!(acts("join_token.create").len(), 1);
    assert_eq!(
        acts("worker.register"),
        [(Value::Null, json!({"worker": "a", "epoch": 1, "model": "m"}))]
    );
    assert_eq!(acts("worker.drain"), [(json!(operator_id), json!({"worker": "a"}))]);
    assert_eq!(
        acts("model.download"),
        [(json!(operator_id), json!({"model": "m", "sha256": file}))]
    );
}

#[tokio::test]
async fn a_worker_that_falls_silent_is_recorded_as_evicted() {
    let hive = Hive::with(&[("registry.silence_limit", "1s")]).await;
    let worker = hive.worker("a").join().await;
    hive.until("a", "ready").await;
    // The registry is compared once a second.
    recorded(&hive, "it is known", |record| record["kind"] == "worker.register").await;
    worker.falls_silent();
    let evicted = recorded(&hive, "its eviction", |record| record["kind"] == "worker.evict").await;
    assert_eq!(evicted["object"], json!({"worker": "a", "epoch": 1}));
}

#[tokio::test]
async fn strict_mode_wants_an_anchor_and_keeps_it_up_to_date() {
    let (elsewhere, hive) = strict().await;
    hive.key(&["infer"]).await;
    let home = hive.home().join("audit");
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&home).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let anchors = elsewhere.path().join("anchors");
    let against = |folder: &Path| {
        let inquiry = Inquiry {
            anchors: Some(&anchors),
            ..Inquiry::default()
        };
        verify(folder, &inquiry)
    };
    hive.signal(Signal::SIGTERM);
    let mut hive = hive;
    assert!(hive.exit().await.success());
    let now = against(&home);
    assert_eq!((now.result, now.anchors), (Verdict::Intact, 2), "{now:?}");
    assert_eq!(
        against(copy.path()).result,
        Verdict::Missing,
        "the whole folder was rolled back"
    );

    for settings in [
        &[("audit.mode", STRICT)][..],
        &[("audit.mode", STRICT), ("audit.anchor_file", "/nowhere/anchors")],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut refused = crate::harness::Program::start(
            folder.path(),
            &["--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"],
            settings,
        );
        assert!(!refused.exit().await.success());
        assert!(refused.log().contains("anchor"), "{}", refused.log());
    }
}

#[tokio::test]
async fn with_the_mode_off_nothing_is_written() {
    let hive = Hive::with(&[("audit.mode", "off")]).await;
    hive.worker("a").join().await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    hive.key(&["infer"]).await;
    for (method, path) in [
        ("GET", ""),
        ("GET", "/checkpoint"),
        ("POST", "/export"),
        ("POST", "/erase"),
        ("POST", "/prune"),
    ] {
        let ask = hive.on_control(method, &format!("/control/v1/audit{path}"));
        let ask = if method == "POST" {
            ask.json(&json!({"subject": "ann"}))
        } else {
            ask
        };
        let ask = if path == "/prune" { ask.json(&json!({})) } else { ask };
        Reply::to(ask).await.refused(409, "audit_off").await;
    }
    let health = Reply::to(hive.stranger("GET", "/health")).await.json().await;
    assert_eq!((&health["status"], &health["audit"]), (&json!("ok"), &json!("off")));
    assert!(!hive.home().join("audit").exists() && !hive.home().join("subjects.db").exists());
    hive.logged("it says so", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("journal is off"))
    })
    .await;
}

#[tokio::test]
async fn that_the_record_was_off_for_a_while_is_on_the_record() {
    let mut hive = Hive::start().await;
    for mode in ["off", "off", "metadata", "off", "metadata"] {
        hive.signal(Signal::SIGTERM);
        assert!(hive.exit().await.success());
        hive = hive.again(&[("audit.mode", mode)]).await;
        // Made in any mode, recorded in one.
        hive.key(&["infer"]).await;
    }
    let records = ends_intact(hive).await;
    let told: Vec<_> = records
        .iter()
        .filter(|record| ["audit.start", "audit.stop", "key.create"].contains(&record["kind"].as_str().unwrap()))
        .map(|record| record["cfg"]["mode"].as_str().or(record["kind"].as_str()).unwrap())
        .collect();
    let (on, off) = (["metadata", "key.create", "audit.stop"], ["off", "audit.stop"]);
    assert_eq!(
        told,
        [&on[..], &off, &on, &off, &on].concat(),
        "each change of mode is told once"
    );
}

#[tokio::test]
async fn only_a_trusted_key_speaks_for_other_people() {
    let hive = Hive::start().await;
    hive.worker("a").script(vec![Script::says(&["yes"]); 9]).join().await;
    let new = hive
        .on_control("POST", "/control/v1/keys")
        .json(&json!({"name": "webui", "scopes": ["infer"], "trusted": true}));
    let trusted = Reply::to(new).await.json().await["key"].as_str().unwrap().to_owned();
    let mut seen = Vec::new();
    for (key, header, user) in [
        (&hive.admin, None, None),
        (&hive.admin, Some("alice"), Some("bob")),
        (&trusted, Some("alice"), Some("bob")),
        (&trusted, None, Some("alice")),
        (&trusted, None, Some("bob")),
        (&trusted, None, None),
    ] {
        let mut ask = hive.chat("m").key(key);
        if let Some(header) = header {
            ask = ask.header("x-openwebui-user-id", header);
        }
        if let Some(user) = user {
            ask = ask.with("user", json!(user));
        }
        assert_eq!(ask.send().await.status, 200);
        let count = seen.len() + 1;
        let starts = eventually("it is recorded", async || {
            let starts = of_kind(hive.home(), "req.start");
            (starts.len() == count).then_some(starts)
        })
        .await;
        seen.push(starts[count - 1]["actor"]["psub"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen[0], seen[1], "an ordinary key's header and field mean nothing");
    assert_eq!(seen[2], seen[3]);
    let distinct: std::collections::HashSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), 4, "{seen:?}");
    let text = serde_json::to_string(&ends_intact(hive).await).unwrap();
    assert!(!text.contains("alice") && !text.contains("bob"));
}

#[tokio::test]
async fn expired_segments_go_as_a_whole_and_what_is_left_verifies() {
    let settings = [("audit.segment_bytes", "4096")];
    let hive = Hive::with(&settings).await;
    for _key in 0..30 {
        hive.key(&["infer"]).await;
    }
    let segments = || {
        let files = std::fs::read_dir(hive.home().join("audit")).unwrap().flatten();
        files
            .filter(|file| file.path().extension().is_some_and(|end| end == "jsonl"))
            .count()
    };
    let before = segments();
    assert!(before > 2, "{before}");
    let prune = async |age: u64| {
        let prune = hive.on_control("POST", "/control/v1/audit/prune");
        Reply::to(prune.json(&json!({ "older_than_s": age })))
            .await
            .json()
            .await
    };
    assert_eq!(prune(3600).await["first"], Value::Null);
    let first = prune(0).await["first"].as_u64().unwrap();
    let operator = hive.admin[4..12].to_owned();
    assert!(first > 0 && segments() < before);
    hive.key(&["infer"]).await;
    let hive = hive.again(&settings).await;
    let left = ends_intact(hive).await;
    assert_eq!(left[0]["seq"], first);
    let pruned = left.iter().find(|record| record["kind"] == "audit.prune").unwrap();
    assert_eq!(
        (&pruned["first"], &pruned["actor"]["key_id"]),
        (&json!(first), &json!(operator))
    );
}

#[tokio::test]
async fn an_auditors_key_reads_the_record_and_does_nothing_else() {
    let hive = Hive::start().await;
    let (_, auditor) = hive.key(&["audit:read"]).await;
    let asks = |method: &str, path: &str| {
        hive.http
            .request(
                method.parse().unwrap(),
                format!("{}/control/v1/audit{path}", hive.control),
            )
            .bearer_auth(&auditor)
    };
    let records = Reply::to(asks("GET", "")).await.json().await;
    let last = records.as_array().unwrap().last().unwrap()["seq"].as_u64().unwrap();
    let after = Reply::to(asks("GET", "?after=0&limit=1")).await.json().await;
    assert_eq!(after[0]["seq"], 1);
    assert_eq!(
        Reply::to(asks("GET", &format!("?after={}", last + 100)))
            .await
            .json()
            .await,
        json!([])
    );
    Reply::to(asks("GET", "?limit=0"))
        .await
        .refused(400, "invalid_request")
        .await;
    let checkpoint = Reply::to(asks("GET", "/checkpoint")).await.json().await;
    assert!(
        checkpoint["checkpoint"].as_str().unwrap().starts_with("hive/audit/"),
        "{checkpoint}"
    );
    for path in ["/erase", "/export", "/prune"] {
        Reply::to(asks("POST", path).json(&json!({})))
            .await
            .refused(403, "insufficient_scope")
            .await;
    }
}

#[tokio::test]
async fn an_erased_person_is_in_no_file_and_the_journal_verifies() {
    let hive = Hive::start().await;
    hive.worker("a").script(vec![Script::says(&["yes"]); 3]).join().await;
    let new = hive
        .on_control("POST", "/control/v1/keys")
        .json(&json!({"name": "webui", "scopes": ["infer"], "trusted": true}));
    let trusted = Reply::to(new).await.json().await["key"].as_str().unwrap().to_owned();
    let person = "user-4711-alice";
    let own = json!({"name": "own", "scopes": ["infer"], "owner": person});
    let own = Reply::to(hive.on_control("POST", "/control/v1/keys").json(&own))
        .await
        .json()
        .await;
    for _ in 0..2 {
        let ask = hive.chat("m").key(&trusted).header("x-openwebui-user-id", person);
        assert_eq!(ask.send().await.status, 200);
    }
    eventually("both are recorded", async || {
        (of_kind(hive.home(), "req.end").len() == 2).then_some(())
    })
    .await;
    let post = |path: &str, body: Value| {
        hive.on_control("POST", &format!("/control/v1/audit/{path}"))
            .json(&body)
    };
    let export = async || Reply::to(post("export", json!({"subject": person}))).await.json().await;
    let theirs = own["key"].as_str().unwrap();
    let wish = hive
        .http
        .get(format!("{}/control/v1/keys", hive.control))
        .bearer_auth(theirs);
    Reply::to(wish).await.refused(403, "insufficient_scope").await;
    recorded(&hive, "the refusal is recorded", |record| {
        record["kind"] == "auth.fail" && record["actor"]["key_id"] == own["id"]
    })
    .await;
    let found = export().await;
    let kinds: Vec<_> = found["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| &record["kind"])
        .collect();
    assert_eq!(
        kinds,
        ["req.start", "req.end", "req.start", "req.end", "auth.fail"],
        "what they asked for by another's key, and what was done with their own: {found}"
    );
    let erase = post("erase", json!({"subject": person, "ticket": "T-1"}));
    assert_eq!(Reply::to(erase).await.json().await, json!({"erased": true}));
    assert_eq!(export().await, json!({"pseudonym": null, "records": []}));
    // The key is good as before, and nobody's.
    let path = format!("/control/v1/keys/{}", own["id"].as_str().unwrap());
    let shown = Reply::to(hive.on_control("GET", &path)).await.json().await;
    assert_eq!((&shown["owner"], &shown["revoked_at_ms"]), (&Value::Null, &Value::Null));
    let home = hive.home().to_owned();
    let mut open = vec![home];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let holds = bytes.windows(person.len()).any(|part| part == person.as_bytes());
            assert!(!holds, "{} names the person", path.display());
        }
    }
    let records = ends_intact(hive).await;
    let erased = records.iter().find(|record| record["kind"] == "subject.erase").unwrap();
    assert_eq!(erased["ticket"], "T-1");
}

#[tokio::test]
async fn what_is_recorded_is_signed_soon_without_a_stop() {
    let hive = Hive::start().await;
    hive.key(&["infer"]).await;
    eventually("all is signed", async || {
        (verified(hive.home()).result == Verdict::Intact).then_some(())
    })
    .await;
}
