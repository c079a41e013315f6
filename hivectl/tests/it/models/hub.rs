//! What a hub says and does, and what becomes of it: nothing but a checked file is ever a model.

use std::{fs, path::Path};

use serde_json::json;

use super::{HUB_FILE, User, files};
use crate::fake_hub::{COMMIT, FakeHub, Reply, gguf, sha256};

#[test]
fn a_wrong_digest_is_fetched_once_more_and_never_becomes_a_model() {
    let hub = FakeHub::start(|_, asked| {
        Reply::file(asked, &gguf(5_000, 1)).with("x-linked-etag", &format!("\"{}\"", "a".repeat(64)))
    });
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE])
        .expect(1)
        .says(&"a".repeat(64))
        .says(&sha256(&gguf(5_000, 1)));
    assert_eq!(hub.asked().len(), 2);
    user.has_nothing();
}

#[test]
fn a_digest_that_was_wrong_once_is_forgiven() {
    let good = gguf(5_000, 0);
    let hub = FakeHub::start(move |count, asked| {
        let sent = if count == 0 { gguf(5_000, 1) } else { good.clone() };
        Reply::bytes(asked, &sent).with("x-linked-etag", &sha256(&good))
    });
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE]).expect(0);
    assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), gguf(5_000, 0));
}

#[test]
fn refusals_and_web_pages_never_become_a_model() {
    for (status, code, word) in [
        (401, 3, "HF_TOKEN"),
        (403, 3, "HF_TOKEN"),
        (404, 3, "has no m.gguf"),
        (503, 3, "status 503"),
        (429, 3, "status 429"),
        (400, 3, "status 400"),
        (200, 3, "web page"),
    ] {
        let hub = FakeHub::start(move |_, _| Reply::status(status));
        let user = User::of(hub.url());
        for source in [HUB_FILE, &format!("{}/m.gguf", hub.url())] {
            user.run(&["download", source]).expect(code).says(word).says("next: ");
            user.has_nothing();
        }
    }
}

#[test]
fn a_status_that_passes_is_waited_for() {
    let hub = FakeHub::start(|count, asked| match count {
        0 => Reply::status(503),
        _ => Reply::file(asked, &gguf(100, 0)),
    });
    User::of(hub.url()).run(&["download", HUB_FILE]).expect(0);
}

#[test]
fn a_hostile_etag_leads_nowhere() {
    for etag in ["\"../x\"", "\"../../../../tmp/x\"", "\"\"", "../x"] {
        let linked = FakeHub::start(move |_, asked| Reply::file(asked, &gguf(100, 0)).with("x-linked-etag", etag));
        let user = User::of(linked.url());
        user.run(&["download", HUB_FILE]).expect(3).says("digest");
        user.has_nothing();
        assert_eq!(files(user.folder.path()), ["home/config.toml"]);

        let plain = FakeHub::start(move |_, asked| Reply::bytes(asked, &gguf(100, 0)).with("etag", etag));
        let user = User::of(plain.url());
        user.run(&["download", HUB_FILE]).expect(0).says("names no SHA-256");
        assert_eq!(
            files(user.folder.path()),
            ["home/config.toml", "models/m/hive-model.json", "models/m/m.gguf"]
        );
    }
}

#[test]
fn what_is_no_sound_gguf_is_refused_even_with_the_right_digest() {
    let mut cut_short = gguf(10_000, 0);
    cut_short.truncate(9_000);
    for (bytes, word) in [
        (b"not a model".to_vec(), "GGUF"),
        (cut_short, "cut short"),
        (Vec::new(), "GGUF"),
    ] {
        let hub = FakeHub::start(move |_, asked| Reply::file(asked, &bytes));
        let user = User::of(hub.url());
        user.run(&["download", HUB_FILE]).expect(1).says(word);
        user.has_nothing();
    }
}

#[test]
fn the_token_and_the_digest_belong_to_the_hub_and_not_to_the_storage_behind_it() {
    let storage = FakeHub::start(|_, asked| Reply::bytes(asked, &gguf(1_000, 0)));
    let to = format!("{}/blob?signature=x", storage.url());
    let hub = FakeHub::start(move |_, _| {
        let bytes = gguf(1_000, 0);
        Reply::redirect(&to)
            .with("x-linked-etag", &format!("\"{}\"", sha256(&bytes)))
            .with("x-linked-size", &bytes.len().to_string())
            .with("x-repo-commit", COMMIT)
    });
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE]).expect(0);
    assert_eq!(user.list()[0]["sha256"], json!(sha256(&gguf(1_000, 0))));
    assert_eq!(hub.asked()[0].header("authorization"), Some("Bearer hf_secret"));
    assert_eq!(storage.asked()[0].header("authorization"), None);
    assert_eq!(storage.asked()[0].path, "/blob?signature=x");
}

#[test]
fn what_must_not_be_called_is_not_called() {
    let user = User::of("http://127.0.0.1:1");
    for source in [
        "http://example.org/m.gguf",
        "http://10.0.0.1/m.gguf",
        "https://169.254.169.254/latest/m.gguf",
        "ftp://example.org/m.gguf",
    ] {
        user.run(&["download", source])
            .expect(2)
            .says("cannot be used as a source");
    }
    for target in [
        "http://169.254.169.254/m.gguf",
        "https://[fe80::1]/m.gguf",
        "http://example.org/m.gguf",
        "file:///etc/passwd",
    ] {
        let hub = FakeHub::start(move |_, _| Reply::redirect(target));
        let user = User::of(hub.url());
        user.run(&["download", HUB_FILE]).expect(3).says("not followed");
        user.has_nothing();
    }
    let circle = FakeHub::start(|_, _| Reply::redirect("/again"));
    User::of(circle.url())
        .run(&["download", HUB_FILE])
        .expect(3)
        .says("more than 10 redirects");
}

#[test]
fn an_unreachable_hub_is_a_sentence_with_a_remedy() {
    let user = User::of("http://127.0.0.1:1");
    user.run(&["download", HUB_FILE])
        .expect(3)
        .says("127.0.0.1:1 cannot be reached")
        .says("HF_ENDPOINT");
    user.has_nothing();
}

#[test]
fn a_file_another_tool_has_fetched_is_taken_if_its_digest_fits() {
    let bytes = gguf(10_000, 0);
    let cached = |user: &User, content: &[u8]| {
        let repo = user.path("hf/hub/models--org--repo");
        for folder in ["blobs", "refs", &format!("snapshots/{COMMIT}")] {
            fs::create_dir_all(repo.join(folder)).unwrap();
        }
        fs::write(repo.join("refs/main"), COMMIT).unwrap();
        fs::write(repo.join("blobs").join(sha256(&bytes)), content).unwrap();
        let blob = Path::new("../../blobs").join(sha256(&bytes));
        std::os::unix::fs::symlink(blob, repo.join("snapshots").join(COMMIT).join("m.gguf")).unwrap();
    };
    let offline = User::of("http://127.0.0.1:1");
    cached(&offline, &bytes);
    offline.run(&["download", HUB_FILE]).expect(0).says("is taken from");
    let pinned = format!("hf:org/repo@{COMMIT}/m.gguf");
    offline.run(&["download", &pinned, "--name", "pinned"]).expect(0);
    assert_eq!(fs::read(offline.path("models/m/m.gguf")).unwrap(), bytes);

    let damaged = User::of("http://127.0.0.1:1");
    cached(&damaged, b"something else");
    damaged.run(&["download", HUB_FILE]).expect(3).says("cannot be reached");
    damaged.has_nothing();

    let hub = FakeHub::start({
        let bytes = bytes.clone();
        move |_, asked| Reply::file(asked, &bytes)
    });
    let online = User::of(hub.url());
    cached(&online, &bytes);
    online
        .run(&["download", HUB_FILE])
        .expect(0)
        .says("already on this machine");
    let damaged = User::of(hub.url());
    cached(&damaged, b"something else");
    damaged.run(&["download", HUB_FILE]).expect(0);
    assert_eq!(fs::read(damaged.path("models/m/m.gguf")).unwrap(), bytes);
}
