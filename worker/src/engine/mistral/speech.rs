//! What a model that answers in words brings with it: its tokens, its template, and whether it sees.
//!
//! The engine's own types come through [`super`], which alone names their crate.

use std::{collections::HashMap, path::Path, sync::Arc};

use super::{Eyes, LoadError, Pipeline, Request};
use crate::engine::{
    EngineError,
    grammar::Grounds,
    run::Vocabulary,
    thought,
    tools::{self, Dialect},
};

/// What a model that answers in words needs.
#[derive(Clone)]
pub struct Speech {
    pub vocabulary: Arc<Vocabulary>,
    pub grounds: Grounds,
    /// None: it only reads.
    pub eyes: Option<Arc<Eyes>>,
    /// Its chat template tells of tools, in a form that is read here.
    pub knows_tools: bool,
    /// Its chat template knows thoughts.
    pub reasons: bool,
    /// Its chat template switches thinking.
    pub thinks: bool,
}

impl Speech {
    /// Takes it from a loaded model.
    pub fn of(pipeline: &dyn Pipeline, path: &Path, eyes: Option<Eyes>) -> Result<Self, LoadError> {
        let metadata = pipeline.get_metadata();
        let template = pipeline
            .get_chat_template()
            .filter(|template| template.has_chat_template());
        let (Some(template), Some(vocabulary), Some(factory)) =
            (template, vocabulary(pipeline), metadata.llg_factory.clone())
        else {
            return Err(LoadError::Engine(format!(
                "{} has no chat template or no tokenizer, so it cannot chat; take an instruction-tuned variant of the model",
                path.display()
            )));
        };
        // A model may have one template, or several by name.
        let text = template
            .chat_template
            .as_ref()
            .map(|template| match template.0.as_ref().left() {
                Some(text) => text.clone(),
                None => template
                    .0
                    .as_ref()
                    .right()
                    .into_iter()
                    .flatten()
                    .flat_map(HashMap::values)
                    .cloned()
                    .collect(),
            });
        let taught = text.as_deref().and_then(Dialect::of_template);
        let grounds = Grounds {
            factory,
            ends: metadata.eos_tok.as_slice().into(),
            dialect: taught.unwrap_or(Dialect::Hermes),
        };
        Ok(Self {
            vocabulary: Arc::new(vocabulary),
            grounds,
            eyes: eyes.map(Arc::new),
            knows_tools: taught.is_some(),
            reasons: text.as_ref().is_some_and(|text| text.contains(thought::MARKS[0])),
            thinks: text.is_some_and(|text| {
                ["enable_thinking", "reasoning_effort"]
                    .iter()
                    .any(|word| text.contains(word))
            }),
        })
    }

    /// Whether the chat template tells of the tools; otherwise they are told in words.
    pub fn tells_tools(&self, request: &Request) -> bool {
        self.knows_tools && request.prompt.images().next().is_none()
    }

    /// Refuses a prompt whose marks for images are not those of its images.
    pub fn check_marks(&self, prompt: &[u32], images: usize, param: &str) -> Result<(), EngineError> {
        let mut eyes = self.eyes.iter();
        eyes.try_for_each(|eyes| eyes.check(prompt, images, param))
    }
}

/// What the model's tokens say. Special tokens are silent, but for those that begin and end a call or a thought.
fn vocabulary(pipeline: &dyn Pipeline) -> Option<Vocabulary> {
    let metadata = pipeline.get_metadata();
    let tokenizer = pipeline.tokenizer()?;
    let tokens = metadata.tok_env()?;
    let mark = |mark: &'static str| Some((tokens.tok_trie().get_special_token(mark)?, mark));
    let marks: HashMap<u32, &str> = tools::MARKS
        .into_iter()
        .chain(thought::MARKS)
        .filter_map(mark)
        .collect();
    let decode = move |ids: &[u32]| {
        let parts = ids.split_inclusive(|id| marks.contains_key(id));
        let text = parts.map(|part| {
            let mark = part
                .last()
                .and_then(|last| marks.get(last))
                .copied()
                .unwrap_or_default();
            tokenizer.decode(part, true).unwrap_or_default() + mark
        });
        text.collect()
    };
    Some(Vocabulary {
        decode: Box::new(decode),
        bytes: Box::new(move |id| tokens.tok_trie().decode_ext(&[id], true)),
        ends: metadata.eos_tok.clone(),
    })
}
