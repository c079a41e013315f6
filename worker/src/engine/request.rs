//! What an engine can be asked for, and what it is like once it has been looked at.

use std::sync::Arc;

use wire::openai::{Input, Message, Sampling, Thinking, Tool, media};

use super::{EngineError, grammar::Guide, thought::Start, tools::Dialect};

/// One prompt to go on from; checked for form, and for nothing that only a model can judge.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// What to go on from.
    pub prompt: Prompt,
    /// Most tokens to generate; none: as many as the context holds.
    pub max_tokens: Option<u32>,
    /// How to choose among the tokens.
    pub sampling: Sampling,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// The JSON schema that what is said must match.
    pub schema: Option<Schema>,
    /// What may be called instead of saying something.
    pub tools: Option<Tools>,
    /// Report log-probabilities, and of that many alternatives.
    pub logprobs: Option<u32>,
    /// Whether and how much to think first.
    pub thinking: Thinking,
}

/// What to go on from.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A conversation, oldest first, as the model's chat template writes it.
    Chat(Vec<Message>),
    /// A text or tokens as they are.
    Raw(Input),
}

impl Default for Prompt {
    fn default() -> Self {
        Self::Chat(Vec::new())
    }
}

/// A JSON schema.
#[derive(Debug, Clone, PartialEq)]
pub struct Schema {
    /// The schema: an object, or true for any JSON.
    pub value: serde_json::Value,
    /// Refuse what a grammar cannot keep, instead of leaving it to the model.
    pub strict: bool,
}

/// Functions that may be called.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools {
    /// Them, each with its place in the request.
    pub list: Vec<(usize, Tool)>,
    /// At least one must be called.
    pub must: bool,
    /// Several may be.
    pub parallel: bool,
}

impl Prompt {
    /// Its images, each with its path and its base64.
    pub(super) fn images(&self) -> impl Iterator<Item = (String, &str)> {
        let messages = match self {
            Self::Chat(messages) => messages.as_slice(),
            Self::Raw(_) => &[],
        };
        media(messages).filter_map(|(at, part)| Some((format!("{at}.image_url.url"), part.image_data()?)))
    }

    /// The prompt as text, if it came as it stands; `decode` makes text of tokens.
    pub(super) fn written(&self, decode: impl Fn(&[u32]) -> String) -> String {
        match self {
            Self::Chat(_) => String::new(),
            Self::Raw(Input::Text(text)) => text.clone(),
            Self::Raw(Input::Tokens(tokens)) => decode(tokens),
        }
    }
}

/// A request whose prompt is counted and fits.
#[derive(Clone)]
pub struct Prepared {
    /// What was asked for.
    pub(super) request: Arc<Request>,
    /// The prompt's tokens.
    pub(super) prompt: Arc<[u32]>,
    /// The prompt as text, if it came as it stands.
    pub(super) written: String,
    /// Most tokens to generate.
    pub(super) budget: u32,
    /// What holds the answer to its grammar.
    pub(super) guide: Option<Guide>,
    /// How calls are written, if any may be.
    pub(super) dialect: Option<Dialect>,
    /// Where its thoughts begin, if the model may think.
    pub(super) thought: Option<Start>,
    /// The images in the prompt, in their order.
    #[cfg(feature = "engine")]
    pub(super) pictures: Arc<[super::picture::Picture]>,
    /// Makes this choice's seed differ from its siblings'.
    pub(super) choice: u64,
}

impl Prepared {
    /// Holds the prompt against the context.
    pub(super) fn new(request: Request, prompt: Vec<u32>, context: u32) -> Result<Self, EngineError> {
        let tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let room = context.saturating_sub(tokens);
        let budget = request.max_tokens.unwrap_or(room);
        if budget > room || (room == 0 && request.max_tokens.is_none()) {
            return Err(EngineError::ContextLength {
                context,
                prompt: tokens,
                asked: request.max_tokens,
            });
        }
        Ok(Self {
            request: Arc::new(request),
            prompt: prompt.into(),
            written: String::new(),
            budget,
            guide: None,
            dialect: None,
            thought: None,
            #[cfg(feature = "engine")]
            pictures: Arc::default(),
            choice: 0,
        })
    }

    /// The same once more, as one of several choices.
    pub fn choice(&self, n: u32) -> Self {
        Self {
            choice: n.into(),
            ..self.clone()
        }
    }

    /// How many tokens the prompt has.
    pub fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.prompt.len()).unwrap_or(u32::MAX)
    }

    /// Whether the model answers a conversation in its own words, and so may think first: a grammar leaves no room for it.
    pub(super) fn may_think(&self) -> bool {
        let Request {
            prompt, schema, tools, ..
        } = &*self.request;
        matches!(prompt, Prompt::Chat(_)) && schema.is_none() && !tools.as_ref().is_some_and(|tools| tools.must)
    }

    /// The prompt as text, if it came as it stands; empty for a conversation.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// Whether log-probabilities were asked for.
    pub fn wants_logprobs(&self) -> bool {
        self.request.logprobs.is_some()
    }

    /// Whether the answer is calls and nothing else.
    pub fn must_call(&self) -> bool {
        self.request.tools.as_ref().is_some_and(|tools| tools.must)
    }

    /// Most tokens to generate.
    pub fn budget(&self) -> u32 {
        self.budget
    }

    /// How to choose among the tokens: the same request gets the same choices, and each choice its own.
    pub(super) fn sampling(&self) -> Sampling {
        let sampling = self.request.sampling.clone();
        Sampling {
            seed: sampling.seed.map(|seed| seed.wrapping_add(self.choice)),
            ..sampling
        }
    }
}
