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
    /// The latest upgrade that did not come to pass, if one was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_upgrade: Option<FailedUpgrade>,
}

/// Why a running gateway could not be upgraded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUpgrade {
    /// When that was known, in Unix milliseconds.
    pub at_ms: i64,
    /// Why; the running gateway serves on.
    pub why: String,
}
