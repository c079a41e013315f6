//! Which models there are: ready, known, loading, unknown: four answers.

use serde_json::{Value, json};
use wire::WorkerState;

use crate::{client::Reply, harness::Hive, shapes};

async fn listed(hive: &Hive) -> Vec<Value> {
    let list = Reply::to(hive.on_data("GET", "/v1/models")).await.json().await;
    assert_eq!(shapes::keys(&list), ["data", "object"]);
    assert_eq!(list["object"], "list");
    list["data"].as_array().unwrap().clone()
}

#[tokio::test]
async fn only_ready_models_are_listed_with_openais_keys_and_ours_apart() {
    let hive = Hive::start().await;
    assert_eq!(listed(&hive).await, Vec::<Value>::new());
    let ready = hive.worker("a").join().await;
    hive.worker("b").model("later").state(WorkerState::Loading).join().await;
    ready.says(|beat| beat.facts.context_length = Some(2048));
    crate::harness::eventually("the heartbeat's facts are shown", async || {
        let list = listed(&hive).await;
        list.iter().for_each(shapes::model);
        assert_eq!(list.len(), 1, "{list:?}");
        assert_eq!((&list[0]["id"], &list[0]["owned_by"]), (&json!("m"), &json!("hive")));
        let ours = json!({"context_length": 2048, "quantization": null, "architecture": null, "engine": null, "capabilities": null,
            "workers_ready": 1, "workers_loading": 0});
        (list[0]["hive"] == ours).then_some(())
    })
    .await;
    let mut one = Reply::to(hive.on_data("GET", "/v1/models/m")).await.json().await;
    assert!(one["hive"].as_object_mut().unwrap().remove("parameters").is_some());
    assert_eq!(one, listed(&hive).await[0], "and nothing else");
    let all = Reply::to(hive.on_control("GET", "/control/v1/models"))
        .await
        .json()
        .await;
    assert_eq!(
        (&all[0]["id"], &all[1]["id"], &all[0]["workers_loading"]),
        (&json!("later"), &json!("m"), &json!(1))
    );
}

#[tokio::test]
async fn a_models_name_may_hold_slashes_plain_or_escaped() {
    let hive = Hive::start().await;
    hive.worker("a").model("Org/Model-1.5:q4@main").join().await;
    for path in [
        "/v1/models/Org/Model-1.5:q4@main",
        "/v1/models/Org%2FModel-1.5%3Aq4%40main",
        "/v1/models/Org%2fModel-1.5:q4@main/",
    ] {
        let model = Reply::to(hive.on_data("GET", path)).await.json().await;
        assert_eq!(model["id"], "Org/Model-1.5:q4@main", "{path}");
    }
    let answer = hive.chat("Org/Model-1.5:q4@main").send().await.json().await;
    shapes::completion(&answer);
}

#[tokio::test]
async fn unknown_loading_and_workerless_are_three_answers() {
    let hive = Hive::start().await;
    hive.worker("a")
        .model("loading")
        .state(WorkerState::Loading)
        .join()
        .await;
    let gone = hive.worker("b").model("gone").join().await;
    let leave = hive
        .http
        .post(format!("{}/control/v1/workers/b/leave", hive.control))
        .bearer_auth(&gone.registered.credential)
        .json(&json!({"epoch": gone.registered.epoch, "reason": "SIGTERM"}));
    assert_eq!(Reply::to(leave).await.status, 204);
    for (model, status, code, param) in [
        ("nope", 404, "model_not_found", Some("model")),
        ("../nope", 404, "model_not_found", Some("model")),
        ("loading", 503, "loading", None),
        ("gone", 503, "no_worker", None),
    ] {
        let replies = [
            hive.chat(model).send().await,
            hive.chat(model).stream().send().await,
            Reply::to(hive.on_data("GET", &format!("/v1/models/{}", model.replace('/', "%2F")))).await,
        ];
        for reply in replies {
            let error = reply.refused(status, code).await;
            assert_eq!(error["param"].as_str(), param);
            assert!(error["message"].as_str().unwrap().contains(model), "{error}");
        }
    }
    assert_eq!(listed(&hive).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_loading_worker_serves_once_its_heartbeat_says_ready() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").state(WorkerState::Loading).join().await;
    worker.says(|beat| (beat.progress, beat.message) = (Some(0.5), Some("loading layer 3".into())));
    crate::harness::eventually("progress is shown", async || {
        let view = hive.worker_view("a").await;
        (view["progress"] == 0.5 && view["message"] == "loading layer 3").then_some(())
    })
    .await;
    worker.says(|beat| beat.state = WorkerState::Ready);
    hive.until("a", "ready").await;
    shapes::completion(&hive.chat("m").send().await.json().await);
}

#[tokio::test]
async fn two_models_go_to_their_own_workers() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    hive.worker("b").model("n").join().await;
    assert_eq!(hive.chat("m").send().await.header("x-hive-worker"), "a");
    assert_eq!(hive.chat("n").send().await.header("x-hive-worker"), "b");
}
