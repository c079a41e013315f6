//! What an attached server's chunks must become before a client sees them, since its clients are ours.
//!
//! Our own workers' chunks never come by here. What OpenAI's document requires is put in, what it forbids is taken out,
//! what it does not know stays; nothing is made up that a client could take for the model's words or counts.

mod delta;
mod vectors;
mod words;

pub use self::vectors::embeddings;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use wire::{ModelName, openai::parameters::Kind};

use self::delta::{End, Said};
use super::chunk;

/// The most choices of an answer, and the most calls of a choice: what is kept of each must stay small.
const MOST: u64 = 1024;

/// Mends the chunks of one answer.
#[derive(Debug)]
pub struct Mender {
    kind: Kind,
    model: String,
    /// The same in every chunk, once the first has come.
    id: Option<String>,
    created: Option<u64>,
    /// An id of ours, for what has none.
    own_id: String,
    /// The texts that end a choice, whatever the server does.
    stop: Vec<String>,
    said: BTreeMap<u64, Said>,
    /// Held back for the end, where clients expect it.
    usage: Option<Value>,
    /// The server goes on with what has ended.
    goes_on: bool,
    /// The server says no more.
    is_done: bool,
}

impl Mender {
    /// For an answer by this model to the request of this id, whose choices these texts end.
    pub fn new(kind: Kind, model: &ModelName, id: &str, stop: &[String]) -> Self {
        Self {
            kind,
            model: model.to_string(),
            id: None,
            created: None,
            own_id: id.to_owned(),
            stop: stop.to_vec(),
            said: BTreeMap::new(),
            usage: None,
            goes_on: false,
            is_done: false,
        }
    }

    /// Whether so many choices have ended and the server goes on all the same: nothing more of it is for clients.
    pub fn is_over(&self, choices: usize) -> bool {
        self.goes_on && self.said.values().filter(|said| said.end == End::Told).count() >= choices
    }

    /// The chunk with the finish reasons that have not been told yet; to be asked for when the server says no more.
    pub fn finish(&mut self) -> Result<Option<Value>, String> {
        self.is_done = true;
        let near = self.said.iter().filter_map(|(index, said)| match &said.end {
            End::Near(reason) => Some(json!({"index": index, "finish_reason": reason})),
            End::Open | End::Told => None,
        });
        let choices: Vec<Value> = near.collect();
        self.mend(json!({ "choices": choices }))
    }

    /// A chunk as a client may see it; none if nothing of it is for clients, an error if it says that the answer failed.
    pub fn mend(&mut self, chunk: Value) -> Result<Option<Value>, String> {
        let Value::Object(mut chunk) = chunk else {
            return Err("it sent an event that is no object".into());
        };
        if let Some(usage) = chunk.remove("usage").and_then(usage) {
            self.usage = Some(usage);
        }
        let choices = match chunk.remove("choices") {
            Some(Value::Array(choices)) if !choices.is_empty() => choices,
            _ => return Ok(None),
        };
        let mut mended = Vec::with_capacity(choices.len());
        for (place, choice) in choices.into_iter().enumerate() {
            let Value::Object(choice) = choice else { continue };
            let index = choice.get("index").and_then(Value::as_u64).unwrap_or(place as u64);
            // OpenAI's SDK for Python puts choices where the first of them says, one after the other.
            for earlier in 0..index.min(MOST) {
                if self.kind == Kind::Chat && !self.said.contains_key(&earlier) {
                    mended.extend(self.choice(earlier, Map::new())?);
                }
            }
            mended.extend(self.choice(index, choice)?);
        }
        if mended.is_empty() {
            return Ok(None);
        }
        self.head(&mut chunk);
        chunk.insert("choices".into(), mended.into());
        Ok(Some(chunk.into()))
    }

    /// The chunk with the usage, if the server told one; to be asked for at the end.
    pub fn last(&mut self) -> Option<Value> {
        let usage = self.usage.take()?;
        let mut chunk = Map::new();
        self.head(&mut chunk);
        chunk.insert("choices".into(), json!([]));
        chunk.insert("usage".into(), usage);
        Some(chunk.into())
    }

    /// An answer in one piece as the chunks it would have been.
    pub fn split(&mut self, piece: Value) -> Vec<Result<Value, String>> {
        let Value::Object(mut piece) = piece else {
            return vec![Err("it answered what is no object".into())];
        };
        let choices = match piece.remove("choices") {
            Some(Value::Array(choices)) => choices,
            _ => Vec::new(),
        };
        if let Some(usage) = piece.remove("usage").and_then(usage) {
            self.usage = Some(usage);
        }
        let mut chunks = Vec::new();
        for (place, choice) in choices.into_iter().enumerate() {
            let Value::Object(mut choice) = choice else { continue };
            let mut end = Map::new();
            for key in ["index", "finish_reason"] {
                let value = if key == "index" {
                    choice.get(key).cloned()
                } else {
                    choice.remove(key)
                };
                end.insert(
                    key.into(),
                    value.filter(|v| !v.is_null()).unwrap_or_else(|| default_of(key, place)),
                );
            }
            for choice in [choice, end] {
                let mut chunk = piece.clone();
                chunk.insert("choices".into(), json!([choice]));
                chunks.push(Value::Object(chunk));
            }
        }
        chunks
            .into_iter()
            .filter_map(|chunk| self.mend(chunk).transpose())
            .collect()
    }

    /// `id`, `object`, `created` and `model`, the same in every chunk; the model's name is the one that was asked for.
    fn head(&mut self, chunk: &mut Map<String, Value>) {
        let (prefix, object) = match self.kind {
            Kind::Completions => ("cmpl", "text_completion"),
            _ => ("chatcmpl", "chat.completion.chunk"),
        };
        let id = self
            .id
            .get_or_insert_with(|| match chunk.get("id").and_then(Value::as_str) {
                // Some servers count their answers, and begin anew with each start.
                Some(id) if id.starts_with(prefix) => id.to_owned(),
                _ => format!("{prefix}-{}", self.own_id),
            });
        let created = *self.created.get_or_insert_with(|| seconds(chunk.get("created")));
        chunk.retain(|_, value| !value.is_null());
        chunk.insert("id".into(), id.as_str().into());
        chunk.insert("object".into(), object.into());
        chunk.insert("created".into(), created.into());
        chunk.insert("model".into(), self.model.as_str().into());
    }

    /// What a client may see of a choice: nothing that comes after its end. A finish reason is its end if it stands alone
    /// and after words: some servers write one beside all of them.
    fn choice(&mut self, index: u64, mut choice: Map<String, Value>) -> Result<Option<Value>, String> {
        if index >= MOST {
            return Err(format!("it sent a choice of the index {index}"));
        }
        let said = self.said.entry(index).or_insert_with(|| Said::new(&self.stop));
        choice.retain(|_, value| !value.is_null());
        if let Some(message) = choice.remove("message") {
            choice.entry("delta").or_insert(message);
        }
        let speaks = chunk::says(&choice);
        if said.end == End::Told {
            self.goes_on |= speaks;
            return Ok(None);
        }
        let reason = choice.remove("finish_reason");
        let reason = reason.as_ref().and_then(Value::as_str);
        // Some servers write the word where null belongs.
        let reason = reason.filter(|reason| !["", "null", "none"].contains(&reason.to_lowercase().as_str()));
        let is_last = reason.is_some() && (self.is_done || said.has_spoken && !speaks);
        said.has_spoken |= speaks;
        choice.insert("index".into(), index.into());
        if self.kind == Kind::Completions {
            let text = choice.remove("text").and_then(delta::text).unwrap_or_default();
            choice.insert("text".into(), said.words.push(&text, is_last).into());
            let logprobs = choice.remove("logprobs").unwrap_or_default();
            let logprobs = delta::older_logprobs(logprobs, &mut said.offset);
            let logprobs = said
                .words
                .logprobs(Some(logprobs).filter(|logprobs| !logprobs.is_null()));
            choice.insert("logprobs".into(), logprobs.into());
        } else {
            let delta = match choice.remove("delta") {
                Some(Value::Object(delta)) => delta,
                _ => Map::new(),
            };
            choice.remove("text");
            let delta = said.delta(delta, is_last, &self.own_id);
            choice.insert("delta".into(), delta.into());
            let logprobs = choice.remove("logprobs").and_then(delta::logprobs);
            if let Some(logprobs) = said.words.logprobs(logprobs) {
                choice.insert("logprobs".into(), logprobs);
            }
        }
        if said.calls() as u64 > MOST {
            return Err(format!("it called more than {MOST} functions"));
        }
        let is_cut = said.words.is_cut;
        self.goes_on |= is_cut && !is_last;
        let reason = if is_cut { Some("stop") } else { reason };
        let told = reason
            .map(|reason| finish_reason(reason, said.calls() > 0))
            .transpose()?
            .filter(|_| is_last || is_cut);
        match (told, reason) {
            (Some(_), _) => said.end = End::Told,
            (None, Some(reason)) => said.end = End::Near(reason.to_owned()),
            (None, None) => {}
        }
        choice.insert("finish_reason".into(), told.into());
        Ok(Some(choice.into()))
    }
}

fn default_of(key: &str, place: usize) -> Value {
    if key == "index" { place.into() } else { "stop".into() }
}

/// When it was made: as the server says, if it says so in seconds; else now.
fn seconds(created: Option<&Value>) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time since 1970"
    )]
    let told = created.and_then(|v| v.as_u64().or_else(|| v.as_f64().map(|s| s as u64)));
    told.filter(|s| (1..100_000_000_000).contains(s))
        .unwrap_or_else(|| u64::try_from(crate::now_ms() / 1000).unwrap_or_default())
}

/// A finish reason of OpenAI's set; an answer that was cut off for the server's own reasons is none at all.
fn finish_reason(reason: &str, called: bool) -> Result<&'static str, String> {
    Ok(match reason.to_lowercase().as_str() {
        "abort" | "aborted" | "canceled" | "cancelled" | "error" | "failed" | "timeout" => {
            return Err(format!("it broke off with the finish_reason {reason}"));
        }
        "length" | "max_tokens" | "max_length" | "model_length" | "max_output_tokens" => "length",
        "tool_calls" | "tool_call" | "tool_use" | "tool" => "tool_calls",
        "function_call" => "function_call",
        "content_filter" | "safety" | "recitation" | "refusal" => "content_filter",
        _ if called => "tool_calls",
        // eos, eos_token, end_turn, stop_sequence and whatever else ends an answer well.
        _ => "stop",
    })
}

/// OpenAI's token counts of a usage, if it has any.
fn usage(usage: Value) -> Option<Value> {
    let Value::Object(mut usage) = usage else { return None };
    let count = |key: &str| usage.get(key).and_then(Value::as_u64);
    let prompt = count("prompt_tokens")?;
    let completion = count("completion_tokens")?;
    let total = prompt.saturating_add(completion);
    usage.retain(|key, value| key.ends_with("_tokens_details") && value.is_object());
    for details in usage.values_mut().filter_map(Value::as_object_mut) {
        details.retain(|_, value| !value.is_null());
    }
    for (key, count) in [
        ("prompt_tokens", prompt),
        ("completion_tokens", completion),
        ("total_tokens", total),
    ] {
        usage.insert(key.into(), count.into());
    }
    Some(usage.into())
}

#[cfg(test)]
mod tests;
