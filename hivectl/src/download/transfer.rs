//! Moving the bytes of one file into its `.part`, whatever the line does.
//!
//! A stall or a cut is tried again and goes on with a range request; a status that is no success, a web page, a wrong
//! size or a wrong digest never becomes a model. It knows nothing of hubs and catalogues.

use std::{path::PathBuf, time::Duration};

use indicatif::ProgressBar;
use reqwest::{
    Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, RETRY_AFTER},
};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::output::Output;

use super::{
    draft::Draft,
    error::{Error, Result},
    part::{self, Part},
    promise::Promise,
    store::StoredFile,
    web::{self, Answer, Ask, Web},
};

/// How long a download waits, and how often it tries again: `[hivectl.download]` in `config.toml`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Patience {
    /// How long a transfer may bring nothing.
    #[serde(deserialize_with = "duration")]
    pub stall_timeout: Duration,
    /// How often a transfer that breaks off is taken up again.
    pub retries: u32,
    /// How long to wait before the first retry; doubled each time, up to 30 s.
    #[serde(deserialize_with = "duration")]
    pub backoff: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall_timeout: Duration::from_mins(1),
            retries: 6,
            backoff: Duration::from_secs(1),
        }
    }
}

/// A duration as people write it: `"30s"`, `"250ms"`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    humantime::parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// A file to fetch.
pub struct Wanted<'a> {
    /// Where it is.
    pub url: &'a Url,
    /// Its name in the model's folder.
    pub name: &'a str,
    /// What the catalogue or a listing promises.
    pub promise: Promise,
    /// What the headers of an answer by the origin itself promise; an `Err` is why they make no sense.
    pub read_promise: fn(&HeaderMap) -> Result<Promise, String>,
    /// A file on this machine that claims to have that SHA-256.
    pub nearer: &'a (dyn Fn(&str) -> Option<PathBuf> + Sync),
}

/// How one attempt ended, if not with an error that no further attempt would mend.
enum Attempt {
    Complete,
    /// The transfer broke off.
    Broken(String),
    /// The server has no time now.
    Busy {
        host: String,
        status: StatusCode,
        wait: Duration,
    },
}

/// A server that brings nothing at all is not asked again more often than this: there may be another source.
const FIRST_RETRIES: u32 = 2;
/// A line that keeps bringing this much is not given up.
const PROGRESS: u64 = 8 << 20;

/// The means of a transfer.
#[derive(Clone, Copy)]
pub struct Transfer<'a> {
    /// How requests are made.
    pub web: &'a Web,
    /// How long to wait and how often to try again.
    pub patience: Patience,
    /// Where progress is shown.
    pub out: &'a Output,
}

impl Transfer<'_> {
    /// Fetches a file into the draft and checks it; one of a wrong size or digest is deleted and fetched once more.
    pub async fn fetch(&self, draft: &mut Draft, wanted: &Wanted<'_>) -> Result<(StoredFile, Promise)> {
        match self.fetch_once(draft, wanted).await {
            Err(error @ (Error::Digest { .. } | Error::Size { .. })) => {
                self.out.note(format_args!("{error}; it is fetched once more"));
                self.fetch_once(draft, wanted).await
            }
            outcome => outcome,
        }
    }

    async fn fetch_once(&self, draft: &mut Draft, wanted: &Wanted<'_>) -> Result<(StoredFile, Promise)> {
        let mut promise = wanted.promise.clone();
        let mut part = Part::open(&draft.part(wanted.name)).await?;
        let mut bar = None;
        let outcome = self
            .until_complete(draft, wanted, &mut promise, &mut part, &mut bar)
            .await;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let size = part.length();
        let file = outcome.and_then(|()| part.finish());
        let file = file.and_then(|sha256| {
            promise.check(StoredFile {
                name: wanted.name.to_owned(),
                size,
                sha256,
            })
        });
        if let Err(error) = &file {
            // What is wrong, or fills a disk, is of no use to a later run.
            let is_useless = matches!(error, Error::Digest { .. } | Error::Size { .. } | Error::Space { .. });
            if is_useless || size == 0 {
                draft.discard(wanted.name)?;
            }
        }
        let file = file?;
        draft.finish(file.clone());
        Ok((file, promise))
    }

    async fn until_complete(
        &self,
        draft: &mut Draft,
        wanted: &Wanted<'_>,
        promise: &mut Promise,
        part: &mut Part,
        bar: &mut Option<ProgressBar>,
    ) -> Result<()> {
        let mut tries = 0;
        loop {
            let before = part.length();
            let attempt = match self.attempt(draft, wanted, promise, part, bar).await {
                // A site that was never reached is not waited for; one that was may come back.
                Err(Error::Unreachable { source, .. }) if tries > 0 => Attempt::Broken(source.to_string()),
                outcome => outcome?,
            };
            if part.length() >= before + PROGRESS {
                tries = 0;
            }
            let (why, at_least) = match &attempt {
                Attempt::Complete => return Ok(()),
                Attempt::Broken(why) => (why.clone(), Duration::ZERO),
                Attempt::Busy { status, wait, .. } => {
                    (format!("the server answers with status {}", status.as_u16()), *wait)
                }
            };
            let most = if part.length() == 0 { FIRST_RETRIES } else { u32::MAX };
            let retries = self.patience.retries.min(most);
            if tries >= retries {
                let file = wanted.name.to_owned();
                return Err(match attempt {
                    Attempt::Busy { host, status, .. } => Error::Status {
                        host,
                        file,
                        status: status.as_u16(),
                    },
                    _ => Error::Broken {
                        file,
                        host: web::host(wanted.url),
                        times: tries + 1,
                        why,
                    },
                });
            }
            let backoff = self.patience.backoff.saturating_mul(1 << tries.min(10));
            tries += 1;
            self.out.note(format_args!(
                "{}: {why}; trying again ({tries} of {retries})",
                wanted.name
            ));
            tokio::time::sleep(backoff.max(at_least).min(LONGEST_PAUSE)).await;
        }
    }

    async fn attempt(
        &self,
        draft: &mut Draft,
        wanted: &Wanted<'_>,
        promise: &mut Promise,
        part: &mut Part,
        bar: &mut Option<ProgressBar>,
    ) -> Result<Attempt> {
        let stall = self.patience.stall_timeout;
        let silence = || Ok(Attempt::Broken(format!("nothing came for {stall:?}")));
        let ask = Ask {
            url: wanted.url.clone(),
            from: part.length(),
            validator: draft.validator(wanted.name),
        };
        let Ok(answer) = tokio::time::timeout(stall, self.web.get(&ask)).await else {
            return silence();
        };
        let Answer {
            mut response,
            first_hand,
        } = answer?;
        if let Some(busy) = refused(&response, wanted.name)? {
            return Ok(busy);
        }
        for headers in &first_hand {
            let nonsense = |why| Error::Nonsense {
                host: web::host(wanted.url),
                file: wanted.name.to_owned(),
                why,
            };
            promise.join(wanted.name, (wanted.read_promise)(headers).map_err(nonsense)?)?;
        }
        if self.is_here(wanted, promise, part).await? {
            return Ok(Attempt::Complete);
        }
        match response.status() {
            StatusCode::PARTIAL_CONTENT if range(&response).is_some_and(|(start, _)| start == part.length()) => {}
            StatusCode::OK => part.restart()?,
            _ if part.length() > 0 => {
                part.restart()?;
                return Ok(Attempt::Broken("the server cannot go on from here".into()));
            }
            status => {
                let (host, status) = (web::host(response.url()), status.as_u16());
                return Err(Error::Status {
                    host,
                    file: wanted.name.to_owned(),
                    status,
                });
            }
        }
        promise.join(
            wanted.name,
            Promise {
                size: total(&response),
                ..Promise::default()
            },
        )?;
        if let Some(size) = promise.size {
            part::check_space(draft.folder(), size.saturating_sub(part.length()))?;
        }
        let validator = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        draft.set_validator(wanted.name, validator.filter(|etag| etag.starts_with('"')));
        let bar = bar.get_or_insert_with(|| self.out.bar(promise.size, wanted.name));
        loop {
            bar.set_position(part.length());
            let Ok(chunk) = tokio::time::timeout(stall, response.chunk()).await else {
                return silence();
            };
            match chunk {
                Ok(Some(chunk)) => {
                    let missing = promise
                        .size
                        .map_or(chunk.len() as u64, |size| size.saturating_sub(part.length()));
                    part.write(&chunk, missing)?;
                }
                Ok(None) if promise.size.is_some_and(|size| part.length() < size) => {
                    return Ok(Attempt::Broken("the connection was cut".into()));
                }
                Ok(None) => return Ok(Attempt::Complete),
                Err(error) => return Ok(Attempt::Broken(innermost(&error))),
            }
            // A body without end must not fill the disk.
            if promise.size.is_some_and(|size| part.length() > size) {
                return Ok(Attempt::Complete);
            }
        }
    }

    /// Whether the file is complete without this answer's body: from an earlier run, or from somewhere nearer.
    async fn is_here(&self, wanted: &Wanted<'_>, promise: &Promise, part: &mut Part) -> Result<bool> {
        let Some(sha256) = &promise.sha256 else {
            return Ok(false);
        };
        if part.length() > 0 {
            return Ok(promise.size == Some(part.length()));
        }
        let Some(path) = (wanted.nearer)(sha256) else {
            return Ok(false);
        };
        if !part::digest(&path, |_| ()).await.is_ok_and(|digest| digest == *sha256) {
            return Ok(false);
        }
        self.out.note(format_args!(
            "{} is already on this machine, in {}",
            wanted.name,
            path.display()
        ));
        part.copy(&path, |_| ()).await?;
        Ok(true)
    }
}

const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Answers whose body is never a model: an error, or `Some` if it is worth asking again.
fn refused(response: &Response, name: &str) -> Result<Option<Attempt>> {
    let (host, file, status) = (web::host(response.url()), name.to_owned(), response.status());
    let is_web_page = header(response, CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html"));
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT if is_web_page => Err(Error::Nonsense {
            host,
            file,
            why: "it is a web page".into(),
        }),
        // A range that cannot be had may mean that there is no more to have.
        StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(None),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::Refused {
            host,
            file,
            status: status.as_u16(),
        }),
        StatusCode::NOT_FOUND | StatusCode::GONE => Err(Error::NotThere { host, file }),
        _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => Ok(Some(Attempt::Busy {
            host,
            status,
            wait: retry_after(response),
        })),
        _ => Err(Error::Status {
            host,
            file,
            status: status.as_u16(),
        }),
    }
}

fn header(response: &Response, name: HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

fn retry_after(response: &Response) -> Duration {
    header(response, RETRY_AFTER)
        .and_then(|seconds| seconds.parse().ok())
        .map_or(Duration::ZERO, Duration::from_secs)
}

/// Of `Content-Range: bytes START-END/TOTAL`, the start and, if told, the total.
fn range(response: &Response) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(response, CONTENT_RANGE)?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// The size of the whole file, if the answer tells it.
fn total(response: &Response) -> Option<u64> {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => range(response)?.1,
        _ => header(response, CONTENT_LENGTH)?.parse().ok(),
    }
}

fn innermost(error: &reqwest::Error) -> String {
    let mut link: &dyn std::error::Error = error;
    while let Some(source) = link.source() {
        link = source;
    }
    link.to_string()
}
