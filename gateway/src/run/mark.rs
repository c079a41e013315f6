//! `run/gateway.json`: where the gateway of a state folder is found, for hivectl.
//!
//! Nobody is stopped or started by it here.

use std::{
    io,
    net::TcpListener,
    path::{Path, PathBuf},
};

use wire::{FailedUpgrade, GatewayRun, ProcessMark};

/// `run/gateway.json`, as long as the gateway runs.
pub struct RunMark {
    file: PathBuf,
    run: GatewayRun,
    is_ours: bool,
}

impl RunMark {
    /// Where each plane listens, and whether it speaks TLS; written beside the file, which may still be another gateway's.
    pub fn prepare(home: &Path, data: (&TcpListener, bool), control: (&TcpListener, bool)) -> io::Result<Self> {
        let url = |(listener, tls): (&TcpListener, bool)| {
            let scheme = if tls { "https" } else { "http" };
            Ok::<_, io::Error>(format!("{scheme}://{}", reachable(listener.local_addr()?)))
        };
        let process = ProcessMark {
            pid: std::process::id(),
            start: start_time().unwrap_or(0),
        };
        let run = GatewayRun {
            process,
            data_url: url(data)?,
            control_url: url(control)?,
            failed_upgrade: None,
        };
        let folder = home.join("run");
        std::fs::create_dir_all(&folder)?;
        let mark = Self {
            file: folder.join("gateway.json"),
            run,
            is_ours: false,
        };
        mark.write()?;
        Ok(mark)
    }

    /// Puts what was prepared in the file's place.
    pub fn publish(&mut self) -> io::Result<()> {
        self.is_ours = true;
        std::fs::rename(self.fresh(), &self.file)
    }

    /// What it says.
    pub fn run(&self) -> &GatewayRun {
        &self.run
    }

    /// Says for whoever wanted an upgrade why there was none.
    pub fn not_upgraded(&mut self, why: String) {
        let at_ms = crate::now_ms();
        self.run.failed_upgrade = Some(FailedUpgrade { at_ms, why });
        if let Err(error) = self.write().and_then(|()| self.publish()) {
            tracing::warn!(cause = %error, "run/gateway.json cannot be written");
        }
    }

    /// The file is another gateway's from here on.
    pub fn leave(&mut self) {
        self.is_ours = false;
    }

    fn write(&self) -> io::Result<()> {
        std::fs::write(self.fresh(), serde_json::to_vec(&self.run)?)
    }

    fn fresh(&self) -> PathBuf {
        self.file.with_extension("json.new")
    }
}

impl Drop for RunMark {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = std::fs::remove_file(&self.file);
        }
    }
}

/// An address a program on this machine can connect to.
fn reachable(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// Field 22 of `/proc/self/stat` (proc(5)): when this process started, in clock ticks since boot.
fn start_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
