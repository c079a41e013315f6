//! A house to test in: a state folder of its own, the programs beside hivectl, and a way to see what is left running.

use std::{
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything in these tests may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A state folder; whatever still runs in it at the end is taken down.
pub struct House {
    folder: TempDir,
}

/// A command that ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A command that runs, with what it has said so far.
pub struct Started {
    child: Child,
    said: [Arc<Mutex<Vec<u8>>>; 2],
    readers: Vec<JoinHandle<()>>,
}

/// Waits until `look` sees something.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "this never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl House {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// A file in the house with this content.
    pub fn file(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// hivectl with an environment that holds nothing of ours.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hivectl"));
        command
            .arg("--state-dir")
            .arg(self.home())
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.folder.path())
            .env("HIVE_MODELS", self.path("models"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    pub fn start(&self, arguments: &[&str]) -> Started {
        Started::new(self.command(arguments))
    }

    /// `hivectl up` in the foreground, without a build and without a real model.
    pub fn start_up(&self, more: &[&str]) -> Started {
        self.start(&up_arguments(more))
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).end()
    }

    /// A detached hive with one scripted worker, `scripted-0`, that says back what it hears.
    #[track_caller]
    pub fn up(&self, more: &[&str]) -> Ended {
        self.run(&up_arguments(&[more, &["--detach", "--print-env"]].concat()))
            .expect(0)
    }

    /// What a command prints with `--json`.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[arguments, &["--json"]].concat()).expect(0).stdout).unwrap()
    }

    /// The listed worker of that id.
    #[track_caller]
    pub fn worker(&self, id: &str) -> Option<Value> {
        self.json(&["worker", "list"])
            .as_array()
            .unwrap()
            .iter()
            .find(|worker| worker["id"] == id)
            .cloned()
    }

    /// Waits until a worker is ready, and tells its process id.
    #[track_caller]
    pub fn ready(&self, id: &str, other_than: Option<u64>) -> u64 {
        eventually("the worker is ready", || {
            let listed = self.run(&["worker", "list", "--json"]);
            let workers: Value = serde_json::from_str(&listed.stdout).ok()?;
            let worker = workers
                .as_array()?
                .iter()
                .find(|worker| worker["id"] == id && worker["state"] == "ready")?;
            worker["pid"].as_u64().filter(|pid| Some(*pid) != other_than)
        })
    }

    /// The exported value of that name.
    pub fn exported(&self, name: &str) -> String {
        let env = self.up(&[]).stdout;
        let line = env
            .lines()
            .find_map(|line| line.strip_prefix(&format!("export {name}='")));
        line.unwrap().strip_suffix('\'').unwrap().to_owned()
    }

    /// Every live process whose command line names this house.
    pub fn processes(&self) -> Vec<String> {
        let folder = self.folder.path().to_str().unwrap();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        lines.filter(|line| line.contains(folder)).collect()
    }

    /// Fails if anything of this house still runs, or `run/` says that it does.
    #[track_caller]
    pub fn is_empty(&self) {
        assert_eq!(self.processes(), Vec::<String>::new());
        let left = |folder: PathBuf| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(left(self.home().join("run/workers")), Vec::<String>::new());
        let mut run = left(self.home().join("run"));
        // A lock is the kernel's; its file stays.
        run.retain(|name| name != "workers" && !["up.lock", "gateway.lock"].contains(&name.as_str()));
        assert_eq!(run, Vec::<String>::new());
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A test that failed may have left a hive running.
        let _ = self
            .command(&["down", "--drain", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

impl Started {
    #[track_caller]
    pub fn new(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = [Arc::default(), Arc::default()];
        let readers = vec![
            follow(child.stdout.take().unwrap(), Arc::clone(&said[0])),
            follow(child.stderr.take().unwrap(), Arc::clone(&said[1])),
        ];
        Self { child, said, readers }
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.said[0].lock().unwrap()).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.said[1].lock().unwrap()).into_owned()
    }

    /// Waits until it has said this, on stdout or stderr.
    #[track_caller]
    pub fn until(&mut self, sign: &str) {
        eventually(sign, || {
            if self.stdout().contains(sign) || self.stderr().contains(sign) {
                return Some(());
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "it ended without saying {sign:?}: {}{}",
                self.stdout(),
                self.stderr()
            );
            None
        });
    }

    pub fn signal(&self, signal: Signal) {
        kill(u64::from(self.child.id()), signal);
    }

    #[track_caller]
    pub fn end(mut self) -> Ended {
        let status: ExitStatus = eventually("the command ends", || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let code = status.code().unwrap_or_else(|| -status.signal().unwrap());
        Ended {
            code,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Ended {
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Fails unless stderr says this, and what to do next.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "stderr lacks {text:?}: {}", self.stderr);
        assert!(self.code == 0 || self.stderr.contains("\n  next: "), "{}", self.stderr);
        self
    }
}

/// Sends a signal to a process that this house started.
pub fn kill(pid: u64, signal: Signal) {
    signal::kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// The process id in a file under `run/`.
#[track_caller]
pub fn recorded_pid(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["pid"].as_u64().unwrap()
}

/// `up` with these arguments, and those that keep a test quick and out of others' way where they say nothing else.
fn up_arguments<'a>(named: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["up", "--no-build", "--device", "scripted"];
    for (flag, value) in [("--model", "echo"), ("--port", "0"), ("--control-port", "0")] {
        if !named.contains(&flag) {
            arguments.extend([flag, value]);
        }
    }
    arguments.extend(named);
    arguments
}

fn follow(mut from: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        loop {
            match from.read(&mut piece).unwrap() {
                0 => return,
                read => into.lock().unwrap().extend(&piece[..read]),
            }
        }
    })
}
