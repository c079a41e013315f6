//! `hivectl models …` at the command line: against a hub on loopback, local files, and the real package mirror.

mod hub;
mod package;
mod repository;
mod store;
mod transfer;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    runtime::Runtime,
};

/// The file most of these tests ask for.
const HUB_FILE: &str = "hf:org/repo/m.gguf";

/// A user with an empty home, and a hub.
struct User {
    folder: TempDir,
    endpoint: String,
    runtime: Runtime,
}

/// How a command ended.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl User {
    fn of(endpoint: impl Into<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(home.join("config.toml"), "[hivectl.download]\nbackoff = \"1ms\"\n").unwrap();
        Self {
            folder,
            endpoint: endpoint.into(),
            runtime: Runtime::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hivectl"));
        command
            .arg("models")
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("HIVE_HOME", self.path("home"))
            .env("HIVE_MODELS", self.path("models"))
            .env("HF_HOME", self.path("hf"))
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_TOKEN", "hf_secret")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.end(self.command(arguments))
    }

    fn end(&self, mut command: Command) -> Ended {
        let limit = Duration::from_mins(2);
        let output: Output = self
            .runtime
            .block_on(async { tokio::time::timeout(limit, command.output()).await })
            .unwrap()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Starts a download and returns when its stderr has a line with `sign` in it.
    fn start_until(&self, mut command: Command, sign: &str) -> Child {
        let _guard = self.runtime.enter();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        self.runtime.block_on(async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(sign) {
                    return;
                }
            }
            panic!("it ended without saying {sign:?}");
        });
        // Nobody reads on, but what is written must not fail.
        self.runtime
            .spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        child
    }

    /// Sends a signal and waits for the end; the exit code, if there is one.
    fn signal(&self, mut child: Child, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(child.id().unwrap().cast_signed()), signal).unwrap();
        self.runtime.block_on(child.wait()).unwrap().code()
    }

    fn has_only_parts(&self) {
        assert_eq!(self.list(), json!([]));
        let left = files(&self.path("models"));
        assert!(
            left.iter()
                .all(|file| Path::new(file).extension().is_some_and(|end| end == "part")),
            "{left:?}"
        );
    }

    fn list(&self) -> Value {
        let ended = self.run(&["list", "--json"]).expect(0);
        serde_json::from_str(&ended.stdout).unwrap()
    }

    fn has_nothing(&self) {
        assert_eq!(self.list(), json!([]));
        assert_eq!(files(&self.path("models")), Vec::<String>::new());
    }
}

impl Ended {
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("hf_secret"), "{}", self.stderr);
        self
    }

    #[track_caller]
    fn says(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "{text:?} is not in: {}", self.stderr);
        self
    }
}

/// All files below a folder, relative to it.
fn files(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            all.extend(files(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            all.push(name);
        }
    }
    all.sort();
    all
}
