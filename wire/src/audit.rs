//! The audit journal's part of the control plane.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ModelName;

/// `GET /control/v1/audit/checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditCheckpoint {
    /// The signed checkpoint over all that is recorded, a C2SP signed note.
    pub checkpoint: String,
}

/// `POST /control/v1/audit/export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubjectExport {
    /// The person, as the key's owner or the trusted client named them.
    pub subject: String,
}

/// All records of a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SubjectRecords {
    /// The person's pseudonym in them; none if nothing is recorded of the person, or it was erased.
    pub pseudonym: Option<String>,
    /// The records, the oldest first.
    pub records: Vec<serde_json::Value>,
}

/// `POST /control/v1/audit/erase`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubjectErase {
    /// The person, as the key's owner or the trusted client named them.
    pub subject: String,
    /// The operator's reference for it, which is recorded; letters, digits and `._-` only, so that it names nobody.
    pub ticket: Option<String>,
}

/// What became of an erasure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubjectErased {
    /// Whether there was a key to destroy.
    pub erased: bool,
}

/// `POST /control/v1/audit/downloads`: a model that was downloaded for this hive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelDownload {
    /// Its name in the store.
    pub model: ModelName,
    /// The SHA-256 of its file, in hexadecimal; of several, that of the lines `sha256sum` prints for them.
    pub sha256: String,
}

/// `POST /control/v1/audit/prune`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditPrune {
    /// Remove whole segments whose records are all older than this, in seconds; none: `audit.retention`.
    pub older_than_s: Option<u64>,
}

/// What was pruned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPruned {
    /// The first record that is left; none if nothing was old enough.
    pub first: Option<u64>,
}
