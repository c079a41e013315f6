//! How much a key may use: refused beyond it with the way out, and charged exactly what was generated.

use serde_json::{Value, json};
use sqlx::{Connection as _, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    client::{Reply, text_of},
    harness::{Hive, eventually},
    script::{Gate, Script},
};

async fn key(hive: &Hive, limits: Value) -> (String, String) {
    let new = json!({"name": "k", "scopes": ["infer"], "limits": limits});
    let made = Reply::to(hive.on_control("POST", "/control/v1/keys").json(&new))
        .await
        .json()
        .await;
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (text("id"), text("key"))
}

#[tokio::test]
async fn requests_beyond_a_minutes_are_told_when_to_come_again() {
    let hive = Hive::start().await;
    let worker = hive.worker("a").join().await;
    let (_, key) = key(&hive, json!({"requests_per_minute": 2})).await;
    let first = hive.chat("m").key(&key).send().await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), "2");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert_eq!(first.status, 200);
    assert_eq!(
        text_of(&hive.chat("m").key(&key).stream().send().await.events().await),
        "Hello"
    );
    let refused = hive.chat("m").key(&key).stream().send().await;
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
    let wait: u32 = refused.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    let error = refused.refused(429, "rate_limit_exceeded").await;
    assert_eq!(error["type"], "requests");
    assert_eq!(worker.server.calls(), 2);
    // Others, and keys without limits, notice nothing.
    let other = hive.chat("m").send().await;
    assert!(other.headers.get("x-ratelimit-limit-requests").is_none());
    assert_eq!(other.status, 200);
}

#[tokio::test]
async fn a_budget_is_charged_what_was_generated_and_holds_after_a_kill() {
    let hive = Hive::start().await;
    hive.worker("a").script([Script::says(&["a", "b", "c"])]).join().await;
    let (id, key) = key(&hive, json!({"token_budget": 400})).await;
    let usage = hive.chat("m").key(&key).send().await.json().await["usage"].clone();
    let used = usage["total_tokens"].as_i64().unwrap();
    let ask = async |hive: &Hive, most: i64| hive.chat("m").key(&key).with("max_tokens", json!(most)).send().await;
    let error = ask(&hive, 400).await.refused(429, "insufficient_quota").await;
    assert_eq!(error["type"], "insufficient_quota");
    let left = format!("{} are left", 400 - used);
    assert!(error["message"].as_str().unwrap().contains(&left), "{error} {left}");
    eventually("it is in the books", async || {
        let rows = Reply::to(hive.on_control("GET", &format!("/control/v1/usage?key={id}")))
            .await
            .json()
            .await;
        let row = rows.as_array()?.first()?.clone();
        assert_eq!(row["requests"], 1);
        assert_eq!(row["prompt_tokens"], usage["prompt_tokens"]);
        (row["completion_tokens"] == usage["completion_tokens"]).then_some(())
    })
    .await;
    let hive = hive.again(&[]).await;
    let worker = hive.worker("b").join().await;
    let refused = ask(&hive, 400).await;
    assert_eq!(refused.header("x-should-retry"), "false");
    let error = refused.refused(429, "insufficient_quota").await;
    assert!(error["message"].as_str().unwrap().contains(&left), "{error}");
    assert_eq!(worker.server.calls(), 0);
    assert_eq!(ask(&hive, 10).await.status, 200);
}

#[tokio::test]
async fn a_budget_and_its_usage_outlive_the_rows_they_were_summed_from() {
    let hive = Hive::start().await;
    hive.worker("a").join().await;
    let (id, key) = key(&hive, json!({"token_budget": 10_000})).await;
    let file = SqliteConnectOptions::new().filename(hive.home().join("hive.db"));
    let mut db = SqliteConnection::connect_with(&file).await.unwrap();
    let day = 24 * 60 * 60 * 1000;
    // More than are taken out at once, of 2 tokens each: on a day 91 days ago, and as many on a day 89 days ago.
    for (name, began) in [
        ("old", gateway::now_ms() - 91 * day),
        ("young", gateway::now_ms() - 89 * day),
    ] {
        let many = sqlx::query(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1100) \
             INSERT INTO requests (id, key_id, model, state, prompt_tokens, completion_tokens, started_at_ms) \
             SELECT $1 || i, $2, 'm', 'completed', 1, 1, $3 FROM n",
        );
        many.bind(name).bind(&id).bind(began).execute(&mut db).await.unwrap();
    }
    let mut hive = hive;
    for _start in 0..2 {
        hive = hive.again(&[]).await;
        eventually("what is old is taken out", async || {
            let rows = sqlx::query("SELECT MIN(id), COUNT(*) FROM requests").fetch_one(&mut db);
            let rows = rows.await.unwrap();
            ((rows.get::<&str, _>(0), rows.get::<i64, _>(1)) == ("young1", 1100)).then_some(())
        })
        .await;
        let usage = format!("/control/v1/usage?key={id}&days=365");
        let days = Reply::to(hive.on_control("GET", &usage)).await.json().await;
        let days: Vec<_> = days
            .as_array()
            .unwrap()
            .iter()
            .map(|day| {
                (
                    day["requests"].clone(),
                    day["prompt_tokens"].clone(),
                    day["completion_tokens"].clone(),
                )
            })
            .collect();
        assert_eq!(days, vec![(json!(1100), json!(1100), json!(1100)); 2]);
        let refused = hive.chat("m").key(&key).with("max_tokens", json!(9000)).send().await;
        let error = refused.refused(429, "insufficient_quota").await;
        assert!(error["message"].as_str().unwrap().contains("5600 are left"), "{error}");
    }
}

#[tokio::test]
async fn a_request_that_names_no_limit_is_not_refused_for_a_guess() {
    let hive = Hive::start().await;
    hive.worker("a")
        .script(vec![Script::says(&["a", "b", "c"]); 2])
        .join()
        .await;
    let (_, key) = key(&hive, json!({"tokens_per_day": 60})).await;
    let first = hive.chat("m").key(&key).send().await;
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "60");
    let most = hive.chat("m").key(&key).with("max_tokens", json!(100)).send().await;
    assert_eq!(most.header("x-ratelimit-remaining-tokens"), "50");
    most.refused(429, "rate_limit_exceeded").await;
}

#[tokio::test]
async fn a_cancelled_answer_is_charged_for_what_was_generated() {
    let hive = Hive::start().await;
    hive.worker("a")
        .script([Script::begins(&["a", "b"]).hang()])
        .join()
        .await;
    let (id, key) = key(&hive, json!({"token_budget": 100_000})).await;
    let mut running = hive.chat("m").key(&key).stream().send().await;
    running.until("a").await;
    running.until("b").await;
    drop(running);
    eventually("two tokens are charged", async || {
        let rows = Reply::to(hive.on_control("GET", &format!("/control/v1/usage?key={id}&days=1")))
            .await
            .json()
            .await;
        (rows[0]["completion_tokens"] == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn only_so_many_requests_of_a_key_run_at_a_time() {
    let hive = Hive::start().await;
    let gate = Gate::new();
    hive.worker("a")
        .slots(4)
        .script([Script::begins(&["a"]).wait(&gate).ends(1), Script::says(&["x"])])
        .join()
        .await;
    let (_, key) = key(&hive, json!({"concurrent_requests": 1})).await;
    let mut running = hive.chat("m").key(&key).stream().send().await;
    running.until("a").await;
    let error = hive
        .chat("m")
        .key(&key)
        .send()
        .await
        .refused(429, "rate_limit_exceeded")
        .await;
    assert!(
        error["message"].as_str().unwrap().contains("1 requests running"),
        "{error}"
    );
    gate.open();
    running.events().await;
    eventually("its place is free", async || {
        (hive.chat("m").key(&key).send().await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn usage_takes_only_what_it_knows() {
    let hive = Hive::start().await;
    for (query, param) in [
        ("days=0", json!("days")),
        ("days=x", Value::Null),
        ("since=1", Value::Null),
    ] {
        let reply = Reply::to(hive.on_control("GET", &format!("/control/v1/usage?{query}"))).await;
        assert_eq!(reply.refused(400, "invalid_request").await["param"], param, "{query}");
    }
}
