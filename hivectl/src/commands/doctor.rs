//! `hivectl doctor`: looks at this machine for what a hive needs, and says what to do about what is missing.

use std::{net::TcpListener, path::Path, process::Stdio, time::Duration};

use nix::sys::statvfs::statvfs;
use serde::Serialize;
use tokio::process::Command;

use crate::{
    checkout::Programs,
    config::{CONTROL_PORT, Config, DATA_PORT},
    error::Failure,
    gateway_client::Gateway,
    output::{Mark, Output},
    state,
};

/// How long a program or a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Less free space than this is worth a look: a small model and some logs, in bytes.
const ROOMY: u64 = 5_000_000_000;
/// Less free space than this is too little for the default model, in bytes.
const TIGHT: u64 = 300_000_000;
/// What a first build and all tests take in `target/`, in bytes; 3.8 GB were seen.
const BUILD: u64 = 4_500_000_000;
/// What is enough for a while of building anew, in bytes: the README's figure.
const BUILDS: u64 = 12_000_000_000;

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
}

/// Runs every check and prints it; fails if one fails.
pub async fn run(config: &Config, output: &Output) -> Result<(), Failure> {
    let mut checks = vec![state_folder(config), disk(config), keys(config)];
    checks.extend(ports(config));
    checks.push(gateway(config).await);
    checks.extend(programs().await);
    checks.push(pip().await);
    checks.push(hub(config).await);
    checks.push(gpu().await);

    if output.is_json() {
        output.json(&checks);
    } else {
        for check in &checks {
            let (mark, word) = match check.status {
                Status::Ok => (Mark::Good, "ok  "),
                Status::Warn => (Mark::Warning, "warn"),
                Status::Fail => (Mark::Bad, "fail"),
            };
            output.marked(mark, word, format_args!("{}: {}", check.name, check.found));
            if let Some(remedy) = &check.remedy {
                output.line(format_args!("       → {remedy}"));
            }
        }
    }
    match checks.iter().filter(|check| check.status == Status::Fail).count() {
        0 => Ok(()),
        1 => Err(Failure::task(
            "one check failed",
            "follow the arrow below it, then run `hivectl doctor` again",
        )),
        n => Err(Failure::task(
            format!("{n} checks failed"),
            "follow the arrows below them, then run `hivectl doctor` again",
        )),
    }
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        name,
        status: Status::Ok,
        found: found.into(),
        remedy: None,
    }
}

fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check {
        name,
        status: Status::Warn,
        found: found.into(),
        remedy: Some(remedy.into()),
    }
}

fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check {
        name,
        status: Status::Fail,
        found: found.into(),
        remedy: Some(remedy.into()),
    }
}

fn state_folder(config: &Config) -> Check {
    let name = "state folder";
    let written = state::create_home(config).and_then(|()| {
        let next = "make it yours, or name another with --state-dir or HIVE_HOME";
        tempfile::tempfile_in(&config.home).map_err(|error| Failure::disk("", &config.home, next, error))
    });
    match written {
        Ok(_) => ok(name, format!("{} can be written", config.home.display())),
        Err(failure) => fail(
            name,
            format!(
                "{} cannot be written: {}",
                config.home.display(),
                failure.why().unwrap_or_default()
            ),
            failure.next(),
        ),
    }
}

fn disk(config: &Config) -> Check {
    let remedy = "free some, or put the models elsewhere with HIVE_MODELS";
    space("disk space", &config.models, "models", [TIGHT, ROOMY], remedy)
}

/// Whether a folder's disk has room: less than the first figure is too little, less than the second worth a look.
fn space(name: &'static str, folder: &Path, what_for: &str, [tight, roomy]: [u64; 2], remedy: &str) -> Check {
    let Some(free) = free_space(folder) else {
        return warn(name, format!("the disk of {} is not known", folder.display()), remedy);
    };
    #[expect(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
    let found = format!(
        "{:.1} GB free for {what_for} in {}",
        free as f64 / 1e9,
        folder.display()
    );
    if free < tight {
        fail(name, found, remedy)
    } else if free < roomy {
        warn(name, found, remedy)
    } else {
        ok(name, found)
    }
}

/// The free space of the disk that a folder lies on, or would lie on, in bytes.
#[allow(clippy::useless_conversion, reason = "macOS counts blocks in 32 bits")]
fn free_space(folder: &Path) -> Option<u64> {
    let disk = folder.ancestors().find_map(|folder| statvfs(folder).ok())?;
    Some(u64::from(disk.blocks_available()).saturating_mul(disk.fragment_size()))
}

fn keys(config: &Config) -> Check {
    let name = "keys";
    for file in ["admin", "inference"] {
        if let Err(failure) = state::read_secret(&config.key_file(file)) {
            return fail(
                name,
                format!("{}: {}", failure.what(), failure.why().unwrap_or_default()),
                failure.next(),
            );
        }
    }
    ok(name, "private, or not made yet")
}

fn ports(config: &Config) -> Vec<Check> {
    let ours = state::gateway(config);
    let check = |name, port: u16| {
        let suffix = format!(":{port}");
        if ours
            .as_ref()
            .is_some_and(|run| run.data_url.ends_with(&suffix) || run.control_url.ends_with(&suffix))
        {
            return ok(name, format!("{port} is this hive's own"));
        }
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => ok(name, format!("{port} is free")),
            Err(error) => warn(
                name,
                format!("{port} cannot be used: {error}"),
                "nothing: `up` picks a free one and says so",
            ),
        }
    };
    vec![check("data port", DATA_PORT), check("control port", CONTROL_PORT)]
}

async fn gateway(config: &Config) -> Check {
    let name = "gateway";
    let Some(run) = state::gateway(config) else {
        return ok(name, "not running; `hivectl up` starts it");
    };
    match Gateway::local(config, &run) {
        Ok(client) if client.is_ready().await => ok(name, format!("ready at {}/v1", run.data_url)),
        Ok(_) => fail(
            name,
            format!("runs (process {}) but is not ready", run.process.pid),
            format!(
                "read {}, or start anew with `hivectl down` and `hivectl up`",
                config.logs().join("gateway.log").display()
            ),
        ),
        Err(failure) => fail(name, failure.in_one_line(), failure.next()),
    }
}

async fn programs() -> Vec<Check> {
    let programs = match Programs::beside() {
        Ok(programs) => programs,
        Err(failure) => return vec![fail("programs", failure.in_one_line(), failure.next())],
    };
    let Some(checkout) = programs.checkout() else {
        return vec![match programs.present() {
            Ok(()) => ok("programs", "hive-gateway and hive-worker lie beside hivectl"),
            Err(failure) => fail("programs", failure.what(), failure.next()),
        }];
    };
    let rust = "install Rust from https://rustup.rs, or update it with `rustup update stable`";
    let compiler = "install C and C++ compilers (Debian and Ubuntu: `apt install build-essential`)";
    let mut checks = Vec::new();
    for (name, program, remedy) in [
        ("cargo", "cargo", rust),
        ("C compiler", "cc", compiler),
        ("C++ compiler", "c++", compiler),
    ] {
        checks.push(match first_line(program, &["--version"]).await {
            Some(line) => ok(name, line),
            None => fail(
                name,
                format!("`{program}` cannot be run, and this source checkout builds with it"),
                remedy,
            ),
        });
    }
    if programs.present().is_err() {
        let remedy = "free some, or build elsewhere with CARGO_TARGET_DIR";
        checks.push(space(
            "build space",
            checkout.target(),
            "the build",
            [BUILD, BUILDS],
            remedy,
        ));
    }
    checks.push(venv().await);
    checks
}

/// `cargo test` fetches Python packages into an environment of its own. Debian has `venv` itself in Python's package,
/// but what it needs in another one.
async fn venv() -> Check {
    let name = "Python venv";
    let script = "import ensurepip, sys, venv; print('Python', sys.version.split()[0])";
    match first_line("python3", &["-c", script]).await {
        Some(line) => ok(name, line),
        None => warn(
            name,
            "`python3 -m venv` cannot be run, which `cargo test --workspace` needs",
            "install it (Debian and Ubuntu: `apt install python3-venv`), unless you only run Hive",
        ),
    }
}

async fn pip() -> Check {
    let name = "pip";
    match first_line("python3", &["-m", "pip", "--version"]).await {
        Some(line) => ok(name, line),
        None => warn(
            name,
            "`python3 -m pip` cannot be run; it is the second way to the default model",
            "install it (Debian and Ubuntu: `apt install python3-pip`), unless the hub is in reach",
        ),
    }
}

async fn hub(config: &Config) -> Check {
    let name = "model hub";
    let endpoint = &config.hub.endpoint;
    let answer = match reqwest::Client::builder().timeout(PATIENCE).build() {
        Ok(http) => http.head(endpoint).send().await.map(drop),
        Err(error) => Err(error),
    };
    match answer {
        Ok(()) => ok(name, format!("{endpoint} answers")),
        Err(error) => warn(
            name,
            format!(
                "{endpoint} cannot be reached: {}",
                Failure::task("", "")
                    .because(error.without_url())
                    .why()
                    .unwrap_or_default()
            ),
            "check the network and HF_ENDPOINT; models with a mirror, such as the default one, come without it",
        ),
    }
}

async fn gpu() -> Check {
    let name = "GPU";
    match first_line(
        "nvidia-smi",
        &["--query-gpu=name,memory.total", "--format=csv,noheader"],
    )
    .await
    {
        Some(line) => ok(name, format!("{line}; use it with `--device cuda`")),
        None if Path::new("/dev/nvidiactl").exists() => warn(
            name,
            "there is an NVIDIA device, but `nvidia-smi` does not answer",
            "reinstall the NVIDIA driver; until then the CPU is used",
        ),
        None if cfg!(target_os = "macos") => ok(name, "Metal; use it with `--device metal`"),
        None => ok(name, "none seen; the CPU is used"),
    }
}

/// The first line that a program prints, if it ends well and in time.
async fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let run = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, run)
        .await
        .ok()?
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
}
