//! `[jwt]`: whose tokens are taken, by which keys, and what their claims mean here.

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Duration};

use axum::http::Uri;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use wire::{KeyLimits, Scope};

use super::{credential, duration};

/// The most that clocks may differ.
const MOST_LEEWAY: Duration = Duration::from_secs(300);

/// `[jwt]`: tokens of an identity provider, beside API keys; none is taken unless `issuer` is set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jwt {
    /// What `iss` must be.
    pub issuer: Option<String>,
    /// What `aud` must be, or name among others.
    pub audience: Option<String>,
    /// Where the issuer's keys are: the URL of a JWKS, a file with a JWKS or a public key in PEM, or, where `algorithm`
    /// is one of `HS…`, a file with the secret.
    pub keys: Option<String>,
    /// What the key is for; of a JWKS, which keys are taken: all that sign, if not given.
    pub algorithm: Option<Algorithm>,
    /// How often keys are read again.
    #[serde(deserialize_with = "duration")]
    pub refresh: Duration,
    /// The shortest time between two such readings, whatever tokens name.
    #[serde(deserialize_with = "duration")]
    pub pause: Duration,
    /// How far the issuer's clock may be from ours.
    #[serde(deserialize_with = "duration")]
    pub leeway: Duration,
    /// The longest time a token may still be good for.
    #[serde(deserialize_with = "duration")]
    pub longest: Duration,
    /// The claim that says what its holder may do: words in one text, or a list; `/a/b` is claim `b` in claim `a`.
    pub scopes_claim: String,
    /// What the words of that claim mean; if empty, our scopes are meant by their own names.
    pub scopes: BTreeMap<String, Vec<Scope>>,
    /// The claim that lists the models its holder may call; if not given, all.
    pub models_claim: Option<String>,
    /// The claim that says who the holder is; the record and the books know this person by a pseudonym.
    pub subject_claim: String,
    /// The claim that says to which organisation the holder belongs.
    pub tenant_claim: Option<String>,
    /// The organisations that are let in.
    pub tenants: Vec<String>,
    /// How much each holder may use.
    pub limits: KeyLimits,
}

/// Where keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// A JWKS over HTTP.
    Url(&'a str),
    /// A JWKS, a public key, or a secret.
    File(&'a Path),
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            issuer: None,
            audience: None,
            keys: None,
            algorithm: None,
            refresh: Duration::from_secs(600),
            pause: Duration::from_secs(60),
            leeway: Duration::from_secs(30),
            longest: Duration::from_secs(3600),
            scopes_claim: "scope".into(),
            scopes: BTreeMap::new(),
            models_claim: None,
            subject_claim: "sub".into(),
            tenant_claim: None,
            tenants: Vec::new(),
            limits: KeyLimits::default(),
        }
    }
}

impl Jwt {
    /// Where the issuer's keys are.
    pub fn place(&self) -> Option<Place<'_>> {
        let keys = self.keys.as_deref()?;
        let is_url = keys.starts_with("http://") || keys.starts_with("https://");
        Some(if is_url {
            Place::Url(keys)
        } else {
            Place::File(Path::new(keys))
        })
    }

    /// Whether the key is a secret that the issuer shares with us.
    pub fn is_secret(&self) -> bool {
        matches!(
            self.algorithm,
            Some(Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
        )
    }

    /// Every value that makes no sense.
    pub(super) fn faults(&self) -> Vec<&'static str> {
        let place = self.place();
        let url = match place {
            Some(Place::Url(url)) => Some(url),
            _ => None,
        };
        let blank = |text: &Option<String>| text.as_deref().is_none_or(|text| text.trim().is_empty());
        let claims = [
            Some(&self.scopes_claim),
            self.models_claim.as_ref(),
            Some(&self.subject_claim),
            self.tenant_claim.as_ref(),
        ];
        let rules = [
            (
                self.issuer.is_some() && (blank(&self.issuer) || blank(&self.audience) || blank(&self.keys)),
                "jwt.issuer: needs jwt.audience and jwt.keys beside it, and none of them empty",
            ),
            (
                self.issuer.is_none() && (self.audience.is_some() || self.keys.is_some()),
                "jwt.issuer: is missing; without it no token is taken",
            ),
            (
                url.is_some_and(|url| !is_safe(url)),
                "jwt.keys: must begin with https://; http:// is for addresses of this machine alone",
            ),
            (
                url.is_some() && self.is_secret(),
                "jwt.keys: the algorithms HS256, HS384 and HS512 need a file with the secret, which no URL may give out",
            ),
            (
                matches!(place, Some(Place::File(file)) if !file.is_absolute() && credential(file).is_none()),
                "jwt.keys: must be a URL, an absolute path, or credential:NAME",
            ),
            (self.pause.is_zero(), "jwt.pause: must be longer than 0s"),
            (self.refresh < self.pause, "jwt.refresh: must be at least jwt.pause"),
            (self.leeway > MOST_LEEWAY, "jwt.leeway: must be at most 5m"),
            (self.longest.is_zero(), "jwt.longest: must be longer than 0s"),
            (
                claims
                    .into_iter()
                    .flatten()
                    .any(|claim| claim.trim_matches('/').is_empty()),
                "jwt.scopes_claim, models_claim, subject_claim, tenant_claim: must name a claim",
            ),
            (
                self.tenant_claim.is_some() == self.tenants.is_empty(),
                "jwt.tenants: names those that are let in by jwt.tenant_claim; both or neither",
            ),
            (
                self.limits.token_budget.is_some(),
                "jwt.limits.token_budget: only an API key has a budget; take tokens_per_day",
            ),
        ];
        rules
            .into_iter()
            .filter_map(|(bad, fault)| bad.then_some(fault))
            .collect()
    }
}

/// Whether a JWKS may be fetched there: nobody on the way can put keys of their own into it.
fn is_safe(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    !host.is_empty() && (uri.scheme_str() == Some("https") || here)
}
