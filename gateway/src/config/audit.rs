//! `[audit]`: what is recorded, for how long, and where its checkpoints are kept out of our own reach.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::duration;

/// The shortest retention of `eu-strict`: six months (AI Act, articles 19 and 26), as 183 days.
const SIX_MONTHS: Duration = Duration::from_secs(183 * 24 * 3600);

/// How much is recorded, and whether anything may happen unrecorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing.
    Off,
    /// What happened, without content; a full disk costs records, which are counted, but no request.
    #[default]
    Metadata,
    /// No request is served unless its start is on the disk.
    EuStrict,
}

impl Mode {
    /// The mode as the configuration spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::EuStrict => "eu-strict",
        }
    }
}

/// `[audit]`: the journal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// `off`, `metadata` or `eu-strict`.
    pub mode: Mode,
    /// How long records are kept; whole segments go when their last record is older.
    #[serde(deserialize_with = "duration")]
    pub retention: Duration,
    /// A file to which checkpoints are appended; best on another machine's disk.
    pub anchor_file: Option<PathBuf>,
    /// A program and its arguments that takes a checkpoint on its standard input.
    pub anchor_command: Vec<String>,
    /// How often a checkpoint is anchored; also at every start and stop.
    #[serde(deserialize_with = "duration")]
    pub anchor_interval: Duration,
    /// Bytes after which a new segment begins.
    pub segment_bytes: u64,
    /// Time after which a new segment begins.
    #[serde(deserialize_with = "duration")]
    pub segment_age: Duration,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            mode: Mode::Metadata,
            retention: SIX_MONTHS,
            anchor_file: None,
            anchor_command: Vec::new(),
            anchor_interval: Duration::from_secs(600),
            segment_bytes: 64 << 20,
            segment_age: Duration::from_secs(24 * 3600),
        }
    }
}

impl Audit {
    /// Every value that makes no sense.
    pub(super) fn faults(&self) -> Vec<&'static str> {
        let strict = self.mode == Mode::EuStrict;
        let anchored = self.anchor_file.is_some() || !self.anchor_command.is_empty();
        let rules = [
            (
                strict && self.retention < SIX_MONTHS,
                "audit.retention: mode eu-strict keeps records for at least 183days",
            ),
            (
                strict && !anchored,
                "audit.anchor_file: mode eu-strict needs an anchor; name a file on another machine's disk, or a program in audit.anchor_command",
            ),
            (
                self.anchor_file.as_ref().is_some_and(|file| !file.is_absolute()),
                "audit.anchor_file: must be an absolute path",
            ),
            (
                self.retention < Duration::from_secs(1),
                "audit.retention: must be at least 1s",
            ),
            (
                self.anchor_interval < Duration::from_secs(1),
                "audit.anchor_interval: must be at least 1s",
            ),
            (self.segment_bytes < 4096, "audit.segment_bytes: must be at least 4096"),
            (
                self.segment_age < Duration::from_secs(1),
                "audit.segment_age: must be at least 1s",
            ),
        ];
        rules
            .into_iter()
            .filter_map(|(bad, fault)| bad.then_some(fault))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    #[test]
    fn eu_strict_wants_six_months_and_an_anchor() {
        let faults = |text: &str| {
            parse(text, None, &[])
                .unwrap()
                .validate()
                .map_err(|error| error.to_string())
        };
        let error = faults("[audit]\nmode = \"eu-strict\"\nretention = \"182days\"").unwrap_err();
        assert!(error.contains("183days") && error.contains("anchor_command"), "{error}");
        faults("[audit]\nmode = \"eu-strict\"\nanchor_file = \"/mnt/elsewhere/anchors\"").unwrap();
        faults("[audit]\nmode = \"metadata\"\nretention = \"1day\"").unwrap();
        assert!(
            faults("[audit]\nanchor_file = \"here\"")
                .unwrap_err()
                .contains("absolute")
        );
        assert!(
            parse("[audit]\nmode = \"eu\"", None, &[])
                .unwrap_err()
                .to_string()
                .contains("eu-strict")
        );
    }
}
