//! The small files under `$HIVE_HOME/run`: who runs, so that one program finds and stops another.

use serde::{Deserialize, Serialize};

/// A process, named so that its id cannot be mistaken for a later stranger's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    /// The operating-system process id.
    pub pid: u32,
    /// When it started: field 22 of `/proc/<pid>/stat` (clock ticks since boot) on Linux, else 0.
    pub start: u64,
}

/// `run/gateway.json`, written by `hive-gateway` when both planes listen and removed when it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayRun {
    /// The gateway's process.
    #[serde(flatten)]
    pub process: ProcessMark,
    /// Scheme, host and port of the data plane.
    pub data_url: String,
    /// Scheme, host and port of the control plane.
    pub control_url: String,
}
