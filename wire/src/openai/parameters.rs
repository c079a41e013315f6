//! THE table: what becomes of every parameter of OpenAI's requests, and of the vendors' own, on each engine.
//!
//! The code that checks, the OpenAPI document and `GET /v1/models/{id}` all read this one. A parameter that is not in it
//! is ignored and named; one that would change the answer and cannot be done is refused, never dropped.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Body, Faults};
use crate::{EngineName, ModelFacts};

/// What becomes of a parameter, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Support {
    /// The engine does it.
    Native,
    /// We do it around the engine, to the same effect.
    Emulated,
    /// Handed on to the attached server, which decides.
    Passed,
    /// Accepted without effect, and named in `x-hive-ignored-params`: the answer is not worse for it.
    Ignored,
    /// 400 `unsupported_parameter`, unless its value asks for nothing.
    Refused,
}

/// The kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name at the top of the body.
    pub name: &'static str,
    /// On mistral.rs.
    pub mistral: Support,
    /// On the scripted engine, whose answers are the same whatever the sampling.
    pub scripted: Support,
    /// Whether it has an effect only on models whose chat template switches thinking.
    pub thinking: bool,
    /// What to do instead, if it is refused; goes on from its name.
    pub instead: &'static str,
    /// Values, as JSON text, that ask for nothing and are never refused; null, which is as good as absent, is one always.
    pub neutral: &'static [&'static str],
}

/// Fields inside of parameters that have no effect, and are named as those at the top are: JSON pointers, each with the
/// value that asks for nothing.
const INNER: [(&str, &str, &str); 2] = [
    ("response_format", "/json_schema/description", "\"\""),
    // Chunks of equal length, against eavesdroppers who count.
    ("stream_options", "/include_obfuscation", "false"),
];

/// What the gateway sees to, whatever an attached server makes of it.
const KEPT_ANYWHERE: [&str; 2] = ["stop", "encoding_format"];

const fn same(name: &'static str, support: Support) -> Parameter {
    Parameter {
        name,
        mistral: support,
        scripted: support,
        thinking: false,
        instead: "",
        neutral: &[],
    }
}

const fn native(name: &'static str) -> Parameter {
    same(name, Support::Native)
}

const fn emulated(name: &'static str) -> Parameter {
    same(name, Support::Emulated)
}

const fn ignored(name: &'static str) -> Parameter {
    same(name, Support::Ignored)
}

/// Read by the chat templates of models that think before they answer.
const fn thinking(name: &'static str) -> Parameter {
    Parameter {
        scripted: Support::Ignored,
        thinking: true,
        ..same(name, Support::Native)
    }
}

const fn refused(name: &'static str, neutral: &'static [&'static str], instead: &'static str) -> Parameter {
    Parameter {
        instead,
        neutral,
        ..same(name, Support::Refused)
    }
}

const SCHEMA: &str = "is not read here; send `response_format` with a JSON schema instead";
const NO_AUDIO: &str = "asks for speech, and the models here give text; leave it out";
const SAMPLER: &str = "is a way of sampling that the engines here do not have; temperature, top_p, top_k and min_p are";
const TEMPLATE: &str = "would change the model's chat template, which is fixed here; leave it out";
const LENGTH: &str = "is not kept here; the model ends its answers itself";

/// Sampling, length and vendors' parameters that chat and completions share.
const GENERATION: &[Parameter] = &[
    emulated("temperature"),
    emulated("top_p"),
    emulated("top_k"),
    emulated("min_p"),
    emulated("frequency_penalty"),
    emulated("presence_penalty"),
    emulated("repetition_penalty"),
    emulated("repeat_penalty"),
    emulated("logit_bias"),
    emulated("seed"),
    emulated("stop"),
    emulated("n"),
    emulated("logprobs"),
    native("max_tokens"),
    native("model"),
    native("stream"),
    emulated("stream_options"),
    ignored("user"),
    // vLLM's, SGLang's, TGI's.
    refused("min_tokens", &["0"], LENGTH),
    refused("ignore_eos", &["false"], LENGTH),
    refused(
        "stop_token_ids",
        &["[]"],
        "is not read here; send the texts in `stop` instead",
    ),
    refused(
        "include_stop_str_in_output",
        &["false"],
        "is not done here; the text of `stop` is never part of the answer",
    ),
    refused(
        "skip_special_tokens",
        &["true"],
        "must be true here; special tokens are never part of the answer",
    ),
    refused("spaces_between_special_tokens", &["true"], "must be true here"),
    refused("bad_words", &["[]"], "is not read here; send `logit_bias` instead"),
    refused(
        "allowed_token_ids",
        &["[]"],
        "is not read here; send `logit_bias` instead",
    ),
    refused("logits_processors", &["[]"], SAMPLER),
    refused("use_beam_search", &["false"], SAMPLER),
    refused("length_penalty", &["1"], SAMPLER),
    refused(
        "prompt_logprobs",
        &[],
        "is not computed here; `logprobs` are those of the answer",
    ),
    refused(
        "truncate_prompt_tokens",
        &[],
        "is never done here; send a prompt that fits",
    ),
    refused("guided_json", &[], SCHEMA),
    refused("guided_regex", &["\"\""], SCHEMA),
    refused("guided_choice", &["[]"], SCHEMA),
    refused("guided_grammar", &["\"\""], SCHEMA),
    refused("structured_outputs", &["{}"], SCHEMA),
    refused("regex", &["\"\""], SCHEMA),
    refused("ebnf", &["\"\""], SCHEMA),
    ignored("guided_decoding_backend"),
    ignored("priority"),
    ignored("request_id"),
    ignored("cache_salt"),
    // llama.cpp's and Ollama's.
    refused("grammar", &["\"\""], SCHEMA),
    refused("json_schema", &[], SCHEMA),
    refused("format", &["\"\""], SCHEMA),
    refused("mirostat", &["0"], SAMPLER),
    refused("typical_p", &["1"], SAMPLER),
    refused("tfs_z", &["1"], SAMPLER),
    refused("top_a", &["0"], SAMPLER),
    refused("dry_multiplier", &["0"], SAMPLER),
    refused("xtc_probability", &["0"], SAMPLER),
    refused("dynatemp_range", &["0"], SAMPLER),
    refused("samplers", &[], SAMPLER),
    refused("num_predict", &["-1"], "is not read here; send `max_tokens` instead"),
    refused("n_predict", &["-1"], "is not read here; send `max_tokens` instead"),
    refused(
        "options",
        &["{}"],
        "is not read here; send its fields at the top of the body",
    ),
    ignored("mirostat_eta"),
    ignored("mirostat_tau"),
    ignored("repeat_last_n"),
    ignored("num_ctx"),
    ignored("num_gpu"),
    ignored("num_thread"),
    ignored("num_batch"),
    ignored("num_keep"),
    ignored("use_mmap"),
    ignored("use_mlock"),
    ignored("keep_alive"),
    ignored("cache_prompt"),
    ignored("id_slot"),
];

const CHAT: &[Parameter] = &[
    native("messages"),
    native("max_completion_tokens"),
    emulated("top_logprobs"),
    emulated("tools"),
    emulated("tool_choice"),
    emulated("parallel_tool_calls"),
    emulated("response_format"),
    refused("functions", &["[]"], "is the older form; send `tools` instead"),
    refused(
        "function_call",
        &["\"none\"", "\"auto\""],
        "is the older form; send `tool_choice` instead",
    ),
    refused("modalities", &["[]", "[\"text\"]"], NO_AUDIO),
    refused("audio", &[], NO_AUDIO),
    refused(
        "web_search_options",
        &[],
        "asks for a search of the web, which nobody here makes; leave it out",
    ),
    // Its effect is on the time an answer takes, never on its text.
    ignored("prediction"),
    ignored("metadata"),
    ignored("moderation"),
    ignored("prompt_cache_key"),
    ignored("prompt_cache_options"),
    ignored("prompt_cache_retention"),
    ignored("safety_identifier"),
    ignored("service_tier"),
    ignored("store"),
    ignored("verbosity"),
    refused("chat_template", &["\"\""], TEMPLATE),
    refused("documents", &["[]"], TEMPLATE),
    refused(
        "continue_final_message",
        &["false"],
        "is not done here; send a completion instead",
    ),
    refused(
        "add_generation_prompt",
        &["true"],
        "must be true here; send a completion instead",
    ),
    refused("echo", &["false"], "is not done in a chat; send a completion instead"),
    refused("best_of", &["1"], "is not done in a chat; send `n` instead"),
    thinking("reasoning_effort"),
    thinking("enable_thinking"),
    // Of its fields `enable_thinking` and `reasoning_effort`; any other is refused.
    thinking("chat_template_kwargs"),
    // Other servers' names for the same.
    ignored("think"),
    ignored("thinking"),
    ignored("reasoning"),
    ignored("include_reasoning"),
];

const COMPLETIONS: &[Parameter] = &[
    native("prompt"),
    emulated("echo"),
    refused(
        "suffix",
        &["\"\""],
        "asks for text in the middle, which the models here do not write; leave it out",
    ),
    // Equal to `n` it changes nothing, which the reader of the request knows.
    emulated("best_of"),
];

const EMBEDDINGS: &[Parameter] = &[
    native("model"),
    native("input"),
    emulated("dimensions"),
    emulated("encoding_format"),
    ignored("user"),
    refused("truncate_prompt_tokens", &[], "is never done here; send texts that fit"),
    refused("task", &["\"\""], "is not read here; put the instruction into the text"),
    refused("instruction", &["\"\""], "is not read here; put it into the text"),
];

/// Every row for a kind of request.
pub fn table(kind: Kind) -> impl Iterator<Item = &'static Parameter> {
    let (own, shared): (_, &[Parameter]) = match kind {
        Kind::Chat => (CHAT, GENERATION),
        Kind::Completions => (COMPLETIONS, GENERATION),
        Kind::Embeddings => (EMBEDDINGS, &[]),
    };
    own.iter().chain(shared)
}

impl Parameter {
    /// What becomes of it on a worker of which this is known; without an engine, it is an attached server.
    pub fn on(&self, facts: &ModelFacts) -> Support {
        let thinks = facts.capabilities.is_some_and(|can| can.thinking);
        match facts.engine {
            Some(EngineName::Mistral) if self.thinking && !thinks => Support::Ignored,
            Some(EngineName::Mistral) => self.mistral,
            Some(EngineName::Scripted) => self.scripted,
            None if KEPT_ANYWHERE.contains(&self.name) => Support::Emulated,
            None => Support::Passed,
        }
    }
}

/// Judges the parameters of a body: the names of those that will have no effect, and a fault for each that is refused.
pub fn judge(kind: Kind, facts: &ModelFacts, body: &Body<'_>, faults: &mut Faults) -> Vec<String> {
    if facts.engine.is_none() {
        return Vec::new();
    }
    let mut ignored = Vec::new();
    for name in body.names() {
        let row = table(kind).find(|row| row.name == name);
        match row.map_or(Support::Ignored, |row| row.on(facts)) {
            Support::Ignored => ignored.push(name.to_owned()),
            Support::Refused => {
                let asked = body.value(name);
                if let Some(row) = row.filter(|row| !asked.is_none_or(|asked| is_any_of(&asked, row.neutral))) {
                    faults.unsupported(name, row.instead);
                }
            }
            Support::Native | Support::Emulated | Support::Passed => {}
        }
    }
    let inner = INNER.iter().filter(|(name, at, neutral)| {
        let within = body.value(name);
        let asked = within.as_ref().and_then(|value| value.pointer(at));
        asked.is_some_and(|asked| !asked.is_null() && !is_any_of(asked, &[*neutral]))
    });
    ignored.extend(inner.map(|(name, at, _)| format!("{name}{}", at.replace('/', "."))));
    ignored
}

/// Whether a value is one of those, which are JSON text; 1.0 is 1.
fn is_any_of(value: &Value, texts: &[&str]) -> bool {
    let numbers = |one: &Value, other: &Value| Some(one.as_f64()?.partial_cmp(&other.as_f64()?)?.is_eq());
    let same = |other: Value| numbers(value, &other).unwrap_or(*value == other);
    texts.iter().any(|text| serde_json::from_str(text).is_ok_and(same))
}

/// The table as Markdown, for documents.
pub fn markdown(kind: Kind) -> String {
    let mut text = String::from("| parameter | mistral | scripted |\n|---|---|---|\n");
    for row in table(kind) {
        let word = |support: Support| format!("{support:?}").to_lowercase();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} |",
            row.name,
            word(row.mistral),
            word(row.scripted)
        );
    }
    text
}
