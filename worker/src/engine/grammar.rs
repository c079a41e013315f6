//! Holds an answer to a grammar: which tokens may come next. A thin hand on llguidance.
//!
//! It never chooses a token, and knows no model.

use std::sync::Arc;

use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};
use serde_json::Value;

use super::{
    EngineError, Request, Schema, schema,
    tools::{self, Dialect},
};

/// So many tokens in a row that repeat themselves are a loop in which a small model has lost itself.
const LOOP: usize = 48;

/// Longest repetition that counts as one, in tokens.
const LONGEST_PERIOD: usize = 16;

/// What a grammar must know of a model.
#[derive(Clone)]
pub struct Grounds {
    /// Its vocabulary, ready for grammars.
    pub factory: Arc<ParserFactory>,
    /// The tokens that end an answer.
    pub ends: Arc<[u32]>,
    /// How it writes calls.
    pub dialect: Dialect,
}

impl Grounds {
    /// What holds the answer to this request, if anything does; a strict schema that no grammar can keep is refused.
    pub fn guide(&self, request: &Request) -> Result<Option<Guide>, EngineError> {
        let schema = request.schema.as_ref();
        let schema = schema.map(|schema| self.keepable(schema, "response_format.json_schema.schema".to_owned()));
        let schema = schema.transpose()?;
        let Some(tools) = &request.tools else {
            return schema
                .map(|schema| self.follow(tools::json_grammar(&schema)).map_err(EngineError::Failed))
                .transpose();
        };
        let arguments = tools.list.iter().map(|(place, tool)| {
            let param = format!("tools[{place}].function.parameters");
            self.keepable(&tools::arguments(tool), param)
        });
        let arguments: Vec<Value> = arguments.collect::<Result<_, _>>()?;
        let trie = self.factory.tok_env().tok_trie();
        let grammar = tools::grammar(tools, &arguments, self.dialect, schema.as_ref(), |mark| {
            trie.get_special_token(mark)
        });
        self.follow(grammar).map(Some).map_err(refused("tools".to_owned()))
    }

    /// The schema as a grammar keeps it.
    fn keepable(&self, schema: &Schema, param: String) -> Result<Value, EngineError> {
        let keeps = |schema: &Value| self.follow(tools::json_grammar(schema)).map(drop);
        schema::keepable(schema, keeps).map_err(refused(param))
    }

    /// Reads a grammar in llguidance's dialect of Lark; the error says what is wrong with it.
    pub fn follow(&self, grammar: String) -> Result<Guide, String> {
        let parser = self.factory.create_parser(TopLevelGrammar::from_lark(grammar));
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(reason(&error)),
            None => Ok(Guide {
                matcher,
                ends: self.ends.clone(),
                lately: Vec::new(),
            }),
        }
    }
}

/// What to say of a field whose schemas cannot be kept, and why.
fn refused(param: String) -> impl Fn(String) -> EngineError {
    move |reason| EngineError::Invalid {
        message: format!("`{param}` cannot be kept to: {reason}."),
        param: param.clone(),
    }
}

/// What is wrong, without the grammar itself and places in it, which the caller did not write.
fn reason(error: &str) -> String {
    let first = error.lines().next().unwrap_or_default();
    let first = first.rsplit_once("JSON schema: ").map_or(first, |(_, reason)| reason);
    // Of a pattern, the first line says only that it is none.
    let pattern = error.lines().find_map(|line| line.strip_prefix("error: "));
    let told = match pattern {
        Some(pattern) => format!("{} {pattern}", first.trim_end()),
        None => first.to_owned(),
    };
    wire::printable(&told, 300)
}

/// Follows one answer through its grammar. A clone goes its own way.
#[derive(Clone)]
pub struct Guide {
    matcher: Matcher,
    /// The tokens that end an answer.
    ends: Arc<[u32]>,
    /// The last tokens that came.
    lately: Vec<u32>,
}

impl Guide {
    /// Whether `token` may come next. Inside a loop that must not end here, ask [`Self::rule_out`].
    pub fn allows(&mut self, token: u32) -> Result<bool, String> {
        if self.is_lost() {
            return Ok(false);
        }
        let verdict = if self.ends.contains(&token) {
            self.matcher.is_accepting()
        } else {
            self.matcher.validate_tokens(&[token]).map(|valid| valid == 1)
        };
        verdict.map_err(|error| error.to_string())
    }

    /// Whether the answer goes round in circles where the grammar does not let it end: inside a JSON text, mostly.
    fn is_lost(&mut self) -> bool {
        let lately = &self.lately;
        let circles = |period: usize| {
            lately
                .iter()
                .skip(period)
                .zip(lately)
                .all(|(one, before)| one == before)
        };
        lately.len() == LOOP && (1..=LONGEST_PERIOD).any(circles) && !self.may_end()
    }

    /// Rules out what may not come next; `logits` has one for each token of the vocabulary. Out of a loop only what
    /// closes texts, lists and objects leads, if the grammar allows any of it.
    pub fn rule_out(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        let may_end = self.matcher.is_accepting().map_err(|error| error.to_string())?;
        let size = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let mut inside: Vec<u32> = (0..size).filter(|token| mask.is_allowed(*token)).collect();
        if may_end {
            inside.extend(self.ends.iter());
        }
        if self.is_lost() {
            let vocabulary = self.matcher.tok_env().map_err(|error| error.to_string())?;
            let closes = |token: &&u32| {
                let bytes = vocabulary.tok_trie().token(**token);
                !bytes.is_empty() && bytes.iter().all(|byte| b"\"]}".contains(byte))
            };
            let mut closing: Vec<u32> = inside.iter().filter(closes).copied().collect();
            // Inside a text, brackets are text too.
            let quotes = |token: &u32| vocabulary.tok_trie().token(*token).starts_with(b"\"");
            if closing.iter().any(quotes) {
                closing.retain(quotes);
            }
            if !closing.is_empty() {
                inside = closing;
            }
        }
        let mut left = false;
        let before = logits.to_vec();
        logits.fill(f32::NEG_INFINITY);
        for token in inside {
            if let (Some(logit), Some(before)) = (logits.get_mut(token as usize), before.get(token as usize)) {
                *logit = *before;
                left = true;
            }
        }
        if left {
            Ok(())
        } else {
            Err("the grammar has come to a dead end".to_owned())
        }
    }

    /// Whether the answer may end here.
    pub fn may_end(&mut self) -> bool {
        self.matcher.is_accepting().unwrap_or(true)
    }

    /// `token` came. True: nothing can follow it.
    pub fn take(&mut self, token: u32) -> Result<bool, String> {
        if self.ends.contains(&token) {
            return Ok(true);
        }
        if self.lately.len() == LOOP {
            self.lately.remove(0);
        }
        self.lately.push(token);
        self.matcher.consume_token(token).map_err(|error| error.to_string())?;
        Ok(self.matcher.is_stopped())
    }
}
