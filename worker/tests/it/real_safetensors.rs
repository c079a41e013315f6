//! A folder of safetensors by the real engine: it loads, chats by its own template, and counts.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    real_model::start,
    tiny::{WORDS, write_json, write_model},
    worker::{Worker, streamed, with},
};

/// A model with this chat template, served.
async fn speaking(folder: &Path, template: &str) -> Worker {
    write_model(folder, "model.");
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": WORDS[0], "unk_token": WORDS[1],
        "chat_template": template});
    write_json(folder, "tokenizer_config.json", &settings);
    start(folder, &[]).await
}

#[tokio::test]
async fn a_template_that_switches_thinking_hears_what_was_asked() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{{ messages[0]['content'] }}{% if enable_thinking %} x{% endif %}{% if reasoning_effort == 'high' %} y y{% endif %}";
    let worker = speaking(folder.path(), template).await;
    let prompt = async |more: Value| {
        let ask = with(streamed("hello"), json!({"temperature": 0, "max_tokens": 2}));
        worker.ask(&with(ask, more)).await.usage()[0]
    };
    // One word, and the end that its tokenizer adds; models think unless they are told not to.
    assert_eq!(prompt(json!({})).await, 3);
    assert_eq!(
        prompt(json!({"chat_template_kwargs": {"enable_thinking": false}})).await,
        2
    );
    assert_eq!(prompt(json!({"reasoning_effort": "none"})).await, 2);
    assert_eq!(prompt(json!({"reasoning_effort": "high"})).await, 5);
    let refused = worker
        .ask(&with(
            streamed("hello"),
            json!({"chat_template_kwargs": {"date": "today"}}),
        ))
        .await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "unsupported_parameter".to_owned())
    );
}

#[tokio::test]
async fn a_folder_of_safetensors_chats_by_its_own_template() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{% for message in messages %}{{ message['content'] }} {% endfor %}";
    let worker = speaking(folder.path(), template).await;
    // The model says anything, but only words it has, and the same when it is asked the same.
    let question = with(streamed("hello world good"), json!({"temperature": 0, "max_tokens": 5}));
    let (first, again) = (worker.ask(&question).await, worker.ask(&question).await);
    assert_eq!(
        (first.status.as_u16(), first.text()),
        (200, again.text()),
        "{}",
        first.body()
    );
    let [prompt, completion, total] = first.usage();
    // Three words, and the end that its tokenizer adds.
    assert_eq!((prompt, total), (4, 4 + completion));
    assert!((1..=5).contains(&completion), "{completion}");
    let text = first.text();
    let mut rest = text.as_str();
    while let Some(word) = WORDS.iter().find(|word| rest.starts_with(**word)) {
        rest = &rest[word.len()..];
    }
    assert_eq!(rest, "", "{text}");
    let image = json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]);
    let blind = worker
        .ask(&with(
            streamed("."),
            json!({"messages": [{"role": "user", "content": image}]}),
        ))
        .await;
    let error = blind.json()["error"].clone();
    assert_eq!(
        (blind.status.as_u16(), error["param"].as_str()),
        (400, Some("messages[0].content[0].type"))
    );
    assert!(
        error["message"].as_str().unwrap().contains("`m` reads text only"),
        "{error}"
    );
    let long = worker.ask(&with(streamed("x ".repeat(64)), json!({}))).await;
    assert_eq!(
        (long.status.as_u16(), long.code()),
        (400, "context_length_exceeded".to_owned())
    );
}
