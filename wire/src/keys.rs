//! API keys as hivectl and the gateway speak of them: who holds one, what it may do, how much, and until when.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Labels, ModelName, Priority};

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// Call models.
    #[serde(rename = "infer")]
    Infer,
    /// List models.
    #[serde(rename = "models:read")]
    ModelsRead,
    /// The whole control plane, and `infer`.
    #[serde(rename = "admin")]
    Admin,
    /// Read `/metrics`.
    #[serde(rename = "metrics:read")]
    MetricsRead,
    /// Make join tokens for workers.
    #[serde(rename = "worker:join")]
    WorkerJoin,
    /// Read the audit record.
    #[serde(rename = "audit:read")]
    AuditRead,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 6] = [
        Self::Infer,
        Self::ModelsRead,
        Self::Admin,
        Self::MetricsRead,
        Self::WorkerJoin,
        Self::AuditRead,
    ];

    /// The scope as keys spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::ModelsRead => "models:read",
            Self::Admin => "admin",
            Self::MetricsRead => "metrics:read",
            Self::WorkerJoin => "worker:join",
            Self::AuditRead => "audit:read",
        }
    }

    /// The scope of that name, if there is one.
    pub fn parse(s: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == s)
    }

    /// Whether holding this scope suffices where `needed` is asked: `admin` covers everything, and who may call models
    /// may also list them.
    pub fn covers(self, needed: Self) -> bool {
        self == needed || self == Self::Admin || (self == Self::Infer && needed == Self::ModelsRead)
    }
}

/// How much a key may use; none: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyLimits {
    /// Requests in any minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in any minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Tokens of prompts and answers in a day (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
    /// Requests at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
    /// Tokens of prompts and answers in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_budget: Option<u64>,
}

/// `POST /control/v1/keys`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Who holds it; the audit record knows this person by a pseudonym only.
    #[serde(default)]
    pub owner: Option<String>,
    /// The models it may call; empty: all.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// How much it may use.
    #[serde(default)]
    pub limits: KeyLimits,
    /// How long it is good for, in seconds; none: until it is revoked.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
    /// Whether its holder is believed when it names the person it asks for (`X-OpenWebUI-User-Id`, `user`).
    #[serde(default)]
    pub trusted: bool,
    /// Whose requests go first when there is not enough for all.
    #[serde(default)]
    pub priority: Priority,
    /// Labels that a worker must have to get its requests.
    #[serde(default)]
    pub labels: Labels,
}

/// `POST /control/v1/keys/{id}/rotate`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RotateKey {
    /// How long the old key stays good beside the new one, in seconds; none: 86,400.
    pub grace_s: Option<u64>,
}

/// A key that was just made; the only time its secret is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedKey {
    /// The whole key, `hvk_…`.
    pub key: String,
    /// What may be shown of it from now on.
    #[serde(flatten)]
    pub view: KeyView,
}

/// A key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// Its public id, the eight characters after `hvk_`.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Who holds it.
    #[serde(default)]
    pub owner: Option<String>,
    /// The models it may call; empty: all.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// How much it may use.
    #[serde(default)]
    pub limits: KeyLimits,
    /// Whether its holder is believed when it names the person it asks for.
    #[serde(default)]
    pub trusted: bool,
    /// Whose requests go first when there is not enough for all.
    #[serde(default)]
    pub priority: Priority,
    /// Labels that a worker must have to get its requests.
    #[serde(default)]
    pub labels: Labels,
    /// The key that this one and its predecessors were rotated from; limits and budget are counted for all of them.
    #[serde(default)]
    pub family: String,
    /// When it was made, in Unix milliseconds.
    pub created_at_ms: i64,
    /// When it is good no longer, in Unix milliseconds.
    #[serde(default)]
    pub expires_at_ms: Option<i64>,
    /// When it was last used, in Unix milliseconds, to the minute.
    #[serde(default)]
    pub last_used_at_ms: Option<i64>,
    /// When it was revoked, in Unix milliseconds.
    pub revoked_at_ms: Option<i64>,
}

impl KeyView {
    /// Whether it is good at this time, in Unix milliseconds.
    pub fn is_live(&self, now_ms: i64) -> bool {
        self.revoked_at_ms.is_none() && self.expires_at_ms.is_none_or(|end| now_ms < end)
    }

    /// Whether it has a scope that suffices for `needed`.
    pub fn allows(&self, needed: Scope) -> bool {
        self.scopes.iter().any(|scope| scope.covers(needed))
    }

    /// Whether it may call the model.
    pub fn may_call(&self, model: &ModelName) -> bool {
        self.models.is_empty() || self.models.contains(model)
    }
}

/// `POST /control/v1/tokens/verify`: a credential that somebody wants to know about.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyToken {
    /// A token of the identity provider, or an API key.
    pub token: String,
}

/// What the gateway makes of a credential.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenVerdict {
    /// Whether a request with it would be let in, where its scopes suffice.
    pub accepted: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether its signature is that of a key of the issuer; none for an API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<bool>,
    /// What log, books and record call its holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What its holder may do.
    #[serde(default)]
    pub scopes: Vec<Scope>,
    /// The models its holder may call; empty: all.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// When it is good no longer, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<i64>,
    /// What a token's header says; proven only if it is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub header: Option<serde_json::Value>,
    /// What a token claims; proven only if it is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub claims: Option<serde_json::Value>,
}

/// `POST /control/v1/tokens/revoke`: whose tokens, by either name.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeTokens {
    /// What log, books and record call the holder, `jwt_…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The holder as the issuer names them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// A holder whose tokens were revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedTokens {
    /// What log, books and record call the holder.
    pub id: String,
    /// Tokens issued until then are not taken any more, in Unix milliseconds.
    pub since_ms: i64,
    /// How many requests ran with them, and were cancelled.
    pub cancelled: usize,
}

/// Tokens and requests of one key with one model on one day, as `GET /control/v1/usage` lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageRow {
    /// The key's public id.
    pub key_id: String,
    /// The model.
    pub model: String,
    /// The day (UTC), as `2026-01-31`.
    pub day: String,
    /// Requests admitted.
    pub requests: i64,
    /// Tokens of prompts.
    pub prompt_tokens: i64,
    /// Tokens of answers, also of those that were broken off.
    pub completion_tokens: i64,
    /// Requests among them whose tokens are an estimate of ours.
    #[serde(default)]
    pub estimated: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_covers_all_and_infer_covers_listing() {
        for needed in Scope::ALL {
            assert!(Scope::Admin.covers(needed));
            assert_eq!(Scope::parse(needed.as_str()), Some(needed));
        }
        assert!(Scope::Infer.covers(Scope::ModelsRead));
        assert!(!Scope::Infer.covers(Scope::Admin));
        assert!(!Scope::ModelsRead.covers(Scope::Infer));
        assert!(!Scope::WorkerJoin.covers(Scope::AuditRead));
    }
}
