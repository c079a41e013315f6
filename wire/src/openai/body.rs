//! The body of a request: a JSON object whose fields stay as they were written until somebody asks for one.
//!
//! Everything in it is sound JSON once it is read, also what nobody will ask for; so it may go on to a worker.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::Faults;
use crate::printable;

/// The deepest nesting of the body's JSON.
const DEEPEST: usize = 128;
/// The most fields at the top of the body.
const MOST_FIELDS: usize = 512;
/// The most values in the body, enough to embed a million token ids; a list or an object counts for ten, since it takes
/// as much memory.
const MOST_VALUES: usize = 1_000_000;

/// A request's body, as its top-level fields in their order.
#[derive(Debug)]
pub struct Body<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Body<'a> {
    /// Reads a body; anything in it that is not JSON is a fault that names its place.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        if bytes.trim_ascii().is_empty() {
            faults.body("The body is empty; send a JSON object, with the header Content-Type: application/json.");
            return Err(faults);
        }
        match measure(bytes) {
            Ok(()) => {}
            Err(Excess::Depth(at)) => {
                let rule = format!("is nested deeper than {DEEPEST} levels; send a flatter one");
                faults.invalid(place(bytes, at.saturating_sub(DEEPEST)), rule);
                return Err(faults);
            }
            Err(Excess::Values(at)) => {
                let rule = format!("is where the body comes to hold more than {MOST_VALUES} values; send fewer");
                faults.invalid(place(bytes, at), rule);
                return Err(faults);
            }
        }
        let fields: Fields<'a> = match serde_json::from_slice(bytes) {
            Ok(fields) => fields,
            Err(error) => {
                not_json(&mut faults, "", bytes, &error);
                return Err(faults);
            }
        };
        for (name, value) in &fields.0 {
            if let Err(error) = serde_json::from_str::<Sound>(value.get()) {
                not_json(&mut faults, name, value.get().as_bytes(), &error);
            }
        }
        faults.unless(Self(fields.0))
    }

    /// A field as it was written; null is the same as absent.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.0.iter().find(|(n, _)| n == name)?;
        (value.get() != "null").then_some(value.get())
    }

    /// A field as JSON; null is the same as absent.
    pub fn value(&self, name: &str) -> Option<Value> {
        self.get(name)
    }

    /// A field as a type; none if it is absent, null or of another form.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.raw(name)?).ok()
    }

    /// Whether a list has more than `most` entries; it is not read further than that.
    pub fn is_longer(&self, name: &str, most: usize) -> bool {
        let Some(raw) = self.raw(name).filter(|raw| raw.starts_with('[')) else {
            return false;
        };
        let mut list = Count { most, counted: 0 };
        serde_json::Deserializer::from_str(raw)
            .deserialize_seq(&mut list)
            .is_err()
    }

    /// The names of all fields that are not null.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let filled = self.0.iter().filter(|(_, value)| value.get() != "null");
        filled.map(|(name, _)| name.as_ref())
    }

    /// The body again, every field as it came, but with `instead` (names and JSON) in place of those of that name.
    pub fn with(&self, instead: &[(&str, &str)]) -> Vec<u8> {
        let kept = || {
            let fields = self.0.iter().map(|(name, value)| (name.as_ref(), value.get()));
            fields.filter(|(name, _)| !instead.iter().any(|(other, _)| other == name))
        };
        let length: usize = kept()
            .chain(instead.iter().copied())
            .map(|(n, v)| n.len() + v.len() + 8)
            .sum();
        let mut out = Vec::with_capacity(length + 2);
        out.push(b'{');
        for (i, (name, value)) in kept().chain(instead.iter().copied()).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            // A string always serialises.
            let _ = serde_json::to_writer(&mut out, name);
            out.push(b':');
            out.extend_from_slice(value.as_bytes());
        }
        out.push(b'}');
        out
    }
}

/// What a body has too much of, and where.
enum Excess {
    Depth(usize),
    Values(usize),
}

/// Looks at the body before anything is made of it; brackets and commas in texts do not count.
fn measure(bytes: &[u8]) -> Result<(), Excess> {
    let (mut depth, mut values, mut at) = (0_usize, 0_usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_text(bytes, at + 1),
            b'{' | b'[' => {
                depth += 1;
                values += 10;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if depth > DEEPEST {
            return Err(Excess::Depth(at));
        }
        if values > MOST_VALUES {
            return Err(Excess::Values(at));
        }
        at += 1;
    }
    Ok(())
}

/// Where the text ends that is open at `at`: its closing quotation mark, or the end of the bytes.
fn end_of_text(bytes: &[u8], mut at: usize) -> usize {
    while let Some(found) = bytes
        .get(at..)
        .and_then(|rest| rest.iter().position(|b| matches!(b, b'"' | b'\\')))
    {
        at += found;
        if bytes[at] == b'"' {
            return at;
        }
        at += 2;
    }
    bytes.len()
}

fn not_json(faults: &mut Faults, field: &str, text: &[u8], error: &serde_json::Error) {
    let line_start: usize = text
        .split_inclusive(|b| *b == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let inner = place(text, (line_start + error.column()).saturating_sub(1));
    let dot = if field.is_empty() || inner.is_empty() || inner.starts_with('[') {
        ""
    } else {
        "."
    };
    let param = format!("{}{dot}{inner}", shown(field));
    let hint = "JSON has no NaN, no Infinity and no half of a surrogate pair";
    if error.is_eof() {
        faults.body(format!("The body breaks off before its JSON ends: {error}."));
    } else if param.is_empty() || error.is_data() {
        faults.body(format!("The body is not a JSON object: {error}."));
    } else {
        faults.invalid(param, format!("is not JSON: {error}; {hint}"));
    }
}

/// The path of the value in which byte `at` lies, of JSON that may be broken from there on.
fn place(text: &[u8], at: usize) -> String {
    enum Step {
        Key(String),
        Index(usize),
    }
    let mut steps: Vec<Step> = Vec::new();
    let mut names_key = false;
    let mut i = 0;
    while i < at.min(text.len()) {
        match text[i] {
            b'"' => {
                let start = i + 1;
                i = end_of_text(text, start);
                if i >= at {
                    break;
                }
                if let (true, Some(Step::Key(key))) = (names_key, steps.last_mut()) {
                    *key = shown(&String::from_utf8_lossy(text.get(start..i).unwrap_or_default()));
                    names_key = false;
                }
            }
            b'{' => {
                steps.push(Step::Key(String::new()));
                names_key = true;
            }
            b'[' => steps.push(Step::Index(0)),
            b'}' | b']' => {
                steps.pop();
                names_key = false;
            }
            b',' => match steps.last_mut() {
                Some(Step::Index(index)) => *index += 1,
                Some(Step::Key(key)) => {
                    key.clear();
                    names_key = true;
                }
                None => {}
            },
            _ => {}
        }
        i += 1;
    }
    let mut path = String::new();
    for step in steps.iter().take(8) {
        match step {
            Step::Key(key) if key.is_empty() => break,
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => path = format!("{path}.{key}"),
            Step::Index(index) => path = format!("{path}[{index}]"),
        }
    }
    path
}

/// A client's own word as an error may show it.
pub(super) fn shown(text: &str) -> String {
    printable(text, 64)
}

/// The fields of an object; a name that comes twice counts once, with its last value, as most readers take it.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(16);
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    fields.retain(|(n, _)| *n != name);
                    fields.push((name, value));
                    if fields.len() > MOST_FIELDS {
                        return Err(serde::de::Error::custom(format_args!(
                            "it has more than {MOST_FIELDS} fields"
                        )));
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Any JSON whose strings and numbers can be read; nothing of it is kept.
struct Sound;

impl<'de> Deserialize<'de> for Sound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Sound {
    type Value = Self;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// Counts a list's entries and gives up beyond the most.
struct Count {
    most: usize,
    counted: usize,
}

impl<'de> Visitor<'de> for &mut Count {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {
            self.counted += 1;
            if self.counted > self.most {
                return Err(serde::de::Error::custom("too long"));
            }
        }
        Ok(())
    }
}
