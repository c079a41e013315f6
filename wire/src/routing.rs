//! How requests find their workers, as operators set it and as the gateway explains it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{RequestView, WorkerId};

/// What an operator calls a worker, such as `zone: a`; a key may be for workers of some labels alone.
pub type Labels = BTreeMap<String, String>;

/// A label as it is typed, `NAME=VALUE`.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a label is NAME=VALUE")?;
    let label = (name.to_owned(), value.to_owned());
    check_labels(&Labels::from([label.clone()]), None)?;
    Ok(label)
}

/// What is wrong with labels or a weight; the text names the rule.
pub fn check_labels(labels: &Labels, weight: Option<f32>) -> Result<(), &'static str> {
    let is_word = |text: &str| {
        let printable = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
        printable && (1..=64).contains(&text.len()) && crate::secret_in(text).is_none()
    };
    if labels.len() > 16 {
        return Err("there may be at most 16 labels");
    }
    if !labels.iter().all(|(name, value)| is_word(name) && is_word(value)) {
        return Err("a label is NAME=VALUE, each of 1 to 64 ASCII letters, digits and . _ - /");
    }
    if !weight.is_none_or(|weight| (0.01..=100.0).contains(&weight)) {
        return Err("a weight is a number from 0.01 to 100");
    }
    Ok(())
}

/// Whose requests go first when there is not enough for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before all others.
    High,
    /// As most.
    #[default]
    Normal,
    /// After all others; now and then before them, so that it gets somewhere.
    Low,
}

impl Priority {
    /// All of them, the first to be served first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The priority's one word, as JSON spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// The priority of that word, if there is one.
    pub fn parse(s: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.as_str() == s)
    }
}

/// Why a worker was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The least work was before it there, measured by its speed.
    LeastWork,
    /// It had the session before.
    Session,
    /// It had the beginning of the conversation before.
    Prefix,
    /// It was the only one that could take it.
    OnlyOne,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::LeastWork, Self::Session, Self::Prefix, Self::OnlyOne];

    /// The reason's one word, as JSON spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LeastWork => "least_work",
            Self::Session => "session",
            Self::Prefix => "prefix",
            Self::OnlyOne => "only_one",
        }
    }
}

/// What the choice made of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It got the request.
    Chosen,
    /// It could have taken it, but another one was better.
    Passed,
    /// All its slots were taken.
    Busy,
    /// Its last slots are cancelled, still busy: their clients have left, and its engine cannot let go yet.
    StillBusy,
    /// It is tried with one request after it was ejected, and has that one.
    OnTrial,
    /// It failed too often and gets nothing for a while.
    Ejected,
    /// It had failed this very request.
    Tried,
    /// It lacks a label that the key wants.
    Unlabelled,
    /// Its model or engine cannot do what was asked, or its context may be too short.
    Unfit,
    /// It loads its model.
    Loading,
    /// It finishes what it holds.
    Draining,
    /// Its connection broke, or it holds requests and generates nothing.
    Suspect,
    /// It is silent.
    Lost,
    /// It kept dying.
    Quarantined,
}

impl Verdict {
    /// The verdict in words, for a person.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Passed => "another was better",
            Self::Busy => "all slots taken",
            Self::StillBusy => "cancelled, still busy",
            Self::OnTrial => "on trial after an ejection",
            Self::Ejected => "ejected",
            Self::Tried => "had failed it",
            Self::Unlabelled => "lacks a label",
            Self::Unfit => "cannot do what was asked",
            Self::Loading => "loading",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Lost => "lost",
            Self::Quarantined => "quarantined",
        }
    }
}

/// A worker as it stood when a choice was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Candidate {
    /// Its id.
    pub worker: WorkerId,
    /// What the choice made of it.
    pub verdict: Verdict,
    /// The score, of which the least wins: work before it and of this request, in tokens by speed; in seconds once the
    /// speed is known.
    pub score: f32,
    /// Requests of ours it held.
    pub in_flight: u32,
    /// How many it takes at once.
    pub slots: u32,
    /// Tokens those requests were expected to take.
    pub outstanding_tokens: u64,
    /// Tokens per second of one slot, if known.
    pub tokens_per_second: Option<f32>,
    /// Whether the session or the conversation's beginning was there before.
    pub has_context: bool,
}

/// One try to have a worker answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// The worker.
    pub worker: WorkerId,
    /// Under which epoch.
    pub epoch: i64,
    /// Why this one.
    pub reason: Reason,
    /// How long a slot was waited for, in milliseconds.
    pub queued_ms: u64,
    /// All workers of the model as they stood then.
    pub candidates: Vec<Candidate>,
    /// How it failed before its first event; none: it did not.
    pub failure: Option<String>,
}

/// A place in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Place {
    /// About how many are served up to and with this one.
    pub position: u32,
    /// About how long until then, in milliseconds; none: nothing has been measured yet.
    pub wait_ms: Option<u64>,
}

/// What was decided about a request, as long as the gateway remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// The client's name for the request, if it gave one.
    pub correlation: Option<String>,
    /// Whose turn it was.
    pub priority: Priority,
    /// Tokens that prompt and answer were expected to take.
    pub expected_tokens: u64,
    /// Labels that its worker had to have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Where it stands in the queue, if it waits now.
    pub place: Option<Place>,
    /// What was tried, in order.
    pub attempts: Vec<Attempt>,
}

/// A request explained, as `GET /control/v1/requests/{id}/explain` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// What the books say.
    pub request: RequestView,
    /// What was decided; none: too long ago, or before the gateway's last start.
    pub decision: Option<Decision>,
    /// Tokens of the answer per second after its first.
    pub tokens_per_second: Option<f64>,
}
