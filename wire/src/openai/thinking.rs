//! Whether a model thinks before it answers, and how much: for chat templates that read it.

use serde_json::Value;

use super::{body::shown, reading::Reading};

/// What is asked of a model's thinking; where nothing is, it thinks as it is used to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thinking {
    /// Whether it does.
    pub enabled: Option<bool>,
    /// How much.
    pub effort: Option<Effort>,
}

/// How much a model thinks; OpenAI's finer steps count as the nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Little.
    Low,
    /// As usual.
    Medium,
    /// Much.
    High,
}

/// Reads `reasoning_effort`, `enable_thinking` and `chat_template_kwargs`; of two that differ the later one counts.
pub(super) fn read(reading: &mut Reading<'_>) -> Thinking {
    let mut thinking = Thinking::default();
    for name in ["reasoning_effort", "enable_thinking"] {
        if let Some(value) = reading.body.value(name) {
            thinking.set(name, name, &value, reading);
        }
    }
    match reading.body.value("chat_template_kwargs") {
        None => {}
        Some(Value::Object(fields)) => {
            for (name, value) in fields {
                let at = format!("chat_template_kwargs.{}", shown(&name));
                thinking.set(&name, &at, &value, reading);
            }
        }
        Some(_) => {
            let rule = "must be an object such as {\"enable_thinking\": false}";
            reading.faults.unsupported("chat_template_kwargs", rule);
        }
    }
    thinking
}

impl Thinking {
    fn set(&mut self, name: &str, at: &str, value: &Value, reading: &mut Reading<'_>) {
        match (name, value) {
            (_, Value::Null) => {}
            ("enable_thinking" | "thinking", Value::Bool(enabled)) => self.enabled = Some(*enabled),
            ("enable_thinking" | "thinking", _) => reading.faults.unsupported(at, "must be true or false"),
            ("reasoning_effort", value) => match value.as_str() {
                Some("none") => self.enabled = Some(false),
                Some("minimal" | "low") => self.effort = Some(Effort::Low),
                Some("medium") => self.effort = Some(Effort::Medium),
                Some("high" | "xhigh" | "max") => self.effort = Some(Effort::High),
                _ => reading
                    .faults
                    .unsupported(at, "must be none, minimal, low, medium, high or xhigh"),
            },
            _ => {
                let rule = "is not given to the model's chat template; only enable_thinking and reasoning_effort are";
                reading.faults.unsupported(at, rule);
            }
        }
    }
}
