//! A hive of one test's own: the real `hive-gateway` on free ports, with a state folder that goes with it.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{sys::signal, unistd::Pid};
use serde_json::Value;
use tempfile::TempDir;
use wire::GatewayRun;

pub use nix::sys::signal::Signal;

/// How long anything may take before a test gives up; generous, because machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running gateway.
pub struct Hive {
    /// The data plane, as `http://host:port`.
    pub data: String,
    /// The control plane, as `http://host:port`.
    pub control: String,
    /// The first admin key.
    pub admin: String,
    /// A client without a proxy.
    pub http: reqwest::Client,
    // Dropped before the folder that its log is in.
    program: Program,
    home: TempDir,
}

/// A `hive-gateway` process; killed when dropped.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Hive {
    /// A gateway with its defaults, but quick heartbeats and probes.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A gateway with these settings, each `section.key` and its value.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let listen = format!("{}:0", own_address());
        Self::in_home(new_home(), &listen, &listen, settings).await
    }

    /// A gateway whose files can be kept from growing, as a full disk would keep them.
    pub async fn on_a_small_disk(settings: &[(&str, &str)]) -> Self {
        let listen = format!("{}:0", own_address());
        let flags = ["--listen", &listen, "--control-listen", &listen];
        let home = new_home();
        // Without this a write beyond the limit is the end of the process, not an error.
        let shell = ["/bin/sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""];
        let program = Program::start_by(&shell, home.path(), &flags, settings);
        Self::started(home, program).await
    }

    /// A gateway that systemd seems to have started, which wants to hear on this socket who serves.
    pub async fn as_a_service(socket: &Path) -> Self {
        let home = new_home();
        let listen = format!("{}:0", own_address());
        let flags = ["--listen", &listen, "--control-listen", &listen];
        let notify = format!("NOTIFY_SOCKET={}", socket.display());
        let program = Program::start_by(&["/usr/bin/env", &notify], home.path(), &flags, &[]);
        Self::started(home, program).await
    }

    /// A gateway whose program can be replaced by another one.
    pub async fn that_can_be_replaced() -> Self {
        let home = new_home();
        let program = home.path().join("program");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hive-gateway"), &program).unwrap();
        let listen = format!("{}:0", own_address());
        let flags = ["--listen", &listen, "--control-listen", &listen];
        let program = Program::start_line(&[program.to_str().unwrap()], home.path(), &flags, &[]);
        Self::started(home, program).await
    }

    /// Puts a shell script in its program's place.
    pub fn replace(&self, script: &str) {
        let program = self.home().join("program");
        std::fs::remove_file(&program).unwrap();
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }

    /// Keeps files from growing, or lets them grow again.
    pub fn fill_disk(&self, full: bool) {
        self.limit(if full {
            "--fsize=1:unlimited"
        } else {
            "--fsize=unlimited"
        });
    }

    /// Lets the process open so many more file descriptors than it has open now.
    pub fn spare_descriptors(&self, count: usize) {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.program.child.id()))
            .unwrap()
            .count();
        self.limit(&format!("--nofile={}:", open + count));
    }

    /// Memory of its own that is resident, in KiB (proc(5)).
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.program.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Processor time the process has used, in clock ticks of a hundredth of a second (proc(5)).
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.program.child.id())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    fn limit(&self, limit: &str) {
        let pid = self.program.child.id().to_string();
        let done = Command::new("prlimit").args(["--pid", &pid, limit]).status();
        assert!(done.unwrap().success());
    }

    /// A gateway whose journal's disk can be made to forget what it took, or to get stuck while the file `stuck` is there.
    pub async fn on_a_forgetful_disk(settings: &[(&str, &str)]) -> Self {
        let home = new_home();
        let library = home.path().join("forgetful_disk.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/forgetful_disk.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source);
        assert!(compiler.status().unwrap().success());
        let preload = format!("LD_PRELOAD={}", library.display());
        let forgets = format!("FORGETS={}", home.path().join("forgets").display());
        let stuck = format!("STUCK={}", home.path().join("stuck").display());
        let listen = format!("{}:0", own_address());
        let flags = ["--listen", &listen, "--control-listen", &listen];
        let program = Program::start_by(
            &["/usr/bin/env", &preload, &forgets, &stuck],
            home.path(),
            &flags,
            settings,
        );
        Self::started(home, program).await
    }

    /// Lets that disk forget, or keep what it takes.
    pub fn forget_writes(&self, forgets: bool) {
        let sign = self.home().join("forgets");
        if forgets {
            File::create(sign).unwrap();
        } else {
            std::fs::remove_file(sign).unwrap();
        }
    }

    async fn in_home(home: TempDir, listen: &str, control: &str, settings: &[(&str, &str)]) -> Self {
        let program = Program::start(
            home.path(),
            &["--listen", listen, "--control-listen", control],
            settings,
        );
        Self::started(home, program).await
    }

    async fn started(home: TempDir, mut program: Program) -> Self {
        let run = home.path().join("run/gateway.json");
        let run: GatewayRun = eventually("the gateway says where it listens", async || {
            assert!(program.exited().is_none(), "the gateway ended: {}", program.log());
            let run: GatewayRun = serde_json::from_slice(&std::fs::read(&run).ok()?).ok()?;
            // After a kill the file of the one before is still there.
            (run.process.pid == program.child.id()).then_some(run)
        })
        .await;
        let admin = std::fs::read_to_string(home.path().join("keys/admin")).unwrap();
        Self {
            data: run.data_url,
            control: run.control_url,
            admin: admin.trim().to_owned(),
            http: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .unwrap(),
            home,
            program,
        }
    }

    /// The same state folder and the same ports again, after the process has ended or is killed now.
    pub async fn again(self, settings: &[(&str, &str)]) -> Self {
        let Self {
            data,
            control,
            home,
            program,
            ..
        } = self;
        drop(program);
        Self::in_home(home, address(&data), address(&control), settings).await
    }

    /// The state folder.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Where the data plane listens.
    pub fn data_address(&self) -> SocketAddr {
        address(&self.data).parse().unwrap()
    }

    /// Where the control plane listens.
    pub fn control_address(&self) -> SocketAddr {
        address(&self.control).parse().unwrap()
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(i32::try_from(self.program.child.id()).unwrap()), signal).unwrap();
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.program.child.id()
    }

    /// A file of the process in `/proc`.
    pub fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.pid()))
    }

    /// How often the threads that ask the database have gone to sleep: once at least for every statement.
    pub fn database_wakes(&self) -> u64 {
        let threads = std::fs::read_dir(self.proc("task")).unwrap().flatten();
        let read =
            |thread: &std::fs::DirEntry, file| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let databases = threads.filter(|thread| read(thread, "comm").starts_with("sqlx"));
        let wakes = databases.map(|thread| {
            let status = read(&thread, "status");
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        });
        wakes.sum()
    }

    /// Ends the process as a crash would.
    pub fn kill(&mut self) {
        self.program.child.kill().unwrap();
        self.program.child.wait().unwrap();
    }

    /// The exit status, once the process has ended by itself.
    pub async fn exit(&mut self) -> ExitStatus {
        self.program.exit().await
    }

    /// What the gateway has logged so far.
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// The log line that satisfies `wanted`, once it is there.
    pub async fn logged(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || {
            self.log()
                .lines()
                .map(|line| serde_json::from_str(line).expect("a log line is JSON"))
                .find(&wanted)
        })
        .await
    }
}

impl Program {
    /// Starts the binary on a state folder with an empty environment but for these settings.
    pub fn start(home: &Path, flags: &[&str], settings: &[(&str, &str)]) -> Self {
        Self::start_by(&[], home, flags, settings)
    }

    /// The same, started by another program that becomes it.
    fn start_by(by: &[&str], home: &Path, flags: &[&str], settings: &[(&str, &str)]) -> Self {
        let line = [by, &[env!("CARGO_BIN_EXE_hive-gateway")]].concat();
        Self::start_line(&line, home, flags, settings)
    }

    fn start_line(line: &[&str], home: &Path, flags: &[&str], settings: &[(&str, &str)]) -> Self {
        let quick = [
            ("registry.heartbeat_interval", "200ms"),
            ("registry.probe_interval", "200ms"),
        ];
        let log = home.join(format!(
            "log-{}.jsonl",
            std::fs::read_dir(home).map_or(0, Iterator::count)
        ));
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).env_clear().arg("--home").arg(home).args(flags);
        for (name, value) in quick.iter().chain(settings) {
            command.env(
                format!("HIVE_GATEWAY__{}", name.replace('.', "__").to_uppercase()),
                value,
            );
        }
        let stderr = File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// The exit status, once the process has ended by itself.
    pub async fn exit(&mut self) -> ExitStatus {
        eventually("the gateway ends", async || self.exited()).await
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// What it has written to standard error so far.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        // The last line may be half written.
        text[..text.rfind('\n').map_or(0, |end| end + 1)].to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // Without what `eventually` asked again and again.
            let log = self.log();
            let lines: Vec<&str> = log
                .lines()
                .filter(|line| !line.contains("\"method\":\"GET\""))
                .collect();
            show(&lines.join("\n"));
        }
    }
}

#[expect(clippy::print_stderr, reason = "the log of a hive whose test failed")]
fn show(log: &str) {
    eprintln!("--- the gateway's log ---\n{log}---");
}

/// A loopback address of one's own: whoever tries ports of 127.0.0.1 on this machine does not come by.
pub fn own_address() -> IpAddr {
    // Elsewhere than on Linux only one loopback address is set up.
    if cfg!(target_os = "linux") {
        let [a, b, c]: [u8; 3] = rand::random();
        [127, a.clamp(1, 254), b, c.clamp(1, 254)].into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    }
}

/// A state folder for a test; in memory where there is such a place, since SQLite waits for a disk at every commit.
pub fn new_home() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Asks again and again until there is an answer; a test that waits longer than [`PATIENCE`] has failed.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What `future` gives, within [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

fn address(url: &str) -> &str {
    url.split_once("://").unwrap().1
}
