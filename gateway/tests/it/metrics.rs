//! What Prometheus reads: every outcome counted once, nothing secret, and labels that no client can multiply.

use std::time::Duration;

use gateway::metrics::NAMES;
use serde_json::json;

use crate::{
    client::Reply,
    harness::{Hive, eventually},
    script::{Gate, Script},
};

/// What Prometheus would read.
pub async fn metrics(hive: &Hive) -> String {
    let (_, key) = hive.key(&["metrics:read"]).await;
    let request = hive.http.get(format!("{}/metrics", hive.control));
    let reply = Reply::to(request.bearer_auth(key)).await;
    assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    reply.text().await
}

/// A series' value.
pub fn value(text: &str, series: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

#[tokio::test]
async fn every_outcome_is_counted_once_with_its_tokens_and_times() {
    let hive = Hive::start().await;
    hive.worker("a")
        .slots(2)
        .script([
            Script::says(&["a", "b", "c"]),
            Script::says(&["a", "b", "c"]),
            Script::begins(&["a"]).fin(),
        ])
        .join()
        .await;
    for _twice in 0..2 {
        assert_eq!(hive.chat("m").send().await.status, 200);
    }
    hive.chat("m").stream().send().await.events().await;
    let text = eventually("the third is counted", async || {
        let text = metrics(&hive).await;
        value(&text, r#"hive_requests_total{model="m",state="failed"}"#).map(|_| text)
    })
    .await;
    for (series, expected) in [
        (r#"hive_requests_total{model="m",state="completed"}"#, 2.0),
        (r#"hive_requests_total{model="m",state="failed"}"#, 1.0),
        (r#"hive_tokens_total{model="m",kind="completion"}"#, 7.0),
        (r#"hive_time_to_first_token_seconds_count{model="m"}"#, 3.0),
        (r#"hive_time_per_output_token_seconds_count{model="m"}"#, 2.0),
        (r#"hive_request_duration_seconds_bucket{model="m",le="+Inf"}"#, 2.0),
        (r#"hive_queue_wait_seconds_count{model="m"}"#, 3.0),
        ("hive_worker_failures_total", 1.0),
        ("hive_requests_open", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
}

#[tokio::test]
async fn what_is_true_now_is_told_now() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    hive.worker("a")
        .slots(1)
        .script([Script::begins(&["a"]).wait(&gate).ends(1)])
        .join()
        .await;
    let mut running = hive.chat("m").stream().send().await;
    running.until("a").await;
    let waiting = hive.chat("m").spawn();
    let text = eventually("one waits", async || {
        let text = metrics(&hive).await;
        (value(&text, r#"hive_queue_length{model="m"}"#) == Some(1.0)).then_some(text)
    })
    .await;
    for (series, expected) in [
        (r#"hive_slots{model="m"}"#, 1.0),
        (r#"hive_slots_taken{model="m"}"#, 1.0),
        (r#"hive_workers{state="ready"}"#, 1.0),
        (r#"hive_workers{state="lost"}"#, 0.0),
        ("hive_requests_open", 2.0),
        // Nothing of that has happened, and Prometheus can see the first time that it does.
        ("hive_retries_refused_total", 0.0),
        ("hive_worker_failures_total", 0.0),
        ("hive_slow_clients_dropped_total", 0.0),
        (r#"hive_not_served_total{why="queue_full"}"#, 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    gate.open();
    running.events().await;
    assert_eq!(waiting.await.unwrap().status, 200);
}

#[tokio::test]
async fn who_cancels_and_who_takes_nothing_is_counted() {
    let hive = Hive::with(&[("relay.slow_client", "300ms")]).await;
    let hang = Script::begins(&["a"]).hang();
    let flood = Script::begins(&["a"]).babble(Duration::ZERO, &"x".repeat(60_000));
    let worker = hive.worker("a").script([hang.clone(), hang, flood]).join().await;
    let mut leaving = hive.chat("m").stream().send().await;
    leaving.until("a").await;
    drop(leaving);
    hive.until_in_flight("a", 0).await;
    let mut stopped = hive.chat("m").stream().send().await;
    let id = stopped.header("x-request-id").to_owned();
    stopped.until("a").await;
    Reply::to(hive.on_control("POST", &format!("/control/v1/requests/{id}/cancel"))).await;
    stopped.broken("cancelled").await;
    let stuck = hive.chat("m").stream().send().await;
    worker.server.call(2).await.gone().await;
    let text = eventually("the third is counted", async || {
        let text = metrics(&hive).await;
        (value(&text, r#"hive_cancels_total{by="client"}"#) == Some(2.0)).then_some(text)
    })
    .await;
    for (series, expected) in [
        (r#"hive_cancels_total{by="operator"}"#, 1.0),
        ("hive_slow_clients_dropped_total", 1.0),
        ("hive_clients_blocked", 0.0),
        ("hive_clients_blocked_bytes", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    drop(stuck);
}

#[tokio::test]
async fn the_record_says_how_it_is() {
    let elsewhere = tempfile::tempdir().unwrap();
    let anchors = elsewhere.path().join("anchors");
    let hive = Hive::on_a_small_disk(&[("audit.anchor_file", anchors.to_str().unwrap())]).await;
    hive.worker("a").join().await;
    let text = eventually("all is signed", async || {
        let text = metrics(&hive).await;
        (value(&text, "hive_audit_signed_records") > Some(2.0)).then_some(text)
    })
    .await;
    assert_eq!(value(&text, "hive_audit_failing"), Some(0.0), "{text}");
    assert_eq!(value(&text, "hive_audit_lost_records_total"), Some(0.0), "{text}");
    assert!(value(&text, "hive_audit_unanchored_seconds") < Some(20.0), "{text}");
    let (_, reader) = hive.key(&["metrics:read"]).await;
    hive.fill_disk(true);
    assert_eq!(hive.chat("m").send().await.status, 200);
    eventually("what is lost is counted", async || {
        let request = hive.http.get(format!("{}/metrics", hive.control));
        let text = Reply::to(request.bearer_auth(&reader)).await.text().await;
        let failing = value(&text, "hive_audit_failing") == Some(1.0);
        (failing && value(&text, "hive_audit_lost_records_total") >= Some(1.0)).then_some(())
    })
    .await;
    hive.fill_disk(false);
}

#[tokio::test]
async fn no_client_can_make_a_label_and_no_secret_is_one() {
    let hive = Hive::start().await;
    for number in 0..5 {
        hive.chat(&format!("made-up-{number}"))
            .send()
            .await
            .refused(404, "model_not_found")
            .await;
    }
    for number in 0..20 {
        let hurried = hive
            .chat(&format!("made-up-{number}"))
            .header("x-hive-deadline-ms", "1")
            .send()
            .await;
        assert!(hurried.status >= 400, "{}", hurried.status);
    }
    Reply::to(hive.stranger("GET", "/v1/models").bearer_auth("hvk_junk"))
        .await
        .refused(401, "invalid_api_key")
        .await;
    let made = json!({"name": "k", "scopes": ["infer"], "limits": {"token_budget": 1}});
    let made = Reply::to(hive.on_control("POST", "/control/v1/keys").json(&made))
        .await
        .json()
        .await;
    let key = made["key"].as_str().unwrap();
    hive.chat("m")
        .key(key)
        .send()
        .await
        .refused(429, "insufficient_quota")
        .await;
    let text = metrics(&hive).await;
    assert_eq!(
        value(&text, r#"hive_requests_total{model="unknown",state="failed"}"#),
        Some(25.0),
        "{text}"
    );
    assert_eq!(
        value(&text, r#"hive_limited_total{limit="token_budget"}"#),
        Some(1.0),
        "{text}"
    );
    assert_eq!(value(&text, "hive_authentication_failures_total"), Some(1.0), "{text}");
    for secret in ["made-up", "hvk_", &hive.admin, "127.", made["id"].as_str().unwrap()] {
        assert!(!text.contains(secret), "{secret}\n{text}");
    }
}

#[test]
fn the_alerts_and_the_dashboard_ask_for_metrics_there_are_and_leave_none_out() {
    let deploy = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("deploy");
    let mut asked = std::collections::BTreeSet::new();
    for file in ["prometheus.rules.yml", "grafana-dashboard.json"] {
        let text = std::fs::read_to_string(deploy.join(file)).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.starts_with("hive_")) {
            let name = word.strip_suffix("_bucket").unwrap_or(word);
            assert!(NAMES.contains(&name), "{file} asks for {word}, which there is not");
            asked.insert(name.to_owned());
        }
    }
    let unused: Vec<_> = NAMES.iter().filter(|name| !asked.contains(**name)).collect();
    assert_eq!(
        unused,
        [&"hive_request_duration_seconds", &"hive_requests_open"],
        "nobody looks at them"
    );
}
