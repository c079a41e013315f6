//! From a client's request to the engine's: what is to be generated, how often, and in which form it is told.
//!
//! The reading itself is `wire`'s, the same as the gateway's; what only this worker's model can judge is judged here
//! or by the engine.

use wire::{
    ModelFacts, ModelName,
    openai::{ChatRequest, CompletionRequest, Faults, Format, Tool, ToolChoice, ability},
};

use super::refusal::Refusal;
use crate::engine::{Prompt, Request, Schema, Tools};

/// Work for the engine, and how to tell what comes of it.
#[derive(Debug)]
pub struct Order {
    /// The prompts, in the order of their choices.
    pub requests: Vec<Request>,
    /// Choices for each prompt.
    pub n: u32,
    /// With a last chunk that tells the usage.
    pub include_usage: bool,
    /// The form it is told in.
    pub form: Form,
}

/// OpenAI's two forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A message of the assistant's.
    Chat,
    /// A text that goes on, with its beginning or without.
    Text {
        /// The prompt comes first.
        echo: bool,
    },
}

impl Order {
    /// Reads a conversation for `model`, of which `facts` tell what it can do.
    pub fn chat(body: &[u8], model: &ModelName, facts: &ModelFacts) -> Result<Self, Refusal> {
        let asked = ChatRequest::read(body)?;
        check_model(asked.model.as_ref(), model)?;
        check_stream(asked.stream)?;
        let mut faults = Faults::default();
        ability::check_chat(&asked, model, facts, &mut faults);
        let asked = faults.unless(asked)?;
        let tools = tools(&asked);
        let schema = match asked.format {
            Format::Text => None,
            Format::Json => Some(Schema {
                value: serde_json::json!({"type": "object"}),
                strict: true,
            }),
            Format::Schema { schema, strict } => Some(Schema { value: schema, strict }),
        };
        let request = Request {
            prompt: Prompt::Chat(asked.messages),
            max_tokens: asked.max_tokens,
            sampling: asked.sampling,
            stop: asked.stop,
            schema,
            tools,
            logprobs: asked.logprobs,
            thinking: asked.thinking,
        };
        Ok(Self {
            requests: vec![request],
            n: asked.n,
            include_usage: asked.include_usage,
            form: Form::Chat,
        })
    }

    /// Reads texts to continue for `model`.
    pub fn completion(body: &[u8], model: &ModelName) -> Result<Self, Refusal> {
        let asked = CompletionRequest::read(body)?;
        check_model(asked.model.as_ref(), model)?;
        check_stream(asked.stream)?;
        let request = |prompt| Request {
            prompt: Prompt::Raw(prompt),
            max_tokens: Some(asked.max_tokens),
            sampling: asked.sampling.clone(),
            stop: asked.stop.clone(),
            logprobs: asked.logprobs,
            ..Request::default()
        };
        Ok(Self {
            requests: asked.prompts.into_iter().map(request).collect(),
            n: asked.n,
            include_usage: asked.include_usage,
            form: Form::Text { echo: asked.echo },
        })
    }
}

/// What may be called; none if nothing may.
fn tools(asked: &ChatRequest) -> Option<Tools> {
    let place = |tool: &Tool| {
        asked
            .tools
            .iter()
            .position(|other| other.name == tool.name)
            .unwrap_or(0)
    };
    let list: Vec<(usize, Tool)> = asked.callable().map(|tool| (place(tool), tool.clone())).collect();
    (!list.is_empty()).then(|| Tools {
        list,
        must: matches!(asked.tool_choice, ToolChoice::Required | ToolChoice::Function(_)),
        // A function that is named is called once.
        parallel: asked.parallel_tool_calls && !matches!(asked.tool_choice, ToolChoice::Function(_)),
    })
}

/// A worker serves one model.
pub fn check_model(asked: Option<&ModelName>, model: &ModelName) -> Result<(), Refusal> {
    match asked {
        Some(asked) if asked == model => Ok(()),
        _ => Err(Refusal::WrongModel),
    }
}

/// A client that leaves is noticed by what can no longer be sent to it, so all is sent as it comes.
fn check_stream(asked: bool) -> Result<(), Refusal> {
    let message = "`stream` must be true: a worker only streams. Ask its gateway, which makes one piece of it.";
    asked.then_some(()).ok_or_else(|| Refusal::Unsupported {
        param: "stream",
        message: message.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};
    use wire::Capabilities;

    use super::*;

    fn chat(more: Value) -> Result<Order, Refusal> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true,
            "tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]});
        let (Value::Object(body), Value::Object(more)) = (&mut body, more) else {
            unreachable!()
        };
        body.extend(more);
        let facts = ModelFacts {
            capabilities: Some(Capabilities {
                tools: true,
                ..Capabilities::default()
            }),
            ..ModelFacts::default()
        };
        Order::chat(&serde_json::to_vec(body).unwrap(), &"m".parse().unwrap(), &facts)
    }

    /// Places of what may be called, whether something must be, and whether several may be.
    fn callable(choice: Value) -> Option<(Vec<usize>, bool, bool)> {
        let tools = chat(choice).unwrap().requests.remove(0).tools?;
        let places = tools.list.iter().map(|(place, _)| *place).collect();
        Some((places, tools.must, tools.parallel))
    }

    #[test]
    fn every_form_of_tool_choice_narrows_what_may_be_called() {
        let named = json!({"type": "function", "function": {"name": "g"}});
        assert_eq!(callable(json!({})), Some((vec![0, 1], false, true)));
        assert_eq!(callable(json!({"tool_choice": "none"})), None);
        assert_eq!(callable(json!({"tools": null})), None);
        assert_eq!(
            callable(json!({"tool_choice": "required"})),
            Some((vec![0, 1], true, true))
        );
        assert_eq!(callable(json!({"tool_choice": named})), Some((vec![1], true, false)));
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}});
        assert_eq!(
            callable(json!({"tool_choice": allowed, "parallel_tool_calls": false})),
            Some((vec![1], false, false))
        );
    }

    #[test]
    fn another_model_and_an_image_are_refused_by_name() {
        assert!(matches!(chat(json!({"model": "other"})), Err(Refusal::WrongModel)));
        let image = json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]);
        let Err(Refusal::Faults(faults)) = chat(json!({"messages": [{"role": "user", "content": image}]})) else {
            panic!("an image is no fault")
        };
        assert_eq!(faults.param(), Some("messages[0].content[1].type"));
        assert!(faults.to_string().contains("`m` reads text only"), "{faults}");
    }
}
