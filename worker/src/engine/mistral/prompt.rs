//! From a request to the model's tokens: by its chat template, or as the text stands.
//!
//! The engine's own types come through [`super`], which alone names their crate.

use serde_json::Value;
use wire::openai::{Content, Effort, Input, Message, Role};

use super::{EngineTool, Function, MessageContent, Pipeline, ReasoningEffort, Speech, ToolType};
use crate::engine::{
    EngineError, Prompt, Request,
    sight::Sight,
    tools::{self, Dialect},
};

/// The prompt as the model sees it, with as many tokens for each image as `images` says.
pub fn tokenize(
    pipeline: &dyn Pipeline,
    speech: &Speech,
    request: &Request,
    images: &[u64],
    context: u32,
) -> Result<Vec<u32>, EngineError> {
    let biased = request.sampling.logit_bias.iter().map(|(token, _)| token);
    known(pipeline, biased, "logit_bias")?;
    if let Prompt::Raw(input) = &request.prompt {
        let tokens = tokens_of(pipeline, input.clone(), "prompt")?;
        speech.check_marks(&tokens, 0, "prompt")?;
        return Ok(tokens);
    }
    let (mut tokens, text) = rendered(pipeline, speech, request)?;
    speech.check_marks(&tokens, images.len(), "messages")?;
    if let (Some(eyes), [_, ..]) = (&speech.eyes, images) {
        // Far too many are not written out first.
        let all = (tokens.len() - images.len()) as u64 + images.iter().sum::<u64>();
        if all > context.into() {
            let prompt = u32::try_from(all).unwrap_or(u32::MAX);
            let asked = request.max_tokens;
            return Err(EngineError::ContextLength { context, prompt, asked });
        }
        return spread(pipeline, &eyes.sight, &tokens, images);
    }
    // Templates that write the begin mark meet tokenizers that add it: one is enough.
    let begin = pipeline.get_chat_template().and_then(|template| template.bos_tok());
    if begin.is_some_and(|begin| text.starts_with(&begin)) && tokens.len() > 1 && tokens[0] == tokens[1] {
        tokens.remove(0);
    }
    Ok(tokens)
}

/// What the engine makes of a prompt that has images: it goes back to text, and to tokens again.
fn spread(pipeline: &dyn Pipeline, sight: &Sight, tokens: &[u32], images: &[u64]) -> Result<Vec<u32>, EngineError> {
    let failed = |error: &dyn std::fmt::Display| EngineError::Failed(format!("the tokenizer fails: {error}"));
    let tokenizer = pipeline.tokenizer().ok_or_else(no_tokenizer)?;
    let text = tokenizer.decode(tokens, false).map_err(|error| failed(&error))?;
    let encoding = tokenizer
        .encode_fast(sight.spread(&text, images), false)
        .map_err(|error| failed(&error))?;
    Ok(encoding.get_ids().to_vec())
}

/// A conversation as the model's chat template reads it. The engine renders one that has images itself and takes calls
/// into its own hands when it is told of tools: so there they are told in words.
pub fn conversation<M: FromIterator<(String, MessageContent)>>(speech: &Speech, request: &Request) -> Vec<M> {
    let messages = match &request.prompt {
        Prompt::Raw(_) => Vec::new(),
        Prompt::Chat(messages) if speech.tells_tools(request) => messages.clone(),
        Prompt::Chat(messages) => tools::spell_out(messages.clone(), request.tools.as_ref()),
    };
    let dialect = speech.grounds.dialect;
    let messages = messages.iter().map(|message| fields(message, dialect));
    messages.map(M::from_iter).collect()
}

/// How much to think, in the engine's terms.
pub fn effort(request: &Request) -> Option<ReasoningEffort> {
    request.thinking.effort.map(|effort| match effort {
        Effort::Low => ReasoningEffort::Low,
        Effort::Medium => ReasoningEffort::Medium,
        Effort::High => ReasoningEffort::High,
    })
}

/// A conversation by the chat template: its tokens, and its text.
fn rendered(pipeline: &dyn Pipeline, speech: &Speech, request: &Request) -> Result<(Vec<u32>, String), EngineError> {
    let shown = request
        .tools
        .iter()
        .filter(|_| speech.tells_tools(request))
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
    let processor = pipeline.get_processor();
    let rendered = processor.process(
        pipeline,
        conversation(speech, request),
        true,
        true,
        request.thinking.enabled,
        effort(request),
        shown.collect(),
    );
    rendered.map_err(|error| EngineError::Invalid {
        param: "messages".to_owned(),
        message: format!("`messages` do not fit the model's chat template: {error:#}."),
    })
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
    let text = |text: &str| MessageContent::Left(text.to_owned());
    let call_id = message.tool_call_id.as_deref().map(id);
    let fields = [
        ("role", Some(text(role.as_str()))),
        ("content", Some(content(&message.content))),
        ("name", message.name.as_deref().map(text)),
        ("reasoning_content", message.reasoning.as_deref().map(text)),
        ("tool_call_id", call_id.as_deref().map(text)),
    ];
    let fields = fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
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
    fields.chain(calls).collect()
}

/// What a message says: its text, or its parts if there is an image among them.
fn content(content: &Content) -> MessageContent {
    if content.parts().iter().all(|part| part.text().is_some()) {
        return MessageContent::Left(content.text());
    }
    let parts = content.parts().iter().map(|part| {
        let keys = match part.text() {
            Some(text) => vec![("type", Value::from("text")), ("text", text.into())],
            None => vec![("type", "image".into())],
        };
        keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    });
    MessageContent::Right(parts.collect())
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
