//! The shape of an API key, `hvk_<8 public id>_<32 secret>_<6 checksum>`, and of a join token,
//! `hvj_<40 secret>_<6 checksum>`, in base 62.
//!
//! The checksum rejects typos and junk before anything is looked up; it proves nothing about who calls.

use std::borrow::Cow;

use rand::Rng;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX: &str = "hvk_";
const ID: usize = 8;
const SECRET: usize = 32;
const CHECKSUM: usize = 6;
const JOIN: &str = "hvj_";
const JOIN_SECRET: usize = 40;
/// The longest that is looked at, in bytes.
const LONGEST: usize = 64;

/// A new key; its secret has 190 bits.
pub fn generate() -> String {
    sealed(&format!("{PREFIX}{}_{}", random(ID), random(SECRET)))
}

/// A new join token; its secret has 238 bits.
pub fn join_token() -> String {
    sealed(&format!("{JOIN}{}", random(JOIN_SECRET)))
}

/// Whether this is a well-formed join token, whoever made it.
pub fn is_join_token(text: &str) -> bool {
    let secret = unsealed(text).and_then(|body| body.strip_prefix(JOIN));
    secret.is_some_and(|secret| secret.len() == JOIN_SECRET && is_base62(secret))
}

/// The public id of a well-formed key; `None` for anything else.
pub fn public_id(key: &str) -> Option<&str> {
    let (id, secret) = unsealed(key)?.strip_prefix(PREFIX)?.split_once('_')?;
    let good = id.len() == ID && secret.len() == SECRET && is_base62(id) && is_base62(secret);
    good.then_some(id)
}

/// A text from outside as it may be written down: without what is secret of any key or token in it.
pub fn masked(text: &str) -> Cow<'_, str> {
    match wire::secret_in(text) {
        None => text.into(),
        Some(secret) => format!("{}***{}", &text[..secret.start], masked(&text[secret.end..])).into(),
    }
}

/// Random base-62 text.
pub fn random(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

fn is_base62(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// With its checksum behind it.
fn sealed(body: &str) -> String {
    format!("{body}_{}", checksum(body))
}

/// Without its checksum, if that is right.
fn unsealed(text: &str) -> Option<&str> {
    let (body, sum) = text.rsplit_once('_').filter(|_| text.len() <= LONGEST)?;
    (sum == checksum(body)).then_some(body)
}

/// CRC-32 (IEEE 802.3, reflected 0xEDB88320) in six base-62 digits.
fn checksum(text: &str) -> String {
    let mut crc = !0u32;
    for byte in text.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    let mut rest = (!crc) as usize;
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[rest % 62];
        rest /= 62;
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_is_well_formed_and_unlike_the_next() {
        let (a, b) = (generate(), generate());
        assert_eq!(a.len(), "hvk_12345678_12345678901234567890123456789012_123456".len());
        assert!(public_id(&a).is_some());
        assert_ne!(a, b);
    }

    #[test]
    fn a_join_token_is_no_key_and_a_key_no_join_token() {
        let (key, token) = (generate(), join_token());
        assert!(is_join_token(&token) && public_id(&token).is_none());
        assert!(!is_join_token(&key));
        let mistyped = token.replacen("hvj_", "hvj_x", 1);
        for junk in ["hvj_junk", "hvj_", "", &mistyped, &token[..token.len() - 1]] {
            assert!(!is_join_token(junk), "{junk}");
        }
    }

    #[test]
    fn of_a_key_in_a_text_only_the_public_id_is_written_down() {
        let (key, token) = (generate(), join_token());
        let text = masked(&format!("/a/{key}/{token}?{key}")).into_owned();
        assert_eq!(text, format!("/a/{}***/hvj_***?{}***", &key[..13], &key[..13]));
        assert!(matches!(masked("/v1/models/qwen"), Cow::Borrowed(_)));
    }

    #[test]
    fn one_wrong_character_anywhere_is_found() {
        let key = generate();
        for place in 0..key.len() {
            let mut bytes = key.clone().into_bytes();
            bytes[place] = if bytes[place] == b'a' { b'b' } else { b'a' };
            assert_eq!(public_id(std::str::from_utf8(&bytes).unwrap()), None, "at {place}");
        }
    }

    #[test]
    fn junk_is_no_key() {
        let long = "x".repeat(8192);
        for junk in ["", "hvk_", "hvk___", "sk-123", &long, "hvk_äääääää_"] {
            assert_eq!(public_id(junk), None);
        }
    }

    #[test]
    fn a_million_malformed_keys_are_told_by_their_text_alone() {
        let key = generate();
        let mut malformed = 0;
        for number in 0..1_000_000 {
            let mut bytes = key.clone().into_bytes();
            let place = number % bytes.len();
            match number % 3 {
                0 => bytes[place] = if bytes[place] == b'x' { b'y' } else { b'x' },
                1 => bytes.truncate(place),
                _ => bytes.extend(number.to_string().bytes()),
            }
            malformed += usize::from(public_id(std::str::from_utf8(&bytes).unwrap()).is_none());
        }
        assert_eq!(malformed, 1_000_000);
    }

    #[test]
    fn the_checksum_is_crc_32() {
        // CRC-32("123456789") = 0xCBF43926, the check value of the catalogue of CRCs.
        assert_eq!(checksum("123456789"), {
            let mut rest = 0xCBF4_3926_usize;
            let mut digits = Vec::new();
            for _ in 0..6 {
                digits.push(char::from(ALPHABET[rest % 62]));
                rest /= 62;
            }
            digits.iter().rev().collect::<String>()
        });
    }
}
