//! What is wrong with a request: every fault with the field at fault and a sentence a person can act on.

use std::fmt;

/// The most faults that are told; more would bury the first.
const MOST_TOLD: usize = 16;

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The field at fault, such as `messages[1].content[0].type`; none if it is the body as a whole.
    pub param: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
    /// Whether anyone could answer it.
    pub kind: FaultKind,
}

/// Whose limit a fault runs into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Wrong by OpenAI's rules, whoever answers.
    Invalid,
    /// Right in itself, but more than our own engines can do; an attached server may.
    Unsupported,
}

/// All faults of one request, in the order in which they were found; of very many, the first and a count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    told: Vec<Fault>,
    /// How many there are beyond those: invalid ones, unsupported ones.
    more: [usize; 2],
}

impl Faults {
    /// A field is wrong; `rule` goes on from its name: `must be a string`.
    pub fn invalid(&mut self, param: impl Into<String>, rule: impl fmt::Display) {
        self.field(FaultKind::Invalid, param.into(), &rule);
    }

    /// A field asks for more than our engines can do; `rule` goes on from its name.
    pub fn unsupported(&mut self, param: impl Into<String>, rule: impl fmt::Display) {
        self.field(FaultKind::Unsupported, param.into(), &rule);
    }

    /// The body as a whole is wrong.
    pub fn body(&mut self, message: impl Into<String>) {
        self.told.push(Fault {
            param: None,
            message: message.into(),
            kind: FaultKind::Invalid,
        });
    }

    /// A field is wrong, and `kind` says by whose rules; `rule` goes on from its name.
    pub(super) fn field(&mut self, kind: FaultKind, param: String, rule: &dyn fmt::Display) {
        if param.is_empty() {
            return self.body(format!("The body {rule}."));
        }
        // A body full of faults must not cost more than one without.
        if self.told.len() >= 2 * MOST_TOLD {
            self.more[usize::from(kind == FaultKind::Unsupported)] += 1;
            return;
        }
        self.told.push(Fault {
            message: format!("`{param}` {rule}."),
            param: Some(param),
            kind,
        });
    }

    /// Forgets what only our own engines cannot do: for attached servers, which judge that themselves.
    pub fn forget_unsupported(&mut self) {
        self.told.retain(|fault| fault.kind != FaultKind::Unsupported);
        self.more[1] = 0;
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty() && self.more == [0, 0]
    }

    /// Every fault.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.told.iter()
    }

    /// The field of the first fault.
    pub fn param(&self) -> Option<&str> {
        self.told.first()?.param.as_deref()
    }

    /// The error code of `design.md`: `unsupported_parameter` if nothing else is wrong, else `invalid_request`.
    pub fn code(&self) -> &'static str {
        if self.more[0] == 0 && self.told.iter().all(|fault| fault.kind == FaultKind::Unsupported) {
            "unsupported_parameter"
        } else {
            "invalid_request"
        }
    }

    /// The request, if nothing is wrong with it.
    pub fn unless<T>(self, request: T) -> Result<T, Self> {
        if self.is_empty() { Ok(request) } else { Err(self) }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.told.iter().take(MOST_TOLD).enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{}", fault.message)?;
        }
        match self.more[0] + self.more[1] + self.told.len().saturating_sub(MOST_TOLD) {
            0 => Ok(()),
            more => write!(f, " And {more} more."),
        }
    }
}

impl std::error::Error for Faults {}
