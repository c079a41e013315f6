//! A record: what happened, to what, by whom, how it ended. One line of the journal.
//!
//! It has no place for a prompt, an answer, a secret, a name, an e-mail or an address: what must not be recorded
//! cannot be.

use serde::{Deserialize, Serialize};

use super::canonical::{self, Inexact};

/// The version of this form, `v` in every record.
pub const VERSION: u8 = 1;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A request was admitted.
    #[serde(rename = "req.start")]
    RequestStart,
    /// It ended.
    #[serde(rename = "req.end")]
    RequestEnd,
    /// Its end was never recorded: the gateway died.
    #[serde(rename = "req.aborted")]
    RequestAborted,
    /// A credential was refused, or did not suffice; `count` times.
    #[serde(rename = "auth.fail")]
    AuthFail,
    /// An API key was made.
    #[serde(rename = "key.create")]
    KeyCreate,
    /// An API key was rotated.
    #[serde(rename = "key.rotate")]
    KeyRotate,
    /// An API key was revoked.
    #[serde(rename = "key.revoke")]
    KeyRevoke,
    /// The tokens of a holder were revoked.
    #[serde(rename = "token.revoke")]
    TokenRevoke,
    /// A join token was made.
    #[serde(rename = "join_token.create")]
    JoinTokenCreate,
    /// A worker registered.
    #[serde(rename = "worker.register")]
    WorkerRegister,
    /// A worker said that it goes.
    #[serde(rename = "worker.leave")]
    WorkerLeave,
    /// Nothing is routed to a worker any more: it fell silent or failed.
    #[serde(rename = "worker.evict")]
    WorkerEvict,
    /// An operator attached a server.
    #[serde(rename = "worker.attach")]
    WorkerAttach,
    /// An operator took a worker or server out.
    #[serde(rename = "worker.detach")]
    WorkerDetach,
    /// An operator asked a worker to finish.
    #[serde(rename = "worker.drain")]
    WorkerDrain,
    /// An operator cancelled a request.
    #[serde(rename = "req.cancel")]
    RequestCancel,
    /// A model was downloaded for this hive.
    #[serde(rename = "model.download")]
    ModelDownload,
    /// The settings differ from those of the last start.
    #[serde(rename = "config.change")]
    ConfigChange,
    /// The gateway started.
    #[serde(rename = "audit.start")]
    Start,
    /// The gateway stopped.
    #[serde(rename = "audit.stop")]
    Stop,
    /// Records were lost; `count` of them, `from` to `to`.
    #[serde(rename = "audit.gap")]
    Gap,
    /// A new segment begins.
    #[serde(rename = "audit.rotate")]
    Rotate,
    /// A checkpoint was sent to the anchor, or could not be.
    #[serde(rename = "audit.anchor")]
    Anchor,
    /// Expired records were removed; those before `first` are gone.
    #[serde(rename = "audit.prune")]
    Prune,
    /// A crash had torn the last line; its `count` bytes were cut off.
    #[serde(rename = "audit.recovered_tail")]
    RecoveredTail,
    /// A person's records were exported.
    #[serde(rename = "subject.export")]
    SubjectExport,
    /// A person's key was destroyed.
    #[serde(rename = "subject.erase")]
    SubjectErase,
}

/// What somebody wants to have recorded; the journal adds its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened, in Unix milliseconds.
    #[serde(rename = "ts")]
    pub at_ms: i64,
    /// What happened.
    pub kind: Kind,
    /// The request's id in the books.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub req: Option<String>,
    /// The client's own id for the request, if it sent one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// An operator act's id in the outbox, by which it is recorded once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// From where: a keyed pseudonym of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<String>,
    /// To what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t: Option<Times>,
    /// Under which settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cfg: Option<Settings>,
    /// How often, or how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The first of them, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<i64>,
    /// The last of them, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<i64>,
    /// The first record that is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// An operator's reference, such as the number of an erasure request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// Who did it; by identifiers of ours alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The public id of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The person behind it, as a pseudonym under a key that can be destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psub: Option<String>,
}

/// What it was done to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// A model's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The SHA-256 of the model's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// A worker's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The worker's epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// A key's public id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// A key's scopes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// A route as the router spells it, never what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// A segment's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<u64>,
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// One word.
    pub state: String,
    /// The stable code of the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    #[serde(rename = "in", default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<i64>,
    /// Generated.
    #[serde(rename = "out", default, skip_serializing_if = "Option::is_none")]
    pub completion: Option<i64>,
    /// That they are an estimate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
}

/// Times of a request, in milliseconds since it was admitted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Until a worker had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<i64>,
    /// Until the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft: Option<i64>,
    /// Until the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
}

/// Under which settings the gateway runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `off`, `metadata` or `eu-strict`; with `off`, nothing is recorded from here to the next start.
    pub mode: String,
    /// The gateway's version.
    pub version: String,
    /// SHA-256 of all effective settings.
    pub sha256: String,
}

/// One line: an event in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this form.
    pub v: u8,
    /// Its place, counted from 0.
    pub seq: u64,
    /// Which start of the gateway wrote it.
    pub boot: String,
    /// SHA-256 of the line before, in hexadecimal; 64 zeros before the first.
    pub prev: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Event {
    /// Something that happens now.
    pub fn now(kind: Kind) -> Self {
        Self {
            at_ms: crate::now_ms(),
            kind,
            req: None,
            correlation: None,
            act: None,
            actor: None,
            net: None,
            object: None,
            outcome: None,
            usage: None,
            t: None,
            cfg: None,
            count: None,
            from: None,
            to: None,
            first: None,
            ticket: None,
        }
    }

    /// The end of a request of which this was the start and that nobody is left to end.
    #[must_use]
    pub fn aborted(self) -> Self {
        Self {
            at_ms: crate::now_ms(),
            kind: Kind::RequestAborted,
            outcome: Some(Outcome {
                state: "aborted".into(),
                code: None,
            }),
            ..self
        }
    }

    /// Done by the holder of this key.
    #[must_use]
    pub fn by(mut self, key_id: &str) -> Self {
        self.actor.get_or_insert_default().key_id = Some(key_id.to_owned());
        self
    }

    /// Done to this.
    #[must_use]
    pub fn on(mut self, object: Object) -> Self {
        self.object = Some(object);
        self
    }
}

impl Object {
    /// A worker or attached server.
    pub fn worker(id: &wire::WorkerId) -> Self {
        Self {
            worker: Some(id.to_string()),
            ..Self::default()
        }
    }

    /// An API key.
    pub fn key(id: &str) -> Self {
        Self {
            key_id: Some(id.to_owned()),
            ..Self::default()
        }
    }
}

impl Record {
    /// The line, without its line feed.
    pub fn line(&self) -> Result<String, Inexact> {
        let value = serde_json::to_value(self).unwrap_or_default();
        canonical::to_string(&value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_canonical_and_reads_back() {
        let mut event = Event::now(Kind::RequestEnd).by("abcdefgh").on(Object {
            model: Some("org/\u{1b}[31mm\n".into()),
            ..Object::default()
        });
        event.usage = Some(Usage {
            prompt: Some(3),
            completion: None,
            estimated: false,
        });
        let record = Record {
            v: VERSION,
            seq: 9,
            boot: "b".into(),
            prev: "0".repeat(64),
            event,
        };
        let line = record.line().unwrap();
        assert!(
            line.starts_with(r#"{"actor":{"key_id":"abcdefgh"},"boot":"b","kind":"req.end","object":{"#),
            "{line}"
        );
        assert!(
            line.contains(r#""model":"org/\u001b[31mm\n""#) && line.contains(r#""usage":{"in":3}"#),
            "{line}"
        );
        assert!(!line.contains(['\n', '\u{1b}']));
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}
