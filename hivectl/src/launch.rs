//! Starting a gateway or a worker on this machine, and waiting until it can be used.
//!
//! A start that fails says why in the program's own last words. What happens after the start is the supervisor's.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use nix::sys::signal::Signal;
use secrecy::SecretString;
use tokio::process::Child;
use wire::{GatewayRun, ProcessMark, WorkerId, WorkerState, WorkerView};

use crate::{
    config::{self, Config},
    error::Failure,
    gateway_client::Gateway,
    logs, process,
    state::{self, WorkerRun, WorkerSpec},
};

/// How long a gateway may take to listen.
const GATEWAY_START: Duration = Duration::from_secs(30);
/// How often a starting program is looked at.
const GLANCE: Duration = Duration::from_millis(50);
/// How many of a program's last lines are told when it dies.
const LAST_WORDS: usize = 12;

/// A program of ours: a child, or one that an earlier supervisor left running.
#[derive(Debug)]
pub struct Running {
    /// Its process.
    pub process: ProcessMark,
    child: Option<Child>,
    log: PathBuf,
    log_began: u64,
}

impl Running {
    /// A process that somebody else started.
    pub fn adopted(process: ProcessMark, log: PathBuf) -> Self {
        let log_began = length(&log);
        Self {
            process,
            child: None,
            log,
            log_began,
        }
    }

    fn spawn(program: &Path, arguments: &[String], log: PathBuf) -> Result<Self, Failure> {
        let log_began = length(&log);
        let (child, process) = process::spawn_logged(program, arguments, &log).map_err(|error| {
            Failure::disk(
                format!("{} cannot be started", program.display()),
                log.parent().unwrap_or(&log),
                "install hivectl, hive-gateway and hive-worker into one folder, or build them in a source checkout",
                error,
            )
        })?;
        Ok(Self {
            process,
            child: Some(child),
            log,
            log_began,
        })
    }

    /// Waits for its end, and says how it came.
    pub async fn ended(&mut self) -> String {
        if let Some(child) = &mut self.child {
            return child.wait().await.map_or_else(|error| error.to_string(), how);
        }
        process::gone(&self.process).await;
        "it ended".to_owned()
    }

    /// Its death as a failure: how, and its last words.
    pub fn obituary(&self, name: &str, how: &str) -> Failure {
        let words = logs::last_words(&self.log, self.log_began, LAST_WORDS);
        let why = if words.is_empty() {
            how.to_owned()
        } else {
            format!("{how}\n  | {}", words.join("\n  | "))
        };
        Failure::task(
            format!("{name} died while starting"),
            format!("its whole log is {}", self.log.display()),
        )
        .because(why)
    }
}

/// Starts a gateway and waits until both planes listen and it says it is ready.
pub async fn gateway(
    config: &Config,
    program: &Path,
    (data, control): (SocketAddr, SocketAddr),
    audit: Option<&str>,
    started: impl FnOnce(ProcessMark) -> Result<(), Failure>,
) -> Result<(Running, GatewayRun, Gateway), Failure> {
    let mut arguments = vec![
        "--home".to_owned(),
        config.home.to_string_lossy().into_owned(),
        "--listen".to_owned(),
        data.to_string(),
        "--control-listen".to_owned(),
        control.to_string(),
    ];
    if let Some(mode) = audit {
        let anchors = anchors(config).to_string_lossy().into_owned();
        arguments.extend([
            "--audit".to_owned(),
            mode.to_owned(),
            "--anchor-file".to_owned(),
            anchors,
        ]);
    }
    let mut running = Running::spawn(program, &arguments, config.logs().join("gateway.log"))?;
    let process = running.process;
    started(process).inspect_err(|_| kill(&process))?;
    let ready = async {
        loop {
            if let Some(run) = state::gateway(config).filter(|run| run.process == process) {
                let client = Gateway::local(config, &run)?;
                if client.is_ready().await {
                    return Ok((run, client));
                }
            }
            tokio::time::sleep(GLANCE).await;
        }
    };
    let outcome = tokio::select! {
        ready = tokio::time::timeout(GATEWAY_START, ready) => ready.map_err(|_| None),
        how = running.ended() => Err(Some(how)),
    };
    match outcome {
        Ok(ready) => ready.map(|(run, client)| (running, run, client)),
        Err(Some(how)) => Err(running.obituary("the gateway", &how)),
        Err(None) => {
            // It must not hold the ports against the next try.
            kill(&process);
            Err(Failure::timeout(
                format!("the gateway was not ready within {} s", GATEWAY_START.as_secs()),
                format!("read {}", running.log.display()),
            ))
        }
    }
}

/// Where the audit journal's checkpoints go if the configuration names no place: beside the journal, which is better
/// than nowhere and worse than any other machine.
pub fn anchors(config: &Config) -> PathBuf {
    config.home.join("audit.anchors")
}

/// Starts a worker and records it; whether it can be used is [`until_ready`]'s question.
pub async fn worker(
    config: &Config,
    gateway: &Gateway,
    program: &Path,
    spec: &WorkerSpec,
    supervised: bool,
) -> Result<Running, Failure> {
    let token = gateway.join_token(&spec.id).await?;
    joining(config, &SecretString::from(token.token), program, spec, supervised)
}

/// Starts a worker that joins with this token, and records it.
pub fn joining(
    config: &Config,
    token: &SecretString,
    program: &Path,
    spec: &WorkerSpec,
    supervised: bool,
) -> Result<Running, Failure> {
    let token_file = state::join_token_file(config, &spec.id);
    state::write_secret(&token_file, token)?;
    let started = Running::spawn(
        program,
        &arguments(spec, &token_file, config.gateway_authority()),
        state::worker_log(config, &spec.id),
    );
    let running = started.inspect_err(|_| drop(fs::remove_file(&token_file)))?;
    let run = WorkerRun {
        process: running.process,
        spec: spec.clone(),
        supervised,
        stopping: false,
        trouble: None,
    };
    state::write_worker(config, &run).inspect_err(|_| kill(&run.process))?;
    Ok(running)
}

/// Waits until the gateway routes to exactly this process; `look` sees each step of its loading.
pub async fn until_ready(
    gateway: &Gateway,
    spec: &WorkerSpec,
    running: &mut Running,
    limit: Duration,
    look: impl FnMut(&WorkerView),
) -> Result<(), Failure> {
    let remedy = format!("allow more with --timeout, or read {}", running.log.display());
    let pid = running.process.pid;
    tokio::select! {
        outcome = routed(gateway, &spec.id, pid, limit, &remedy, look) => outcome,
        how = running.ended() => Err(running.obituary(&format!("worker {}", spec.id), &how)),
    }
}

/// Waits until the gateway routes to the worker of this id and process id, wherever that runs.
pub async fn routed(
    gateway: &Gateway,
    id: &WorkerId,
    pid: u32,
    limit: Duration,
    remedy: &str,
    mut look: impl FnMut(&WorkerView),
) -> Result<(), Failure> {
    let mut seen = None;
    let ready = async {
        loop {
            // A gateway that is being restarted is no reason to give a worker up.
            if let Ok(Some(view)) = gateway.worker(id).await
                && view.pid == Some(pid)
            {
                if view.state == WorkerState::Ready {
                    return;
                }
                look(&view);
                seen = Some(view);
            }
            tokio::time::sleep(GLANCE).await;
        }
    };
    if tokio::time::timeout(limit, ready).await.is_ok() {
        return Ok(());
    }
    let stuck = seen
        .and_then(|view| view.message)
        .unwrap_or_else(|| "it has not registered".to_owned());
    Err(Failure::timeout(
        format!("worker {id} was not ready within {} s", limit.as_secs()),
        remedy,
    )
    .because(stuck))
}

fn arguments(spec: &WorkerSpec, token_file: &Path, authority: Option<&Path>) -> Vec<String> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let always = [
        ("--device", spec.device.clone()),
        ("--model", spec.model.to_string()),
        ("--id", spec.id.to_string()),
        ("--gateway", spec.gateway.clone()),
        ("--join-token-file", path(token_file)),
    ];
    let authority = authority.filter(|_| spec.gateway.starts_with("https://"));
    let maybe = [
        ("--gateway-ca", authority.map(path)),
        ("--model-path", spec.model_path.as_deref().map(path)),
        ("--slots", spec.slots.map(|slots| slots.to_string())),
        ("--threads", spec.threads.map(|threads| threads.to_string())),
        ("--listen", listen(spec)),
        ("--script", spec.script.as_deref().map(path)),
        ("--weight", spec.weight.map(|weight| weight.to_string())),
    ];
    let maybe = maybe.into_iter().filter_map(|(flag, value)| Some((flag, value?)));
    let labels = spec
        .labels
        .iter()
        .map(|(name, value)| ("--label", format!("{name}={value}")));
    always
        .into_iter()
        .chain(maybe)
        .chain(labels)
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

/// Where a worker listens; none: where it does by itself, on loopback. A gateway on this machine that listens on one of
/// its addresses finds it there, and nobody elsewhere does. One on another machine reaches it at the address it
/// registers from, so it must listen there.
fn listen(spec: &WorkerSpec) -> Option<String> {
    let port = spec.port.unwrap_or(0);
    if config::is_loopback(&spec.gateway) {
        return spec.port.map(|port| format!("127.0.0.1:{port}"));
    }
    if let Some(own) = config::address_of(&spec.gateway).filter(|ip| TcpListener::bind((*ip, 0)).is_ok()) {
        return Some(SocketAddr::new(own, port).to_string());
    }
    let any = if spec.gateway.contains("//[") {
        "[::]"
    } else {
        "0.0.0.0"
    };
    Some(format!("{any}:{port}"))
}

/// Ends a process that could not be recorded, because nobody would find it again.
fn kill(process: &ProcessMark) {
    // It fails only if the process is gone already.
    let _ = process::send(process, Signal::SIGKILL);
}

/// The end of a process in words.
fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(9)) => "it was killed (signal 9); if nobody did, the machine may be out of memory".to_owned(),
        (None, Some(4)) => "it hit an instruction this processor lacks (signal 4); build it on this machine".to_owned(),
        (None, signal) => format!("it was ended by signal {}", signal.unwrap_or_default()),
    }
}

fn length(log: &Path) -> u64 {
    fs::metadata(log).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_end_of_a_process_is_told_in_words() {
        assert_eq!(how(ExitStatus::from_raw(3 << 8)), "it ended with exit code 3");
        assert!(how(ExitStatus::from_raw(9)).contains("out of memory"));
        assert_eq!(how(ExitStatus::from_raw(11)), "it was ended by signal 11");
    }

    #[test]
    fn a_worker_listens_where_its_gateway_can_reach_it() {
        let listen = |gateway: &str, port| {
            listen(&WorkerSpec {
                id: "w".parse().unwrap(),
                model: "m".parse().unwrap(),
                model_path: None,
                device: "cpu".into(),
                slots: None,
                threads: None,
                port,
                script: None,
                labels: wire::Labels::new(),
                weight: None,
                gateway: gateway.into(),
            })
        };
        assert_eq!(listen("http://127.0.0.1:7412", None), None);
        assert_eq!(listen("http://127.0.0.1:7412", Some(9)).as_deref(), Some("127.0.0.1:9"));
        assert_eq!(listen("http://203.0.113.7:7412", None).as_deref(), Some("0.0.0.0:0"));
        assert_eq!(listen("http://[2001:db8::1]:7412", Some(9)).as_deref(), Some("[::]:9"));
    }
}
