//! Attached servers that count no tokens: nobody is told numbers they did not count, and no limit is passed by for it.

use serde_json::{Value, json};

use crate::{
    client::Reply,
    harness::{Hive, eventually},
    script::{Script, chunk},
    strays::{attached, events},
};

/// An answer of "Hello there" without any usage.
fn uncounted() -> Script {
    events(&[
        chunk(&json!({"role": "assistant", "content": "Hello"}), None),
        chunk(&json!({"content": " there"}), None),
        chunk(&json!({}), Some("stop")),
    ])
}

/// The books' only request, once it has ended.
async fn entry(hive: &Hive) -> Value {
    eventually("it is in the books", async || {
        let request = hive.requests().await.pop()?;
        request["total_ms"].is_i64().then_some(request)
    })
    .await
}

async fn budget(hive: &Hive, tokens: u64) -> String {
    hive.key_with(json!({"limits": {"token_budget": tokens}})).await
}

#[tokio::test]
async fn what_nobody_counted_is_told_to_nobody_and_charged_by_estimate() {
    let (hive, _server) = attached(vec![uncounted()]).await;
    let key = budget(&hive, 120).await;
    let prompt = "w ".repeat(100);
    let ask = hive
        .chat("x")
        .key(&key)
        .with("messages", json!([{"role": "user", "content": prompt}]));
    let whole = ask.clone().with("max_tokens", json!(8)).send().await.json().await;
    assert!(whole.get("usage").is_none(), "{whole}");
    let entry = entry(&hive).await;
    assert_eq!(
        (&entry["state"], &entry["estimated"]),
        (&json!("completed"), &json!(true))
    );
    let count = |field: &str| entry[field].as_u64().unwrap();
    assert!((50..80).contains(&count("prompt_tokens")), "of some 260 bytes: {entry}");
    assert_eq!(count("completion_tokens"), 2, "each piece is one at least: {entry}");
    let usage = Reply::to(hive.on_control("GET", "/control/v1/usage"))
        .await
        .json()
        .await;
    assert_eq!((&usage[0]["requests"], &usage[0]["estimated"]), (&json!(1), &json!(1)));
    // A second one like it would be too much, now and after a restart.
    let refused = ask.clone().with("max_tokens", json!(8)).send().await;
    refused.refused(429, "insufficient_quota").await;
    let hive = hive.again(&[]).await;
    hive.until("far", "ready").await;
    let again = hive.chat("x").key(&key).with("max_tokens", json!(60)).send().await;
    again.refused(429, "insufficient_quota").await;
}

#[tokio::test]
async fn a_streams_usage_is_the_servers_own_or_none() {
    let zeros = json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0});
    let zeros = json!({"choices": [], "usage": zeros});
    let said_none = events(&[
        chunk(&json!({"content": "Hello"}), None),
        chunk(&json!({}), Some("stop")),
        zeros,
    ]);
    for script in [uncounted(), said_none] {
        let (hive, _server) = attached(vec![script]).await;
        hive.chat("x").stream().usage().send().await.events().await;
        let entry = entry(&hive).await;
        assert_eq!(entry["estimated"], true, "no prompt has no tokens: {entry}");
        assert!(entry["prompt_tokens"].as_u64() > Some(0) && entry["completion_tokens"].as_u64() > Some(0));
    }
    let (hive, _server) = attached(vec![Script::says(&["a", "b"])]).await;
    hive.chat("x").stream().send().await.events().await;
    let entry = entry(&hive).await;
    assert_eq!(
        (&entry["prompt_tokens"], &entry["estimated"]),
        (&json!(7), &Value::Null)
    );
}

#[tokio::test]
async fn an_answer_in_one_piece_is_more_than_one_token() {
    let text = "word ".repeat(80);
    let message = json!({"role": "assistant", "content": text});
    let piece = json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]});
    let (hive, _server) = attached(vec![Script::answers(200, "application/json", &piece.to_string())]).await;
    assert!(hive.chat("x").send().await.json().await.get("usage").is_none());
    assert_eq!(entry(&hive).await["completion_tokens"], 100, "a token for 4 bytes");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_count_is_charged_for_its_prompt() {
    let (hive, _server) = attached(vec![Script::begins(&["a", "b"]).hang()]).await;
    let mut running = hive.chat("x").stream().send().await;
    running.until("a").await;
    running.until("b").await;
    drop(running);
    let entry = entry(&hive).await;
    assert_eq!(
        (&entry["state"], &entry["completion_tokens"]),
        (&json!("cancelled"), &json!(2))
    );
    assert!(
        entry["prompt_tokens"].as_u64() > Some(0) && entry["estimated"] == true,
        "{entry}"
    );
}

#[tokio::test]
async fn embeddings_that_nobody_counted_say_none_and_are_charged() {
    let list = json!({"data": [{"embedding": [0.5], "index": 0}]});
    let (hive, _server) = attached(vec![Script::answers(200, "application/json", &list.to_string())]).await;
    let key = budget(&hive, 60).await;
    let ask = hive.embedding("x").key(&key).with("input", json!("w ".repeat(80)));
    let list = ask.clone().send().await.json().await;
    // OpenAI's document requires both.
    assert_eq!(list["usage"], json!({"prompt_tokens": 0, "total_tokens": 0}));
    let entry = entry(&hive).await;
    assert!(
        entry["prompt_tokens"].as_u64() > Some(39) && entry["estimated"] == true,
        "{entry}"
    );
    ask.send().await.refused(429, "insufficient_quota").await;
}

#[tokio::test]
async fn an_image_is_not_counted_as_if_it_were_text() {
    let (hive, _server) = attached(vec![uncounted()]).await;
    let key = budget(&hive, 2000).await;
    let image = format!("data:image/png;base64,{}", "A".repeat(400_000));
    let part = json!({"type": "image_url", "image_url": {"url": image}});
    let ask = hive
        .chat("x")
        .key(&key)
        .with("messages", json!([{"role": "user", "content": [part]}]));
    assert_eq!(ask.send().await.status, 200);
    let entry = entry(&hive).await;
    let prompt = entry["prompt_tokens"].as_u64().unwrap();
    assert!((1024..1200).contains(&prompt), "{entry}");
}
