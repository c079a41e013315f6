//! Holds an answer to a grammar: which tokens may come next. A thin hand on llguidance.
//!
//! It never chooses a token, and knows no model.

use std::sync::Arc;

use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};

use super::{
    EngineError, Request,
    tools::{self, Dialect},
};

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
    /// What holds the answer to this request, if anything does; a schema that no grammar can keep is refused.
    pub fn guide(&self, request: &Request) -> Result<Option<Guide>, EngineError> {
        let invalid = |param: String| {
            move |error: String| EngineError::Invalid {
                message: format!("`{param}` cannot be kept to: {error}."),
                param,
            }
        };
        if let Some(schema) = &request.schema {
            self.follow(tools::json_grammar(schema))
                .map_err(invalid("response_format".to_owned()))?;
        }
        for (place, tool) in request.tools.iter().flat_map(|tools| &tools.list) {
            let param = format!("tools[{place}].function.parameters");
            self.follow(tools::json_grammar(&tools::arguments(tool)))
                .map_err(invalid(param))?;
        }
        let grammar = match (&request.tools, &request.schema) {
            (None, None) => return Ok(None),
            (None, Some(schema)) => tools::json_grammar(schema),
            (Some(tools), schema) => {
                let trie = self.factory.tok_env().tok_trie();
                tools::grammar(tools, self.dialect, schema.as_ref(), |mark| {
                    trie.get_special_token(mark)
                })
            }
        };
        self.follow(grammar).map(Some).map_err(invalid("tools".to_owned()))
    }

    /// Reads a grammar in llguidance's dialect of Lark; the error says what is wrong with it.
    pub fn follow(&self, grammar: String) -> Result<Guide, String> {
        let parser = self.factory.create_parser(TopLevelGrammar::from_lark(grammar));
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            // The rest is the grammar itself, which the caller did not write.
            Some(error) => Err(error.lines().next().unwrap_or_default().chars().take(300).collect()),
            None => Ok(Guide {
                matcher,
                ends: self.ends.clone(),
            }),
        }
    }
}

/// Follows one answer through its grammar. A clone goes its own way.
#[derive(Clone)]
pub struct Guide {
    matcher: Matcher,
    /// The tokens that end an answer.
    ends: Arc<[u32]>,
}

impl Guide {
    /// Whether `token` may come next.
    pub fn allows(&mut self, token: u32) -> Result<bool, String> {
        let verdict = if self.ends.contains(&token) {
            self.matcher.is_accepting()
        } else {
            self.matcher.validate_tokens(&[token]).map(|valid| valid == 1)
        };
        verdict.map_err(|error| error.to_string())
    }

    /// Rules out what may not come next; `logits` has one for each token of the vocabulary.
    pub fn rule_out(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        let may_end = self.matcher.is_accepting().map_err(|error| error.to_string())?;
        let mut left = false;
        for (token, logit) in (0_u32..).zip(logits) {
            let inside = (token as usize) < mask.len() && mask.is_allowed(token);
            if inside || (may_end && self.ends.contains(&token)) {
                left = true;
            } else {
                *logit = f32::NEG_INFINITY;
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
        self.matcher.consume_token(token).map_err(|error| error.to_string())?;
        Ok(self.matcher.is_stopped())
    }
}
