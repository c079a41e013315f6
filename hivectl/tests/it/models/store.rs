//! The life of a model in the store: downloaded, listed, shown, verified, mended and removed.

use std::fs;

use serde_json::{Value, json};

use super::{HUB_FILE, User, files};
use crate::fake_hub::{COMMIT, FakeHub, Reply, gguf, sha256};

#[test]
fn a_file_from_the_hub_becomes_a_model_that_can_be_listed_shown_verified_and_removed() {
    let bytes = gguf(300_000, 0);
    let hub = FakeHub::start({
        let bytes = bytes.clone();
        move |_, asked| Reply::file(asked, &bytes)
    });
    let user = User::of(hub.url());

    let ended = user.run(&["download", HUB_FILE, "--json"]).expect(0);
    let model: Value = serde_json::from_str(&ended.stdout).unwrap();
    let path = user.path("models/m/m.gguf");
    let expected = json!({
        "name": "m", "path": path, "size_bytes": bytes.len(), "sha256": sha256(&bytes),
        "quantization": "F32", "source": HUB_FILE,
    });
    assert_eq!(model, expected);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(files(&user.path("models")), ["m/hive-model.json", "m/m.gguf"]);
    assert_eq!(user.list(), json!([expected]));

    let shown: Value = serde_json::from_str(&user.run(&["show", "m", "--json"]).expect(0).stdout).unwrap();
    assert_eq!(
        (&shown["revision"], &shown["downloaded"]),
        (&json!(COMMIT), &json!(true))
    );
    assert_eq!(user.run(&["verify", "m"]).expect(0).stdout, "ok m\n");

    let again = user.run(&["download", HUB_FILE]).expect(0);
    assert!(again.stdout.starts_with("already there"), "{}", again.stdout);
    let asked = hub.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/org/repo/resolve/main/m.gguf");
    assert_eq!(asked[0].header("authorization"), Some("Bearer hf_secret"));

    // Somebody wrote to it since: what its digest says is looked at again before anybody loads it.
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&path, damaged).unwrap();
    user.run(&["verify", "m"]).expect(1);
    user.run(&["download", HUB_FILE])
        .expect(0)
        .says("damaged and fetched anew");
    assert_eq!(user.run(&["verify", "m"]).expect(0).stdout, "ok m\n");

    user.run(&["rm", "m"]).expect(0);
    user.has_nothing();
    user.run(&["rm", "m"]).expect(2);
}

#[test]
fn the_catalogue_is_listed_together_with_what_is_here() {
    let user = User::of("http://127.0.0.1:1");
    let file = user.path("some.gguf");
    fs::write(&file, gguf(1_000, 0)).unwrap();
    let file = file.to_str().unwrap();
    user.run(&["download", file, "--name", "qwen"]).expect(0);
    user.run(&["download", file]).expect(0);
    let listed = user.run(&["list", "--catalogue", "--json"]).expect(0).stdout;
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let model = |name: &str| {
        let mut all = listed.iter().filter(|model| model["name"] == name);
        let model = all.next().unwrap();
        assert!(all.next().is_none(), "{name} is listed twice");
        (&model["downloaded"], &model["path"], &model["licence"])
    };
    assert_eq!(model("some"), (&json!(true), &user.list()[1]["path"], &Value::Null));
    assert_eq!(
        model("qwen"),
        (&json!(true), &user.list()[0]["path"], &json!("Apache-2.0"))
    );
    assert_eq!(
        (model("tinyllama").0, model("tinyllama").1),
        (&json!(false), &Value::Null)
    );
}

#[test]
fn sources_are_tried_in_order_with_a_sentence_for_each_that_fails() {
    let hub = FakeHub::start(|_, asked| match asked.path.as_str() {
        "/good/m.gguf" => Reply::bytes(asked, &gguf(1_000, 0)),
        _ => Reply::status(404),
    });
    let user = User::of("http://127.0.0.1:1");
    let url = hub.url();
    let digest = sha256(&gguf(1_000, 0));
    let catalogue = format!(
        "[[model]]\nname = \"mine\"\nsources = [{{ from = \"{HUB_FILE}\" }}, {{ from = \"{url}/bad/m.gguf\" }}, {{ from = \"{url}/good/m.gguf\", sha256 = \"{digest}\" }}]\n"
    );
    fs::write(user.path("home/models.toml"), catalogue).unwrap();
    let ended = user.run(&["download", "mine"]).expect(0);
    ended
        .says("127.0.0.1:1 cannot be reached")
        .says("has no m.gguf")
        .says(&format!("trying {url}/good/m.gguf"));
    assert_eq!(user.list()[0]["name"], json!("mine"));
    user.run(&["download", "mine"]).expect(0);
    assert_eq!(hub.asked().len(), 2);
    user.run(&["list"]).expect(0).says("smollm2-135m");
}

#[test]
fn a_local_model_is_copied_and_a_changed_one_copied_anew() {
    let user = User::of("http://127.0.0.1:1");
    let original = user.path("some.gguf");
    fs::write(&original, gguf(5_000, 0)).unwrap();
    user.run(&["download", original.to_str().unwrap()]).expect(0);
    fs::write(&original, gguf(6_000, 1)).unwrap();
    assert_eq!(user.run(&["verify"]).expect(0).stdout, "ok some\n");
    assert!(
        user.run(&["download", "some"])
            .expect(0)
            .stdout
            .starts_with("already there")
    );
    user.run(&["download", "./some.gguf"]).expect(0);
    assert_eq!(fs::read(user.path("models/some/some.gguf")).unwrap(), gguf(6_000, 1));
    fs::remove_file(&original).unwrap();
    assert!(
        user.run(&["download", "./some.gguf"])
            .expect(0)
            .stdout
            .starts_with("already there")
    );

    let stored = user.list()[0]["path"].as_str().unwrap().to_owned();
    user.run(&["download", &stored]).expect(0);
    assert_eq!(user.list().as_array().unwrap().len(), 1);

    fs::create_dir(user.path("folder")).unwrap();
    user.run(&["download", "./folder"])
        .expect(2)
        .says("neither a GGUF file nor");
    user.run(&["download", "./gone.gguf"]).expect(1);
    fs::write(user.path("no model.gguf"), "x").unwrap();
    user.run(&["download", "./no model.gguf"]).expect(2).says("--name");
    user.run(&["download", "./no model.gguf", "--name", "x"])
        .expect(1)
        .says("GGUF");
}

#[test]
fn damage_is_found_and_mended() {
    let hub = FakeHub::start(|_, asked| Reply::file(asked, &gguf(5_000, 0)));
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE]).expect(0);
    let path = user.path("models/m/m.gguf");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    let ended = user.run(&["verify", "--json"]).expect(1);
    ended.says("--force m");
    let verdicts: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&verdicts[0]["name"], &verdicts[0]["ok"]), (&json!("m"), &json!(false)));
    user.run(&["download", "m", "--force"]).expect(0);
    user.run(&["verify"]).expect(0);

    fs::remove_file(&path).unwrap();
    user.run(&["verify"]).expect(1);
    user.run(&["list"]).expect(0).says("m is damaged");
    user.run(&["download", "m"]).expect(0);
    assert_eq!(fs::read(&path).unwrap(), gguf(5_000, 0));
}

#[test]
fn two_models_of_one_name_are_kept_apart() {
    let hub = FakeHub::start(|_, asked| Reply::file(asked, &gguf(100, u8::from(asked.path.contains("other")))));
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE]).expect(0);
    user.run(&["download", "hf:other/repo/m.gguf"]).expect(1).says("--name");
    user.run(&["download", "hf:other/repo/m.gguf", "--name", "a/m:2"])
        .expect(0);
    user.run(&["download", "hf:other/repo/m.gguf", "--name", "a-m-2"])
        .expect(0);
    assert_eq!(user.list().as_array().unwrap().len(), 3);
    assert_eq!(user.run(&["verify"]).expect(0).stdout, "ok a-m-2\nok a/m:2\nok m\n");
    user.run(&["rm", "a/m:2"]).expect(0);
    user.run(&["show", "a-m-2"]).expect(0);
}

#[test]
fn a_model_in_use_is_not_removed() {
    let hub = FakeHub::start(|_, asked| Reply::file(asked, &gguf(100, 0)));
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE]).expect(0);
    let workers = user.path("home/run/workers");
    fs::create_dir_all(&workers).unwrap();
    let own = hivectl::process::own();
    let record = |start: u64| {
        json!({
            "pid": own.pid, "start": start, "id": "w1", "model": "m", "model_path": user.path("models/m/m.gguf"),
            "device": "cpu", "slots": null, "threads": null, "port": null, "script": null,
            "gateway": "http://127.0.0.1:7412", "supervised": false, "stopping": false,
        })
        .to_string()
    };
    fs::write(workers.join("w1.json"), record(own.start)).unwrap();
    user.run(&["rm", "m"])
        .expect(1)
        .says("in use by w1")
        .says("worker stop w1");
    assert_eq!(user.run(&["verify"]).expect(0).stdout, "ok m\n");
    fs::write(workers.join("w1.json"), record(own.start + 1)).unwrap();
    user.run(&["rm", "m"]).expect(0);
    user.has_nothing();
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let user = User::of("http://127.0.0.1:1");
    user.run(&["download", "nonesuch"])
        .expect(2)
        .says("smollm2-135m, tinyllama, qwen, phi3")
        .says("hf:ORG/REPO");
    user.run(&["show", "nonesuch"]).expect(2);
    user.run(&["verify", "nonesuch"]).expect(2);
    let shown = user.run(&["show", "qwen"]).expect(0);
    assert!(
        shown.stdout.contains("hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF"),
        "{}",
        shown.stdout
    );
    user.run(&["show", "smollm2-135m", "--json"]).expect(0);
}
