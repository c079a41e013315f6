//! The shape of an API key: `hvk_<8 public id>_<32 secret>_<6 checksum>`, in base 62.
//!
//! The checksum rejects typos and junk before anything is looked up; it proves nothing about who calls.

use rand::Rng;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX: &str = "hvk_";
const ID: usize = 8;
const SECRET: usize = 32;
const CHECKSUM: usize = 6;
const LENGTH: usize = PREFIX.len() + ID + 1 + SECRET + 1 + CHECKSUM;

/// A new key; its secret has 190 bits.
pub fn generate() -> String {
    let body = format!("{PREFIX}{}_{}", random(ID), random(SECRET));
    let checksum = checksum(&body);
    format!("{body}_{checksum}")
}

/// The public id of a well-formed key; `None` for anything else.
pub fn public_id(key: &str) -> Option<&str> {
    if key.len() != LENGTH || !key.is_ascii() {
        return None;
    }
    let (body, sum) = key.rsplit_once('_')?;
    let (id, secret) = body.strip_prefix(PREFIX)?.split_once('_')?;
    let base62 = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric());
    let good = id.len() == ID && secret.len() == SECRET && base62(id) && base62(secret) && sum == checksum(body);
    good.then_some(id)
}

/// Random base-62 text.
pub fn random(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
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
        assert_eq!(a.len(), LENGTH);
        assert!(public_id(&a).is_some());
        assert_ne!(a, b);
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
