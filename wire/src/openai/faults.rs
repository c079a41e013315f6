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

/// All faults of one request, in the order in which they were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

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
        self.0.push(Fault {
            param: None,
            message: message.into(),
            kind: FaultKind::Invalid,
        });
    }

    fn field(&mut self, kind: FaultKind, param: String, rule: &dyn fmt::Display) {
        self.0.push(Fault {
            message: format!("`{param}` {rule}."),
            param: Some(param),
            kind,
        });
    }

    /// Takes over what another reader found.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Forgets what only our own engines cannot do: for attached servers, which judge that themselves.
    pub fn forget_unsupported(&mut self) {
        self.0.retain(|fault| fault.kind != FaultKind::Unsupported);
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every fault.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    /// The field of the first fault.
    pub fn param(&self) -> Option<&str> {
        self.0.first()?.param.as_deref()
    }

    /// The error code of `design.md`: `unsupported_parameter` if nothing else is wrong, else `invalid_request`.
    pub fn code(&self) -> &'static str {
        if self.0.iter().all(|fault| fault.kind == FaultKind::Unsupported) {
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
        for (i, fault) in self.0.iter().take(MOST_TOLD).enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{}", fault.message)?;
        }
        match self.0.len().saturating_sub(MOST_TOLD) {
            0 => Ok(()),
            more => write!(f, " And {more} more."),
        }
    }
}

impl std::error::Error for Faults {}
