//! Kills, torn lines, and disks that are full, forget or hang: what is acknowledged is recorded, once, and what is not is
//! counted.

use std::collections::HashMap;

use rand::Rng as _;

use super::*;
use crate::crashes;

#[tokio::test]
async fn killed_anywhere_it_loses_no_acknowledged_act_and_records_none_twice() {
    let mut hive = Hive::with(&[("audit.segment_bytes", "8192")]).await;
    let mut acknowledged: Vec<String> = Vec::new();
    // A bench's worth: HIVE_TEST_KILLS=100.
    let kills = std::env::var("HIVE_TEST_KILLS").map_or(12, |kills| kills.parse().unwrap());
    for round in 0..kills {
        let (http, control, admin) = (hive.http.clone(), hive.control.clone(), hive.admin.clone());
        let maker = tokio::spawn(async move {
            let mut made = Vec::new();
            loop {
                let new = json!({"name": format!("of round {round}"), "scopes": ["infer"]});
                let request = http
                    .post(format!("{control}/control/v1/keys"))
                    .bearer_auth(&admin)
                    .json(&new);
                let Ok(answer) = request.send().await else { return made };
                let Ok(key) = answer.json::<Value>().await else {
                    return made;
                };
                made.push(key["id"].as_str().unwrap().to_owned());
            }
        });
        let before = of_kind(hive.home(), "key.create").len();
        let some = rand::rng().random_range(1..8);
        eventually("some are made", async || {
            let made = of_kind(hive.home(), "key.create").len();
            (made > before + some).then_some(())
        })
        .await;
        hive.kill();
        acknowledged.extend(maker.await.unwrap());
        hive = hive.again(&[("audit.segment_bytes", "8192")]).await;
    }
    let records = ends_intact(hive).await;
    let mut times: HashMap<&str, usize> = HashMap::new();
    for record in records.iter().filter(|record| record["kind"] == "key.create") {
        *times.entry(record["object"]["key_id"].as_str().unwrap()).or_default() += 1;
    }
    assert!(acknowledged.len() >= kills);
    assert!(times.values().all(|count| *count == 1), "{times:?}");
    for id in &acknowledged {
        assert!(times.contains_key(id.as_str()), "{id} was made and not recorded");
    }
    let starts = records.iter().filter(|record| record["kind"] == "audit.start").count();
    assert_eq!(starts, kills + 1);
    assert!(records.iter().any(|record| record["kind"] == "audit.rotate"));
}

#[tokio::test]
async fn an_act_that_stayed_in_the_outbox_is_not_recorded_again_however_old_it_is() {
    let small = [("audit.segment_bytes", "4096")];
    let mut hive = Hive::with(&small).await;
    for _ in 0..60 {
        hive.key(&["infer"]).await;
    }
    hive.signal(Signal::SIGTERM);
    assert!(hive.exit().await.success());
    assert!(hive.home().join("audit/000004.jsonl").exists());
    let first = of_kind(hive.home(), "key.create")[0].clone();
    let db = gateway::db::open(&hive.home().join("hive.db")).await.unwrap();
    let mut connection = db.acquire().await.unwrap();
    let id = first["act"].as_str().unwrap();
    gateway::db::outbox::insert(&mut connection, id, 0, &first.to_string())
        .await
        .unwrap();
    drop(connection);
    db.close().await;
    let hive = hive.again(&small).await;
    let records = ends_intact(hive).await;
    let times = records.iter().filter(|record| record["act"] == id).count();
    assert_eq!(times, 1);
}

#[tokio::test]
async fn a_request_that_ran_when_the_gateway_was_killed_is_recorded_as_aborted() {
    let mut hive = Hive::start().await;
    hive.worker("a")
        .script([Script::begins(&["never"]).hang()])
        .join()
        .await;
    let mut answer = hive.chat("m").stream().send().await;
    answer.until("never").await;
    let start = recorded(&hive, "its start", |record| record["kind"] == "req.start").await;
    hive.kill();
    let hive = hive.again(&[]).await;
    let aborted = recorded(&hive, "its end", |record| record["kind"] == "req.aborted").await;
    assert_eq!((&aborted["req"], &aborted["actor"]), (&start["req"], &start["actor"]));
    ends_intact(hive).await;
}

#[tokio::test]
async fn a_torn_last_line_is_recovered_and_any_other_damage_is_not_gone_on_with() {
    let mut hive = Hive::start().await;
    hive.key(&["infer"]).await;
    hive.kill();
    let file = hive.home().join("audit/000001.jsonl");
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{whole}{{\"torn")).unwrap();
    let mut hive = hive.again(&[]).await;
    let recovered = recorded(&hive, "what was torn", |record| {
        record["kind"] == "audit.recovered_tail"
    })
    .await;
    assert_eq!(recovered["count"], 6);
    hive.kill();
    std::fs::write(
        &file,
        std::fs::read_to_string(&file).unwrap().replacen("infer", "admin", 1),
    )
    .unwrap();
    let report = verified(hive.home());
    assert_eq!(report.result, Verdict::Altered);
    let mut refused = crate::harness::Program::start(
        hive.home(),
        &["--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"],
        &[],
    );
    assert_eq!(refused.exit().await.code(), Some(1));
    assert!(refused.log().contains("hivectl audit verify"), "{}", refused.log());
}

#[test]
fn journals_that_only_crashed_alarm_no_verifier() {
    let alarms = crashes::clean_journals(100, |_, _, _, _| None);
    assert_eq!(alarms, []);
}

#[tokio::test]
async fn what_the_disk_did_not_keep_is_counted_or_refused_and_the_journal_stays_whole() {
    for mode in ["metadata", STRICT] {
        let elsewhere = tempfile::tempdir().unwrap();
        let anchors = elsewhere.path().join("anchors");
        let settings = [("audit.mode", mode), ("audit.anchor_file", anchors.to_str().unwrap())];
        let hive = Hive::on_a_forgetful_disk(&settings).await;
        hive.worker("a").script(vec![Script::says(&["yes"]); 99]).join().await;
        assert_eq!(hive.chat("m").send().await.status, 200);
        hive.forget_writes(true);
        // Made all the same: it is recorded from the outbox once that is possible.
        let (key_id, _) = hive.key(&["infer"]).await;
        if mode == STRICT {
            for _ in 0..3 {
                hive.chat("m").send().await.refused(503, "audit_unavailable").await;
            }
        } else {
            assert_eq!(hive.chat("m").send().await.status, 200);
        }
        hive.logged("the journal's trouble is told", |line| {
            line["message"] == "the audit journal cannot be written"
        })
        .await;
        hive.forget_writes(false);
        eventually("it is written again", async || {
            hive.chat("m").send().await;
            of_kind(hive.home(), "audit.gap").first().cloned()
        })
        .await;
        let records = ends_intact(hive).await;
        let about = |key: &str| {
            records
                .iter()
                .filter(|record| record["object"]["key_id"] == key)
                .count()
        };
        assert_eq!(about(&key_id), 1, "{mode}: an act is recorded once");
        if mode == STRICT {
            let of_kind = |kind: &str| records.iter().filter(|record| record["kind"] == kind).count();
            assert_eq!(of_kind("req.start"), of_kind("req.end"));
        }
    }
}

#[tokio::test]
async fn a_request_refused_because_the_disk_is_stuck_has_an_end_when_its_start_is_written_yet() {
    let elsewhere = tempfile::tempdir().unwrap();
    let anchors = elsewhere.path().join("anchors");
    let settings = [("audit.mode", STRICT), ("audit.anchor_file", anchors.to_str().unwrap())];
    let hive = Hive::on_a_forgetful_disk(&settings).await;
    let worker = hive.worker("a").join().await;
    let stuck = hive.home().join("stuck");
    std::fs::write(&stuck, "").unwrap();
    hive.chat("m").send().await.refused(503, "audit_unavailable").await;
    assert_eq!(worker.server.calls(), 0);
    std::fs::remove_file(&stuck).unwrap();
    let records = ends_intact(hive).await;
    let of_kind = |kind: &str| {
        records
            .iter()
            .filter(|record| record["kind"] == kind)
            .collect::<Vec<_>>()
    };
    let (starts, ends) = (of_kind("req.start"), of_kind("req.end"));
    assert_eq!((starts.len(), ends.len()), (1, 1), "{starts:?} {ends:?}");
    assert_eq!(ends[0]["req"], starts[0]["req"]);
    assert_eq!(
        ends[0]["outcome"],
        json!({"state": "failed", "code": "audit_unavailable"})
    );
}

#[tokio::test]
async fn with_a_full_disk_strict_mode_serves_nothing_unrecorded() {
    let (_elsewhere, hive) = strict().await;
    let worker = hive.worker("a").script(vec![Script::says(&["yes"]); 9]).join().await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    hive.fill_disk(true);
    let served = worker.server.connections();
    for _ in 0..3 {
        let refused = hive.chat("m").send().await;
        assert_eq!(refused.header("retry-after"), "5");
        refused.refused(503, "audit_unavailable").await;
    }
    assert_eq!(worker.server.connections(), served, "no worker was called");
    Reply::to(hive.stranger("GET", "/readyz"))
        .await
        .refused(503, "audit_unavailable")
        .await;
    hive.fill_disk(false);
    eventually("it serves again", async || {
        (hive.chat("m").send().await.status == 200).then_some(())
    })
    .await;
    let records = ends_intact(hive).await;
    let of_kind = |kind: &str| records.iter().filter(|record| record["kind"] == kind).count();
    assert_eq!(of_kind("req.start"), of_kind("req.end"));
    let gap = records.iter().find(|record| record["kind"] == "audit.gap").unwrap();
    assert_eq!(gap["outcome"]["state"], "refused");
    assert!(gap["count"].as_u64().unwrap() >= 3, "{gap}");
}

#[tokio::test]
async fn with_a_full_disk_metadata_mode_serves_on_and_records_the_gap() {
    let hive = Hive::on_a_small_disk(&[]).await;
    hive.worker("a").script(vec![Script::says(&["yes"]); 9]).join().await;
    assert_eq!(hive.chat("m").send().await.status, 200);
    recorded(&hive, "the first is recorded", |record| record["kind"] == "req.end").await;
    hive.fill_disk(true);
    for _ in 0..3 {
        assert_eq!(hive.chat("m").send().await.status, 200);
    }
    assert_eq!(Reply::to(hive.stranger("GET", "/readyz")).await.status, 200);
    hive.fill_disk(false);
    let gap = recorded(&hive, "the gap", |record| record["kind"] == "audit.gap").await;
    assert_eq!(gap["outcome"]["state"], "lost");
    assert!(gap["from"].as_i64() <= gap["to"].as_i64(), "{gap}");
    assert_eq!(hive.chat("m").send().await.status, 200);
    let records = ends_intact(hive).await;
    let gaps = records.iter().filter(|record| record["kind"] == "audit.gap");
    let lost: u64 = gaps.filter_map(|gap| gap["count"].as_u64()).sum();
    let requests = records
        .iter()
        .filter(|record| record["kind"].as_str().unwrap().starts_with("req."));
    assert_eq!(
        requests.count() as u64 + lost,
        10,
        "five starts and five ends, recorded or counted"
    );
}

#[tokio::test]
async fn counts_that_cannot_be_true_cost_no_record_and_stop_no_journal() {
    let (_elsewhere, hive) = strict().await;
    let lies = [json!(1_i64 << 53), json!(i64::MAX), json!(i64::MIN), json!(-1)];
    let lying = |count: &Value| {
        let usage = json!({"prompt_tokens": count, "completion_tokens": count, "total_tokens": 1});
        let last = json!({"object": "chat.completion.chunk", "choices": [], "usage": usage});
        Script::begins(&["a", "b"]).finish("stop").event(&last).done().end()
    };
    hive.worker("a")
        .script(lies.iter().map(lying).collect::<Vec<_>>())
        .join()
        .await;
    for lie in &lies {
        assert_eq!(hive.chat("m").send().await.status, 200, "{lie}");
    }
    let usage = Reply::to(hive.on_control("GET", "/control/v1/usage")).await;
    assert_eq!(usage.status, 200);
    let records = ends_intact(hive).await;
    assert!(!records.iter().any(|record| record["kind"] == "audit.gap"));
    let counted = records.iter().filter(|record| record["kind"] == "req.end");
    let counted: Vec<_> = counted.map(|record| record["usage"].clone()).collect();
    assert_eq!(counted, vec![json!({"out": 2}); lies.len()], "what passed is counted");
}
