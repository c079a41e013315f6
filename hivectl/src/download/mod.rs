//! Models: from a name or a source to a checked model in the store.
//!
//! In reading order: [`source`] is what may be typed, [`catalogue`] what a short name means, [`store`] where models
//! lie, [`draft`] a model in the making; [`hub`], [`mirror`] and [`local`] each fetch from one kind of source, over
//! [`web`] and [`transfer`], into a [`part`]; [`promise`] and [`weights`] (with [`gguf`]) check what came. Nothing
//! becomes a model before its size, digest and header are checked, and nothing is written outside `$HIVE_MODELS`.

mod catalogue;
mod damage;
mod draft;
mod error;
mod gguf;
mod hub;
mod local;
mod mirror;
mod part;
mod promise;
mod source;
mod store;
mod transfer;
mod web;
mod weights;

use std::path::PathBuf;

use reqwest::header::HeaderMap;
use serde::Serialize;
use wire::ModelName;

use crate::{config::Config, error::Failure, output::Output};

pub use self::{
    catalogue::{Catalogue, Entry},
    damage::damage,
    part::digest,
    store::{Manifest, Store, StoredFile},
    transfer::Patience,
};
use self::{
    draft::Draft,
    error::{Error, Result},
    hub::Hub,
    promise::Promise,
    source::Source,
    transfer::{Transfer, Wanted},
};

/// A model in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// Its name.
    pub name: ModelName,
    /// The file an engine loads, or the folder if the model has several.
    pub path: PathBuf,
    /// The size of all its files in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of its file; of several, that of the lines `sha256sum` prints for them.
    pub sha256: String,
    /// How its weights are quantised, as llama.cpp names it, if its files say so.
    pub quantization: Option<String>,
    /// Where it came from.
    pub source: String,
}

/// The model that a name or source means, from the store or, if it is not there yet or `force`, from the first of its
/// sources that gives it, under another name if one is given; and whether anything was fetched.
pub async fn fetch(
    config: &Config,
    out: &Output,
    wanted: &str,
    name: Option<&ModelName>,
    force: bool,
) -> Result<(Model, bool), Failure> {
    Ok(obtain(config, out, wanted, name, force).await?)
}

/// What was asked for.
struct Request {
    name: ModelName,
    /// Where it can be had, in the order to try.
    sources: Vec<(Source, Promise)>,
    /// Whether a source was named, so that a model of the same name from elsewhere will not do.
    is_exact: bool,
}

impl Request {
    fn read(config: &Config, store: &Store, wanted: &str, name: Option<&ModelName>) -> Result<Self> {
        let named = |default: Result<ModelName>| name.cloned().map_or(default, Ok);
        let exact = |source: Source| -> Result<Self> {
            Ok(Self {
                name: named(source.model_name())?,
                sources: vec![(source, Promise::default())],
                is_exact: true,
            })
        };
        if let Some(source) = Source::parse(wanted)? {
            return match store.owner_of(&source) {
                Some(manifest) if name.is_none() => Self::stored(&manifest),
                _ => exact(source),
            };
        }
        let catalogue = Catalogue::load(&config.home)?;
        if let Some(entry) = catalogue.get(wanted) {
            return Ok(Self {
                name: named(Ok(entry.name.clone()))?,
                sources: entry.sources()?,
                is_exact: name.is_some(),
            });
        }
        if let Some(manifest) = wanted.parse().ok().and_then(|name| store.recorded(&name)) {
            return Self::stored(&manifest);
        }
        // A bare file name comes last, so that a file that happens to lie here never hides a model.
        let path = std::path::absolute(wanted).unwrap_or_default();
        if path.exists() {
            return exact(Source::Path(path));
        }
        let known = catalogue.entries().map(|entry| entry.name.to_string()).collect();
        Err(Error::Unknown {
            wanted: wanted.to_owned(),
            known,
        })
    }

    /// A model that is, or should be, in the store already.
    fn stored(manifest: &Manifest) -> Result<Self> {
        let source = Source::parse(&manifest.source)?;
        let sources = source.map(|source| (source, Promise::default())).into_iter().collect();
        Ok(Self {
            name: manifest.name.clone(),
            sources,
            is_exact: false,
        })
    }

    fn in_store(&self, store: &Store) -> Result<Option<Manifest>> {
        let Some(manifest) = store.get(&self.name) else {
            return Ok(None);
        };
        let same = self
            .sources
            .iter()
            .find(|(source, _)| source.to_string() == manifest.source);
        match same {
            // Who names the file means it as it is now; who names the model means what is in the store.
            Some((Source::Path(path), _)) if self.is_exact && !local::is_unchanged(store, &manifest, path) => Ok(None),
            None if self.is_exact => Err(Error::Taken {
                name: self.name.to_string(),
                from: manifest.source,
            }),
            _ => Ok(Some(manifest)),
        }
    }
}

async fn obtain(
    config: &Config,
    out: &Output,
    wanted: &str,
    name: Option<&ModelName>,
    force: bool,
) -> Result<(Model, bool)> {
    let store = Store::new(&config.models);
    let request = Request::read(config, &store, wanted, name)?;
    let mut force = force;
    if !force && let Some(manifest) = request.in_store(&store)? {
        match damage::damage_since(&store, &manifest, out).await {
            None => return Ok((store.model(&manifest), false)),
            Some(problem) => {
                out.note(format_args!("{} is damaged and fetched anew: {problem}", request.name));
                force = true;
            }
        }
    }
    let waiting = || {
        out.note(format_args!(
            "{} is being downloaded by another hivectl; waiting for it",
            request.name
        ));
    };
    let mut draft = store.draft(&request.name, waiting).await?;
    // Whoever held the lock before may have fetched it.
    match request.in_store(&store) {
        Ok(Some(manifest)) if !force => {
            draft.abandon();
            return Ok((store.model(&manifest), false));
        }
        Ok(_) => {}
        Err(error) => {
            draft.abandon();
            return Err(error);
        }
    }
    match from_any(config, out, &request, &mut draft).await {
        Ok(manifest) => {
            draft.publish(&manifest)?;
            Ok((store.model(&manifest), true))
        }
        Err(error) => {
            draft.abandon();
            Err(error)
        }
    }
}

/// Tries the sources in their order, with a sentence for each that fails.
async fn from_any(config: &Config, out: &Output, request: &Request, draft: &mut Draft) -> Result<Manifest> {
    let mut sources = request.sources.iter().peekable();
    while let Some((source, promise)) = sources.next() {
        let outcome = from_one(config, out, &request.name, source, promise, draft).await;
        match (outcome, sources.peek()) {
            (Err(error), Some((next, _))) if error.is_the_sources_fault() => {
                out.note(format_args!("{}; trying {next}", error.with_cause()));
            }
            (outcome, _) => return outcome,
        }
    }
    Err(Error::Source {
        text: request.name.to_string(),
        why: "nothing says where it can be had from".into(),
    })
}

async fn from_one(
    config: &Config,
    out: &Output,
    name: &ModelName,
    source: &Source,
    promise: &Promise,
    draft: &mut Draft,
) -> Result<Manifest> {
    draft.begin(&source.to_string())?;
    let patience = config.download;
    let (files, revision) = match source {
        Source::Hub(place) => {
            Hub::new(&config.hub)?
                .fetch(draft, place, promise.clone(), patience, out)
                .await?
        }
        Source::Url(url) => {
            let hub = Hub::new(&config.hub)?;
            let file = url.path().rsplit('/').next().unwrap_or_default();
            let wanted = Wanted {
                url,
                name: file,
                promise: promise.clone(),
                read_promise: |_: &HeaderMap| Ok(Promise::default()),
                nearer: &|_| None,
            };
            let transfer = Transfer {
                web: hub.web(),
                patience,
                out,
            };
            (vec![transfer.fetch(draft, &wanted).await?.0], None)
        }
        Source::Package { requirement, file } => {
            (vec![mirror::fetch(draft, requirement, file, promise, out).await?], None)
        }
        Source::Path(path) => (local::fetch(draft, path, out).await?, None),
    };
    let facts = match inspect(draft, &files) {
        Ok(facts) => facts,
        Err(error) => {
            for file in &files {
                draft.discard(&file.name)?;
            }
            return Err(error);
        }
    };
    if let Some(kind) = &facts.unsupported {
        out.note(format_args!(
            "{name} has weights of type {kind}, which hive-worker cannot compute with; get it quantised as Q4_K_M"
        ));
    }
    Ok(Manifest {
        name: name.clone(),
        source: source.to_string(),
        revision,
        quantization: facts.quantization,
        context: facts.context,
        files,
    })
}

/// Looks into all files before they become a model.
fn inspect(draft: &Draft, files: &[StoredFile]) -> Result<weights::Facts> {
    let mut facts = weights::Facts::default();
    for file in files {
        let found =
            weights::inspect(&file.name, files.len() == 1, &draft.part(&file.name)).map_err(|why| Error::Unsound {
                file: file.name.clone(),
                why,
            })?;
        facts.quantization = facts.quantization.or(found.quantization);
        facts.context = facts.context.or(found.context);
        facts.unsupported = facts.unsupported.or(found.unsupported);
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_can_run_beside_other_work() {
        fn is_send<T: Send>(_: impl Fn(&'static Config, &'static Output) -> T) {}
        is_send(|config, out| fetch(config, out, "smollm2-135m", None, false));
    }
}
