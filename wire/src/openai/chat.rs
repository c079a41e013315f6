//! `POST /v1/chat/completions`, read in full.

use serde_json::Value;

use super::{
    Body, Faults, Format, Message, Part, Sampling, Thinking, Tool, ToolChoice, format, messages, reading::Reading,
    thinking, tools,
};
use crate::ModelName;

/// The most messages in one request.
const MOST_MESSAGES: usize = 2048;
/// The most answers to one request.
pub(super) const MOST_CHOICES: u32 = 128;

/// A conversation to answer; checked for form, and for nothing that only a model can judge.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The model; none if it is a name that no model can have.
    pub model: Option<ModelName>,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// Most tokens to generate; none: as many as the context holds.
    pub max_tokens: Option<u32>,
    /// How to choose among the tokens.
    pub sampling: Sampling,
    /// Texts that end the answer and are not part of it; at most 4, none empty.
    pub stop: Vec<String>,
    /// How many answers, 1 to 128.
    pub n: u32,
    /// Report log-probabilities, and of that many alternatives (0 to 20).
    pub logprobs: Option<u32>,
    /// The form the answer must have.
    pub format: Format,
    /// What is asked of its thinking.
    pub thinking: Thinking,
    /// The functions the model knows of.
    pub tools: Vec<Tool>,
    /// Whether it may, must or must not call one.
    pub tool_choice: ToolChoice,
    /// The names of those it may call; none: all of them.
    pub allowed_tools: Option<Vec<String>>,
    /// Whether it may call several at once.
    pub parallel_tool_calls: bool,
    /// Whether the answer comes as a stream of events.
    pub stream: bool,
    /// Whether the stream ends with a chunk that tells the usage.
    pub include_usage: bool,
}

impl ChatRequest {
    /// Reads a body; what our own engines cannot do is a fault too.
    pub fn read(bytes: &[u8]) -> Result<Self, Faults> {
        let (request, faults) = Self::examine(&Body::read(bytes)?);
        faults.unless(request)
    }

    /// What could be read of a body, and what is wrong with it.
    pub fn examine(body: &Body<'_>) -> (Self, Faults) {
        let mut reading = Reading::of(body);
        let model = reading.model();
        let messages = read_messages(&mut reading);
        let max_tokens = reading.count("max_tokens", 1, u32::MAX);
        let max_tokens = reading.count("max_completion_tokens", 1, u32::MAX).or(max_tokens);
        let sampling = Sampling::read(&mut reading);
        let stop = reading.stop();
        let n = reading.count("n", 1, MOST_CHOICES).unwrap_or(1);
        let logprobs = read_logprobs(&mut reading);
        let format = format::read(&mut reading);
        let thinking = thinking::read(&mut reading);
        let tools = tools::read(&mut reading);
        let (tool_choice, allowed_tools) = tools::read_choice(&mut reading, &tools);
        let parallel_tool_calls = reading.flag("parallel_tool_calls").unwrap_or(true);
        let (stream, include_usage) = reading.stream();
        let request = Self {
            model,
            messages,
            max_tokens,
            sampling,
            stop,
            n,
            logprobs,
            format,
            thinking,
            tools,
            tool_choice,
            allowed_tools,
            parallel_tool_calls,
            stream,
            include_usage,
        };
        (request, reading.faults)
    }

    /// The functions that may be called in this answer.
    pub fn callable(&self) -> impl Iterator<Item = &Tool> {
        self.tools
            .iter()
            .filter(|tool| match (&self.tool_choice, &self.allowed_tools) {
                (ToolChoice::None, _) => false,
                (ToolChoice::Function(name), _) => tool.name == *name,
                (_, Some(allowed)) => allowed.contains(&tool.name),
                (_, None) => true,
            })
    }

    /// The parts of the conversation that are no text, each with its path.
    pub fn media(&self) -> impl Iterator<Item = (String, &Part)> {
        messages::media(&self.messages)
    }
}

fn read_messages(reading: &mut Reading<'_>) -> Vec<Message> {
    if reading.body.is_longer("messages", MOST_MESSAGES) {
        let rule = format!("has more than {MOST_MESSAGES} entries; send fewer");
        reading.faults.invalid("messages", rule);
        return Vec::new();
    }
    match reading.body.value("messages") {
        None => reading
            .faults
            .invalid("messages", "is missing; send at least one message"),
        Some(Value::Array(list)) if list.is_empty() => {
            reading.faults.invalid("messages", "is empty; send at least one");
        }
        Some(Value::Array(list)) => return messages::read(list, &mut reading.faults),
        Some(_) => reading.faults.invalid("messages", "must be a list of messages"),
    }
    Vec::new()
}

fn read_logprobs(reading: &mut Reading<'_>) -> Option<u32> {
    let wanted = reading.flag("logprobs").unwrap_or(false);
    let top = reading.count("top_logprobs", 0, 20);
    if !wanted && top.is_some_and(|top| top > 0) {
        reading.faults.invalid("top_logprobs", "needs `logprobs` to be true");
    }
    wanted.then(|| top.unwrap_or(0))
}
