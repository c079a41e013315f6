//! Embeddings on the wire: what holds for every model.

use serde_json::{Value, json};

use super::worker::Worker;

/// The vectors of an answer, after a look at what else it must have.
pub async fn embed(worker: &Worker, input: Value, more: Value) -> (Vec<Vec<f64>>, Value) {
    let body = super::worker::with(json!({"model": "m", "input": input}), more);
    let answer = worker.post("/v1/embeddings", &body).await.json();
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!("m")),
        "{answer}"
    );
    let data = answer["data"].as_array().unwrap();
    let vectors = data.iter().enumerate().map(|(i, entry)| {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(i)));
        match &entry["embedding"] {
            Value::String(text) => floats(text),
            numbers => numbers
                .as_array()
                .unwrap()
                .iter()
                .map(|number| number.as_f64().unwrap())
                .collect(),
        }
    });
    (vectors.collect(), answer["usage"].clone())
}

/// Base64 of little-endian floats, as OpenAI's SDKs read it.
fn floats(text: &str) -> Vec<f64> {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = text.trim_end_matches('=').chars().map(|c| LETTERS.find(c).unwrap());
    let bits: Vec<usize> = bits
        .flat_map(|value| (0..6).rev().map(move |bit| value >> bit & 1))
        .collect();
    let bytes: Vec<u8> = bits
        .chunks_exact(8)
        .map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | u8::try_from(*bit).unwrap()))
        .collect();
    bytes
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()).into())
        .collect()
}

pub fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

pub fn same(one: &[f64], other: &[f64]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-5)
}

/// What holds for every model: lists in order, both encodings, fewer dimensions, and usage.
pub async fn check_all_forms(worker: &Worker) {
    let (one, usage) = embed(worker, json!("hello world"), json!({})).await;
    let tokens = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!(usage, json!({"prompt_tokens": tokens, "total_tokens": tokens}));
    assert!(tokens >= 2 && (length(&one[0]) - 1.0).abs() < 1e-4, "{usage} {one:?}");

    let (list, usage) = embed(worker, json!(["good bye", "hello world"]), json!({})).await;
    assert!(same(&list[1], &one[0]) && !same(&list[0], &list[1]));
    assert!(usage["prompt_tokens"].as_u64().unwrap() > tokens);
    let (text, _) = embed(worker, json!("hello world"), json!({"encoding_format": "base64"})).await;
    assert!(same(&text[0], &one[0]));

    let (short, _) = embed(worker, json!("hello world"), json!({"dimensions": 3})).await;
    let cut: Vec<f64> = one[0][..3].iter().map(|x| x / length(&one[0][..3])).collect();
    assert!(same(&short[0], &cut), "{short:?} {cut:?}");
    let many = json!({"model": "m", "input": "x", "dimensions": one[0].len() + 1});
    let refused = worker.post("/v1/embeddings", &many).await;
    assert_eq!(
        (refused.status.as_u16(), refused.json()["error"]["param"].as_str()),
        (400, Some("dimensions"))
    );

    let (ids, usage) = embed(worker, json!([[1, 2, 3], [3, 4]]), json!({})).await;
    assert_eq!((ids.len(), usage["prompt_tokens"].as_u64()), (2, Some(5)));
}

#[tokio::test]
async fn a_script_embeds_in_every_form() {
    let worker = Worker::alone(json!({}), &[]).await.ready().await;
    check_all_forms(&worker).await;
    assert_eq!(worker.in_flight().await, 0);
}
