//! Embeddings by the real engine, from a model as small as can be.

use std::path::Path;

use serde_json::json;

use super::{
    embeddings::check_all_forms,
    real_model::start,
    tiny::{WIDTH, write_json, write_model},
    worker::{Worker, streamed},
};

/// What makes an embedding model of it.
fn write_embedding_model(folder: &Path) {
    write_model(folder, "");
    let module = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let modules = json!([
        module("", "Transformer"),
        module("1_Pooling", "Pooling"),
        module("2_Normalize", "Normalize")
    ]);
    write_json(folder, "modules.json", &modules);
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    write_json(
        folder,
        "1_Pooling/config.json",
        &json!({"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": false,
            "pooling_mode_max_tokens": false, "pooling_mode_mean_sqrt_len_tokens": false,
            "pooling_mode_weightedmean_tokens": false, "pooling_mode_lasttoken": true, "include_prompt": true}),
    );
}

#[tokio::test]
async fn a_model_that_embeds_does_it_in_every_form_and_does_not_chat() {
    let folder = tempfile::tempdir().unwrap();
    write_embedding_model(folder.path());
    let worker: Worker = start(folder.path(), &[]).await;
    check_all_forms(&worker).await;

    let lone = worker
        .post("/v1/embeddings", &json!({"model": "m", "input": [3]}))
        .await;
    assert_eq!(
        (lone.status.as_u16(), lone.json()["error"]["param"].as_str()),
        (400, Some("input"))
    );
    let long = worker
        .post("/v1/embeddings", &json!({"model": "m", "input": "x ".repeat(64)}))
        .await;
    assert_eq!(
        (long.status.as_u16(), long.code()),
        (400, "context_length_exceeded".to_owned())
    );
    let refused = worker.ask(&streamed("hello")).await;
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(refused.status.as_u16(), 400);
    assert!(message.contains("`m` makes embeddings"), "{message}");
    assert_eq!(worker.in_flight().await, 0);
}
