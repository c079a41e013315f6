//! What applies to this run: flags over environment over `$HIVE_HOME/config.toml` over defaults.
//!
//! The only reader of environment variables. It never creates a folder or a file.

use std::{
    ffi::OsString,
    fs, io,
    net::IpAddr,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use secrecy::SecretString;
use serde::Deserialize;

use crate::{cli::Global, download::Patience, error::Failure};

/// The data plane's port unless another is named.
pub const DATA_PORT: u16 = 7411;
/// The control plane's port unless another is named.
pub const CONTROL_PORT: u16 = 7412;
/// Where models come from unless `HF_ENDPOINT` says otherwise.
pub const HUB_ENDPOINT: &str = "https://huggingface.co";

/// Everything a command may ask about its surroundings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The state folder of this hive (`HIVE_HOME`), absolute.
    pub home: PathBuf,
    /// The model store shared by all hives of a user (`HIVE_MODELS`), absolute.
    pub models: PathBuf,
    /// Where models come from.
    pub hub: Hub,
    /// How long a download waits, and how often it tries again.
    pub download: Patience,
    /// Scheme, host and port of the control plane, if named (`--control-url`, `HIVE_CONTROL_URL`).
    pub control_url: Option<String>,
    /// Whether the environment named it, which may have outlived its hive.
    pub control_is_environments: bool,
    /// Scheme, host and port of the data plane, if named (`data_url` in the file, else `OPENAI_BASE_URL` where it
    /// points to the host of `HIVE_CONTROL_URL` and `OPENAI_API_KEY` stands beside it).
    pub data_url: Option<String>,
    /// The key for that `OPENAI_BASE_URL`: others may listen on the gateway's host too, and none of them gets a key of
    /// ours.
    pub inference_key: Option<SecretString>,
    /// Where the gateway's data plane shall listen (`[server] listen` in the file, `HIVE_GATEWAY__SERVER__LISTEN`).
    pub data_listen: Option<SocketAddr>,
    /// Where the gateway's control plane shall listen (`[control] listen`, `HIVE_GATEWAY__CONTROL__LISTEN`).
    pub control_listen: Option<SocketAddr>,
    /// The authority of gateways' certificates, in PEM, beside those the system knows (`ca` in the file).
    pub authority: Option<PathBuf>,
    /// The certificates of this state folder's own gateway, which are believed as they are (`tls_cert` in the file).
    pub own_certificates: Vec<PathBuf>,
    /// The admin key, if the environment holds one (`HIVE_ADMIN_KEY`).
    pub admin_key: Option<SecretString>,
    /// The model to use when a command names none (`HIVE_MODEL`).
    pub model: Option<String>,
    /// The ssh config to go by instead of ssh's own (`ssh_config` in the file).
    pub ssh_config: Option<PathBuf>,
    /// The cargo that runs us, if one does (`CARGO`).
    pub cargo: Option<PathBuf>,
}

/// The model hub, in the variables its own tools use.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Its base URL (`HF_ENDPOINT`), without a slash at the end.
    pub endpoint: String,
    /// Its tools' folder (`HF_HOME`), where a token file and a cache may lie.
    pub home: PathBuf,
    /// The token (`HF_TOKEN`), for gated and private models.
    pub token: Option<SecretString>,
}

/// The `[hivectl]` table of `$HIVE_HOME/config.toml`; the other tables are the gateway's.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    models: Option<PathBuf>,
    hub_endpoint: Option<String>,
    control_url: Option<String>,
    data_url: Option<String>,
    model: Option<String>,
    ssh_config: Option<PathBuf>,
    ca: Option<PathBuf>,
    download: Patience,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    hivectl: Table,
    server: Listen,
    control: Listen,
}

/// What `up` must know of the gateway's settings; the gateway judges the rest.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listen {
    listen: Option<SocketAddr>,
    tls_cert: Option<PathBuf>,
}

impl Config {
    /// Reads flags, environment and file; a value that cannot be used is a usage failure.
    pub fn load(flags: &Global) -> Result<Self, Failure> {
        Self::resolve(flags, |name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// Whether colour is welcome: neither `NO_COLOR` nor a dumb terminal says otherwise.
    pub fn wants_colour() -> bool {
        std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    /// The file of the key that `up` made or the gateway wrote: `admin` or `inference`.
    pub fn key_file(&self, name: &str) -> PathBuf {
        self.home.join("keys").join(name)
    }

    /// The certificate by which a worker knows this gateway, if the system's authorities do not.
    pub fn gateway_authority(&self) -> Option<&Path> {
        self.authority
            .as_deref()
            .or(self.own_certificates.first().map(PathBuf::as_path))
    }

    /// The folder of the small files that say who runs.
    pub fn run(&self) -> PathBuf {
        self.home.join("run")
    }

    /// The folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.home.join("logs")
    }

    fn resolve(flags: &Global, env: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let path = |name: &str| env(name).map(PathBuf::from);
        let text = |name: &str| {
            env(name)
                .map(|value| value.into_string().map_err(|_| not_text(name)))
                .transpose()
        };
        let below = |variable: &str, fallback: &str| {
            // The XDG rules: a relative path in one of these variables is ignored.
            path(variable)
                .filter(|path| path.is_absolute())
                .or_else(|| path("HOME").map(|home| home.join(fallback)))
        };

        let named = flags.state_dir.as_deref().map(absolute).transpose()?;
        let environments = path("HIVE_HOME").as_deref().map(absolute).transpose()?;
        // The environment that `up --print-env` made is about one hive; a flag that names another leaves it behind.
        let is_about_another = named.is_some() && environments.is_some() && named != environments;
        let about_this = |name: &str| if is_about_another { Ok(None) } else { text(name) };
        let home = match named.or(environments) {
            Some(home) => home,
            None => below("XDG_STATE_HOME", ".local/state")
                .ok_or_else(|| no_home("HIVE_HOME"))?
                .join("hive"),
        };
        let home = absolute(&home)?;
        let File {
            hivectl: file,
            server,
            control,
        } = File::read(&home.join("config.toml"))?;
        let listens = |name: &str, in_file: Option<SocketAddr>| match text(name)? {
            Some(value) => value.parse().map(Some).map_err(|_| {
                Failure::usage(
                    format!("{name} is not an address and a port"),
                    "write it like 127.0.0.1:7411",
                )
            }),
            None => Ok(in_file),
        };
        let own_certificates = own_certificates(path, control.tls_cert, server.tls_cert);
        let data_listen = listens("HIVE_GATEWAY__SERVER__LISTEN", server.listen)?;
        let control_listen = listens("HIVE_GATEWAY__CONTROL__LISTEN", control.listen)?;

        let models = match path("HIVE_MODELS").or_else(|| file.models.map(|models| home.join(models))) {
            Some(models) => models,
            None => below("XDG_DATA_HOME", ".local/share")
                .ok_or_else(|| no_home("HIVE_MODELS"))?
                .join("hive/models"),
        };
        let hub_home = match path("HF_HOME") {
            Some(home) => home,
            None => below("XDG_CACHE_HOME", ".cache")
                .ok_or_else(|| no_home("HF_HOME"))?
                .join("huggingface"),
        };
        let endpoint = text("HF_ENDPOINT")?
            .or(file.hub_endpoint)
            .unwrap_or_else(|| HUB_ENDPOINT.to_owned());

        let control_from_env = about_this("HIVE_CONTROL_URL")?;
        let secret = |name: &str| Ok::<_, Failure>(about_this(name)?.map(|key| SecretString::from(key.trim())));
        let is_about_another = flags.control_url.is_some() && flags.control_url != control_from_env;
        let on_the_same_host = |base: &String| {
            let control = control_from_env.as_deref().filter(|_| !is_about_another);
            control.is_some_and(|control| host_of(control).is_some() && host_of(control) == host_of(base))
        };
        let openai = about_this("OPENAI_BASE_URL")?
            .filter(on_the_same_host)
            .zip(secret("OPENAI_API_KEY")?);
        let (data_url, inference_key) = match (file.data_url, openai) {
            (Some(url), _) => (Some(url), None),
            (None, openai) => openai.unzip(),
        };
        let control_is_environments = flags.control_url.is_none() && control_from_env.is_some();
        let control_url = flags.control_url.clone().or(control_from_env).or(file.control_url);
        Ok(Self {
            models: absolute(&models)?,
            hub: Hub {
                endpoint: base_url("HF_ENDPOINT", &endpoint)?,
                home: absolute(&hub_home)?,
                token: text("HF_TOKEN")?.map(|token| SecretString::from(token.trim())),
            },
            download: file.download,
            control_url: control_url
                .map(|url| base_url("the control plane's URL", &url))
                .transpose()?,
            data_url: data_url.map(|url| base_url("the data plane's URL", &url)).transpose()?,
            control_is_environments,
            inference_key,
            admin_key: secret("HIVE_ADMIN_KEY")?,
            model: about_this("HIVE_MODEL")?.or(file.model),
            ssh_config: file.ssh_config.map(|config| home.join(config)),
            authority: file.ca.map(|ca| home.join(ca)),
            own_certificates,
            cargo: path("CARGO"),
            data_listen,
            control_listen,
            home,
        })
    }
}

impl File {
    fn read(path: &Path) -> Result<Self, Failure> {
        let remedy = || format!("correct {}, or move it away to get the defaults", path.display());
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .map_err(|error| Failure::usage(format!("{} cannot be read", path.display()), remedy()).because(error)),
            // A state folder that is no folder is told of by whoever needs one.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Self::default())
            }
            Err(error) => Err(Failure::task(format!("{} cannot be read", path.display()), remedy()).because(error)),
        }
    }
}

/// The certificates of this folder's gateway; one that systemd hands to it alone is not there for us.
fn own_certificates(
    path: impl Fn(&str) -> Option<PathBuf>,
    control: Option<PathBuf>,
    server: Option<PathBuf>,
) -> Vec<PathBuf> {
    let named = [
        path("HIVE_GATEWAY__CONTROL__TLS_CERT").or(control),
        path("HIVE_GATEWAY__SERVER__TLS_CERT").or(server),
    ];
    named.into_iter().flatten().filter(|path| path.is_absolute()).collect()
}

/// Scheme, host, port and path without `/v1` and without a slash at the end, so that paths can be appended.
pub fn base_url(what: &str, url: &str) -> Result<String, Failure> {
    let trimmed = url.trim().trim_end_matches('/');
    match reqwest::Url::parse(trimmed) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") && parsed.has_host() => {
            Ok(trimmed.strip_suffix("/v1").unwrap_or(trimmed).to_owned())
        }
        _ => Err(Failure::usage(
            format!("{what} is not a URL: {url:?}"),
            "give it as http://HOST:PORT or https://HOST[:PORT]",
        )),
    }
}

/// Whether a URL names this machine itself.
pub fn is_loopback(url: &str) -> bool {
    host_of(url).is_some_and(|host| is_own_name(&host))
}

/// Whether a host name or address means this machine on every machine.
pub fn is_own_name(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or_else(
        |_| host == "localhost" || host.ends_with(".localhost"),
        |address| address.is_loopback(),
    )
}

/// The address in a URL that names one.
pub fn address_of(url: &str) -> Option<IpAddr> {
    let host = host_of(url)?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn host_of(url: &str) -> Option<String> {
    reqwest::Url::parse(url).ok()?.host_str().map(str::to_owned)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::usage(
            format!("{} is not a usable path", path.display()),
            "give an absolute path",
        )
        .because(error)
    })
}

fn not_text(name: &str) -> Failure {
    Failure::usage(
        format!("{name} is not valid UTF-8"),
        format!("set {name} to plain text, or unset it"),
    )
}

fn no_home(name: &str) -> Failure {
    Failure::usage(
        format!("neither {name} nor HOME says where to keep files"),
        format!("set {name} to a folder"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use secrecy::ExposeSecret;

    use super::*;

    fn resolve(state_dir: Option<&Path>, vars: &[(&str, &str)]) -> Result<Config, Failure> {
        let flags = Global {
            state_dir: state_dir.map(Path::to_path_buf),
            ..Global::default()
        };
        Config::resolve(&flags, |name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn a_bare_home_folder_is_enough() {
        let config = resolve(None, &[("HOME", "/h")]).unwrap();
        assert_eq!(config.home, Path::new("/h/.local/state/hive"));
        assert_eq!(config.models, Path::new("/h/.local/share/hive/models"));
        assert_eq!(config.hub.home, Path::new("/h/.cache/huggingface"));
        assert_eq!(config.hub.endpoint, "https://huggingface.co");
        assert_eq!(resolve(None, &[]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_flag_beats_the_environment_and_the_environment_beats_the_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("config.toml"),
            "[scheduler]\nx = 1\n[hivectl]\nmodels = \"m\"\nmodel = \"a\"\n",
        )
        .unwrap();
        let home = folder.path().to_str().unwrap();
        let config = resolve(None, &[("HOME", "/h"), ("HIVE_HOME", home), ("HIVE_MODEL", "b")]).unwrap();
        assert_eq!(
            (config.models, config.model.as_deref()),
            (folder.path().join("m"), Some("b"))
        );
        let config = resolve(Some(Path::new("/flag")), &[("HOME", "/h"), ("HIVE_HOME", home)]).unwrap();
        assert_eq!((config.home.as_path(), config.model), (Path::new("/flag"), None));
    }

    #[test]
    fn a_mistyped_key_in_the_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.toml"), "[hivectl]\nmodles = \"m\"\n").unwrap();
        let failure = resolve(Some(folder.path()), &[("HOME", "/h")]).unwrap_err();
        assert!(failure.why().unwrap().contains("modles"), "{failure:?}");
    }

    #[test]
    fn relative_xdg_folders_are_ignored() {
        let config = resolve(
            None,
            &[("HOME", "/h"), ("XDG_STATE_HOME", "state"), ("XDG_DATA_HOME", "/data")],
        )
        .unwrap();
        assert_eq!(config.home, Path::new("/h/.local/state/hive"));
        assert_eq!(config.models, Path::new("/data/hive/models"));
    }

    #[test]
    fn someone_elses_openai_address_never_becomes_our_data_plane() {
        let elsewhere = ("OPENAI_BASE_URL", "https://api.openai.com/v1");
        let ours = ("HIVE_CONTROL_URL", "http://10.0.0.7:7412");
        let home = ("HOME", "/h");
        let key = ("OPENAI_API_KEY", "sk-a");
        assert!(resolve(None, &[home, elsewhere, key]).unwrap().data_url.is_none());
        assert!(resolve(None, &[home, elsewhere, key, ours]).unwrap().data_url.is_none());
        let (base, key) = (
            ("OPENAI_BASE_URL", "http://10.0.0.7:7411/v1/"),
            ("OPENAI_API_KEY", "hvk_a"),
        );
        // An address without the key that belongs to it is no use: ours must not go there instead.
        assert!(resolve(None, &[home, ours, base]).unwrap().data_url.is_none());
        let config = resolve(None, &[home, ours, base, key]).unwrap();
        assert_eq!(config.data_url.as_deref(), Some("http://10.0.0.7:7411"));
        assert_eq!(config.inference_key.unwrap().expose_secret(), "hvk_a");
        assert_eq!(
            resolve(None, &[home, ("HIVE_CONTROL_URL", "10.0.0.7")])
                .unwrap_err()
                .exit_code(),
            2
        );
    }

    #[test]
    fn a_flag_that_names_another_control_plane_leaves_the_environments_data_plane_behind() {
        let data_url = |flag: &str| {
            let flags = Global {
                control_url: Some(flag.to_owned()),
                ..Global::default()
            };
            let bundle = [
                ("HOME", "/h"),
                ("HIVE_CONTROL_URL", "http://127.0.0.1:2"),
                ("OPENAI_BASE_URL", "http://127.0.0.1:1/v1"),
                ("OPENAI_API_KEY", "hvk_a"),
            ];
            let env = |name: &str| {
                bundle
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.into())
            };
            Config::resolve(&flags, env).unwrap().data_url
        };
        assert_eq!(data_url("http://127.0.0.1:2").as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(data_url("http://127.0.0.1:4"), None);
    }

    #[test]
    fn a_flag_that_names_another_hive_leaves_the_environments_hive_behind() {
        let bundle = [
            ("HOME", "/h"),
            ("HIVE_HOME", "/one"),
            ("HIVE_CONTROL_URL", "http://127.0.0.1:1"),
            ("HIVE_ADMIN_KEY", "hvk_one"),
        ];
        let other = resolve(Some(Path::new("/other")), &bundle).unwrap();
        assert!(other.control_url.is_none() && other.admin_key.is_none());
        for same in [None, Some(Path::new("/one"))] {
            let config = resolve(same, &bundle).unwrap();
            assert_eq!(config.control_url.as_deref(), Some("http://127.0.0.1:1"));
        }
        // Without a state folder in the environment, its address and key are about no folder in particular.
        let remote = resolve(Some(Path::new("/other")), &[bundle[0], bundle[2], bundle[3]]).unwrap();
        assert!(remote.control_url.is_some() && remote.admin_key.is_some());
    }

    #[test]
    fn an_address_that_is_every_machine_s_own_is_known_in_each_spelling() {
        for own in [
            "http://127.0.0.1:7412",
            "http://localhost:7412",
            "http://[::1]:7412",
            "http://127.9.9.9",
            "https://a.localhost",
        ] {
            assert!(is_loopback(own), "{own}");
        }
        for other in [
            "http://10.0.0.7:7412",
            "http://gpu-1:7412",
            "http://[fd00::1]:7412",
            "http://localhost.example.org",
            "nonsense",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let config = resolve(
            None,
            &[("HOME", "/h"), ("HF_TOKEN", "hf_abc\n"), ("HIVE_ADMIN_KEY", "hvk_abc")],
        )
        .unwrap();
        assert_eq!(config.hub.token.as_ref().unwrap().expose_secret(), "hf_abc");
        assert!(!format!("{config:?}").contains("_abc"), "{config:?}");
    }
}
