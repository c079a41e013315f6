//! From a request to the model's tokens: by its chat template, or as the text stands.
//!
//! The engine's own types come through [`super`], which alone names their crate.

use serde_json::Value;
use wire::openai::{Effort, Input, Message, Role};

use super::{EngineTool, Function, MessageContent, Pipeline, ReasoningEffort, Speech, ToolType};
use crate::engine::{
    EngineError, Prompt, Request,
    tools::{self, Dialect},
};

/// The prompt as the model sees it.
pub fn tokenize(pipeline: &dyn Pipeline, speech: &Speech, request: &Request) -> Result<Vec<u32>, EngineError> {
    let biased = request.sampling.logit_bias.iter().map(|(token, _)| token);
    known(pipeline, biased, "logit_bias")?;
    let messages = match &request.prompt {
        Prompt::Raw(input) => return tokens_of(pipeline, input.clone(), "prompt"),
        Prompt::Chat(messages) if speech.knows_tools => messages.clone(),
        Prompt::Chat(messages) => tools::spell_out(messages.clone(), request.tools.as_ref()),
    };
    let dialect = speech.grounds.dialect;
    let messages = messages
        .iter()
        .map(|message| fields(message, dialect).into_iter().collect());
    let shown = request
        .tools
        .iter()
        .filter(|_| speech.knows_tools)
        .flat_map(|tools| &tools.list);
    let shown = shown.map(|(_, tool)| EngineTool {
        tp: ToolType::Function,
        function: Function {
            name: tool.name.clone(),
            description: tool.description.clone(),
            parameters: tool
                .parameters
                .as_object()
                .map(|keys| keys.clone().into_iter().collect()),
        },
    });
    let effort = request.thinking.effort.map(|effort| match effort {
        Effort::Low => ReasoningEffort::Low,
        Effort::Medium => ReasoningEffort::Medium,
        Effort::High => ReasoningEffort::High,
    });
    let rendered = pipeline.get_processor().process(
        pipeline,
        messages.collect(),
        true,
        true,
        request.thinking.enabled,
        effort,
        shown.collect(),
    );
    let (mut tokens, text) = rendered.map_err(|error| EngineError::Invalid {
        param: "messages".to_owned(),
        message: format!("`messages` do not fit the model's chat template: {error:#}."),
    })?;
    // Templates that write the begin mark meet tokenizers that add it: one is enough.
    let begin = pipeline.get_chat_template().and_then(|template| template.bos_tok());
    if begin.is_some_and(|begin| text.starts_with(&begin)) && tokens.len() > 1 && tokens[0] == tokens[1] {
        tokens.remove(0);
    }
    Ok(tokens)
}

/// A message as chat templates read it.
fn fields(message: &Message, dialect: Dialect) -> Vec<(String, MessageContent)> {
    let role = if message.role == Role::Developer {
        Role::System
    } else {
        message.role
    };
    // Mistral's templates want ids of nine characters.
    let id = |id: &str| match dialect {
        Dialect::Mistral => id
            .chars()
            .rev()
            .filter(char::is_ascii_alphanumeric)
            .chain("000000000".chars())
            .take(9)
            .collect(),
        _ => id.to_owned(),
    };
    let mut fields = vec![("role", role.as_str().to_owned()), ("content", message.content.text())];
    fields.extend(message.name.clone().map(|name| ("name", name)));
    fields.extend(message.reasoning.clone().map(|text| ("reasoning_content", text)));
    fields.extend(message.tool_call_id.as_deref().map(|call| ("tool_call_id", id(call))));
    let texts = fields
        .into_iter()
        .map(|(key, text)| (key.to_owned(), MessageContent::Left(text)));
    let calls = message.tool_calls.iter().map(|call| {
        let function = serde_json::json!({"name": call.name, "arguments": tools::parsed_arguments(call)});
        let keys = [
            ("id", Value::from(id(&call.id))),
            ("type", "function".into()),
            ("function", function),
        ];
        keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    });
    let calls =
        (!message.tool_calls.is_empty()).then(|| ("tool_calls".to_owned(), MessageContent::Right(calls.collect())));
    texts.chain(calls).collect()
}

/// The tokens of a text as it stands, or token ids if they are the model's.
pub fn tokens_of(pipeline: &dyn Pipeline, input: Input, param: &str) -> Result<Vec<u32>, EngineError> {
    let invalid = |message: String| EngineError::Invalid {
        param: param.to_owned(),
        message,
    };
    let tokenizer = pipeline.tokenizer().ok_or_else(no_tokenizer)?;
    let mut tokens = match input {
        Input::Tokens(tokens) => tokens,
        Input::Text(text) => {
            let encoding = tokenizer.encode_fast(text, true);
            let encoding =
                encoding.map_err(|error| invalid(format!("`{param}` cannot be made tokens of: {error}.")))?;
            encoding.get_ids().to_vec()
        }
    };
    known(pipeline, &tokens, param)?;
    if tokens.is_empty() {
        // An empty text goes on from the mark between texts, as OpenAI's does.
        tokens.extend(pipeline.get_metadata().eos_tok.first());
    }
    Ok(tokens)
}

fn no_tokenizer() -> EngineError {
    EngineError::Failed("the model has no tokenizer".to_owned())
}

/// Refuses tokens that the model does not have.
fn known<'a>(
    pipeline: &dyn Pipeline,
    tokens: impl IntoIterator<Item = &'a u32>,
    param: &str,
) -> Result<(), EngineError> {
    let tokenizer = pipeline.tokenizer().ok_or_else(no_tokenizer)?;
    let size = u32::try_from(tokenizer.get_vocab_size(true)).unwrap_or(u32::MAX);
    match tokens.into_iter().find(|token| **token >= size) {
        None => Ok(()),
        Some(strange) => Err(EngineError::Invalid {
            param: param.to_owned(),
            message: format!(
                "`{param}` has the token {strange}, but the model's end at {}.",
                size - 1
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_assistant_thought_goes_back_to_its_template() {
        let thought = Message {
            role: Role::Assistant,
            reasoning: Some("hm".to_owned()),
            ..Message::default()
        };
        let told = fields(&thought, Dialect::Hermes);
        assert!(told.contains(&("reasoning_content".to_owned(), MessageContent::Left("hm".to_owned()))));
        let silent = fields(&Message::default(), Dialect::Hermes);
        assert!(silent.iter().all(|(key, _)| key != "reasoning_content"));
    }
}
