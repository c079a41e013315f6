//! Where the programs of a hive lie, and how a source checkout builds them.
//!
//! In a checkout cargo alone decides what is stale, and always with the same command, so that `up` and
//! `cargo test --workspace` share every crate: `cargo build --workspace --bins`.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use crate::{cli::Backend, config::Config, error::Failure, output::Output, process::Group};

/// How many of cargo's last lines are shown when a build fails.
const LAST_LINES: usize = 30;

/// The three programs of a hive, side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// `hivectl`.
    pub hivectl: PathBuf,
    /// `hive-gateway`.
    pub gateway: PathBuf,
    /// `hive-worker`.
    pub worker: PathBuf,
}

/// A source checkout that this hivectl was built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    /// The workspace's folder.
    root: PathBuf,
    /// Cargo's target folder.
    target: PathBuf,
    /// The target triple, if the programs were built for a named one.
    triple: Option<String>,
    /// The profile, unless it is cargo's default.
    profile: Option<String>,
}

impl Programs {
    /// The programs beside the one that runs now. Ask before a build, which may replace the running file.
    pub fn beside() -> Result<Self, Failure> {
        let own = std::env::current_exe().map_err(|error| {
            Failure::task("hivectl cannot tell where it lies", "run it by its full path").because(error)
        })?;
        let own = undeleted(&own);
        Ok(Self {
            gateway: own.with_file_name("hive-gateway"),
            worker: own.with_file_name("hive-worker"),
            hivectl: own,
        })
    }

    /// Fails with the remedy if a program is missing.
    pub fn present(&self) -> Result<(), Failure> {
        match [&self.gateway, &self.worker]
            .into_iter()
            .find(|program| !program.is_file())
        {
            None => Ok(()),
            Some(missing) => Err(Failure::task(
                format!("{} is missing", missing.display()),
                "install hivectl, hive-gateway and hive-worker into one folder, or run `hivectl up` from a source checkout",
            )),
        }
    }

    /// The source checkout they are built in, if they are.
    pub fn checkout(&self) -> Option<Checkout> {
        Checkout::of(&self.hivectl, Path::new(env!("CARGO_MANIFEST_DIR")))
    }
}

impl Checkout {
    /// Whether `program` lies in a cargo target folder, and the workspace it was built from. `built_from` is where
    /// hivectl's sources lay when it was compiled, for target folders outside the workspace.
    fn of(program: &Path, built_from: &Path) -> Option<Self> {
        let folder = program.parent()?;
        let target = folder
            .ancestors()
            .skip(1)
            .take(2)
            .find(|folder| folder.join(".rustc_info.json").is_file() || folder.join("CACHEDIR.TAG").is_file())?;
        let parts: Vec<&str> = folder
            .strip_prefix(target)
            .ok()?
            .iter()
            .filter_map(|part| part.to_str())
            .collect();
        let (triple, profile) = match parts[..] {
            [profile] => (None, profile),
            [triple, profile] => (Some(triple.to_owned()), profile),
            _ => return None,
        };
        let is_root =
            |folder: &&Path| folder.join("hivectl/Cargo.toml").is_file() && folder.join("Cargo.toml").is_file();
        // The workspace around the target folder first: the whole tree may have been moved since.
        let root = target
            .ancestors()
            .skip(1)
            .find(is_root)
            .or_else(|| built_from.parent().filter(is_root))?;
        Some(Self {
            root: root.to_owned(),
            target: target.to_owned(),
            triple,
            profile: (profile != "debug").then(|| profile.to_owned()),
        })
    }

    /// Cargo's target folder.
    pub fn target(&self) -> &Path {
        &self.target
    }

    fn arguments(&self, device: Backend) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = ["build", "--workspace", "--bins"].map(OsString::from).into();
        for (flag, value) in [("--profile", &self.profile), ("--target", &self.triple)] {
            if let Some(value) = value {
                arguments.extend([flag.into(), value.into()]);
            }
        }
        let feature = match device {
            Backend::Cuda => Some("worker/cuda"),
            Backend::Metal => Some("worker/metal"),
            Backend::Cpu | Backend::Scripted => None,
        };
        if let Some(feature) = feature {
            arguments.extend(["--features".into(), feature.into()]);
        }
        arguments
    }

    /// Lets cargo bring the programs up to date, with what a worker on `device` needs, and shows how far it is.
    pub async fn build(&self, config: &Config, output: &Output, device: Backend) -> Result<(), Failure> {
        let cargo = config
            .cargo
            .clone()
            .filter(|cargo| cargo.is_file())
            .unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(&cargo);
        for name in OF_CARGO_RUN {
            command.env_remove(name);
        }
        let mut child = command
            .args(self.arguments(device))
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_TERM_COLOR", "never")
            .env("CARGO_TERM_PROGRESS_WHEN", "always")
            .env("CARGO_TERM_PROGRESS_WIDTH", "120")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| no_cargo(&cargo, error))?;
        let group = Group::of(&child);
        let unwatched =
            |error: io::Error| Failure::task("cargo could not be watched", "run the command again").because(error);
        let last = match child.stderr.take() {
            Some(stderr) => watch(stderr, output).await.map_err(unwatched)?,
            None => VecDeque::new(),
        };
        let status = child.wait().await.map_err(unwatched)?;
        // The build has ended; its group has nobody left to kill.
        std::mem::forget(group);
        if status.success() {
            return Ok(());
        }
        for line in &last {
            output.note(line);
        }
        Err(
            Failure::task("the build of hive-gateway and hive-worker failed", remedy(&last))
                .because(status.to_string()),
        )
    }
}

/// What `cargo run` sets for the program it runs. Build scripts that watch them (ring's does) would run again, and
/// half of the engine be compiled again, whenever a build under `cargo run` follows one without, or the other way.
const OF_CARGO_RUN: [&str; 18] = [
    "CARGO",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_MANIFEST_PATH",
    "CARGO_PKG_AUTHORS",
    "CARGO_PKG_DESCRIPTION",
    "CARGO_PKG_HOMEPAGE",
    "CARGO_PKG_LICENSE",
    "CARGO_PKG_LICENSE_FILE",
    "CARGO_PKG_NAME",
    "CARGO_PKG_README",
    "CARGO_PKG_REPOSITORY",
    "CARGO_PKG_RUST_VERSION",
    "CARGO_PKG_VERSION",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
];

/// Follows cargo's stderr: progress becomes a bar, the rest is kept for the case of a failure.
async fn watch(mut stderr: impl AsyncRead + Unpin, output: &Output) -> io::Result<VecDeque<String>> {
    let (mut last, mut line, mut bar) = (VecDeque::new(), Vec::new(), None);
    let mut chunk = [0; 8192];
    let mut is_waiting = false;
    loop {
        let read = stderr.read(&mut chunk).await?;
        for byte in &chunk[..read] {
            if !matches!(byte, b'\r' | b'\n') {
                line.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(&std::mem::take(&mut line))
                .trim_end()
                .to_owned();
            if let Some((done, total, names)) = progress(&text) {
                if done < total {
                    let bar = bar.get_or_insert_with(|| {
                        output.steps(total, "building with cargo (crates; the first time takes a while)")
                    });
                    bar.set_length(total);
                    bar.set_message(names.to_owned());
                    bar.set_position(done);
                }
            } else if let Some(what) = text.trim_start().strip_prefix("Blocking waiting for file lock on ") {
                if !std::mem::replace(&mut is_waiting, true) {
                    output.note(format_args!(
                        "another cargo holds the lock on the {what}; waiting for it"
                    ));
                }
            } else if !text.is_empty() {
                last.push_back(text);
                if last.len() > LAST_LINES {
                    last.pop_front();
                }
            }
        }
        if read == 0 {
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            return Ok(last);
        }
    }
}

/// Cargo's own bar, `Building [=====>    ] 12/345: serde, tokio`, as done, total and names.
fn progress(line: &str) -> Option<(u64, u64, &str)> {
    let rest = line.trim_start().strip_prefix("Building")?.split_once("] ")?.1;
    let (count, names) = rest.split_once(':').unwrap_or((rest, ""));
    let (done, total) = count.trim().split_once('/')?;
    Some((done.parse().ok()?, total.parse().ok()?, names.trim()))
}

/// What to do about a failed build, from what is known to go wrong on a bare machine.
fn remedy(last: &VecDeque<String>) -> &'static str {
    let says = |text: &str| last.iter().any(|line| line.contains(text));
    if says("linker `cc` not found") || says("failed to find tool \"cc\"") || says("failed to find tool \"c++\"") {
        "install a C and C++ compiler (Debian and Ubuntu: `apt install build-essential`), then run the command again"
    } else if says("is `cmake` not installed?") {
        "install cmake (Debian and Ubuntu: `apt install cmake`), then run the command again"
    } else if says("No space left on device") || says("os error 28") {
        "free disk space (a first build needs about 5 GB), then run the command again"
    } else if says("nvcc") {
        "install the CUDA toolkit so that `nvcc` is on the PATH, or use --device cpu"
    } else if says("rustc") && says("is not supported") || says("requires rustc") {
        "update the Rust toolchain (`rustup update stable`), then run the command again"
    } else if says("failed to download") || says("spurious network error") || says("Could not resolve host") {
        "check the network and the proxy settings, then run the command again; cargo goes on where it stopped"
    } else {
        "read cargo's lines above; `hivectl doctor` checks what a build needs"
    }
}

fn no_cargo(cargo: &Path, error: io::Error) -> Failure {
    Failure::task(
        format!("{} cannot be run, so the programs cannot be built", cargo.display()),
        "install Rust (https://rustup.rs) so that `cargo` is on the PATH; with built programs beside hivectl, --no-build uses those",
    )
    .because(error)
}

/// Linux adds ` (deleted)` to the path of a running file that was replaced; the new one is what we want.
fn undeleted(path: &Path) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(before) if !path.exists() => PathBuf::from(before),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn a_checkout_is_found_from_its_target_folder_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (folder.path().join("tree"), folder.path().join("elsewhere"));
        for file in ["Cargo.toml", "hivectl/Cargo.toml", "target/CACHEDIR.TAG"] {
            touch(&root.join(file));
        }
        touch(&elsewhere.join(".rustc_info.json"));
        let nowhere = Path::new("/nonexistent/hivectl");

        let debug = Checkout::of(&root.join("target/debug/hivectl"), nowhere).unwrap();
        assert_eq!(
            (debug.root.as_path(), debug.target.as_path()),
            (root.as_path(), root.join("target").as_path())
        );
        assert_eq!(debug.arguments(Backend::Cpu), ["build", "--workspace", "--bins"]);
        let release = Checkout::of(&root.join("target/x86_64-linux/release/hivectl"), nowhere).unwrap();
        let expected = [
            "build",
            "--workspace",
            "--bins",
            "--profile",
            "release",
            "--target",
            "x86_64-linux",
        ];
        assert_eq!(release.arguments(Backend::Scripted), expected);
        assert_eq!(debug.arguments(Backend::Cuda)[3..], ["--features", "worker/cuda"]);
        assert_eq!(debug.arguments(Backend::Metal)[3..], ["--features", "worker/metal"]);

        let outside = elsewhere.join("debug/hivectl");
        assert_eq!(Checkout::of(&outside, nowhere), None);
        assert_eq!(Checkout::of(&outside, &root.join("hivectl")).unwrap().root, root);
        assert_eq!(
            Checkout::of(Path::new("/usr/local/bin/hivectl"), &root.join("hivectl")),
            None
        );
        assert_eq!(Checkout::of(&root.join("dist/hivectl"), &root.join("hivectl")), None);
    }

    #[test]
    fn cargos_bar_is_understood() {
        let line = "    Building [=======>                 ] 112/745: libsqlite3-sys(build), syn";
        assert_eq!(progress(line), Some((112, 745, "libsqlite3-sys(build), syn")));
        assert_eq!(progress("Building [===] 7/9"), Some((7, 9, "")));
        assert_eq!(progress("   Compiling serde v1.0.0"), None);
        assert_eq!(progress("Building something"), None);
    }

    #[test]
    fn a_missing_compiler_has_a_remedy() {
        let last = VecDeque::from(["error: linker `cc` not found".to_owned()]);
        assert!(remedy(&last).contains("build-essential"));
        assert!(remedy(&VecDeque::new()).contains("doctor"));
    }
}
