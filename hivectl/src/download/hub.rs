//! The model hub: where its files are, what it says of them, and what other tools have fetched from it already.
//!
//! `hf-hub` knows its folders and URLs; the transfer is ours, because that crate checks neither status nor digest.
//! Nothing the hub says becomes part of a path unless it has the form it should have.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{Cache, Repo, RepoType};
use reqwest::{Url, header::HeaderMap};
use secrecy::SecretString;
use serde::Deserialize;

use crate::{config, output::Output};

use super::{
    catalogue::is_sha256,
    draft::Draft,
    error::{Error, Result},
    part::{self, Part},
    promise::Promise,
    source::{HubSource, has_extension, is_safe_path},
    store::StoredFile,
    transfer::{Patience, Transfer, Wanted},
    web::{self, Ask, Web},
    weights,
};

/// The longest listing of a repository that is read, in bytes.
const MAX_LISTING: usize = 16 << 20;

/// The hub, at its endpoint and with the user's token.
pub struct Hub {
    endpoint: Url,
    cache: Cache,
    web: Web,
}

/// What the hub says of a repository.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Hub {
    /// The hub as the configuration names it; the token is the configured one, else the one its own tools keep.
    pub fn new(config: &config::Hub) -> Result<Self> {
        let refuse = |why: String| Error::Source {
            text: config.endpoint.clone(),
            why,
        };
        let endpoint = Url::parse(&config.endpoint).map_err(|error| refuse(error.to_string()))?;
        let cache = Cache::new(config.home.join("hub"));
        let token = config.token.clone().or_else(|| cache.token().map(SecretString::from));
        let web = Web::new(&endpoint, token)?;
        Ok(Self { endpoint, cache, web })
    }

    /// The means of requests, for other sources too: the token goes to the hub only.
    pub fn web(&self) -> &Web {
        &self.web
    }

    /// Fetches what the source names, all of it or nothing; the files, and the commit they belong to.
    pub async fn fetch(
        &self,
        draft: &mut Draft,
        source: &HubSource,
        promise: Promise,
        patience: Patience,
        out: &Output,
    ) -> Result<(Vec<StoredFile>, Option<String>)> {
        let transfer = Transfer {
            web: &self.web,
            patience,
            out,
        };
        let ambiguous = |why: String, example: Option<String>| Error::Ambiguous {
            place: source.to_string(),
            why,
            example,
        };
        if let Some(file) = &source.file {
            let parts = weights::shards_of(file).map_err(|why| ambiguous(why, None))?;
            if let [only] = parts.as_slice() {
                let (file, promise) = self.fetch_file(transfer, draft, source, only, promise).await?;
                return Ok((vec![file], promise.revision));
            }
        }
        let listing = self.list(source).await?;
        let names: Vec<String> = listing
            .siblings
            .iter()
            .map(|file| file.rfilename.clone())
            .filter(|name| is_safe_path(name))
            .collect();
        let chosen = match &source.file {
            Some(file) => weights::shards_of(file).map_err(|why| ambiguous(why, None))?,
            None => weights::choose(&names).map_err(|why| {
                let example = names
                    .iter()
                    .find(|name| has_extension(name, "gguf"))
                    .map(|name| format!("{source}/{name}"));
                ambiguous(why, example)
            })?,
        };
        let pinned = HubSource {
            revision: Some(listing.sha.clone()),
            ..source.clone()
        };
        let mut wanted = Vec::new();
        for name in chosen {
            let sibling = listing.siblings.iter().find(|sibling| sibling.rfilename == name);
            let missing = || Error::NotThere {
                host: web::host(&self.endpoint),
                file: name.clone(),
            };
            wanted.push((name.clone(), sibling.ok_or_else(missing)?.promise()));
        }
        let known: u64 = wanted.iter().filter_map(|(_, promise)| promise.size).sum();
        let here: u64 = wanted
            .iter()
            .filter_map(|(name, _)| fs::metadata(draft.part(base(name))).ok())
            .map(|part| part.len())
            .sum();
        part::check_space(draft.folder(), known.saturating_sub(here))?;
        let mut files = Vec::new();
        for (name, promise) in wanted {
            files.push(self.fetch_file(transfer, draft, &pinned, &name, promise).await?.0);
        }
        Ok((files, Some(listing.sha)))
    }

    async fn fetch_file(
        &self,
        transfer: Transfer<'_>,
        draft: &mut Draft,
        source: &HubSource,
        file: &str,
        promise: Promise,
    ) -> Result<(StoredFile, Promise)> {
        let name = base(file);
        if let Some(done) = draft.done(name) {
            return Ok((done.clone(), promise));
        }
        let repo = repo(source);
        let wanted = Wanted {
            url: &self.url(&[&repo.url(), "resolve", repo.revision(), file])?,
            name,
            promise,
            read_promise: read_headers,
            nearer: &|sha256| Some(self.cached_blob(&repo, sha256)).filter(|path| path.exists()),
        };
        let (file, promise) = match transfer.fetch(draft, &wanted).await {
            Ok(fetched) => fetched,
            Err(error @ Error::Unreachable { .. }) => {
                let Some((path, sha256)) = self.cached(&repo, file).await else {
                    return Err(error);
                };
                transfer
                    .out
                    .note(format_args!("{error}; {name} is taken from {}", path.display()));
                let mut promise = wanted.promise;
                promise.join(
                    name,
                    Promise {
                        sha256: Some(sha256),
                        ..Promise::default()
                    },
                )?;
                let mut part = Part::open(&draft.part(name)).await?;
                part.restart()?;
                let copied = part.copy(&path, |_| ()).await;
                (draft.settle(name, part, copied, &promise)?, promise)
            }
            Err(error) => return Err(error),
        };
        if promise.sha256.is_none() && (has_extension(name, "gguf") || has_extension(name, "safetensors")) {
            transfer.out.note(format_args!(
                "{name}: the hub names no SHA-256; its size and its header were checked"
            ));
        }
        Ok((file, promise))
    }

    /// What the hub says of the source's repository at its revision.
    async fn list(&self, source: &HubSource) -> Result<Listing> {
        let repo = repo(source);
        let (host, file) = (web::host(&self.endpoint), format!("repository {}", source.repo));
        let mut url = self.url(&["api", &repo.api_url()])?;
        url.set_query(Some("blobs=true"));
        let mut response = self
            .web
            .get(&Ask {
                url: url.clone(),
                from: 0,
                validator: None,
            })
            .await?
            .response;
        match response.status().as_u16() {
            200 => {}
            status @ (401 | 403) => return Err(Error::Refused { host, file, status }),
            404 => return Err(Error::NotThere { host, file }),
            status => return Err(Error::Status { host, file, status }),
        }
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| web::unreachable(&url, error))? {
            text.extend_from_slice(&chunk);
            if text.len() > MAX_LISTING {
                return Err(Error::Nonsense {
                    host,
                    file,
                    why: format!("its listing is longer than {MAX_LISTING} bytes"),
                });
            }
        }
        match serde_json::from_slice::<Listing>(&text) {
            Ok(listing) if is_commit(&listing.sha) => Ok(listing),
            Ok(_) => Err(Error::Nonsense {
                host,
                file,
                why: "it names no commit".into(),
            }),
            Err(error) => Err(Error::Nonsense {
                host,
                file,
                why: error.to_string(),
            }),
        }
    }

    /// A URL below the endpoint; what is in the segments cannot lead elsewhere.
    fn url(&self, below: &[&str]) -> Result<Url> {
        let mut url = self.endpoint.clone();
        let refuse = || Error::Source {
            text: self.endpoint.to_string(),
            why: "nothing can be below it".into(),
        };
        url.path_segments_mut()
            .map_err(|()| refuse())?
            .pop_if_empty()
            .extend(below.iter().flat_map(|path| path.split('/')));
        Ok(url)
    }

    fn cached_blob(&self, repo: &Repo, sha256: &str) -> PathBuf {
        self.cache.path().join(repo.folder_name()).join("blobs").join(sha256)
    }

    /// A file that another tool has fetched, if its SHA-256 is the one that the cache calls it by.
    async fn cached(&self, repo: &Repo, file: &str) -> Option<(PathBuf, String)> {
        // hf-hub looks under the name of a branch or tag; a commit is the snapshot's own name.
        let snapshot = || {
            self.cache
                .path()
                .join(repo.folder_name())
                .join("snapshots")
                .join(repo.revision())
                .join(file)
        };
        let pointer = self.cache.repo(repo.clone()).get(file).unwrap_or_else(snapshot);
        let blob = fs::canonicalize(pointer).ok()?;
        let sha256 = blob.file_name()?.to_str().filter(|name| is_sha256(name))?.to_owned();
        part::digest(&blob, |_| ())
            .await
            .is_ok_and(|digest| digest == sha256)
            .then_some((blob, sha256))
    }
}

impl Sibling {
    fn promise(&self) -> Promise {
        let lfs = self.lfs.as_ref();
        Promise {
            size: lfs.and_then(|lfs| lfs.size).or(self.size),
            sha256: lfs
                .and_then(|lfs| lfs.sha256.clone())
                .filter(|digest| is_sha256(digest)),
            revision: None,
        }
    }
}

/// What the hub's own headers promise. Its `x-linked-etag` is the SHA-256 of a large file, a plain `etag` may be; the
/// etag of the storage a redirect leads to is neither.
fn read_headers(headers: &HeaderMap) -> Result<Promise, String> {
    let text = |name: &str| -> Option<&str> {
        Some(
            headers
                .get(name)?
                .to_str()
                .unwrap_or("?")
                .trim_start_matches("W/")
                .trim_matches('"'),
        )
    };
    let sha256 = match text("x-linked-etag") {
        Some(etag) if is_sha256(etag) => Some(etag.to_owned()),
        Some(etag) if is_commit(etag) => None,
        Some(etag) => return Err(format!("it calls {etag:?} its digest")),
        None => text("etag").filter(|etag| is_sha256(etag)).map(str::to_owned),
    };
    let size = match text("x-linked-size") {
        Some(size) => Some(size.parse().map_err(|_| format!("it calls {size:?} its size"))?),
        None => None,
    };
    Ok(Promise {
        size,
        sha256,
        revision: text("x-repo-commit")
            .filter(|commit| is_commit(commit))
            .map(str::to_owned),
    })
}

/// Whether this is a git object's name in lower-case hexadecimal.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn repo(source: &HubSource) -> Repo {
    let revision = source.revision.clone().unwrap_or_else(|| "main".into());
    Repo::with_revision(source.repo.clone(), RepoType::Model, revision)
}

fn base(file: &str) -> &str {
    Path::new(file)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_digest_is_believed_only_in_the_form_of_one() {
        let sha = "a".repeat(64);
        let promise = |pairs: &[(&'static str, &str)]| read_headers(&headers(pairs)).map(|promise| promise.sha256);
        assert_eq!(
            promise(&[("x-linked-etag", &format!("\"{sha}\""))]),
            Ok(Some(sha.clone()))
        );
        assert_eq!(promise(&[("etag", &format!("W/\"{sha}\""))]), Ok(Some(sha.clone())));
        assert_eq!(promise(&[("etag", &format!("\"{}\"", "b".repeat(40)))]), Ok(None));
        assert_eq!(promise(&[("etag", "\"../x\"")]), Ok(None));
        assert!(promise(&[("x-linked-etag", "\"../x\"")]).is_err());
        assert!(promise(&[("x-linked-etag", &sha.to_uppercase())]).is_err());
        assert!(promise(&[("x-linked-size", "-1")]).is_err());
    }

    #[test]
    fn nothing_in_a_file_name_leads_away_from_the_endpoint() {
        let home = tempfile::tempdir().unwrap();
        let config = config::Hub {
            endpoint: "http://127.0.0.1:1/hub".into(),
            home: home.path().into(),
            token: None,
        };
        let hub = Hub::new(&config).unwrap();
        let url = hub.url(&["org/repo", "resolve", "main", "a b#c?d.gguf"]).unwrap();
        assert_eq!(
            url.as_str(),
            "http://127.0.0.1:1/hub/org/repo/resolve/main/a%20b%23c%3Fd.gguf"
        );
    }
}
