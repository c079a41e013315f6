//! The programs of a run: one gateway that can be killed and started again on its ports, and workers with a keeper.
//!
//! It judges nothing.

use std::{
    ffi::OsStr,
    fs::File,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use wire::GatewayRun;

use crate::proxy::Proxy;

/// The model that every worker serves.
pub const MODEL: &str = "m";
/// How long a keeper waits before it starts a killed worker again, as `hivectl` does.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How long anything may take before the run gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running gateway and its state folder.
pub struct House {
    /// The data plane, as `http://host:port`.
    pub data: String,
    /// The control plane, as `http://host:port`.
    pub control: String,
    /// The first admin key.
    pub admin: String,
    /// A client for the control plane.
    pub http: reqwest::Client,
    settings: Vec<(String, String)>,
    gateway: tokio::sync::Mutex<Child>,
    pid: AtomicU32,
    /// How often the gateway was killed; odd while it is down.
    upheavals: AtomicU64,
    home: TempDir,
}

/// A worker with a keeper, who starts it again whenever it has died.
pub struct Worker {
    /// What stands between it and the gateway, if anything does.
    pub proxy: Option<Proxy>,
    pid: Arc<Mutex<Option<u32>>>,
    keeper: tokio::task::AbortHandle,
}

impl House {
    /// A gateway with its defaults but for these settings, each `section.key` and its value.
    pub async fn open(settings: &[(&str, &str)]) -> Arc<Self> {
        let home = tempfile::tempdir().unwrap();
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| {
                let name = format!("HIVE_GATEWAY__{}", name.replace('.', "__").to_uppercase());
                (name, (*value).to_owned())
            })
            .collect();
        let listen = format!("{}:0", own_address());
        let mut child = spawn_gateway(home.path(), &listen, &listen, &settings);
        let run = running(home.path(), &mut child).await;
        let admin = std::fs::read_to_string(home.path().join("keys/admin")).unwrap();
        Arc::new(Self {
            data: run.data_url,
            control: run.control_url,
            admin: admin.trim().to_owned(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            settings,
            pid: AtomicU32::new(run.process.pid),
            gateway: tokio::sync::Mutex::new(child),
            upheavals: AtomicU64::new(0),
            home,
        })
    }

    /// The state folder.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Has the workers that start from now on play this when a request says nothing else.
    pub fn play(&self, script: &Value) {
        std::fs::write(self.home().join("script.json"), script.to_string()).unwrap();
    }

    fn script(&self) -> Option<PathBuf> {
        Some(self.home().join("script.json")).filter(|file| file.exists())
    }

    /// The gateway's process.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }

    /// A number that changes when the gateway is killed, and again when it is back.
    pub fn upheavals(&self) -> u64 {
        self.upheavals.load(Ordering::SeqCst)
    }

    /// Kills the gateway and starts it again; how long it took until it was ready.
    pub async fn kill_gateway(&self) -> Duration {
        let mut child = self.gateway.lock().await;
        self.upheavals.fetch_add(1, Ordering::SeqCst);
        child.kill().await.unwrap();
        let began = Instant::now();
        *child = spawn_gateway(self.home(), address(&self.data), address(&self.control), &self.settings);
        let run = running(self.home(), &mut child).await;
        self.pid.store(run.process.pid, Ordering::SeqCst);
        let ready = format!("{}/readyz", self.data);
        eventually("the gateway is ready", async || {
            self.http
                .get(&ready)
                .send()
                .await
                .is_ok_and(|reply| reply.status() == 200)
                .then_some(())
        })
        .await;
        self.upheavals.fetch_add(1, Ordering::SeqCst);
        began.elapsed()
    }

    /// `POST` to the control plane; `None` if it did not work.
    pub async fn post(&self, path: &str, body: &Value) -> Option<Value> {
        let request = self.http.post(format!("{}/control/v1/{path}", self.control));
        let reply = request.bearer_auth(&self.admin).json(body).send().await.ok()?;
        reply.error_for_status().ok()?.json().await.ok()
    }

    /// `GET` from the control plane, as text.
    pub async fn get(&self, path: &str) -> Option<String> {
        let request = self
            .http
            .get(format!("{}{path}", self.control))
            .bearer_auth(&self.admin);
        request.send().await.ok()?.error_for_status().ok()?.text().await.ok()
    }

    /// A worker of so many slots, whose connections go through a fault proxy or do not.
    pub async fn worker(self: &Arc<Self>, id: &str, slots: u32, through_proxy: bool) -> Worker {
        let listen = free_address();
        let proxy = if through_proxy {
            Some(Proxy::start(listen).await)
        } else {
            None
        };
        let url = proxy.as_ref().map_or(listen, |proxy| proxy.address);
        let pid = Arc::<Mutex<Option<u32>>>::default();
        let plan = Plan {
            house: self.clone(),
            id: id.to_owned(),
            slots,
            listen,
            url,
            pid: pid.clone(),
        };
        let keeper = tokio::spawn(plan.keep()).abort_handle();
        Worker { proxy, pid, keeper }
    }

    /// The workers as the control plane lists them.
    pub async fn workers(&self) -> Vec<Value> {
        let list = self.get("/control/v1/workers").await;
        list.and_then(|list| serde_json::from_str(&list).ok())
            .unwrap_or_default()
    }

    /// Waits until so many workers are ready.
    pub async fn until_ready(&self, count: usize) -> Duration {
        let began = Instant::now();
        eventually(&format!("{count} workers are ready"), async || {
            let workers = self.workers().await;
            (workers.iter().filter(|worker| worker["state"] == "ready").count() == count).then_some(())
        })
        .await;
        began.elapsed()
    }
}

impl Worker {
    /// Ends it as a crash would; its keeper starts another.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Stops its process for a while without ending it.
    pub async fn freeze(&self, time: Duration) {
        self.signal(Signal::SIGSTOP);
        tokio::time::sleep(time).await;
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        // Held while the signal goes, so that the process cannot be reaped, and its id be another's, in between.
        let pid = self.pid.lock().unwrap();
        if let Some(pid) = *pid {
            let _ = kill(Pid::from_raw(pid.try_into().unwrap()), signal);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// What a keeper keeps.
struct Plan {
    house: Arc<House>,
    id: String,
    slots: u32,
    listen: SocketAddr,
    url: SocketAddr,
    pid: Arc<Mutex<Option<u32>>>,
}

impl Plan {
    async fn keep(self) {
        loop {
            let wanted = json!({ "worker_id": self.id });
            let Some(token) = self.house.post("join-tokens", &wanted).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let file = self.house.home().join(format!("{}.token", self.id));
            let _ = std::fs::remove_file(&file);
            write_private(&file, token["token"].as_str().unwrap());
            let mut child = self.spawn(&file);
            *self.pid.lock().unwrap() = child.id();
            loop {
                // Not `wait`, which reaps it whenever it likes.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let mut pid = self.pid.lock().unwrap();
                if child.try_wait().unwrap().is_some() {
                    *pid = None;
                    break;
                }
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    fn spawn(&self, token: &Path) -> Child {
        let log = self.house.home().join(format!("{}.log", self.id));
        let log = File::options().create(true).append(true).open(log).unwrap();
        Command::new(worker_program())
            .env_clear()
            .args(["--device", "scripted", "--model", MODEL, "--log", "warn"])
            .args(["--id", &self.id, "--slots", &self.slots.to_string()])
            .args([
                "--listen",
                &self.listen.to_string(),
                "--advertise-url",
                &format!("http://{}", self.url),
            ])
            .args(["--gateway", &self.house.control, "--join-token-file"])
            .arg(token)
            .args(
                self.house
                    .script()
                    .iter()
                    .flat_map(|file| [OsStr::new("--script"), file.as_os_str()]),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }
}

/// `hive-worker` beside the gateway's own program.
fn worker_program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_hive-gateway")).with_file_name("hive-worker");
    assert!(
        program.exists(),
        "{} is not there: cargo build -p worker --no-default-features --bins",
        program.display()
    );
    program
}

fn spawn_gateway(home: &Path, listen: &str, control: &str, settings: &[(String, String)]) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(home.join("gateway.log"))
        .unwrap();
    Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
        .env_clear()
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .args(["--listen", listen, "--control-listen", control, "--home"])
        .arg(home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn running(home: &Path, child: &mut Child) -> GatewayRun {
    eventually("the gateway says where it listens", async || {
        if let Some(status) = child.try_wait().unwrap() {
            let log = std::fs::read_to_string(home.join("gateway.log")).unwrap_or_default();
            panic!("the gateway ended, {status}: {log}");
        }
        let run: GatewayRun = serde_json::from_slice(&std::fs::read(home.join("run/gateway.json")).ok()?).ok()?;
        (Some(run.process.pid) == child.id()).then_some(run)
    })
    .await
}

/// Asks again and again until there is an answer.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A loopback address that no other run is likely to use.
fn own_address() -> IpAddr {
    let [a, b, c]: [u8; 3] = rand::random();
    [127, a.clamp(1, 254), b, c.clamp(1, 254)].into()
}

fn free_address() -> SocketAddr {
    let free = std::net::TcpListener::bind((own_address(), 0)).unwrap();
    free.local_addr().unwrap()
}

fn write_private(file: &Path, text: &str) {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut options = File::options();
    let mut file = options.create_new(true).write(true).mode(0o600).open(file).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn address(url: &str) -> &str {
    url.strip_prefix("http://").unwrap()
}
