//! An identity provider of a test's own: keys of every kind, tokens as it signs them and as others forge them, and the
//! server that hands its keys out.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::{
    encoding::AsDer as _,
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::harness::own_address;

/// What signs.
pub enum Signer {
    Ed(Ed25519KeyPair),
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
    Hmac(Vec<u8>),
    /// Signs with nothing.
    Nothing,
}

impl Signer {
    pub fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    pub fn ec() -> Self {
        Self::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    fn alg(&self) -> &'static str {
        match self {
            Self::Ed(_) => "EdDSA",
            Self::Ec(_) => "ES256",
            Self::Rsa(_) => "RS256",
            Self::Hmac(_) => "HS256",
            Self::Nothing => "none",
        }
    }

    fn sign(&self, text: &str) -> Vec<u8> {
        let (random, text) = (SystemRandom::new(), text.as_bytes());
        match self {
            Self::Ed(key) => key.sign(text).as_ref().to_vec(),
            Self::Ec(key) => key.sign(&random, text).unwrap().as_ref().to_vec(),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, text, &mut signature).unwrap();
                signature
            }
            Self::Hmac(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::sign(&key, text).as_ref().to_vec()
            }
            Self::Nothing => Vec::new(),
        }
    }

    /// Its public key as a JWK.
    pub fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Ed(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": encode(key.public_key())})
            }
            Self::Ec(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": encode(&point[1..33]), "y": encode(&point[33..])})
            }
            Self::Rsa(key) => {
                let (n, e) = (key.public_key().modulus(), key.public_key().exponent());
                let [n, e] = [n, e].map(|part| encode(part.big_endian_without_leading_zero()));
                json!({"kty": "RSA", "use": "sig", "kid": kid, "n": n, "e": e})
            }
            _ => panic!("it has no public key"),
        }
    }

    /// Its public key in PEM.
    pub fn pem(&self) -> String {
        let Self::Rsa(key) = self else { panic!("only for RSA") };
        let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----",
            STANDARD.encode(der.as_ref())
        )
    }

    /// A token with this header and these claims, as texts.
    pub fn token_of(&self, header: &str, claims: &str) -> String {
        let text = format!("{}.{}", encode(header), encode(claims));
        format!("{text}.{}", encode(self.sign(&text)))
    }

    /// A token that says these claims, under this key id.
    pub fn token(&self, kid: &str, claims: &Value) -> String {
        self.token_of(
            &json!({"alg": self.alg(), "typ": "JWT", "kid": kid}).to_string(),
            &claims.to_string(),
        )
    }
}

/// Claims of a good token for this person, for ten minutes.
pub fn claims(sub: &str) -> Value {
    json!({"iss": "https://id.example", "aud": "hive", "sub": sub, "exp": now() + 600, "scope": "infer"})
}

/// Unix seconds.
pub fn now() -> i64 {
    gateway::now_ms() / 1000
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The server that hands the keys out, and counts how often.
pub struct KeyServer {
    address: SocketAddr,
    fetches: Arc<AtomicUsize>,
    answer: Arc<Mutex<String>>,
}

impl KeyServer {
    pub async fn start(keys: &[Value]) -> Self {
        let listener = TcpListener::bind((own_address(), 0)).await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            fetches: Arc::default(),
            answer: Arc::default(),
        };
        server.hands_out(keys);
        let (fetches, answer) = (server.fetches.clone(), server.answer.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 8192];
                let _ = stream.read(&mut head).await;
                fetches.fetch_add(1, Ordering::SeqCst);
                let answer = answer.lock().unwrap().clone();
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }

    /// Hands these keys out from now on.
    pub fn hands_out(&self, keys: &[Value]) {
        let body = json!({ "keys": keys }).to_string();
        let length = body.len();
        self.says(&format!(
            "200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ));
    }

    /// Says this from now on, from the status on.
    pub fn says(&self, answer: &str) {
        *self.answer.lock().unwrap() = format!("HTTP/1.1 {answer}");
    }

    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}
