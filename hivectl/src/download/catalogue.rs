//! The catalogue: models by a short name, each with the sources to try.
//!
//! It is built in from `hivectl/models.toml`; entries of the user's own `$HIVE_HOME/models.toml` win.

use std::{fs, io, path::Path};

use serde::Deserialize;
use wire::ModelName;

use super::{
    error::{Error, Result},
    promise::Promise,
    source::Source,
};

const BUILT_IN: &str = include_str!("../../models.toml");

/// All models that can be downloaded by name.
#[derive(Debug)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

/// One model of the catalogue.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name.
    pub name: ModelName,
    /// What it is good for, in a few words.
    #[serde(default)]
    pub good_for: Option<String>,
    /// Its licence, as SPDX spells it.
    #[serde(default)]
    pub licence: Option<String>,
    /// The longest context it was made for, in tokens.
    #[serde(default)]
    pub context: Option<u64>,
    /// Where it can be had from, in the order to try.
    pub sources: Vec<CatalogueSource>,
}

/// One source of a catalogue entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueSource {
    /// The source, in the grammar of [`Source`].
    pub from: String,
    /// Its size in bytes, where somebody saw it.
    #[serde(default)]
    pub size: Option<u64>,
    /// Its SHA-256, where somebody saw it.
    #[serde(default)]
    pub sha256: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<Entry>,
}

impl Catalogue {
    /// The built-in catalogue and, in the folder `home`, the user's own.
    pub fn load(home: &Path) -> Result<Self> {
        let path = home.join("models.toml");
        let unreadable = |source| Error::Catalogue {
            path: path.clone(),
            source,
        };
        let mut entries = match fs::read_to_string(&path) {
            Ok(text) => parse(&text).map_err(unreadable)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(unreadable(error.into())),
        };
        let built_in = parse(BUILT_IN).map_err(|source| Error::Catalogue {
            path: "models.toml".into(),
            source,
        })?;
        entries.extend(built_in);
        Ok(Self { entries })
    }

    /// The entry of that name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name.as_str() == name)
    }

    /// All entries, the user's own first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(i, entry)| {
                let earlier = &self.entries[..*i];
                !earlier.iter().any(|other| other.name == entry.name)
            })
            .map(|(_, entry)| entry)
    }
}

impl Entry {
    /// Where it can be had from, in the order to try, as a person would type it.
    pub fn places(&self) -> Vec<String> {
        self.sources.iter().map(|source| source.from.clone()).collect()
    }

    /// The sources in the order to try, with what is known of each.
    pub fn sources(&self) -> Result<Vec<(Source, Promise)>> {
        self.sources.iter().map(CatalogueSource::read).collect()
    }
}

impl CatalogueSource {
    fn read(&self) -> Result<(Source, Promise)> {
        let refuse = |why: &str| Error::Source {
            text: self.from.clone(),
            why: why.into(),
        };
        let source = Source::parse(&self.from)?.ok_or_else(|| refuse("it is a plain name"))?;
        if self.sha256.as_deref().is_some_and(|digest| !is_sha256(digest)) {
            return Err(refuse("its sha256 is not 64 lower-case hexadecimal digits"));
        }
        Ok((
            source,
            Promise {
                size: self.size,
                sha256: self.sha256.clone(),
                revision: None,
            },
        ))
    }
}

/// Whether this is a SHA-256 in lower-case hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn parse(text: &str) -> Result<Vec<Entry>, Box<dyn std::error::Error + Send + Sync>> {
    let entries = toml::from_str::<File>(text)?.model;
    for entry in &entries {
        if entry.sources.is_empty() {
            return Err(format!("{} has no sources", entry.name).into());
        }
        entry.sources()?;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_built_in_catalogue_is_sound() {
        let home = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::load(home.path()).unwrap();
        for name in ["smollm2-135m", "tinyllama", "qwen", "phi3"] {
            let entry = catalogue.get(name).unwrap();
            assert!(
                entry.licence.is_some() && entry.context.is_some() && entry.good_for.is_some(),
                "{name}"
            );
        }
        let smol = catalogue.get("smollm2-135m").unwrap().sources().unwrap();
        assert!(matches!(smol[0].0, Source::Hub(_)) && matches!(smol[1].0, Source::Package { .. }));
        assert_eq!(smol[1].1.size, Some(98_362_432));
    }

    #[test]
    fn the_users_own_entry_wins() {
        let home = tempfile::tempdir().unwrap();
        let own = "[[model]]\nname = \"qwen\"\nsources = [{ from = \"/m/q.gguf\" }]\n";
        fs::write(home.path().join("models.toml"), own).unwrap();
        let catalogue = Catalogue::load(home.path()).unwrap();
        assert_eq!(catalogue.get("qwen").unwrap().sources[0].from, "/m/q.gguf");
        assert_eq!(catalogue.entries().count(), 4);
    }

    #[test]
    fn a_mistake_in_the_users_catalogue_is_named() {
        let home = tempfile::tempdir().unwrap();
        for (own, why) in [
            ("[[model]]\nname = \"x\"\nsources = []\n", "no sources"),
            (
                "[[model]]\nname = \"x\"\nsources = [{ from = \"qwen\" }]\n",
                "plain name",
            ),
            (
                "[[model]]\nname = \"x\"\nsources = [{ from = \"/x\", sha256 = \"../x\" }]\n",
                "64 lower-case",
            ),
            ("[[model]]\nname = \"x\"\nsource = []\n", "unknown field"),
        ] {
            fs::write(home.path().join("models.toml"), own).unwrap();
            let Err(Error::Catalogue { source, .. }) = Catalogue::load(home.path()) else {
                panic!("{own}")
            };
            assert!(source.to_string().contains(why), "{source}");
        }
    }
}
