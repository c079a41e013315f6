//! How the next token is chosen: the fields that chat and completions share.

use serde_json::Value;

use super::{FaultKind, reading::Reading};

/// A range that OpenAI's API has, for whoever answers.
const OPENAIS: FaultKind = FaultKind::Invalid;
/// A range of a parameter that vendors brought: of our own engines, for other servers may have another.
const VENDORS: FaultKind = FaultKind::Unsupported;

/// How to choose among the tokens; the defaults are OpenAI's.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 always takes the likeliest; 0 to 2.
    pub temperature: f32,
    /// Only among that many of the likeliest.
    pub top_k: Option<u32>,
    /// Only among the likeliest that together reach this probability.
    pub top_p: f32,
    /// Only those at least this fraction as likely as the likeliest.
    pub min_p: f32,
    /// Subtracted from the logit of every token generated before; -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted once for every time a token was generated before; -2 to 2.
    pub frequency_penalty: f32,
    /// Divides the logits of tokens of the prompt and the answer; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Makes the choices repeatable; none: random.
    pub seed: Option<u64>,
    /// Added to the logits of single tokens; -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

impl Sampling {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "ranges are checked, and engines compute in f32"
    )]
    pub(super) fn read(reading: &mut Reading<'_>) -> Self {
        let usual = Self::default();
        let mut number =
            |name, least, most, kind, usual: f32| reading.number(name, least, most, kind).map_or(usual, |n| n as f32);
        let repetition = number("repeat_penalty", 0.01, 100.0, VENDORS, usual.repetition_penalty);
        Self {
            temperature: number("temperature", 0.0, 2.0, OPENAIS, usual.temperature),
            top_p: number("top_p", 0.0, 1.0, OPENAIS, usual.top_p),
            min_p: number("min_p", 0.0, 1.0, VENDORS, usual.min_p),
            presence_penalty: number("presence_penalty", -2.0, 2.0, OPENAIS, usual.presence_penalty),
            frequency_penalty: number("frequency_penalty", -2.0, 2.0, OPENAIS, usual.frequency_penalty),
            repetition_penalty: number("repetition_penalty", 0.01, 100.0, VENDORS, repetition),
            // 0 and -1 are how others spell "off".
            top_k: reading
                .whole("top_k", -1, u32::MAX.into(), VENDORS)
                .and_then(|k| u32::try_from(k).ok())
                .filter(|k| *k > 0),
            seed: reading
                .whole("seed", i64::MIN, i64::MAX, OPENAIS)
                .map(i64::cast_unsigned),
            logit_bias: logit_bias(reading),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "ranges are checked, and engines compute in f32"
)]
fn logit_bias(reading: &mut Reading<'_>) -> Vec<(u32, f32)> {
    let biases = match reading.body.value("logit_bias") {
        None => return Vec::new(),
        Some(Value::Object(biases)) => Some(biases),
        Some(_) => None,
    };
    let pair = |(token, bias): (&String, &Value)| match (token.parse(), bias.as_f64()) {
        (Ok(token), Some(bias)) if (-100.0..=100.0).contains(&bias) => Some((token, bias as f32)),
        _ => None,
    };
    let read: Option<Vec<_>> = biases.as_ref().and_then(|biases| biases.iter().map(pair).collect());
    read.unwrap_or_else(|| {
        reading.faults.invalid(
            "logit_bias",
            "must be an object of token numbers, each with a bias from -100 to 100",
        );
        Vec::new()
    })
}
