//! A folder of safetensors by the real engine: it loads, chats by its own template, and counts.

use serde_json::json;

use super::{
    real_model::start,
    tiny::{WORDS, write_json, write_model},
    worker::{streamed, with},
};

#[tokio::test]
async fn a_folder_of_safetensors_chats_by_its_own_template() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), "model.");
    let template = "{% for message in messages %}{{ message['content'] }} {% endfor %}";
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": WORDS[0], "unk_token": WORDS[1],
        "chat_template": template});
    write_json(folder.path(), "tokenizer_config.json", &settings);
    let worker = start(folder.path(), &[]).await;
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
    let long = worker.ask(&with(streamed("x ".repeat(64)), json!({}))).await;
    assert_eq!(
        (long.status.as_u16(), long.code()),
        (400, "context_length_exceeded".to_owned())
    );
}
