//! Fields of a request by their type and range, with the faults found on the way.

use serde_json::Value;

use super::{Body, FaultKind, Faults};
use crate::ModelName;

/// A request being read.
pub(super) struct Reading<'a> {
    pub body: &'a Body<'a>,
    pub faults: Faults,
}

impl<'a> Reading<'a> {
    pub fn of(body: &'a Body<'a>) -> Self {
        Self {
            body,
            faults: Faults::default(),
        }
    }

    pub fn model(&mut self) -> Option<ModelName> {
        match self.body.value("model") {
            None => self
                .faults
                .invalid("model", "is missing; name one of those that GET /v1/models lists"),
            // A name that no model could have is the name of a model that does not exist: not a fault of form.
            Some(Value::String(name)) => return name.parse().ok(),
            Some(_) => self.faults.invalid("model", "must be a string, the name of a model"),
        }
        None
    }

    pub fn flag(&mut self, name: &str) -> Option<bool> {
        let value = self.body.value(name)?;
        let flag = value.as_bool();
        if flag.is_none() {
            self.faults.invalid(name, "must be true or false");
        }
        flag
    }

    pub fn number(&mut self, name: &str, least: f64, most: f64, kind: FaultKind) -> Option<f64> {
        let number = self
            .body
            .value(name)?
            .as_f64()
            .filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let rule = format!("must be a number from {least} to {most}");
            self.faults.field(kind, name.to_owned(), &rule);
        }
        number
    }

    /// A whole number; `16.0` is one.
    pub fn whole(&mut self, name: &str, least: i64, most: i64, kind: FaultKind) -> Option<i64> {
        let number = whole(&self.body.value(name)?).filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let rule = format!("must be a whole number from {least} to {most}");
            self.faults.field(kind, name.to_owned(), &rule);
        }
        number
    }

    /// A count that fits 32 bits.
    pub fn count(&mut self, name: &str, least: u32, most: u32) -> Option<u32> {
        let number = self.whole(name, least.into(), most.into(), FaultKind::Invalid)?;
        u32::try_from(number).ok()
    }

    /// `stream` and `stream_options.include_usage`.
    pub fn stream(&mut self) -> (bool, bool) {
        let stream = self.flag("stream").unwrap_or(false);
        let usage = match self.body.value("stream_options") {
            None => false,
            Some(Value::Object(options)) => match options.get("include_usage") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(usage)) => *usage,
                Some(_) => {
                    self.faults
                        .invalid("stream_options.include_usage", "must be true or false");
                    false
                }
            },
            Some(_) => {
                self.faults
                    .invalid("stream_options", "must be an object such as {\"include_usage\": true}");
                false
            }
        };
        (stream, usage)
    }

    /// `stop`: one text, or up to four.
    pub fn stop(&mut self) -> Vec<String> {
        let texts = match self.body.value("stop") {
            None => return Vec::new(),
            Some(Value::Array(texts)) => texts,
            Some(text) => vec![text],
        };
        let few = texts.len() <= 4;
        let texts: Option<Vec<String>> = texts
            .into_iter()
            .map(|text| match text {
                Value::String(text) if !text.is_empty() => Some(text),
                _ => None,
            })
            .collect();
        texts.filter(|_| few).unwrap_or_else(|| {
            self.faults
                .invalid("stop", "must be a string, or a list of at most 4, none of them empty");
            Vec::new()
        })
    }
}

/// A whole number, also if it is written with a fraction of zero.
fn whole(value: &Value) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "only exact and small floats are taken")]
    let float = || {
        value
            .as_f64()
            .filter(|n| n.fract() == 0.0 && n.abs() < 9e15)
            .map(|n| n as i64)
    };
    value.as_i64().or_else(float)
}
