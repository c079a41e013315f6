//! Tokens of an identity provider, beside API keys: which are good, and who holds them.
//!
//! The algorithm is the configured key's. A token's header may name one of those keys by `kid`, and has no other say:
//! `jku`, `x5u`, `jwk` and their like are never read, and what it calls critical is refused.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Map, Value};

use super::{
    claims::{Holder, Object},
    jwks::{Key, Keys, KeysError},
    revoked::Revoked,
};
use crate::config::Jwt;

/// The longest token, in bytes.
const LONGEST: usize = 8192;

/// Why a token is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is too long.
    #[error("it is longer than {LONGEST} bytes")]
    Oversized,
    /// It is no JWS in compact form.
    #[error(
        "it is no signed token: three parts in base64url, a header and claims that are JSON objects without a name twice"
    )]
    Malformed,
    /// Its header is not that of a token we could take.
    #[error("its header says `{0}`, which no token for us does")]
    Header(&'static str),
    /// No configured key is meant.
    #[error("its `kid` names none of the issuer's keys")]
    UnknownKey,
    /// The key is for another algorithm.
    #[error("its `alg` is not the one its key is for, {0:?}")]
    Algorithm(Algorithm),
    /// The signature is not the key's.
    #[error("its signature is not its key's")]
    Signature,
    /// A claim is missing or says something else.
    #[error("its claim `{0}` is missing, malformed, or not what [jwt] says")]
    Claim(&'static str),
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its holder was cut off after it was issued.
    #[error("its holder's tokens were revoked after it was issued, or it does not say when that was (`iat`)")]
    Revoked,
    /// Its time is to come.
    #[error("it is not good yet")]
    NotYet,
    /// It is good for too long.
    #[error("it is good for longer than jwt.longest")]
    TooLong,
    /// Nobody is named.
    #[error("the claim of jwt.subject_claim names nobody")]
    Subject,
    /// The holder belongs to somebody else.
    #[error("the claim of jwt.tenant_claim names none of jwt.tenants")]
    Tenant,
    /// No model is named.
    #[error("the claim of jwt.models_claim names no model")]
    Models,
}

impl Refused {
    /// What its holder is told: what they can mend, and nothing that helps to make a better forgery.
    pub fn told(&self) -> &'static str {
        match self {
            Self::Expired => "The token has expired. Get a new one from your identity provider.",
            Self::Revoked => "The token was revoked. Get a new one from your identity provider.",
            Self::NotYet => "The token is not good yet. Try again, and check the clock of the machine that issued it.",
            _ => "This token is not taken here. Ask the operator; `hivectl token verify` tells them why.",
        }
    }

    /// Whether the signature was found good before this was.
    pub fn is_signed(&self) -> bool {
        use Refused::{Claim, Expired, Models, NotYet, Revoked, Subject, Tenant, TooLong};
        matches!(
            self,
            Claim(_) | Expired | Revoked | NotYet | TooLong | Subject | Tenant | Models
        )
    }
}

/// What a token says of itself; nothing of it is proven.
#[derive(Debug, Clone)]
pub struct Said {
    /// The header.
    pub header: Map<String, Value>,
    /// The claims.
    pub claims: Map<String, Value>,
}

/// The tokens that are taken here.
#[derive(Debug)]
pub struct Tokens {
    settings: Jwt,
    keys: Keys,
    /// Holders who were cut off.
    pub revoked: Revoked,
}

impl Tokens {
    /// Tokens by these settings; none if they name no issuer. Keys that lie in a file must be there.
    pub fn open(settings: &Jwt, revoked: Revoked) -> Result<Option<Self>, KeysError> {
        let Some(place) = settings.place().filter(|_| settings.issuer.is_some()) else {
            return Ok(None);
        };
        Ok(Some(Self {
            keys: Keys::open(place, settings)?,
            settings: settings.clone(),
            revoked,
        }))
    }

    /// Who holds this token. A key that is not known yet is asked for, as often as the settings allow.
    pub async fn verify(&self, token: &str) -> Result<Holder, Refused> {
        let now = crate::now_ms() / 1000;
        match self.check(token, &self.keys.held(), now) {
            Err(Refused::UnknownKey) => {
                self.keys.refresh().await;
                self.check(token, &self.keys.held(), now)
            }
            checked => checked,
        }
    }

    /// Whether a good token is still taken, by its holder's id and when it was issued, in Unix milliseconds: later than
    /// its holder was cut off, also by a clock that is ahead of ours.
    pub fn are_taken(&self, id: &str, issued_at_ms: i64) -> bool {
        let leeway_ms = i64::try_from(self.settings.leeway.as_millis()).unwrap_or(i64::MAX);
        let since = self.revoked.since(id);
        since.is_none_or(|at_ms| issued_at_ms > at_ms.saturating_add(leeway_ms))
    }

    /// Reads the keys again now and then; never returns.
    pub async fn keep_fresh(&self) {
        loop {
            self.keys.refresh().await;
            tokio::time::sleep(self.settings.refresh.max(Duration::from_millis(100))).await;
        }
    }

    /// Reads the keys again.
    pub async fn refresh(&self) {
        self.keys.refresh().await;
    }

    /// How much each holder may use.
    pub fn limits(&self) -> wire::KeyLimits {
        self.settings.limits
    }

    /// Who issues the tokens.
    pub fn issuer(&self) -> &str {
        self.settings.issuer.as_deref().unwrap_or_default()
    }

    fn check(&self, token: &str, keys: &[Key], now: i64) -> Result<Holder, Refused> {
        let header = header(token)?;
        let key = chosen(keys, header.get("kid"))?;
        // Compared as text: what is no algorithm of ours is no algorithm.
        if header.get("alg").and_then(Value::as_str) != Some(format!("{:?}", key.algorithm).as_str()) {
            return Err(Refused::Algorithm(key.algorithm));
        }
        let claims = verified(token, key)?;
        Holder::read(&claims, &self.settings, now)
    }
}

/// Whether this looks like a token rather than a key.
pub fn is_token(credential: &str) -> bool {
    credential.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// What a token says of itself, whoever signed it.
pub fn said(token: &str) -> Result<Said, Refused> {
    let header = object(parts(token)?[0])?;
    let claims = object(parts(token)?[1])?;
    Ok(Said { header, claims })
}

fn parts(token: &str) -> Result<[&str; 3], Refused> {
    if token.len() > LONGEST {
        return Err(Refused::Oversized);
    }
    let mut parts = token.split('.');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(header), Some(claims), Some(signature), None) => Ok([header, claims, signature]),
        _ => Err(Refused::Malformed),
    }
}

fn object(part: &str) -> Result<Map<String, Value>, Refused> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed)?;
    let object: Object = serde_json::from_slice(&bytes).map_err(|_| Refused::Malformed)?;
    Ok(object.0)
}

fn header(token: &str) -> Result<Map<String, Value>, Refused> {
    let header = object(parts(token)?[0])?;
    if header.contains_key("crit") {
        return Err(Refused::Header("crit"));
    }
    // A token made for another use (RFC 8725, section 3.11), or a sealed one.
    let typ = header
        .get("typ")
        .map(|typ| typ.as_str().unwrap_or_default().to_ascii_lowercase());
    let typ = typ
        .as_deref()
        .map(|typ| typ.strip_prefix("application/").unwrap_or(typ));
    if typ.is_some_and(|typ| !["jwt", "at+jwt"].contains(&typ)) {
        return Err(Refused::Header("typ"));
    }
    if header.contains_key("enc") || header.contains_key("zip") {
        return Err(Refused::Header("enc"));
    }
    Ok(header)
}

/// The key that is meant: the one of that `kid`, or the only one there is.
fn chosen<'a>(keys: &'a [Key], kid: Option<&Value>) -> Result<&'a Key, Refused> {
    let found = match kid {
        Some(Value::String(kid)) => keys.iter().find(|key| key.kid.as_ref().is_none_or(|own| own == kid)),
        Some(_) => None,
        None => keys.first().filter(|_| keys.len() == 1),
    };
    found.ok_or(Refused::UnknownKey)
}

/// The claims of a token that this key has signed.
fn verified(token: &str, key: &Key) -> Result<Map<String, Value>, Refused> {
    let mut validation = Validation::new(key.algorithm);
    // What a claim must be is said once, in `claims.rs`, and stricter.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let read = jsonwebtoken::decode::<Object>(token, &key.decoding, &validation);
    read.map(|token| token.claims.0).map_err(|error| match error.kind() {
        jsonwebtoken::errors::ErrorKind::Json(_) | jsonwebtoken::errors::ErrorKind::Base64(_) => Refused::Malformed,
        _ => Refused::Signature,
    })
}
