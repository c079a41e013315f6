//! Whether a model can do what a request asks of it, by what its worker says of it; what is not known is let through.

use super::{ChatRequest, Faults, Format, Part, parameters::Kind};
use crate::{Capabilities, ModelFacts, ModelName};

/// What the workers of one model can do between them: whatever one of them can. Where they differ in what the model is,
/// the first one's word counts.
pub fn together<'a>(all: impl IntoIterator<Item = &'a ModelFacts>) -> ModelFacts {
    all.into_iter().fold(ModelFacts::default(), |sum, one| ModelFacts {
        context_length: sum.context_length.max(one.context_length),
        quantization: sum.quantization.or_else(|| one.quantization.clone()),
        architecture: sum.architecture.or_else(|| one.architecture.clone()),
        engine: sum.engine.or(one.engine),
        capabilities: match (sum.capabilities, one.capabilities) {
            (Some(a), Some(b)) => Some(either(a, b)),
            (a, b) => a.or(b),
        },
    })
}

fn either(a: Capabilities, b: Capabilities) -> Capabilities {
    Capabilities {
        chat: a.chat || b.chat,
        completions: a.completions || b.completions,
        embeddings: a.embeddings || b.embeddings,
        vision: a.vision || b.vision,
        tools: a.tools || b.tools,
        structured_output: a.structured_output || b.structured_output,
        thinking: a.thinking || b.thinking,
    }
}

/// Whether the model takes this kind of request at all.
pub fn check_kind(kind: Kind, model: &ModelName, facts: &ModelFacts, faults: &mut Faults) {
    let Some(can) = facts.capabilities else { return };
    let (able, verb) = match kind {
        Kind::Chat => (can.chat, "hold a conversation"),
        Kind::Completions => (can.completions, "continue a text"),
        Kind::Embeddings => (can.embeddings, "make embeddings"),
    };
    if !able {
        let rule = format!("is `{model}`, which cannot {verb}; GET /v1/models tells what each model can do");
        faults.invalid("model", rule);
    }
}

/// Whether the model can read and do what a conversation holds.
pub fn check_chat(request: &ChatRequest, model: &ModelName, facts: &ModelFacts, faults: &mut Faults) {
    let Some(can) = facts.capabilities else { return };
    for (at, part) in request.media() {
        match part {
            Part::Image { .. } if !can.vision => {
                let rule =
                    format!("is an image, but `{model}` reads text only; send text, or choose a model that sees");
                faults.unsupported(format!("{at}.type"), rule);
            }
            part if part.is_remote() => {
                let rule = "must be a data: URL with the image in it; nothing is fetched from elsewhere";
                faults.unsupported(format!("{at}.image_url.url"), rule);
            }
            _ => {}
        }
    }
    if !can.tools && !request.tools.is_empty() {
        faults.unsupported("tools", format!("must be left out: `{model}` cannot call functions"));
    }
    if !can.structured_output && request.format != Format::Text {
        faults.unsupported(
            "response_format",
            format!("must be text: `{model}` cannot keep to a schema"),
        );
    }
}
