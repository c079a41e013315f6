//! Processes by recorded id *and* start time: find them, signal them, see them gone. Never by name.
//!
//! A recorded id alone may be a stranger's by now; with the start time beside it, it cannot be.

use std::{
    io,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tokio::process::{Child, Command};
use wire::ProcessMark;

use crate::logs;

/// How often a process that is not our child is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// The mark of a running process; `None` if there is none of that id.
#[cfg(target_os = "linux")]
pub fn mark(pid: u32) -> Option<ProcessMark> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (state, start) = state_and_start(&line)?;
    // A zombie holds no port and no memory; whoever reaps it may be asleep.
    (!matches!(state, "Z" | "X")).then_some(ProcessMark { pid, start })
}

/// The mark of a running process; `None` if there is none of that id.
#[cfg(not(target_os = "linux"))]
pub fn mark(pid: u32) -> Option<ProcessMark> {
    signal::kill(id(pid)?, None)
        .ok()
        .map(|()| ProcessMark { pid, start: 0 })
}

/// Our own mark.
pub fn own() -> ProcessMark {
    let pid = std::process::id();
    mark(pid).unwrap_or(ProcessMark { pid, start: 0 })
}

/// Whether exactly this process still runs.
pub fn is_alive(process: &ProcessMark) -> bool {
    mark(process.pid).as_ref() == Some(process)
}

/// Sends a signal to exactly this process; false if it is gone.
pub fn send(process: &ProcessMark, signal: Signal) -> io::Result<bool> {
    let Some(pid) = id(process.pid).filter(|_| is_alive(process)) else {
        return Ok(false);
    };
    match signal::kill(pid, signal) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Kills exactly this process, and waits up to two seconds for its end; for drops, which cannot wait otherwise.
pub fn kill_now(process: &ProcessMark) {
    let patience = Instant::now() + Duration::from_secs(2);
    // An error means that it is gone, or was never ours.
    let _ = send(process, Signal::SIGKILL);
    while is_alive(process) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until this process is gone.
pub async fn gone(process: &ProcessMark) {
    while is_alive(process) {
        tokio::time::sleep(GLANCE).await;
    }
}

/// Waits until this process is gone, at most this long; false if it still runs then.
pub async fn gone_within(process: &ProcessMark, patience: Duration) -> bool {
    tokio::time::timeout(patience, gone(process)).await.is_ok()
}

/// Starts a program in a process group of its own, with nothing on stdin and both outputs appended to `log`, so that a
/// terminal's Ctrl-C does not reach it and it outlives whoever started it.
pub fn spawn_logged(program: &Path, arguments: &[String], log: &Path) -> io::Result<(Child, ProcessMark)> {
    let sink = logs::open(log)?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(sink.try_clone()?)
        .stderr(sink)
        .process_group(0)
        .spawn()?;
    let pid = child
        .id()
        .ok_or_else(|| io::Error::other("the process ended before it had an id"))?;
    // It may have ended already; a mark with start 0 is then never alive.
    let mark = mark(pid).unwrap_or(ProcessMark { pid, start: 0 });
    Ok((child, mark))
}

/// A process group that is killed when this is dropped: a build with its compilers.
#[derive(Debug)]
pub struct Group(Pid);

impl Group {
    /// The group led by a child that was started with `process_group(0)`.
    pub fn of(child: &Child) -> Option<Self> {
        child.id().and_then(id).map(Self)
    }

    fn is_empty(&self) -> bool {
        signal::killpg(self.0, None) == Err(Errno::ESRCH)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let patience = Instant::now() + Duration::from_secs(2);
            // An error means there is nobody left to signal.
            if signal::killpg(self.0, signal).is_err() {
                return;
            }
            while !self.is_empty() && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(10));
            }
            if self.is_empty() {
                return;
            }
        }
    }
}

fn id(pid: u32) -> Option<Pid> {
    // 0 and negative ids name groups, never one process.
    i32::try_from(pid).ok().filter(|pid| *pid > 0).map(Pid::from_raw)
}

/// Fields 3 and 22 of `/proc/<pid>/stat` (proc(5)); field 2, the name, may itself hold spaces and brackets.
#[cfg(target_os = "linux")]
fn state_and_start(stat: &str) -> Option<(&str, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?, fields.nth(18)?.parse().ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_process_name_with_brackets_does_not_shift_the_fields() {
        let stat = "77 (a) b (c)) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 1\n";
        assert_eq!(state_and_start(stat), Some(("S", 4242)));
        assert_eq!(state_and_start("77 (a) S 1"), None);
    }

    #[test]
    fn the_same_id_with_another_start_is_another_process() {
        let own = own();
        assert!(is_alive(&own));
        let stranger = ProcessMark {
            start: own.start + 1,
            ..own
        };
        assert!(!is_alive(&stranger));
        assert!(!send(&stranger, Signal::SIGKILL).unwrap());
    }

    #[tokio::test]
    async fn a_process_that_ended_is_gone_and_its_last_words_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("logs/sh.log");
        let arguments = ["-c".to_owned(), "echo last words >&2; read never".to_owned()];
        let (mut child, mark) = spawn_logged(Path::new("/bin/sh"), &arguments, &log).unwrap();
        child.wait().await.unwrap();
        assert!(!is_alive(&mark));
        assert_eq!(std::fs::read_to_string(log).unwrap(), "last words\n");
    }

    #[tokio::test]
    async fn a_dropped_group_takes_its_grandchildren_with_it() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "sleep 600 & echo $!; wait"])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Group::of(&child).unwrap();
        let mut line = String::new();
        let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
        tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line)
            .await
            .unwrap();
        let grandchild = mark(line.trim().parse().unwrap()).unwrap();
        drop(group);
        assert!(gone_within(&grandchild, Duration::from_secs(5)).await);
        child.wait().await.unwrap();
    }
}
