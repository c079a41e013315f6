//! The real engine on a real model.

use std::io::{Seek, SeekFrom, Write};

use serde_json::{Value, json};
use tempfile::TempDir;
use wire::PROMPT_TOKENS_HEADER;

use super::{
    model,
    worker::{Worker, eventually, secret_file, streamed, with},
};

fn args(folder: &TempDir, path: &std::path::Path) -> Vec<String> {
    let token = secret_file(folder.path(), "token", "dispatch-me");
    let path = path.to_str().unwrap();
    [
        "--device",
        "cpu",
        "--model",
        "m",
        "--model-path",
        path,
        "--dispatch-token-file",
        &token,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// A worker with the model the tests run on.
pub async fn real(more: &[&str]) -> Worker {
    start(&model::path(), more).await
}

/// A worker with the model at `path`.
pub async fn start(path: &std::path::Path, more: &[&str]) -> Worker {
    let folder = tempfile::tempdir().unwrap();
    let args = args(&folder, path);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Worker::alone_with(folder, &args).await.ready().await
}

/// The last words of a worker that cannot load the model at `path`.
pub async fn refused(path: &std::path::Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let args = args(&folder, path);
    let mut worker = Worker::start(folder, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(worker.end().await, Some(1), "{}", path.display());
    let words = worker.last_words().await;
    assert!(
        words.starts_with("hive-worker: the model could not be loaded: "),
        "{words}"
    );
    words
}

/// Greedy and short.
pub fn ask(content: &str) -> Value {
    with(streamed(content), json!({"temperature": 0, "max_tokens": 24}))
}

#[tokio::test]
async fn a_model_in_shards_says_what_the_whole_one_says() {
    let question = ask("What is the capital of France?");
    let (whole, shards) = (real(&[]).await, start(&model::shards(), &[]).await);
    let said = shards.ask(&question).await.text();
    assert!(said.contains("Paris"), "{said}");
    assert_eq!(said, whole.ask(&question).await.text());
}

#[tokio::test]
async fn text_comes_token_by_token_and_counted_exactly() {
    let worker = real(&[]).await;
    let question = ask("What is the capital of France?");
    let streamed = worker.ask(&question).await;
    assert!(streamed.text().contains("Paris"), "{}", streamed.text());
    assert_eq!(streamed.finish(), "stop");

    // 37 is what the model's own tokenizer makes of its own template around this question.
    let [prompt, completion, total] = streamed.usage();
    assert_eq!((prompt, total), (37, 37 + completion));
    assert_eq!(streamed.headers[PROMPT_TOKENS_HEADER], "37");
    let texts = streamed
        .chunks()
        .iter()
        .filter(|chunk| chunk["choices"][0]["delta"]["content"] != json!(""))
        .count();
    // All chunks but the role's, less the finish and the usage: one for each token.
    assert_eq!(u64::try_from(texts).unwrap() - 2, completion, "{}", streamed.body());

    let two = worker
        .ask(&with(ask("Count to one hundred."), json!({"max_tokens": 2})))
        .await;
    assert_eq!((two.finish().as_str(), two.usage()[1]), ("length", 2));
}

#[tokio::test]
async fn stop_texts_seeds_biases_and_logprobs_work() {
    let worker = real(&[]).await;
    let stopped = worker
        .ask(&with(
            ask("What is the capital of France?"),
            json!({"stop": ["ance is"]}),
        ))
        .await;
    assert_eq!(
        (stopped.text().as_str(), stopped.finish().as_str()),
        ("The capital of Fr", "stop")
    );

    let seeded = async |seed| {
        let question = with(ask("Tell me a story."), json!({"temperature": 1.5, "seed": seed}));
        worker.ask(&question).await.text()
    };
    let first = seeded(1).await;
    assert_eq!(first, seeded(1).await);
    assert_ne!(first, seeded(2).await);

    let question = with(
        ask("What is the capital of France?"),
        json!({"logprobs": true, "top_logprobs": 2}),
    );
    let answer = worker.ask(&question).await;
    let tokens = answer.logprobs();
    let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text, answer.text());
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!(
            top[0]["logprob"], token["logprob"],
            "greedy takes the likeliest: {token}"
        );
        let sum: f64 = top.iter().map(|rival| rival["logprob"].as_f64().unwrap().exp()).sum();
        assert!(sum > 0.0 && sum <= 1.000_1, "logarithms of probabilities: {token}");
    }

    // " Paris" is token 7042 of this model.
    let elsewhere = worker.ask(&with(question, json!({"logit_bias": {"7042": -100}}))).await;
    assert!(!elsewhere.text().contains("Paris"), "{}", elsewhere.text());
}

#[tokio::test]
async fn a_schema_is_kept_to_and_a_bad_one_refused() {
    let worker = real(&[]).await;
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 20},
        "n": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["city", "n"], "additionalProperties": false});
    let format = |schema: Value| {
        json!({"max_tokens": 40, "temperature": 1, "seed": 3,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}})
    };
    let answer = worker
        .ask(&with(ask("Name a city and a number."), format(schema)))
        .await;
    let value: Value = serde_json::from_str(&answer.text()).unwrap_or_else(|_| panic!("{}", answer.text()));
    assert!(
        value["city"].is_string() && (1..=9).contains(&value["n"].as_i64().unwrap()),
        "{value}"
    );

    let refused = worker.ask(&with(ask("x"), format(json!({"type": "nonsense"})))).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "invalid_request".to_owned())
    );
    assert_eq!(
        refused.json()["error"]["param"],
        "response_format.json_schema.schema.type"
    );
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_engine() {
    let worker = real(&[]).await;
    let endless = with(
        ask("Tell me a very long story."),
        json!({"max_tokens": 4000, "logit_bias": {"2": -100}}),
    );
    let mut running = worker.chat(&endless).send().await.unwrap();
    running.chunk().await.unwrap().expect("a token");
    drop(running);
    eventually("the slot is free", async || {
        (worker.in_flight().await == 0).then_some(())
    })
    .await;
    let line: Value = serde_json::from_str(&worker.says(r#""outcome":"cancelled""#).await).unwrap();
    assert!(line["completion_tokens"].as_u64().unwrap() < 100, "{line}");
    assert_eq!(
        worker.ask(&with(ask("Hi"), json!({"max_tokens": 1}))).await.usage()[1],
        1
    );
}

#[tokio::test]
async fn a_client_that_leaves_in_a_long_prefill_leaves_a_slot_that_is_still_busy() {
    let worker = real(&["--slots", "1"]).await;
    let long = with(ask(&"a long story ".repeat(40)), json!({"max_tokens": 1}));
    drop(worker.chat(&long).send().await.unwrap());
    eventually("the slot is still busy", async || {
        (worker.slots().await == (1, 1)).then_some(())
    })
    .await;
    eventually("the step ends", async || (worker.slots().await == (0, 0)).then_some(())).await;
    let line: Value = serde_json::from_str(&worker.says(r#""outcome":"cancelled""#).await).unwrap();
    assert_eq!(line["completion_tokens"], 0);
    let next = with(ask("Hi"), json!({"max_tokens": 1}));
    assert_eq!(worker.ask(&next).await.usage()[1], 1);
}

#[tokio::test]
async fn two_slots_answer_two_at_once_and_as_if_alone() {
    let worker = real(&["--slots", "2", "--threads", "2"]).await;
    let (france, sky) = (ask("What is the capital of France?"), ask("Why is the sky blue?"));
    let alone = [worker.ask(&france).await.text(), worker.ask(&sky).await.text()];
    let (one, other) = tokio::join!(worker.ask(&france), worker.ask(&sky));
    assert_eq!([one.text(), other.text()], alone);
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused_with_both_figures() {
    let worker = real(&["--context-length", "60"]).await;
    for body in [
        ask(&"word ".repeat(60)),
        with(ask("What is the capital of France?"), json!({"max_tokens": 24})),
    ] {
        let answer = worker.ask(&body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, "context_length_exceeded".to_owned())
        );
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("maximum context length is 60 tokens"), "{message}");
    }
    let all = worker
        .ask(&with(
            streamed("Tell me a very long story."),
            json!({"logit_bias": {"2": -100}}),
        ))
        .await;
    assert_eq!((all.finish().as_str(), all.usage()[2]), ("length", 60));
}

#[tokio::test]
async fn a_damaged_model_says_so_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let good = model::path();
    let damage = |name: &str, change: &dyn Fn(&mut std::fs::File)| {
        let path = folder.path().join(name);
        std::fs::copy(&good, &path).unwrap();
        change(&mut std::fs::OpenOptions::new().write(true).open(&path).unwrap());
        path
    };
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let cases = [
        (
            damage("cut.gguf", &|file| file.set_len(50_000_000).unwrap()),
            "has only 50000000 bytes",
        ),
        (
            damage("head.gguf", &|file| file.set_len(1000).unwrap()),
            "more than it has room for",
        ),
        (
            damage("page.gguf", &|file| file.write_all(b"<html>404</html>").unwrap()),
            "does not begin with `GGUF`",
        ),
        (
            damage("counts.gguf", &|file| {
                file.seek(SeekFrom::Start(8)).unwrap();
                file.write_all(&[0xFF; 16]).unwrap();
            }),
            "more than it has room for",
        ),
        (folder.path().join("missing.gguf"), "cannot read"),
        (empty, "neither *.gguf nor *.safetensors"),
    ];
    for (path, why) in cases {
        let words = refused(&path).await;
        assert!(words.contains(why) && words.contains(path.to_str().unwrap()), "{words}");
    }
}

/// The model with another chat template, which may not be longer than its own.
fn with_template(folder: &TempDir, change: impl FnOnce(&str) -> String) -> std::path::PathBuf {
    let path = folder.path().join("changed.gguf");
    let mut file = std::fs::read(model::path()).unwrap();
    let find = |text: &[u8], from: usize| from + file[from..].windows(text.len()).position(|at| at == text).unwrap();
    let begin = find(b"{% for message in messages %}", 0);
    let last = b"<|im_start|>assistant\n' }}{% endif %}";
    let end = find(last, begin) + last.len();
    let template = change(std::str::from_utf8(&file[begin..end]).unwrap());
    file[begin..end].fill(b' ');
    file[begin..begin + template.len()].copy_from_slice(template.as_bytes());
    std::fs::write(&path, file).unwrap();
    path
}

#[tokio::test]
async fn where_the_template_begins_a_thought_the_answer_does_and_where_a_grammar_holds_it_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = with_template(&folder, |own| {
        let shorter = own.replace("trained by Hugging Face", "by Hugging Face");
        shorter.replace("assistant\n", "assistant\n<think>\n")
    });
    let worker = start(&path, &[]).await;
    let short = with(ask("What is the capital of France?"), json!({"max_tokens": 8}));
    let answer = worker.ask(&short).await;
    let said = answer.choice(0);
    assert_eq!(
        (said.text.as_str(), said.thought.is_empty()),
        ("", false),
        "{}",
        answer.body()
    );
    let usage = &answer.chunks().pop().unwrap()["usage"];
    assert_eq!(
        usage["completion_tokens_details"]["reasoning_tokens"],
        usage["completion_tokens"]
    );
    let form = json!({"max_tokens": 40, "response_format": {"type": "json_object"}});
    let formed = worker.ask(&with(ask("Say it in JSON."), form)).await.choice(0);
    assert_eq!(formed.thought, "");
    assert!(formed.text.trim_start().starts_with('{'), "{formed:?}");
}

#[tokio::test]
async fn a_template_that_never_ends_ends_the_worker() {
    let folder = tempfile::tempdir().unwrap();
    let path = with_template(&folder, |_| {
        "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}".to_owned()
    });

    let mut worker = start(&path, &[]).await;
    let answer = worker.ask(&ask("Hi")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (500, "engine_failed".to_owned())
    );
    assert!(answer.body().contains("did not come to an end"), "{}", answer.body());
    assert_eq!(worker.end().await, Some(1));
    assert!(worker.last_words().await.contains("start the worker anew"));
}
