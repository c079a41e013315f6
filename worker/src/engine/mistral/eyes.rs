//! The images of a request: looked at, counted and decoded before it takes a slot.
//!
//! The engine panics over images that it cannot take, and over its own marks in a client's text: what it gets was
//! checked here. Its own types come through [`super`], which alone names their crate.

use super::{LoadError, Pipeline, Request};
use crate::engine::{
    EngineError,
    picture::{self, Picture},
    sight::{Mark, Sight},
};

/// What a model that sees needs.
pub struct Eyes {
    pub sight: Sight,
    /// Its marks, each with its token.
    marks: Vec<(u32, Mark)>,
}

impl Eyes {
    /// Finds the marks among the model's tokens.
    pub fn open(sight: Sight, pipeline: &dyn Pipeline) -> Result<Self, LoadError> {
        let tokenizer = pipeline.tokenizer();
        let token = |mark: &Mark| {
            let token = tokenizer.as_ref()?.token_to_id(mark.text)?;
            Some((token, *mark))
        };
        match sight.marks().iter().map(token).collect() {
            Some(marks) => Ok(Self { sight, marks }),
            None => Err(LoadError::Engine(format!(
                "the model sees, but its tokenizer lacks one of the marks for images ({}); download it again",
                sight
                    .marks()
                    .iter()
                    .map(|mark| mark.text)
                    .collect::<Vec<_>>()
                    .join(", ")
            ))),
        }
    }

    /// Tokens that only stand for images, and are never said.
    pub fn never_said(&self) -> Vec<u32> {
        self.marks.iter().map(|(token, _)| *token).collect()
    }

    /// The request's images with the tokens of each.
    pub fn look(&self, request: &Request) -> Result<(Vec<Picture>, Vec<u64>), EngineError> {
        let (places, data): (Vec<_>, Vec<_>) = request.prompt.images().unzip();
        let refused = |(i, why): (usize, String)| {
            let param = places.get(i).cloned().unwrap_or_default();
            let message = format!("`{param}` {why}.");
            EngineError::Invalid { param, message }
        };
        let pictures = picture::decode(data.into_iter()).map_err(refused)?;
        let tokens = pictures.iter().enumerate();
        let tokens = tokens.map(|(i, picture)| self.sight.tokens(picture.size()).map_err(|why| (i, why)));
        let tokens = tokens.collect::<Result<_, _>>().map_err(refused)?;
        Ok((pictures, tokens))
    }

    /// Refuses a prompt whose marks are not those of its images.
    pub fn check(&self, prompt: &[u32], images: usize, param: &str) -> Result<(), EngineError> {
        for (token, mark) in &self.marks {
            let found = prompt.iter().filter(|other| *other == token).count();
            let due = if mark.is_written { images } else { 0 };
            if found != due {
                return Err(EngineError::Invalid {
                    param: param.to_owned(),
                    message: format!(
                        "`{param}` holds {images} images that the model is shown, but its mark `{}` {found} times instead of \
                         {due}; leave the mark out of your text, and put images into messages of the user only.",
                        mark.text
                    ),
                });
            }
        }
        Ok(())
    }
}
