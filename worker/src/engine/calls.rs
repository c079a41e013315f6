//! Reads calls of tools out of an answer's text while it comes, in the model's dialect.
//!
//! What could still become a call is held back, a call's arguments flow on as they come. What only looks like a call
//! is text after all. It never judges arguments: a grammar has, or nobody does.

use serde_json::Value;
use wire::openai::ends_like;

use super::tools::Dialect;

/// A piece of what an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for the reader.
    Text(String),
    /// What the model thinks before it says anything.
    Thought(String),
    /// A call begins.
    Call {
        /// The function.
        name: String,
    },
    /// More of the last call's arguments, as JSON text.
    Arguments(String),
}

/// Reads one answer.
#[derive(Debug)]
pub struct Reader {
    dialect: Dialect,
    /// What has come and is not told yet.
    held: String,
    place: Place,
    /// Something was told, or is known to be text.
    begun: bool,
    called: bool,
    /// A call has just ended: white space is a gap and no text.
    in_gap: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// In text, where a call may begin.
    Text,
    /// Behind a call's opening mark or between two calls.
    Between,
    /// In a call's arguments.
    Arguments(Nesting),
    /// Behind the arguments, before the end of the call's object.
    Tail,
}

impl Reader {
    /// For an answer of a model that writes calls in this dialect.
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            held: String::new(),
            place: Place::Text,
            begun: false,
            called: false,
            in_gap: false,
        }
    }

    /// More text came: what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// Nothing more comes: what was held back is text, the rest of arguments, or the beginning of a call, which is nothing
    /// for a reader.
    pub fn finish(&mut self) -> Vec<Piece> {
        let held = std::mem::take(&mut self.held);
        let rest = held.trim();
        let is_text = match self.place {
            Place::Text if !self.called => !held.is_empty(),
            Place::Text => !self.dialect.open().starts_with(rest),
            Place::Between => {
                let ends = self.dialect.close().is_some_and(|close| close.starts_with(rest));
                // Without a mark a brace alone says nothing.
                let is_marked = self.dialect != Dialect::Llama || rest.contains("\"name\"");
                let begins = is_marked && Head::of(rest) == Head::Partial;
                !(rest.is_empty() || ends || begins)
            }
            Place::Arguments(_) | Place::Tail => false,
        };
        if is_text { vec![Piece::Text(held)] } else { Vec::new() }
    }

    /// Reads one part of what is held; false: more must come first.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match &mut self.place {
            Place::Text if self.dialect == Dialect::Llama => self.at_start(pieces),
            Place::Text => self.in_text(pieces),
            Place::Between => self.between(pieces),
            Place::Arguments(nesting) => {
                let end = nesting.end_in(&self.held);
                let rest = end.map(|end| self.held.split_off(end));
                if !self.held.is_empty() {
                    pieces.push(Piece::Arguments(std::mem::take(&mut self.held)));
                }
                let Some(rest) = rest else { return false };
                self.held = rest;
                self.place = Place::Tail;
                true
            }
            Place::Tail => match self.held.find('}') {
                Some(at) => {
                    self.held.drain(..=at);
                    self.place = Place::Between;
                    true
                }
                None => false,
            },
        }
    }

    /// Text flows up to an opening mark.
    fn in_text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if self.in_gap {
            self.held = self.held.trim_start().to_owned();
            self.in_gap = self.held.is_empty();
        }
        let mark = self.dialect.open();
        if let Some(at) = self.held.find(mark) {
            let rest = self.held.split_off(at + mark.len());
            self.held.truncate(at);
            // A gap before a call is no text of its own.
            let text = std::mem::replace(&mut self.held, rest);
            let text = text.trim_end();
            if !text.is_empty() {
                pieces.push(Piece::Text(text.to_owned()));
                self.begun = true;
            }
            self.place = Place::Between;
            return true;
        }
        let before_mark = &self.held[..self.held.len() - ends_like(&self.held, mark)];
        self.tell(before_mark.trim_end().len(), pieces);
        false
    }

    /// Llama 3: an answer that begins with a brace is a call, any other is text.
    fn at_start(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let start = self.held.trim_start();
        let mark = self.dialect.open();
        if self.begun {
            let all = self.held.len();
            self.tell(all, pieces);
            return false;
        }
        if start.is_empty() || (start.len() < mark.len() && mark.starts_with(start)) {
            return false;
        }
        if start.starts_with(mark) || start.starts_with('{') {
            self.held = start.strip_prefix(mark).unwrap_or(start).to_owned();
            self.place = Place::Between;
        }
        self.begun = true;
        true
    }

    /// A call's object, or the end of the calls.
    fn between(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let start = self
            .held
            .trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '[' | ',' | ';'));
        if start.is_empty() {
            return false;
        }
        if let Some(close) = self.dialect.close() {
            if let Some(rest) = start.strip_prefix(close) {
                self.held = rest.to_owned();
                self.in_gap = true;
                self.place = Place::Text;
                return true;
            }
            if close.starts_with(start) {
                return false;
            }
        }
        if !start.starts_with('{') {
            // The list of calls has ended, or what came is no call.
            self.held = start.strip_prefix(']').unwrap_or(start).to_owned();
            self.place = Place::Text;
            self.begun = true;
            return true;
        }
        self.held = start.to_owned();
        match Head::of(&self.held) {
            Head::Complete { name, length } => {
                self.held.drain(..length);
                pieces.push(Piece::Call { name });
                self.called = true;
                self.place = Place::Arguments(Nesting::default());
                true
            }
            Head::Partial => self.whole_object(pieces),
            Head::None => {
                if self.whole_object(pieces) {
                    return true;
                }
                // Another form of object may still come to its end; a text that began with a brace need not wait.
                if self.dialect == Dialect::Llama {
                    self.place = Place::Text;
                    return true;
                }
                false
            }
        }
    }

    /// A call whose keys come in another order is told when its object has ended.
    fn whole_object(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let Some(end) = Nesting::default().end_in(&self.held) else {
            return false;
        };
        let rest = self.held.split_off(end);
        let object = std::mem::replace(&mut self.held, rest);
        let value: Value = serde_json::from_str(&object).unwrap_or_default();
        let arguments = ["arguments", "parameters"].iter().find_map(|key| value.get(*key));
        if let Some(name) = value.get("name").and_then(Value::as_str) {
            self.called = true;
            pieces.push(Piece::Call { name: name.to_owned() });
            pieces.push(Piece::Arguments(match arguments {
                Some(Value::String(text)) => text.clone(),
                Some(arguments) => arguments.to_string(),
                None => "{}".to_owned(),
            }));
        } else {
            pieces.push(Piece::Text(object));
            if self.dialect == Dialect::Llama {
                self.place = Place::Text;
            }
        }
        true
    }

    fn tell(&mut self, bytes: usize, pieces: &mut Vec<Piece>) {
        if bytes > 0 {
            let rest = self.held.split_off(bytes);
            pieces.push(Piece::Text(std::mem::replace(&mut self.held, rest)));
            self.begun = true;
        }
    }
}

/// What begins a call's object: `{"name": "…", "arguments": `.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    Complete { name: String, length: usize },
    Partial,
    None,
}

impl Head {
    fn of(text: &str) -> Self {
        let mut rest = Rest(text);
        let read = || -> Result<String, Stop> {
            rest.token("{")?;
            rest.token("\"name\"")?;
            rest.token(":")?;
            let name = rest.string()?;
            rest.token(",")?;
            let key = rest.string()?;
            if !matches!(key.as_str(), "arguments" | "parameters") {
                return Err(Stop::Other);
            }
            rest.token(":")?;
            rest.skip();
            match rest.0.chars().next() {
                Some('{') => Ok(name),
                Some(_) => Err(Stop::Other),
                None => Err(Stop::Short),
            }
        };
        let mut read = read;
        match read() {
            Ok(name) => Self::Complete {
                name,
                length: text.len() - rest.0.len(),
            },
            Err(Stop::Short) => Self::Partial,
            Err(Stop::Other) => Self::None,
        }
    }
}

/// Why a head is not complete.
enum Stop {
    /// The text ends too early.
    Short,
    /// It is something else.
    Other,
}

struct Rest<'a>(&'a str);

impl Rest<'_> {
    fn skip(&mut self) {
        self.0 = self.0.trim_start();
    }

    fn token(&mut self, token: &str) -> Result<(), Stop> {
        self.skip();
        match self.0.strip_prefix(token) {
            Some(rest) => {
                self.0 = rest;
                Ok(())
            }
            None if token.starts_with(self.0) => Err(Stop::Short),
            None => Err(Stop::Other),
        }
    }

    fn string(&mut self) -> Result<String, Stop> {
        self.skip();
        if !self.0.is_empty() && !self.0.starts_with('"') {
            return Err(Stop::Other);
        }
        let mut escaped = false;
        let end = self.0.char_indices().skip(1).find(|&(_, c)| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let (text, rest) = self.0.split_at(end.ok_or(Stop::Short)?.0 + 1);
        self.0 = rest;
        serde_json::from_str(text).map_err(|_| Stop::Other)
    }
}

/// How deep in braces and brackets a JSON value is, so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// Reads on; where the value ends, if it does.
    fn end_in(&mut self, text: &str) -> Option<usize> {
        for (at, c) in text.char_indices() {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' if self.in_string => self.escaped = true,
                '"' => self.in_string = !self.in_string,
                '{' | '[' if !self.in_string => self.depth += 1,
                '}' | ']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
