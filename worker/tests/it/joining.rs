//! How a worker joins, stays, and is forgotten.

use axum::http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;
use wire::WorkerState;

use super::{
    gateway::Gateway,
    worker::{Worker, secret_file, streamed},
};

#[tokio::test]
async fn a_worker_joins_before_its_model_is_loaded_and_reports_on_the_load() {
    let gateway = Gateway::start().await;
    let worker = gateway
        .worker(json!({"load_ms": 500}), &["--context-length", "77"])
        .await;
    let (bearer, registration) = gateway.sees("it", |seen| seen.registrations.first().cloned()).await;
    assert_eq!(bearer, "join-me");
    assert_eq!(registration.state, WorkerState::Loading);
    assert_eq!(
        (
            registration.id.as_str(),
            registration.model.as_str(),
            registration.slots
        ),
        ("w1", "m", 4)
    );
    assert_eq!(registration.device, "scripted");

    let loading = gateway
        .sees("a report", |seen| {
            seen.heartbeats.iter().find(|b| b.message.is_some()).cloned()
        })
        .await;
    assert_eq!(loading.state, WorkerState::Loading);
    assert_eq!(loading.message.as_deref(), Some("loading the script"));
    assert!((0.0..1.0).contains(&loading.progress.unwrap()));
    assert_eq!(worker.ask(&streamed("hi")).await.code(), "loading");

    let ready = |seen: &super::gateway::Seen| seen.heartbeats.iter().find(|b| b.state == WorkerState::Ready).cloned();
    let ready = gateway.sees("a ready worker", ready).await;
    assert_eq!(ready.facts.context_length, Some(77));
    assert_eq!(ready.epoch, 1);
    assert_eq!(worker.ask(&streamed("hi")).await.text(), "hi");
    assert!(
        !worker.folder.path().join("join").exists(),
        "the used join token is still there"
    );
}

#[tokio::test]
async fn a_load_is_seen_to_move_however_seldom_heartbeats_are_wanted() {
    let gateway = Gateway::start().await;
    gateway.mood(|moods| moods.interval_ms = 60_000);
    let _worker = gateway.worker(json!({"load_ms": 2500}), &[]).await;
    let moved = |seen: &super::gateway::Seen| {
        let loading = seen.heartbeats.iter().filter(|beat| beat.state == WorkerState::Loading);
        let progress: Vec<f32> = loading.filter_map(|beat| beat.progress).collect();
        let grows = progress.windows(2).filter(|two| two[1] > two[0]).count();
        (grows >= 2).then_some(())
    };
    gateway.sees("progress", moved).await;
    let ready = |seen: &super::gateway::Seen| {
        seen.heartbeats
            .iter()
            .any(|b| b.state == WorkerState::Ready)
            .then_some(())
    };
    gateway.sees("a ready worker", ready).await;
}

#[tokio::test]
async fn a_forgotten_worker_registers_again_with_its_own_credential() {
    for status in [StatusCode::NOT_FOUND, StatusCode::UNAUTHORIZED] {
        let gateway = Gateway::start().await;
        let mut worker = gateway.worker(json!({}), &[]).await.ready().await;
        gateway.mood(|moods| moods.heartbeats.push_back(status));
        let (bearer, again) = gateway
            .sees("a second one", |seen| seen.registrations.get(1).cloned())
            .await;
        assert_eq!(bearer, "credential-1");
        assert_eq!(again.state, WorkerState::Ready);
        gateway
            .sees("the new epoch", |seen| {
                seen.heartbeats.iter().find(|beat| beat.epoch == 2).cloned()
            })
            .await;
        let stale = worker.ask(&streamed("hi")).await;
        assert_eq!(
            (stale.status, stale.code()),
            (StatusCode::CONFLICT, "stale_epoch".to_owned())
        );
        worker.epoch = Some(2);
        assert_eq!(worker.ask(&streamed("hi")).await.text(), "hi");
    }
}

#[tokio::test]
async fn a_replaced_worker_goes_at_once_and_without_a_word() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(json!({}), &[]).await.ready().await;
    gateway.mood(|moods| moods.heartbeats.push_back(StatusCode::CONFLICT));
    assert_eq!(worker.end().await, Some(1));
    assert!(
        worker
            .last_words()
            .await
            .contains("another process has registered as `w1`")
    );
    gateway
        .sees("no leave", |seen| seen.leaves.is_empty().then_some(()))
        .await;
}

#[tokio::test]
async fn a_refused_join_token_ends_the_worker() {
    let gateway = Gateway::start().await;
    gateway.mood(|moods| moods.refuse_registration = Some(StatusCode::UNAUTHORIZED));
    let mut worker = gateway.unjoined_worker(&json!({}), &[]);
    assert_eq!(worker.end().await, Some(3));
    let words = worker.last_words().await;
    assert!(
        words.starts_with("hive-worker: the gateway refuses this worker: a refusal with 401"),
        "{words}"
    );
    assert!(
        worker.folder.path().join("join").exists(),
        "an unused token was removed"
    );
}

#[tokio::test]
async fn a_gateway_that_is_not_there_yet_is_waited_for() {
    let gateway = Gateway::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = secret_file(folder.path(), "join", "join-me");
    let address = gateway.kill().await;
    let url = format!("http://{address}");
    let worker = Worker::start(
        folder,
        &[
            "--device",
            "scripted",
            "--model",
            "m",
            "--id",
            "w1",
            "--gateway",
            &url,
            "--join-token-file",
            &token,
        ],
    );
    worker.says("no gateway yet").await;
    let gateway = Gateway::start_at(address).await;
    gateway
        .sees("a registration", |seen| seen.registrations.first().cloned())
        .await;
}

#[tokio::test]
async fn a_lost_gateway_is_no_reason_to_stop() {
    let gateway = Gateway::start().await;
    let worker = gateway.worker(json!({}), &[]).await.ready().await;
    let address = gateway.kill().await;
    worker.says("does not hear the heartbeat").await;
    assert_eq!(worker.ask(&streamed("still here")).await.text(), "still here");
    let gateway = Gateway::start_at(address).await;
    gateway
        .sees("a heartbeat", |seen| seen.heartbeats.first().cloned())
        .await;
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_says_why_and_takes_leave() {
    let gateway = Gateway::start().await;
    let mut worker = gateway.worker(json!({"fail_load": "no room"}), &[]).await;
    assert_eq!(worker.end().await, Some(1));
    let words = worker.last_words().await;
    assert_eq!(
        words,
        "hive-worker: the model could not be loaded: the script fails the load: no room"
    );
    let leave = gateway.sees("a leave", |seen| seen.leaves.first().cloned()).await;
    assert_eq!(
        leave.reason,
        "the model could not be loaded: the script fails the load: no room"
    );
    assert_eq!(leave.epoch, 1);
}

#[tokio::test]
async fn wrong_usage_and_missing_support_have_their_codes_and_remedies() {
    let run = async |args: &[&str]| {
        let mut worker = Worker::start(tempfile::tempdir().unwrap(), args);
        (worker.end().await, worker.last_words().await)
    };
    let (code, words) = run(&["--device", "scripted", "--model", "m"]).await;
    assert_eq!(code, Some(2));
    assert!(words.contains("--dispatch-token-file is missing"), "{words}");
    assert_eq!(run(&["--device", "toaster", "--model", "m"]).await.0, Some(2));

    let folder = tempfile::tempdir().unwrap();
    let token = secret_file(folder.path(), "token", "x");
    for (device, feature) in [("cuda:0", "cuda"), ("metal", "metal")] {
        if (device == "metal" && cfg!(feature = "metal")) || (device != "metal" && cfg!(feature = "cuda")) {
            continue;
        }
        let args = [
            "--device",
            device,
            "--model",
            "m",
            "--model-path",
            "x.gguf",
            "--dispatch-token-file",
            &token,
        ];
        let (code, words) = run(&args).await;
        assert_eq!(code, Some(1));
        assert!(words.contains(&format!("--features {feature}")), "{words}");
    }
    let occupied = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = occupied.local_addr().unwrap().to_string();
    let args = [
        "--device",
        "scripted",
        "--model",
        "m",
        "--dispatch-token-file",
        &token,
        "--listen",
        &address,
    ];
    let (code, words) = run(&args).await;
    assert_eq!(code, Some(1));
    assert!(words.contains(&format!("cannot listen on {address}")), "{words}");
}
