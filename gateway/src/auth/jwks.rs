//! The keys of an identity provider: a secret, a public key, or a set of them (JWKS, RFC 7517) from a file or a URL.
//!
//! A set is read again now and then, and when a token names a key that is not in it, but never more often than the
//! settings say, whatever tokens name. While it cannot be read, the keys that are there stay good. It judges no token.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use tokio::time::Instant;

use crate::{
    config::{Jwt, Place},
    outside, secret_file,
};

/// The largest set, in bytes.
const LARGEST: usize = 256 * 1024;
/// The most keys of a set.
const MOST: usize = 100;
/// The shortest secret, in bytes: as long as the shortest digest (RFC 7518, section 3.2).
const SHORTEST_SECRET: usize = 32;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read, or others can read a secret.
    #[error("jwt.keys: {0}: {1}")]
    File(String, io::Error),
    /// The file holds something else.
    #[error("jwt.keys: {0}: {1}")]
    Unfit(String, &'static str),
    /// The issuer gave no set.
    #[error("the keys could not be fetched")]
    Fetch(#[from] reqwest::Error),
    /// The issuer answered something else.
    #[error("the issuer answered with status {0}, and no keys")]
    Status(u16),
    /// The set is too large.
    #[error("the set is larger than {LARGEST} bytes")]
    TooLarge,
    /// The set is none.
    #[error("it is no set of keys (JWKS)")]
    NoSet(#[source] serde_json::Error),
}

/// A key and the one algorithm it is for.
#[derive(Debug)]
pub struct Key {
    /// What tokens call it; a key that stands alone has no name, and fits any.
    pub kid: Option<String>,
    /// What it is for.
    pub algorithm: Algorithm,
    /// The key itself.
    pub decoding: DecodingKey,
}

/// The keys of the issuer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    algorithm: Option<Algorithm>,
    pause: Duration,
    held: ArcSwap<Vec<Key>>,
    /// When they may be read again.
    next: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Url(reqwest::Client, String),
}

impl Keys {
    /// The keys of that place; a file is read now, a URL when it is first needed.
    pub fn open(place: Place<'_>, settings: &Jwt) -> Result<Self, KeysError> {
        let (source, keys) = match place {
            Place::File(path) => (Source::File(path.to_owned()), from_file(path, settings.algorithm)?),
            Place::Url(url) => (Source::Url(outside::client()?, url.to_owned()), Vec::new()),
        };
        Ok(Self(Arc::new(Inner {
            source,
            algorithm: settings.algorithm,
            pause: settings.pause,
            held: ArcSwap::from_pointee(keys),
            next: tokio::sync::Mutex::default(),
        })))
    }

    /// The keys as they are known now.
    pub fn held(&self) -> Arc<Vec<Key>> {
        self.0.held.load_full()
    }

    /// Reads them again, unless that was done a short while ago.
    pub async fn refresh(&self) {
        let mut next = self.0.next.lock().await;
        if next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        *next = Some(Instant::now() + self.0.pause);
        let inner = self.0.clone();
        // In a task of its own: a caller who leaves must not use up the one reading of the minute.
        let _ = tokio::spawn(async move { inner.read().await }).await;
    }
}

impl Inner {
    async fn read(&self) {
        let read = match &self.source {
            Source::File(path) => from_file(path, self.algorithm),
            Source::Url(client, url) => fetch(client, url).await.and_then(|set| from_set(&set, self.algorithm)),
        };
        match read {
            Ok(keys) => {
                if keys.is_empty() {
                    tracing::warn!("the issuer of tokens has no key that we could use: no token is taken");
                }
                self.held.store(Arc::new(keys));
            }
            Err(error) => tracing::warn!(
                cause = crate::error::chain(&error),
                keys = self.held.load().len(),
                "the keys of the issuer of tokens could not be read; those that are known stay good"
            ),
        }
    }
}

async fn fetch(client: &reqwest::Client, url: &str) -> Result<Vec<u8>, KeysError> {
    let mut answer = client.get(url).header("accept", "application/json").send().await?;
    if !answer.status().is_success() {
        return Err(KeysError::Status(answer.status().as_u16()));
    }
    let mut set = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if set.len() + chunk.len() > LARGEST {
            return Err(KeysError::TooLarge);
        }
        set.extend_from_slice(&chunk);
    }
    Ok(set)
}

fn from_file(path: &Path, algorithm: Option<Algorithm>) -> Result<Vec<Key>, KeysError> {
    let name = || path.display().to_string();
    let unfit = |why| KeysError::Unfit(name(), why);
    let at = |error| KeysError::File(name(), error);
    if let Some(algorithm) = algorithm.filter(|algorithm| algorithm.family() == AlgorithmFamily::Hmac) {
        let secret = secret_file::read(path).map_err(at)?;
        let secret = secret.expose_secret().as_bytes();
        if secret.starts_with(b"-----") || secret.starts_with(b"{") {
            return Err(unfit(
                "holds a public key, which is no secret; set jwt.algorithm to what it is for",
            ));
        }
        if secret.len() < SHORTEST_SECRET {
            return Err(unfit("the secret must have at least 32 bytes"));
        }
        return Ok(vec![alone(algorithm, DecodingKey::from_secret(secret))]);
    }
    if fs::metadata(path).map_err(at)?.len() > LARGEST as u64 {
        return Err(KeysError::TooLarge);
    }
    let text = fs::read(path).map_err(at)?;
    if text.windows(11).any(|part| part == b"PRIVATE KEY") {
        return Err(unfit("holds a private key; Hive needs the public one alone"));
    }
    if !text.starts_with(b"-----") {
        return from_set(&text, algorithm);
    }
    let algorithm = algorithm.ok_or_else(|| unfit("holds a key in PEM; set jwt.algorithm to what it is for"))?;
    let key = match algorithm.family() {
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(&text),
        AlgorithmFamily::Ec => DecodingKey::from_ec_pem(&text),
        _ => DecodingKey::from_ed_pem(&text),
    };
    key.ok()
        .filter(|key| fits(key, algorithm))
        .map(|key| vec![alone(algorithm, key)])
        .ok_or_else(|| unfit("holds no public key for jwt.algorithm"))
}

fn alone(algorithm: Algorithm, decoding: DecodingKey) -> Key {
    Key {
        kid: None,
        algorithm,
        decoding,
    }
}

/// Whether an elliptic key is on the curve of its algorithm (RFC 7518, section 3.4); points are uncompressed.
fn fits(key: &DecodingKey, algorithm: Algorithm) -> bool {
    let length = key.try_get_as_bytes().map_or(0, <[u8]>::len);
    match algorithm {
        Algorithm::ES256 => length == 65,
        Algorithm::ES384 => length == 97,
        Algorithm::EdDSA => length == 32,
        _ => true,
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// The keys of a set that sign, and for `only` if that is given. What is not understood is passed over (RFC 7517,
/// section 5).
fn from_set(text: &[u8], only: Option<Algorithm>) -> Result<Vec<Key>, KeysError> {
    let set: Set = serde_json::from_slice(text).map_err(KeysError::NoSet)?;
    let keys = set.keys.into_iter().take(MOST).filter_map(|key| {
        let key: Jwk = serde_json::from_value(key).ok()?;
        let algorithm = algorithm(&key, only)?;
        let decoding = DecodingKey::from_jwk(&key).ok().filter(|key| fits(key, algorithm))?;
        let kid = key.common.key_id;
        Some(Key {
            kid,
            algorithm,
            decoding,
        })
    });
    // Beside others, a key without a name cannot be meant by one.
    let mut keys: Vec<Key> = keys.collect();
    if keys.len() > 1 {
        keys.retain(|key| key.kid.is_some());
    }
    Ok(keys)
}

/// What a public key of a set is for.
fn algorithm(key: &Jwk, only: Option<Algorithm>) -> Option<Algorithm> {
    let signs = key
        .common
        .public_key_use
        .as_ref()
        .is_none_or(|its| *its == PublicKeyUse::Signature);
    let verifies = |its: &Vec<KeyOperations>| its.contains(&KeyOperations::Verify);
    if !signs || !key.common.key_operations.as_ref().is_none_or(verifies) {
        return None;
    }
    let (family, usual) = match &key.algorithm {
        AlgorithmParameters::RSA(_) => (AlgorithmFamily::Rsa, Algorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => (AlgorithmFamily::Ec, Algorithm::ES256),
            EllipticCurve::P384 => (AlgorithmFamily::Ec, Algorithm::ES384),
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (AlgorithmFamily::Ed, Algorithm::EdDSA)
        }
        // A secret that is handed out is none.
        _ => return None,
    };
    let named = match key.common.key_algorithm {
        Some(named) => Some(Algorithm::try_from(named).ok()?),
        None => None,
    };
    let its = named.or(only.filter(|only| only.family() == family)).unwrap_or(usual);
    (its.family() == family && only.is_none_or(|only| only == its)).then_some(its)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    // RFC 8037, appendix A.2, and RFC 7517, appendix A.1.
    const ED: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const X: &str = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
    const Y: &str = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";

    fn ed(more: &Value) -> Value {
        let mut key = json!({"kty": "OKP", "crv": "Ed25519", "x": ED, "kid": "e"});
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    }

    fn kids(keys: &[Value], only: Option<Algorithm>) -> Vec<(Option<String>, Algorithm)> {
        let set = json!({"keys": keys}).to_string();
        let keys = from_set(set.as_bytes(), only).unwrap();
        keys.into_iter().map(|key| (key.kid, key.algorithm)).collect()
    }

    #[test]
    fn a_key_is_for_what_it_says_and_else_for_what_its_kind_is_for() {
        let p256 = json!({"kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": "p"});
        let rsa = json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "r"});
        let ps = json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "s", "alg": "PS256"});
        let all = [ed(&json!({})), p256, rsa, ps];
        let named = |kid: &str, algorithm| (Some(kid.to_owned()), algorithm);
        assert_eq!(
            kids(&all, None),
            [
                named("e", Algorithm::EdDSA),
                named("p", Algorithm::ES256),
                named("r", Algorithm::RS256),
                named("s", Algorithm::PS256)
            ]
        );
        assert_eq!(kids(&all, Some(Algorithm::ES256)), [named("p", Algorithm::ES256)]);
        assert_eq!(
            kids(&all, Some(Algorithm::PS256)),
            [named("r", Algorithm::PS256), named("s", Algorithm::PS256)]
        );
        assert_eq!(kids(&all, Some(Algorithm::HS256)), []);
    }

    #[test]
    fn what_is_no_signing_key_is_passed_over() {
        let secret =
            json!({"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "h", "alg": "HS256"});
        let strays = [
            secret,
            ed(&json!({"use": "enc"})),
            ed(&json!({"key_ops": ["sign"]})),
            ed(&json!({"alg": "RS256"})),
            ed(&json!({"alg": "HS256"})),
            ed(&json!({"alg": "none"})),
            ed(&json!({"x": "AAAA"})),
            json!({"kty": "EC", "crv": "P-384", "x": X, "y": Y}),
            json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"}),
            json!({"keys": []}),
            json!(7),
        ];
        assert_eq!(kids(&strays, None), []);
        let good = ed(&json!({"use": "sig", "key_ops": ["verify"], "alg": "EdDSA"}));
        assert_eq!(kids(&[strays[0].clone(), good], None).len(), 1);
        // Beside others a nameless key cannot be meant.
        let mut nameless = ed(&json!({}));
        nameless.as_object_mut().unwrap().remove("kid");
        assert_eq!(kids(std::slice::from_ref(&nameless), None).len(), 1);
        assert_eq!(kids(&[nameless, ed(&json!({}))], None).len(), 1);
        assert!(from_set(b"{}", None).is_err() && from_set(b"[]", None).is_err());
        assert_eq!(kids(&vec![ed(&json!({})); MOST + 1], None).len(), MOST);
    }

    #[test]
    fn a_file_that_does_not_fit_the_algorithm_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let why = |text: &str, algorithm| {
            let _ = fs::remove_file(&path);
            secret_file::create(&path, text).unwrap();
            from_file(&path, algorithm)
                .map(|keys| keys.len())
                .map_err(|error| error.to_string())
        };
        let hs = Some(Algorithm::HS256);
        assert_eq!(why("a secret of at least thirty-two bytes", hs), Ok(1));
        for (text, algorithm, word) in [
            ("too short", hs, "32 bytes"),
            ("-----BEGIN PUBLIC KEY-----", hs, "no secret"),
            ("{\"keys\":[]}", hs, "no secret"),
            ("-----BEGIN PRIVATE KEY-----", None, "private key"),
            ("-----BEGIN PUBLIC KEY-----", None, "jwt.algorithm"),
            ("-----BEGIN PUBLIC KEY-----", Some(Algorithm::RS256), "no public key"),
            ("neither", None, "no set of keys"),
        ] {
            let error = why(text, algorithm).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
