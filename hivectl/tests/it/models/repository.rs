//! Models of several files: whole repositories and shards.

use serde_json::{Value, json};

use super::{User, files};
use crate::fake_hub::{COMMIT, FakeHub, Reply, gguf, sha256};

/// A hub with the files of one repository; those called `missing…` are listed and then not found.
fn repository(files: Vec<(&'static str, Vec<u8>)>) -> FakeHub {
    FakeHub::start(move |_, asked| {
        if asked.path.starts_with("/api/models/org/repo/revision/main") {
            let siblings: Vec<Value> = files
                .iter()
                .map(|(name, bytes)| json!({"rfilename": name, "size": bytes.len(), "lfs": {"sha256": sha256(bytes), "size": bytes.len()}}))
                .collect();
            return Reply::json(&json!({"sha": COMMIT, "siblings": siblings}));
        }
        let file = asked.path.strip_prefix(&format!("/org/repo/resolve/{COMMIT}/"));
        match files.iter().find(|(name, _)| Some(*name) == file) {
            Some((_, bytes)) if !bytes.is_empty() => Reply::file(asked, bytes),
            _ => Reply::status(404),
        }
    })
}

#[test]
fn a_model_of_several_files_comes_whole_or_not_at_all() {
    let shard = |seed| gguf(4_000, seed);
    let broken = repository(vec![
        ("q4/m-00001-of-00002.gguf", shard(1)),
        ("q4/m-00002-of-00002.gguf", Vec::new()),
    ]);
    let mut user = User::of(broken.url());
    user.run(&["download", "hf:org/repo"]).expect(3);
    assert_eq!(user.list(), json!([]));

    let whole = repository(vec![
        ("q4/m-00001-of-00002.gguf", shard(1)),
        ("q4/m-00002-of-00002.gguf", shard(2)),
    ]);
    user.endpoint = whole.url();
    user.run(&["download", "hf:org/repo"]).expect(0);
    let fetched: Vec<String> = whole
        .asked()
        .into_iter()
        .map(|asked| asked.path)
        .filter(|path| path.contains("gguf"))
        .collect();
    assert_eq!(
        fetched,
        [format!("/org/repo/resolve/{COMMIT}/q4/m-00002-of-00002.gguf")]
    );
    let model = &user.list()[0];
    assert_eq!(
        (&model["name"], &model["path"]),
        (&json!("repo"), &json!(user.path("models/repo")))
    );
    let lines = format!(
        "{}  m-00001-of-00002.gguf\n{}  m-00002-of-00002.gguf\n",
        sha256(&shard(1)),
        sha256(&shard(2))
    );
    assert_eq!(model["sha256"], json!(sha256(lines.as_bytes())));
    assert_eq!(user.run(&["verify"]).expect(0).stdout, "ok repo\n");

    user.run(&["download", "hf:org/repo/q4/m-00001-of-00002.gguf"])
        .expect(0);
    assert_eq!(user.list().as_array().unwrap().len(), 2);
}

#[test]
fn a_repository_of_safetensors_comes_with_what_belongs_to_it_and_without_pickles() {
    let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let weights = [(header.len() as u64).to_le_bytes().as_slice(), header, &[0; 4]].concat();
    let hub = repository(vec![
        ("model.safetensors", weights),
        (
            "config.json",
            br#"{"torch_dtype":"bfloat16","max_position_embeddings":2048}"#.to_vec(),
        ),
        ("tokenizer.json", b"{}".to_vec()),
        ("pytorch_model.bin", b"pickle".to_vec()),
        ("../../evil.json", b"{}".to_vec()),
    ]);
    let user = User::of(hub.url());
    user.run(&["download", "hf:org/repo"]).expect(0);
    assert_eq!(
        files(user.folder.path()),
        [
            "home/config.toml",
            "models/repo/config.json",
            "models/repo/hive-model.json",
            "models/repo/model.safetensors",
            "models/repo/tokenizer.json"
        ]
    );
    assert_eq!(user.list()[0]["quantization"], json!("BF16"));
}

#[test]
fn a_repository_of_several_models_asks_which() {
    let hub = repository(vec![("a.gguf", gguf(10, 0)), ("b.gguf", gguf(10, 1))]);
    let user = User::of(hub.url());
    user.run(&["download", "hf:org/repo"])
        .expect(2)
        .says("2 GGUF files")
        .says("hf:org/repo/a.gguf");
    user.has_nothing();
}
