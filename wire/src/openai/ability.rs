//! Whether a model can do what a request asks of it, by what its worker says of it; what is not known is let through.

use super::{ChatRequest, Faults, Format, Part, parameters::Kind};
use crate::{ModelFacts, ModelName};

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
