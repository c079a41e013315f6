//! `POST /v1/embeddings`, read in full.

use serde_json::Value;

use super::{Body, Faults, Input, input, reading::Reading};
use crate::ModelName;

/// The most things to embed in one request.
const MOST_INPUTS: usize = 2048;

/// Things to embed; checked for form, and for nothing that only a model can judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingRequest {
    /// The model; none if it is a name that no model can have.
    pub model: Option<ModelName>,
    /// What to embed; no text is empty, and there are at most 2048.
    pub inputs: Vec<Input>,
    /// The first so many dimensions only, scaled to length 1 again.
    pub dimensions: Option<u32>,
    /// How a vector is written.
    pub encoding: Encoding,
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Base64 of little-endian `f32`s, which OpenAI's SDKs ask for unasked.
    Base64,
}

impl EmbeddingRequest {
    /// Reads a body.
    pub fn read(bytes: &[u8]) -> Result<Self, Faults> {
        let (request, faults) = Self::examine(&Body::read(bytes)?);
        faults.unless(request)
    }

    /// What could be read of a body, and what is wrong with it.
    pub fn examine(body: &Body<'_>) -> (Self, Faults) {
        let mut reading = Reading::of(body);
        let model = reading.model();
        let inputs = input::read(&mut reading, "input", MOST_INPUTS);
        let alone = inputs.len() == 1 && !reading.body.raw("input").is_some_and(|raw| raw.starts_with('['));
        for (i, input) in inputs.iter().enumerate() {
            if matches!(input, Input::Text(text) if text.is_empty()) {
                let at = if alone {
                    "input".to_owned()
                } else {
                    format!("input[{i}]")
                };
                reading.faults.invalid(at, "is empty; there is nothing to embed");
            }
        }
        let dimensions = reading.count("dimensions", 1, u32::MAX);
        let encoding = match reading.body.value("encoding_format") {
            None => Encoding::Float,
            Some(Value::String(word)) if word == "float" => Encoding::Float,
            Some(Value::String(word)) if word == "base64" => Encoding::Base64,
            Some(_) => {
                reading.faults.invalid("encoding_format", "must be float or base64");
                Encoding::Float
            }
        };
        let request = Self {
            model,
            inputs,
            dimensions,
            encoding,
        };
        (request, reading.faults)
    }
}
