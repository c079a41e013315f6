//! Every knob of a worker, its default and its validation; the only reader of the environment.
//!
//! A flag beats `HIVE_WORKER__SECTION__KEY`, which beats the key in `--config FILE`, which beats the default.

use std::{ffi::OsString, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use secrecy::SecretString;
use wire::{ModelName, WorkerId};

use crate::Error;

/// One process, one model, one engine: serves it to a Hive gateway, and registers itself there.
#[derive(Debug, Clone, Parser)]
#[command(name = "hive-worker", version, next_line_help = false)]
pub struct Config {
    /// Settings from a TOML file: its sections and keys are those of the variables named below, in lower case.
    #[arg(long = "config", value_name = "FILE", env = "HIVE_WORKER_CONFIG")]
    file: Option<PathBuf>,
    /// What to run, and on what.
    #[command(flatten)]
    pub engine: EngineConfig,
    /// How the gateway reaches this worker.
    #[command(flatten)]
    pub api: ApiConfig,
    /// How this worker joins.
    #[command(flatten)]
    pub membership: MembershipConfig,
    /// What to log, as a tracing filter such as `info` or `debug,hyper=warn`.
    #[arg(
        long,
        value_name = "FILTER",
        env = "HIVE_WORKER__LOG__FILTER",
        default_value = "info,mistralrs=error,mistralrs_core=error,mistralrs_quant=error"
    )]
    pub log: String,
}

/// `[engine]`: what to run, and on what.
#[derive(Debug, Clone, Args)]
pub struct EngineConfig {
    /// What to run on: `cpu`, `cuda:N`, `metal`, or `scripted` (no model; for tests).
    #[arg(long, env = "HIVE_WORKER__ENGINE__DEVICE")]
    pub device: Device,
    /// The model's name, as clients send it.
    #[arg(long, value_name = "NAME", env = "HIVE_WORKER__ENGINE__MODEL")]
    pub model: ModelName,
    /// The model itself: a GGUF file, or a folder with safetensors.
    #[arg(long, value_name = "PATH", env = "HIVE_WORKER__ENGINE__MODEL_PATH")]
    pub model_path: Option<PathBuf>,
    /// Requests at once [default: 1 on a CPU, where more take turns; 16 on a GPU; 4 scripted].
    #[arg(long, value_name = "N", env = "HIVE_WORKER__ENGINE__SLOTS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub slots: Option<u32>,
    /// Threads to compute on [default: one for each CPU it may use].
    #[arg(long, value_name = "N", env = "HIVE_WORKER__ENGINE__THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// CPUs to stay on, such as `0-3,8` (Linux only).
    #[arg(long, value_name = "CPULIST", env = "HIVE_WORKER__ENGINE__PIN")]
    pub pin: Option<CpuList>,
    /// How weights lie in memory on a CPU: `packed` as in the file, `dense` (faster prefill, exact, four bytes a
    /// weight), or `auto`: dense up to 1 GiB.
    #[arg(
        long,
        value_name = "HOW",
        env = "HIVE_WORKER__ENGINE__WEIGHTS",
        default_value = "auto"
    )]
    pub weights: Weights,
    /// Longest prompt plus answer in tokens [default: what the model was trained for].
    #[arg(long, value_name = "N", env = "HIVE_WORKER__ENGINE__CONTEXT_LENGTH", value_parser = clap::value_parser!(u32).range(2..))]
    pub context_length: Option<u32>,
    /// What the scripted engine plays.
    #[arg(long, value_name = "FILE", env = "HIVE_WORKER__ENGINE__SCRIPT")]
    pub script: Option<PathBuf>,
}

impl EngineConfig {
    /// Requests at once.
    pub fn slots(&self) -> u32 {
        self.slots.unwrap_or(match self.device {
            Device::Cpu => 1,
            Device::Cuda(_) | Device::Metal => 16,
            Device::Scripted => 4,
        })
    }
}

/// `[api]`: how the gateway reaches this worker.
#[derive(Debug, Clone, Args)]
pub struct ApiConfig {
    /// Address to listen on; port 0 lets the system choose.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "HIVE_WORKER__API__LISTEN",
        default_value = "127.0.0.1:0"
    )]
    pub listen: SocketAddr,
    /// What the gateway is told to dial [default: the address it listens on].
    #[arg(long, value_name = "URL", env = "HIVE_WORKER__API__ADVERTISE_URL")]
    pub advertise_url: Option<String>,
    /// File with the bearer for dispatches, for a worker without a gateway; with one, it makes its own.
    #[arg(long, value_name = "FILE", env = "HIVE_WORKER__API__DISPATCH_TOKEN_FILE")]
    pub dispatch_token_file: Option<PathBuf>,
    /// How long running answers may take to end once it is told to stop, such as `120s`.
    #[arg(long, value_name = "TIME", env = "HIVE_WORKER__API__DRAIN_TIMEOUT", default_value = "120s", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,
    /// File to keep up to date with process id, URL and state; removed at the end.
    #[arg(long, value_name = "FILE", env = "HIVE_WORKER__API__STATE_FILE")]
    pub state_file: Option<PathBuf>,
}

/// `[membership]`: how this worker joins.
#[derive(Debug, Clone, Args)]
pub struct MembershipConfig {
    /// The gateway's control plane, such as `http://127.0.0.1:7412`; without one it serves alone.
    #[arg(long, value_name = "URL", env = "HIVE_WORKER__MEMBERSHIP__GATEWAY")]
    pub gateway: Option<String>,
    /// File with the certificate of the gateway's authority, in PEM, beside those the system knows.
    #[arg(long, value_name = "FILE", env = "HIVE_WORKER__MEMBERSHIP__GATEWAY_CA")]
    pub gateway_ca: Option<PathBuf>,
    /// File with the join token; removed once it has been used.
    #[arg(long, value_name = "FILE", env = "HIVE_WORKER__MEMBERSHIP__JOIN_TOKEN_FILE")]
    pub join_token_file: Option<PathBuf>,
    /// The worker's id [default: its device and a random part].
    #[arg(long, value_name = "ID", env = "HIVE_WORKER__MEMBERSHIP__ID")]
    pub id: Option<WorkerId>,
    /// What to call it, as NAME=VALUE; keys may be for workers of some labels alone. May be repeated.
    #[arg(long = "label", value_name = "NAME=VALUE", env = "HIVE_WORKER__MEMBERSHIP__LABELS", value_delimiter = ',', value_parser = wire::parse_label)]
    pub labels: Vec<(String, String)>,
    /// How much more than its speed says the gateway is to give it [default: 1, as much].
    #[arg(long, value_name = "N", env = "HIVE_WORKER__MEMBERSHIP__WEIGHT")]
    pub weight: Option<f32>,
}

/// What a worker runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
    /// No hardware and no model: a script.
    Scripted,
}

impl FromStr for Device {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            "scripted" => Ok(Self::Scripted),
            _ => s
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "a device is `cpu`, `cuda:N`, `metal` or `scripted`".to_owned()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Metal => f.write_str("metal"),
            Self::Scripted => f.write_str("scripted"),
        }
    }
}

/// How weights lie in memory on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// Dense for small models, packed for all others.
    Auto,
    /// As in the file.
    Packed,
    /// Unpacked to 32 bits.
    Dense,
}

/// Numbers of CPUs, as `taskset -c` spells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl FromStr for CpuList {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let mut cpus = Vec::new();
        for part in s.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last < 1024 => cpus.extend(first..=last),
                _ => return Err("a CPU list looks like `0-3,8`, with numbers below 1024".to_owned()),
            }
        }
        Ok(Self(cpus))
    }
}

impl Config {
    /// Reads arguments, environment and file, and checks them together. Ends the process with code 2 on flags that
    /// do not parse, and with 0 after `--help` and `--version`.
    pub fn read() -> Result<Self, Error> {
        Self::from_args(std::env::args_os().collect(), |error| error.exit())
    }

    fn from_args(args: Vec<OsString>, exit: fn(clap::Error) -> Error) -> Result<Self, Error> {
        let mut command = Self::command();
        if let Some(path) = config_file(&args) {
            command = with_file(command, &path)?;
        }
        let parsed = command
            .try_get_matches_from(args)
            .and_then(|matches| Self::from_arg_matches(&matches));
        let config = parsed.map_err(exit)?;
        config.validate()?;
        Ok(config)
    }

    /// What only several settings together can get wrong; all faults at once.
    fn validate(&self) -> Result<(), Error> {
        let mut faults = Vec::new();
        let Self {
            engine,
            api,
            membership,
            ..
        } = self;
        if engine.device == Device::Scripted {
            if engine.model_path.is_some() {
                faults.push("--model-path: the scripted engine has no model; drop it, or take another --device");
            }
        } else {
            if engine.model_path.is_none() {
                faults.push("--model-path is missing: name a GGUF file or a folder with safetensors");
            }
            if engine.script.is_some() {
                faults.push("--script is for --device scripted only; drop it");
            }
        }
        if membership.gateway.is_some() && membership.join_token_file.is_none() {
            faults.push("--join-token-file is missing: with --gateway a worker needs a join token (`hivectl worker spawn` makes one)");
        }
        if membership.gateway.is_none() && api.dispatch_token_file.is_none() {
            faults.push("--dispatch-token-file is missing: without --gateway somebody must choose the bearer");
        }
        let is_http = |url: &str| url.starts_with("http://") || url.starts_with("https://");
        if membership.gateway.as_deref().is_some_and(|url| !is_http(url)) {
            faults.push("--gateway must begin with http:// or https://");
        }
        if api.advertise_url.as_deref().is_some_and(|url| !is_http(url)) {
            faults.push("--advertise-url must begin with http:// or https://");
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::Usage(faults.join("; ")))
        }
    }
}

/// The file that `--config` or its variable names: it must be known before all else is parsed.
fn config_file(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    std::env::var_os("HIVE_WORKER_CONFIG").map(PathBuf::from)
}

/// Makes what the file says the defaults. A key is the one of its variable: `[engine] slots` is
/// `HIVE_WORKER__ENGINE__SLOTS`.
fn with_file(mut command: clap::Command, path: &std::path::Path) -> Result<clap::Command, Error> {
    let fault = |what: String| Error::Usage(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fault(format!("cannot be read: {error}")))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| fault(error.to_string()))?;
    let mut unknown = Vec::new();
    for (section, keys) in &table {
        let toml::Value::Table(keys) = keys else {
            unknown.push(format!("`{section}` must be a section"));
            continue;
        };
        for (key, value) in keys {
            let variable = format!("HIVE_WORKER__{}__{}", section.to_uppercase(), key.to_uppercase());
            let known = command
                .get_arguments()
                .find(|arg| arg.get_env() == Some(variable.as_ref()));
            let value = match value {
                toml::Value::String(text) => Some(text.clone()),
                toml::Value::Integer(number) => Some(number.to_string()),
                _ => None,
            };
            match (known.map(|arg| arg.get_id().clone()), value) {
                (Some(id), Some(value)) => {
                    // Read once, and needed as long as the process lives.
                    let value: &'static str = value.leak();
                    command = command.mut_arg(id, |arg| arg.default_value(value).required(false));
                }
                (Some(_), None) => unknown.push(format!("`{section}.{key}` must be a text or a whole number")),
                (None, _) => unknown.push(format!("`{section}.{key}` is unknown")),
            }
        }
    }
    if unknown.is_empty() {
        Ok(command)
    } else {
        Err(fault(unknown.join("; ")))
    }
}

/// Whether the environment already is as wanted.
pub fn environment_has(variables: &[(&str, String)]) -> bool {
    variables
        .iter()
        .all(|(name, value)| std::env::var_os(name).is_some_and(|have| have == value.as_str()))
}

/// Reads a secret from a file that only its owner can read.
pub fn read_secret(flag: &str, path: &std::path::Path) -> Result<SecretString, Error> {
    let fault = |what: &str| Error::Usage(format!("{flag} {}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fault(&format!("cannot be read: {error}")))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o077 != 0 {
            return Err(fault("others can read it; `chmod 600` it"));
        }
    }
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(fault("is empty; it must hold the token")),
        token if token.contains(char::is_whitespace) => Err(fault("must hold one token and nothing else")),
        token => Ok(SecretString::from(token.to_owned())),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
