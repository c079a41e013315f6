//! Every knob with its default and its check; the only reader of the environment.
//!
//! Flag > environment (`HIVE_GATEWAY__SECTION__KEY`) > file > default. It starts nothing.

mod audit;
mod books;
mod jwt;
mod otlp;
mod planes;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use ipnet::IpNet;
use serde::Deserialize;

pub use self::{
    audit::{Audit, Mode},
    books::Books,
    jwt::{Jwt, Place},
    otlp::Otlp,
    planes::{Control, Server},
};

/// The gateway's command line.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "hive-gateway",
    version,
    about = "The one door of a hive: an OpenAI-compatible endpoint over your workers"
)]
pub struct Args {
    /// State folder: database, keys, logs
    #[arg(long, env = "HIVE_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Configuration file [default: HOME/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address of the data plane (the OpenAI API) [default: 127.0.0.1:7411]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address of the control plane [default: 127.0.0.1:7412]
    #[arg(long, value_name = "IP:PORT")]
    pub control_listen: Option<SocketAddr>,
    /// What is recorded in the audit journal [default: metadata]
    #[arg(long, value_name = "MODE")]
    pub audit: Option<Mode>,
    /// Where checkpoints of the audit journal are kept, if the configuration names no place
    #[arg(long, value_name = "FILE")]
    pub anchor_file: Option<PathBuf>,
    /// Take over from the gateway that starts this process; only a gateway says so
    #[arg(long, hide = true)]
    pub take_over: bool,
    /// Check the configuration, print nothing, exit 0 if it is good
    #[arg(long)]
    pub check: bool,
    /// Print a plane's OpenAPI document and exit
    #[arg(long, value_name = "PLANE", value_parser = ["gateway", "control"])]
    pub print_openapi: Option<String>,
}

/// Every setting, in sections named after rooms.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The data plane.
    pub server: Server,
    /// The control plane.
    pub control: Control,
    /// Who is alive.
    pub registry: Registry,
    /// Who waits.
    pub scheduler: Scheduler,
    /// How answers travel.
    pub relay: Relay,
    /// What is kept of requests.
    pub books: Books,
    /// What is recorded.
    pub audit: Audit,
    /// Whose tokens are taken beside API keys.
    pub jwt: Jwt,
    /// What is logged.
    pub log: Log,
    /// Where traces go.
    pub otlp: Otlp,
}

/// `[registry]`: membership.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Networks in which workers and attached servers may be called.
    pub allowed_cidrs: Vec<IpNet>,
    /// How often workers send a heartbeat.
    #[serde(deserialize_with = "duration")]
    pub heartbeat_interval: Duration,
    /// Silence after which a worker is lost.
    #[serde(deserialize_with = "duration")]
    pub silence_limit: Duration,
    /// How often attached servers are probed.
    #[serde(deserialize_with = "duration")]
    pub probe_interval: Duration,
}

/// `[scheduler]`: the queue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scheduler {
    /// Queue places for each slot.
    pub places_per_slot: u32,
    /// The longest wait for a slot.
    #[serde(deserialize_with = "duration")]
    pub queue_timeout: Duration,
}

/// `[relay]`: answers on their way.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relay {
    /// Time to connect to a worker.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// Silence before a worker's first event.
    #[serde(deserialize_with = "duration")]
    pub first_token_timeout: Duration,
    /// Silence between a worker's events.
    #[serde(deserialize_with = "duration")]
    pub inter_token_timeout: Duration,
    /// How long response headers are held back for the first event.
    #[serde(deserialize_with = "duration")]
    pub hold_headers: Duration,
    /// Silence towards the client after which a comment is sent.
    #[serde(deserialize_with = "duration")]
    pub keepalive: Duration,
    /// How long a client may take nothing before it is dropped.
    #[serde(deserialize_with = "duration")]
    pub slow_client: Duration,
}

/// `[log]`: the log on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `auto` (human on a terminal, JSON elsewhere), `json` or `human`.
    pub format: LogFormat,
    /// A filter such as `info` or `gateway=debug,warn`.
    pub filter: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// For reading.
    Human,
}

/// Why the configuration is refused; every fault at once, each with its path and remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {file}: {cause}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The file or the environment does not fit the settings.
    #[error("{0}")]
    Malformed(String),
    /// Values that make no sense.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// There is no place for the state.
    #[error("no state folder: set HIVE_HOME or pass --home DIR")]
    NoHome,
}

impl Default for Registry {
    fn default() -> Self {
        let loopback = [
            IpNet::V4(ipnet::Ipv4Net::new_assert([127, 0, 0, 0].into(), 8)),
            IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128)),
        ];
        Self {
            allowed_cidrs: loopback.to_vec(),
            heartbeat_interval: Duration::from_secs(5),
            silence_limit: Duration::from_secs(15),
            probe_interval: Duration::from_secs(5),
        }
    }
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            places_per_slot: 4,
            queue_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            first_token_timeout: Duration::from_secs(120),
            inter_token_timeout: Duration::from_secs(30),
            hold_headers: Duration::from_secs(10),
            keepalive: Duration::from_secs(15),
            slow_client: Duration::from_secs(30),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            filter: "info".into(),
        }
    }
}

/// Where systemd wants to hear who serves (`sd_notify(3)`), if it started us.
pub fn notify_socket() -> Option<std::ffi::OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())
}

impl Args {
    /// The sockets that this process was started with, if it is to take over; as `sd_listen_fds(3)` names them.
    pub fn inherited(&self) -> Option<listenfd::ListenFd> {
        self.take_over.then(listenfd::ListenFd::from_env)
    }

    /// The state folder and every setting, from flags, environment and file.
    pub fn resolve(&self) -> Result<(PathBuf, Config), ConfigError> {
        let environment: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let home = self
            .home
            .clone()
            .or_else(|| default_home(&environment))
            .ok_or(ConfigError::NoHome)?;
        let file = self
            .config
            .clone()
            .or_else(|| Some(home.join("config.toml")).filter(|file| file.exists()));
        let text = match &file {
            Some(path) => std::fs::read_to_string(path).map_err(|cause| ConfigError::Unreadable {
                file: path.display().to_string(),
                cause,
            })?,
            None => String::new(),
        };
        let mut config = parse(&text, file.as_deref(), &environment)?;
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        if let Some(listen) = self.control_listen {
            config.control.listen = listen;
        }
        if let Some(mode) = self.audit {
            config.audit.mode = mode;
        }
        if config.audit.anchor_file.is_none() && config.audit.anchor_command.is_empty() {
            config.audit.anchor_file.clone_from(&self.anchor_file);
        }
        config.take_credentials(&environment)?;
        config.validate()?;
        Ok((home, config))
    }
}

fn default_home(environment: &[(String, String)]) -> Option<PathBuf> {
    let get = |name: &str| {
        environment
            .iter()
            .find(|(n, v)| n == name && !v.is_empty())
            .map(|(_, v)| PathBuf::from(v))
    };
    get("XDG_STATE_HOME")
        .or_else(|| Some(get("HOME")?.join(".local/state")))
        .map(|state| state.join("hive"))
}

/// Settings from a file's text, overlaid by the environment.
pub fn parse(text: &str, file: Option<&Path>, environment: &[(String, String)]) -> Result<Config, ConfigError> {
    let place = file.map_or("the configuration".to_owned(), |path| path.display().to_string());
    let malformed = |error: toml::de::Error| ConfigError::Malformed(format!("{place}: {}", error.message()));
    // Once from the file alone, so that its own faults are shown with their line.
    toml::from_str::<File>(text).map_err(|error| ConfigError::Malformed(format!("{place}: {error}")))?;
    let mut table: toml::Table = toml::from_str(text).map_err(malformed)?;
    table.remove("hivectl");
    for (name, value) in environment {
        let Some(path) = name.strip_prefix("HIVE_GATEWAY__") else {
            continue;
        };
        let Some((section, key)) = path.split_once("__") else {
            return Err(ConfigError::Malformed(format!(
                "{name}: the form is HIVE_GATEWAY__SECTION__KEY"
            )));
        };
        let section = table
            .entry(section.to_lowercase())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let Some(section) = section.as_table_mut() else {
            continue;
        };
        section.insert(key.to_lowercase(), from_environment(value));
        toml::Value::Table(table.clone())
            .try_into::<Config>()
            .map_err(|error| ConfigError::Malformed(format!("{name}: {}", error.message())))?;
    }
    let mut config: Config = toml::Value::Table(table).try_into().map_err(malformed)?;
    // The variable that names a collector to every program (OpenTelemetry's specification of the exporter).
    let usual = environment
        .iter()
        .find(|(name, _)| name == "OTEL_EXPORTER_OTLP_ENDPOINT");
    let usual = usual.map(|(_, url)| url.clone()).filter(|url| !url.is_empty());
    config.otlp.endpoint = config.otlp.endpoint.or(usual);
    Ok(config)
}

/// A whole `config.toml`: our sections, and hivectl's, which is its own business.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read for its faults alone")]
struct File {
    #[serde(default)]
    server: Server,
    #[serde(default)]
    control: Control,
    #[serde(default)]
    registry: Registry,
    #[serde(default)]
    scheduler: Scheduler,
    #[serde(default)]
    relay: Relay,
    #[serde(default)]
    books: Books,
    #[serde(default)]
    audit: Audit,
    #[serde(default)]
    jwt: Jwt,
    #[serde(default)]
    log: Log,
    #[serde(default)]
    otlp: Otlp,
    #[serde(default)]
    hivectl: toml::Table,
}

/// A value as TOML would read it, else as plain text.
fn from_environment(value: &str) -> toml::Value {
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok();
    parsed
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()))
}

/// The name in `credential:NAME`: a file that systemd hands to this service alone (systemd.exec(5), `LoadCredential=`).
fn credential(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix("credential:")
}

impl Config {
    /// Puts the place of each credential that systemd hands over where a setting names it.
    fn take_credentials(&mut self, environment: &[(String, String)]) -> Result<(), ConfigError> {
        let folder = environment.iter().find(|(name, _)| name == "CREDENTIALS_DIRECTORY");
        let mut missing = Vec::new();
        let mut take = |setting: &str, path: &Path| {
            let name = credential(path)?;
            let Some((_, folder)) = folder else {
                missing.push(format!(
                    "{setting}: systemd hands no credential `{name}` over; add `LoadCredential={name}:FILE` to the unit, or name a file"
                ));
                return None;
            };
            Some(Path::new(folder).join(name))
        };
        if let Some(keys) = self.jwt.keys.as_mut()
            && let Some(path) = take("jwt.keys", Path::new(&keys))
        {
            *keys = path.display().to_string();
        }
        for (setting, path) in [
            ("server.tls_cert", &mut self.server.tls_cert),
            ("server.tls_key", &mut self.server.tls_key),
            ("control.tls_cert", &mut self.control.tls_cert),
            ("control.tls_key", &mut self.control.tls_key),
            ("otlp.header_file", &mut self.otlp.header_file),
        ] {
            if let Some(taken) = path.as_deref().and_then(|path| take(setting, path)) {
                *path = Some(taken);
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid(missing))
        }
    }

    /// Every value that makes no sense, all at once.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        let mut need = |good: bool, fault: &str| {
            if !good {
                faults.push(fault.to_owned());
            }
        };
        need(
            crate::telemetry::filter(&self.log).is_ok(),
            "log.filter: is no filter; write it like `info` or `gateway=debug,warn`",
        );
        need(
            !self.registry.heartbeat_interval.is_zero(),
            "registry.heartbeat_interval: must be longer than 0s",
        );
        need(
            !self.registry.probe_interval.is_zero(),
            "registry.probe_interval: must be longer than 0s",
        );
        need(
            self.registry.silence_limit >= self.registry.heartbeat_interval * 2,
            "registry.silence_limit: must be at least twice registry.heartbeat_interval",
        );
        need(
            !self.relay.inter_token_timeout.is_zero(),
            "relay.inter_token_timeout: must be longer than 0s",
        );
        need(
            !self.relay.first_token_timeout.is_zero(),
            "relay.first_token_timeout: must be longer than 0s",
        );
        need(
            !self.relay.keepalive.is_zero(),
            "relay.keepalive: must be longer than 0s",
        );
        need(
            !self.relay.slow_client.is_zero(),
            "relay.slow_client: must be longer than 0s",
        );
        faults.extend(planes::faults(&self.server, &self.control));
        let others = [
            self.books.faults(),
            self.audit.faults(),
            self.jwt.faults(),
            self.otlp.faults(),
        ];
        faults.extend(others.into_iter().flatten().map(ToOwned::to_owned));
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid(faults))
        }
    }
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|_| serde::de::Error::custom(format!("`{text}` is no duration; write one like \"30s\" or \"1m 30s\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
        let text = "[scheduler]\nqueue_timeout = \"7s\"\nplaces_per_slot = 9";
        let config = parse(
            text,
            None,
            &environment(&[("HIVE_GATEWAY__SCHEDULER__PLACES_PER_SLOT", "2")]),
        )
        .unwrap();
        assert_eq!(
            config.scheduler,
            Scheduler {
                places_per_slot: 2,
                queue_timeout: Duration::from_secs(7)
            }
        );
        assert_eq!(config.relay, Relay::default());
    }

    #[test]
    fn text_and_lists_come_from_the_environment_too() {
        let set = [
            ("HIVE_GATEWAY__REGISTRY__ALLOWED_CIDRS", "[\"10.0.0.0/8\"]"),
            ("HIVE_GATEWAY__REGISTRY__HEARTBEAT_INTERVAL", "2s"),
            ("HIVE_GATEWAY__SERVER__LISTEN", "127.0.0.1:0"),
        ];
        let config = parse("", None, &environment(&set)).unwrap();
        assert_eq!(config.registry.allowed_cidrs, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(config.registry.heartbeat_interval, Duration::from_secs(2));
        assert_eq!(config.server.listen.port(), 0);
    }

    #[test]
    fn an_unknown_key_or_a_wrong_value_is_named_with_its_place() {
        let error = parse("[server]\nprot = 1", Some(Path::new("/etc/hive/gateway.toml")), &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/etc/hive/gateway.toml") && error.contains("prot"),
            "{error}"
        );
        let error = parse("", None, &environment(&[("HIVE_GATEWAY__RELAY__KEEPALIVE", "soon")]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("HIVE_GATEWAY__RELAY__KEEPALIVE") && error.contains("30s"),
            "{error}"
        );
    }

    #[test]
    fn hivectls_own_section_is_left_to_it() {
        let config = parse("[hivectl]\nmodels = \"m\"\n[server]\nthreads = 1", None, &[]).unwrap();
        assert_eq!(config.server.threads, 1);
    }

    #[test]
    fn a_credential_lies_where_systemd_says() {
        let text = "[control]\ntls_cert = \"/c\"\ntls_key = \"credential:tls\"\n[jwt]\nkeys = \"credential:jwt\"";
        let mut config = parse(text, None, &[]).unwrap();
        let error = config.clone().take_credentials(&[]).unwrap_err().to_string();
        assert!(
            error.contains("control.tls_key") && error.contains("jwt.keys") && error.contains("LoadCredential=tls"),
            "{error}"
        );
        let handed = environment(&[("CREDENTIALS_DIRECTORY", "/run/credentials/hive")]);
        config.take_credentials(&handed).unwrap();
        let taken = (config.control.tls_cert, config.control.tls_key, config.jwt.keys);
        let [cert, key] = ["/c", "/run/credentials/hive/tls"].map(|path| Some(PathBuf::from(path)));
        assert_eq!(taken, (cert, key, Some("/run/credentials/hive/jwt".into())));
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let text = "[server]\nmax_connections = 0\n[registry]\nsilence_limit = \"1s\"";
        let error = parse(text, None, &[]).unwrap().validate().unwrap_err().to_string();
        assert!(
            error.contains("server.max_connections") && error.contains("registry.silence_limit"),
            "{error}"
        );
    }
}
