//! The pepper: the secret under which keys, tokens and credentials are stored as HMACs.
//!
//! It never leaves `keys/pepper`; without that file the database's HMACs are worth nothing.

use std::path::Path;

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::secret_file;

/// The secret of this hive.
#[derive(Debug, Clone)]
pub struct Pepper(SecretString);

impl Pepper {
    /// Reads `keys/pepper`, or makes it on the first start.
    pub fn load_or_create(keys: &Path) -> std::io::Result<Self> {
        let path = keys.join("pepper");
        if path.exists() {
            return Ok(Self(secret_file::read(&path)?));
        }
        let fresh = hex(&rand::random::<[u8; 32]>());
        secret_file::create(&path, &fresh)?;
        Ok(Self(fresh.into()))
    }

    /// HMAC-SHA-256 of a secret, in lower-case hexadecimal.
    pub fn hmac(&self, secret: &str) -> String {
        hmac_hex(self.0.expose_secret(), secret)
    }
}

/// HMAC-SHA-256 (RFC 2104) of `message` under `key`, in lower-case hexadecimal.
pub fn hmac_hex(key: &str, message: &str) -> String {
    // HMAC takes keys of any length, so the error arm is never taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else {
        return String::new();
    };
    mac.update(message.as_bytes());
    hex(&mac.finalize().into_bytes())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_rfc_4231() {
        let tag = hmac_hex("Jefe", "what do ya want for nothing?");
        assert_eq!(tag, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
