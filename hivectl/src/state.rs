//! What a hive's state folder remembers between commands: the lock of a start, who runs, and the keys.
//!
//! Files are written whole or not at all, and secrets only for their owner. It starts and stops nothing.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wire::{GatewayRun, Labels, ModelName, ProcessMark, WorkerId};

use crate::{config::Config, error::Failure, output::Output, process};

/// `run/supervisor.json`: who tends this hive, and what it looks after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorRun {
    /// The supervisor's process.
    #[serde(flatten)]
    pub process: ProcessMark,
    /// The model that `up` was asked for.
    pub model: ModelName,
    /// The worker that serves it.
    pub worker: WorkerId,
    /// The gateway it started, known before the gateway has written `run/gateway.json`.
    pub gateway: Option<ProcessMark>,
    /// Whether gateway and worker have been ready once.
    pub ready: bool,
}

/// How a worker of this machine is started, again and again in the same way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Its id.
    pub id: WorkerId,
    /// The model it serves.
    pub model: ModelName,
    /// Where the model's files lie; none for a scripted worker.
    pub model_path: Option<PathBuf>,
    /// `cpu`, `cuda:N`, `metal` or `scripted`.
    pub device: String,
    /// How many requests it takes at once; none: as many as it thinks right.
    pub slots: Option<u32>,
    /// How many threads it computes with; none: as many as it thinks right.
    pub threads: Option<u32>,
    /// The port it listens on; none: one the system picks.
    pub port: Option<u16>,
    /// What a scripted worker does.
    pub script: Option<PathBuf>,
    /// What to call it.
    #[serde(default)]
    pub labels: Labels,
    /// How much more than its speed says it is to get.
    #[serde(default)]
    pub weight: Option<f32>,
    /// The control plane it registers with.
    pub gateway: String,
}

/// `run/workers/<id>.json`: a worker of this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerRun {
    /// Its process.
    #[serde(flatten)]
    pub process: ProcessMark,
    /// How it was started.
    #[serde(flatten)]
    pub spec: WorkerSpec,
    /// Whether the supervisor starts it again when it dies.
    pub supervised: bool,
    /// Whether an operator is stopping it, so that it is not started again.
    pub stopping: bool,
    /// Why the supervisor has given it up, if it has.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// Makes the state folder and its parts, for the owner alone.
pub fn create_home(config: &Config) -> Result<(), Failure> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    for folder in [
        config.home.clone(),
        config.run().join("workers"),
        config.home.join("keys"),
        config.logs(),
    ] {
        builder.create(&folder).map_err(|error| {
            Failure::disk(
                format!("the state folder {} cannot be made", folder.display()),
                &config.home,
                "name a folder you may write to with --state-dir or HIVE_HOME",
                error,
            )
        })?;
    }
    Ok(())
}

/// The right to start or stop this hive, held by one process at a time; given back when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, and waits for whoever holds it.
    pub async fn take(config: &Config, output: &Output) -> Result<Self, Failure> {
        let path = config.run().join("up.lock");
        let broken = |error: io::Error| {
            Failure::disk(
                format!("the lock {} cannot be taken", path.display()),
                &config.home,
                "make the state folder writable",
                error,
            )
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(broken)?;
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if !said => {
                    output.note("another hivectl is starting or stopping this hive; waiting for it");
                    said = true;
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(TryLockError::Error(error)) => return Err(broken(error)),
            }
        }
        // Who holds it, for `down`; the lock itself is the kernel's.
        let own = serde_json::to_vec(&process::own()).map_err(io::Error::from);
        own.and_then(|own| {
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(&own))
        })
        .map_err(broken)?;
        Ok(Self { _file: file })
    }

    /// The live process that holds the lock, if one does.
    pub fn holder(config: &Config) -> Option<ProcessMark> {
        let mut file = File::open(config.run().join("up.lock")).ok()?;
        if file.try_lock_shared().is_ok() {
            return None;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok().filter(process::is_alive)
    }
}

/// The gateway of this hive, if it runs.
pub fn gateway(config: &Config) -> Option<GatewayRun> {
    read_json::<GatewayRun>(&config.run().join("gateway.json")).filter(|run| process::is_alive(&run.process))
}

/// What the supervisor last wrote, whether it still runs or not.
pub fn supervisor(config: &Config) -> Option<SupervisorRun> {
    read_json(&config.run().join("supervisor.json"))
}

/// The supervisor of this hive, if it runs.
pub fn live_supervisor(config: &Config) -> Option<SupervisorRun> {
    supervisor(config).filter(|run| process::is_alive(&run.process))
}

/// Changes `run/supervisor.json`, if there is one.
pub fn update_supervisor(config: &Config, change: impl FnOnce(&mut SupervisorRun)) -> Result<(), Failure> {
    let Some(mut run) = supervisor(config) else {
        return Ok(());
    };
    change(&mut run);
    write_supervisor(config, &run)
}

/// Writes `run/supervisor.json`.
pub fn write_supervisor(config: &Config, run: &SupervisorRun) -> Result<(), Failure> {
    write_json(&config.run().join("supervisor.json"), run)
}

/// The record of a worker of this machine, whether it still runs or not.
pub fn worker(config: &Config, id: &WorkerId) -> Option<WorkerRun> {
    read_json(&worker_file(config, id))
}

/// The records of all workers of this machine, by id.
pub fn workers(config: &Config) -> Vec<WorkerRun> {
    let entries = fs::read_dir(config.run().join("workers"))
        .into_iter()
        .flatten()
        .flatten();
    let records = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"));
    let mut runs: Vec<WorkerRun> = records.filter_map(|path| read_json(&path)).collect();
    runs.sort_by(|a, b| a.spec.id.cmp(&b.spec.id));
    runs
}

/// Writes the record of a worker.
pub fn write_worker(config: &Config, run: &WorkerRun) -> Result<(), Failure> {
    write_json(&worker_file(config, &run.spec.id), run)
}

/// Removes the record of a worker, and a join token it never read, if this process is still the one it names.
pub fn forget_worker(config: &Config, id: &WorkerId, process: &ProcessMark) {
    if worker(config, id).is_some_and(|run| run.process == *process) {
        // Another command may have been faster.
        let _ = fs::remove_file(worker_file(config, id));
        let _ = fs::remove_file(join_token_file(config, id));
    }
}

/// Removes what `run/` says about gateway and supervisor.
pub fn forget_gateway(config: &Config) {
    for name in ["gateway.json", "supervisor.json"] {
        let _ = fs::remove_file(config.run().join(name));
    }
}

/// Where a worker that starts finds its join token; it removes the file itself.
pub fn join_token_file(config: &Config, id: &WorkerId) -> PathBuf {
    config.run().join(format!("join-{id}"))
}

/// The log of a worker of this machine.
pub fn worker_log(config: &Config, id: &WorkerId) -> PathBuf {
    config.logs().join(format!("worker-{id}.log"))
}

/// A secret of one line from a file that only its owner can read; `None` if there is no such file.
pub fn read_secret(path: &Path) -> Result<Option<SecretString>, Failure> {
    let unreadable = || format!("the key file {} cannot be used", path.display());
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::task(unreadable(), "make it readable for you").because(error)),
    };
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(
            Failure::task(unreadable(), format!("run `chmod 600 {}`", path.display()))
                .because("others may read it, so it is no secret"),
        );
    }
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::task(unreadable(), "make it readable for you").because(error))?;
    let secret = text.trim();
    if secret.is_empty() || secret.contains(char::is_whitespace) {
        return Err(Failure::task(unreadable(), "put exactly one line with the key into it")
            .because("it does not hold one line with a key"));
    }
    Ok(Some(SecretString::from(secret)))
}

/// Writes a secret to a file that only its owner can read, replacing what was there.
pub fn write_secret(path: &Path, secret: &SecretString) -> Result<(), Failure> {
    replace(path, format!("{}\n", secret.expose_secret()).as_bytes()).map_err(|error| unwritable(path, error))
}

fn worker_file(config: &Config, id: &WorkerId) -> PathBuf {
    config.run().join("workers").join(format!("{id}.json"))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::from);
    text.and_then(|text| replace(path, &text))
        .map_err(|error| unwritable(path, error))
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path
        .parent()
        .ok_or_else(|| io::Error::other("the path has no folder"))?;
    // A named temporary file is made with mode 0600, and never seen half-written under its last name.
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

fn unwritable(path: &Path, error: io::Error) -> Failure {
    Failure::disk(
        format!("{} cannot be written", path.display()),
        path.parent().unwrap_or(path),
        "make its folder writable",
        error,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cli::Global;

    fn home() -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::load(&Global {
            state_dir: Some(folder.path().join("home")),
            ..Global::default()
        })
        .unwrap();
        create_home(&config).unwrap();
        (folder, config)
    }

    fn spec(id: &str) -> WorkerSpec {
        WorkerSpec {
            id: id.parse().unwrap(),
            model: "echo".parse().unwrap(),
            model_path: None,
            device: "scripted".into(),
            slots: Some(2),
            threads: None,
            port: None,
            script: None,
            labels: Labels::new(),
            weight: None,
            gateway: "http://127.0.0.1:7412".into(),
        }
    }

    #[test]
    fn a_secret_is_for_its_owner_alone() {
        let (_folder, config) = home();
        let path = config.key_file("inference");
        assert!(read_secret(&path).unwrap().is_none());
        write_secret(&path, &SecretString::from("hvk_abc")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_secret(&path).unwrap().unwrap().expose_secret(), "hvk_abc");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_secret(&path).unwrap_err().next().contains("chmod 600"));
        for bad in ["", "\n", "two\nlines\n"] {
            replace(&path, bad.as_bytes()).unwrap();
            assert!(read_secret(&path).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_record_of_a_later_process_outlives_the_end_of_an_earlier_one() {
        let (_folder, config) = home();
        let (old, new) = (ProcessMark { pid: 7, start: 1 }, ProcessMark { pid: 8, start: 2 });
        let run = WorkerRun {
            process: new,
            spec: spec("w"),
            supervised: false,
            stopping: false,
            trouble: None,
        };
        write_worker(&config, &run).unwrap();
        forget_worker(&config, &run.spec.id, &old);
        assert_eq!(workers(&config), std::slice::from_ref(&run));
        forget_worker(&config, &run.spec.id, &new);
        assert!(workers(&config).is_empty());
    }

    #[test]
    fn a_dead_gateways_file_is_not_a_running_gateway() {
        let (_folder, config) = home();
        let mut run = GatewayRun {
            process: process::own(),
            data_url: "http://d".into(),
            control_url: "http://c".into(),
            failed_upgrade: None,
        };
        write_json(&config.run().join("gateway.json"), &run).unwrap();
        assert_eq!(gateway(&config).as_ref(), Some(&run));
        run.process.start += 1;
        write_json(&config.run().join("gateway.json"), &run).unwrap();
        assert_eq!(gateway(&config), None);
    }

    #[tokio::test]
    async fn one_process_at_a_time_holds_the_lock() {
        let (_folder, config) = home();
        let output = Output::new(true, false);
        assert_eq!(Lock::holder(&config), None);
        let lock = Lock::take(&config, &output).await.unwrap();
        assert_eq!(Lock::holder(&config), Some(process::own()));
        let second = Lock::take(&config, &output);
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(lock);
        second.await.unwrap();
        assert_eq!(Lock::holder(&config), None);
    }
}
