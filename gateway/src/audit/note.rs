//! Checkpoints: how far the journal had come and its root, signed (C2SP tlog-checkpoint in a signed note, Ed25519), and
//! signed once more, with the time, by a witness (C2SP tlog-cosignature).
//!
//! It reads and writes text; where notes lie is another room's business.

use std::{fmt, path::Path};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use super::tree::Hash;
use crate::{auth::pepper::hex, secret_file};

/// The signature type of Ed25519 in signed notes.
const ED25519_TYPE: u8 = 1;
/// The signature type of a cosignature with its time.
const COSIGNATURE_TYPE: u8 = 4;
/// What a journal's name begins with.
const PREFIX: &str = "hive/audit/";
/// What a witness' name begins with.
const WITNESS: &str = "hive/witness/";
/// What a line with a signature begins with.
const DASH: &str = "\u{2014} ";

/// Why a note or key is not believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It is no checkpoint.
    #[error("it is no checkpoint: {0}")]
    Shape(&'static str),
    /// Nobody we know signed it.
    #[error("it is not signed by {0}")]
    Unsigned(String),
    /// The text and its signature do not belong together.
    #[error("its signature is wrong")]
    Forged,
    /// The public key cannot be read.
    #[error("the public key must look like NAME+ID+KEY, as in audit/journal.pub")]
    PublicKey,
}

/// A state of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// How many records there are.
    pub size: u64,
    /// The tree's root.
    pub root: Hash,
}

/// The key that signs, and the journal's name, which is made from it.
pub struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// The key that verifies, and the journal's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The signature type.
    kind: u8,
    name: String,
    id: [u8; 4],
    key: Hash,
}

impl Signer {
    /// Reads the key in a file, or makes one there on the first start.
    pub fn load_or_create(path: &Path) -> std::io::Result<Self> {
        Self::read(path, ED25519_TYPE, PREFIX)
    }

    /// The same for a witness.
    pub fn load_or_create_witness(path: &Path) -> std::io::Result<Self> {
        Self::read(path, COSIGNATURE_TYPE, WITNESS)
    }

    fn read(path: &Path, kind: u8, prefix: &str) -> std::io::Result<Self> {
        if !path.exists() {
            secret_file::create(path, &hex(&rand::random::<[u8; 32]>()))?;
        }
        let seed: SecretString = secret_file::read(path)?;
        let refused = || {
            let why = format!("{}: it must hold 64 hexadecimal digits", path.display());
            std::io::Error::new(std::io::ErrorKind::InvalidData, why)
        };
        let seed = unhex(seed.expose_secret()).ok_or_else(refused)?;
        Self::named(&seed, kind, prefix).ok_or_else(refused)
    }

    /// The key of this seed (RFC 8032); `None` if the library will not have it.
    pub fn from_seed(seed: &Hash) -> Option<Self> {
        Self::named(seed, ED25519_TYPE, PREFIX)
    }

    fn named(seed: &Hash, kind: u8, prefix: &str) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let key: Hash = pair.public_key().as_ref().try_into().ok()?;
        let name = format!("{prefix}{}", &hex(&Sha256::digest(key))[..16]);
        let public = PublicKey::new(kind, name, key);
        Some(Self { pair, public })
    }

    /// What verifies its signatures.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The signed note of a checkpoint.
    pub fn sign(&self, checkpoint: &Checkpoint) -> String {
        let name = &self.public.name;
        let text = format!("{name}\n{}\n{}\n", checkpoint.size, BASE64.encode(checkpoint.root));
        let signature = self.pair.sign(text.as_bytes());
        format!("{text}\n{}", self.public.line(signature.as_ref()))
    }

    /// A note with this witness' cosignature below the others, made at this time in Unix seconds; what is no note stays
    /// as it is.
    pub fn cosign(&self, note: &str, at: u64) -> String {
        let Some((text, _)) = note.split_once("\n\n") else {
            return note.to_owned();
        };
        let signature = self.pair.sign(cosigned(text, at).as_bytes());
        let timed = [&at.to_be_bytes(), signature.as_ref()].concat();
        format!("{note}{}", self.public.line(&timed))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.public.name).finish()
    }
}

impl PublicKey {
    fn new(kind: u8, name: String, key: Hash) -> Self {
        let digest = Sha256::new()
            .chain_update(&name)
            .chain_update([b'\n', kind])
            .chain_update(key)
            .finalize();
        let id = [digest[0], digest[1], digest[2], digest[3]];
        Self { kind, name, id, key }
    }

    /// Reads the form that `audit/journal.pub` holds.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        Self::read(text, ED25519_TYPE)
    }

    /// Reads the form that `witness/witness.pub` holds.
    pub fn parse_witness(text: &str) -> Result<Self, NoteError> {
        Self::read(text, COSIGNATURE_TYPE)
    }

    fn read(text: &str, kind: u8) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::PublicKey);
        };
        let key = BASE64.decode(key).map_err(|_| NoteError::PublicKey)?;
        let key = match key.split_first() {
            Some((its, key)) if *its == kind => key.try_into().map_err(|_| NoteError::PublicKey)?,
            _ => return Err(NoteError::PublicKey),
        };
        let read = Self::new(kind, name.to_owned(), key);
        if name.is_empty() || hex(&read.id) != id {
            return Err(NoteError::PublicKey);
        }
        Ok(read)
    }

    /// The journal's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part of the journal's name that is made from this key; none of a name made otherwise.
    pub fn made_name(&self) -> Option<&str> {
        let made = self.name.strip_prefix(PREFIX)?;
        (made == &hex(&Sha256::digest(self.key))[..16]).then_some(made)
    }

    /// The checkpoint in a note, if this key signed it.
    pub fn open(&self, note: &str) -> Result<Checkpoint, NoteError> {
        let (text, signatures) = note
            .split_once("\n\n")
            .ok_or(NoteError::Shape("there is no signature"))?;
        let mut lines = text.split('\n');
        let (Some(name), Some(size), Some(root), None) = (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteError::Shape("it must have three lines"));
        };
        let root = BASE64.decode(root).ok().and_then(|root| root.try_into().ok());
        let checkpoint = Checkpoint {
            size: size.parse().map_err(|_| NoteError::Shape("its size is no number"))?,
            root: root.ok_or(NoteError::Shape("its root is no hash"))?,
        };
        if name != self.name || checkpoint.size.to_string() != size {
            return Err(NoteError::Unsigned(self.name.clone()));
        }
        self.verify(&format!("{text}\n"), &self.signature(signatures)?)?;
        Ok(checkpoint)
    }

    /// When this witness cosigned a note, in Unix seconds.
    pub fn saw(&self, note: &str) -> Result<u64, NoteError> {
        let (text, signatures) = note
            .split_once("\n\n")
            .ok_or(NoteError::Shape("there is no signature"))?;
        let timed = self.signature(signatures)?;
        let (at, signature) = timed.split_first_chunk().ok_or(NoteError::Forged)?;
        let at = u64::from_be_bytes(*at);
        self.verify(&cosigned(text, at), signature)?;
        Ok(at)
    }

    /// This key's signature among those of a note.
    fn signature(&self, signatures: &str) -> Result<Vec<u8>, NoteError> {
        let found = signatures.lines().find_map(|line| {
            let (_, signature) = line
                .strip_prefix(DASH)?
                .split_once(' ')
                .filter(|(name, _)| *name == self.name)?;
            Some(BASE64.decode(signature).ok()?.strip_prefix(&self.id)?.to_vec())
        });
        found.ok_or_else(|| NoteError::Unsigned(self.name.clone()))
    }

    fn verify(&self, text: &str, signature: &[u8]) -> Result<(), NoteError> {
        let key = UnparsedPublicKey::new(&ED25519, self.key);
        key.verify(text.as_bytes(), signature).map_err(|_| NoteError::Forged)
    }

    /// The line of a note with a signature of this key's.
    fn line(&self, signature: &[u8]) -> String {
        let signed = BASE64.encode([&self.id, signature].concat());
        format!("{DASH}{} {signed}\n", self.name)
    }
}

/// What a witness signs of a note with this text, at this time in Unix seconds.
fn cosigned(text: &str, at: u64) -> String {
    format!("cosignature/v1\ntime {at}\n{text}\n")
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = BASE64.encode([&[self.kind][..], &self.key].concat());
        write!(f, "{}+{}+{key}", self.name, hex(&self.id))
    }
}

/// The notes in a text, one after the other; what follows the last whole one comes back beside them.
pub fn split(text: &str) -> (Vec<&str>, &str) {
    let (mut notes, mut rest) = (Vec::new(), text);
    while let Some(end) = end_of_note(rest) {
        notes.push(&rest[..end]);
        rest = rest[end..].trim_start_matches('\n');
    }
    (notes, rest)
}

fn end_of_note(text: &str) -> Option<usize> {
    let mut end = text.find("\n\n")? + 2;
    let signatures = end;
    for line in text[end..].split_inclusive('\n') {
        if !line.starts_with(DASH) || !line.ends_with('\n') {
            break;
        }
        end += line.len();
    }
    (end > signatures).then_some(end)
}

/// 32 bytes from hexadecimal.
pub fn unhex(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(seed: u8) -> Signer {
        Signer::from_seed(&[seed; 32]).unwrap()
    }

    #[test]
    fn the_key_is_that_of_rfc_8032() {
        // RFC 8032, section 7.1, test 1.
        let seed = unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let public = Signer::from_seed(&seed).unwrap();
        assert_eq!(
            hex(&public.public().key),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
    }

    #[test]
    fn a_signed_checkpoint_reads_back_and_nobody_elses_does() {
        let (ours, theirs) = (signer(1), signer(2));
        let checkpoint = Checkpoint { size: 7, root: [9; 32] };
        let note = ours.sign(&checkpoint);
        let public = PublicKey::parse(&ours.public().to_string()).unwrap();
        assert_eq!(&public, ours.public());
        assert_eq!(public.open(&note).unwrap(), checkpoint);
        assert!(matches!(theirs.public().open(&note), Err(NoteError::Unsigned(_))));
    }

    #[test]
    fn one_changed_byte_anywhere_is_noticed() {
        let signer = signer(1);
        let note = signer.sign(&Checkpoint {
            size: 120,
            root: [3; 32],
        });
        for place in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[place] ^= 1;
            if let Ok(changed) = std::str::from_utf8(&bytes) {
                assert!(signer.public().open(changed).is_err(), "{changed:?}");
            }
        }
        for junk in ["", "a+b", "a+00000000+AAAA", "++"] {
            assert_eq!(PublicKey::parse(junk), Err(NoteError::PublicKey));
        }
    }

    #[test]
    fn a_witness_signs_the_whole_note_and_the_time() {
        let (ours, other) = (
            Signer::named(&[5; 32], COSIGNATURE_TYPE, WITNESS).unwrap(),
            Signer::named(&[6; 32], COSIGNATURE_TYPE, WITNESS).unwrap(),
        );
        let journal = signer(1);
        let note = journal.sign(&Checkpoint { size: 7, root: [9; 32] });
        let both = ours.cosign(&other.cosign(&note, 1), 1_795_000_000);
        let key = PublicKey::parse_witness(&ours.public().to_string()).unwrap();
        assert_eq!(key.saw(&both), Ok(1_795_000_000));
        assert_eq!(other.public().saw(&both), Ok(1));
        assert_eq!(journal.public().open(&both), journal.public().open(&note));
        assert_eq!(split(&format!("{both}{both}")), (vec![&*both, &*both], ""));
        assert!(matches!(key.saw(&note), Err(NoteError::Unsigned(_))));
        for (from, to) in [("\n7\n", "\n8\n"), ("hive/audit", "hive/audio")] {
            assert_eq!(key.saw(&both.replacen(from, to, 1)), Err(NoteError::Forged));
        }
        // Neither kind of key stands for the other.
        assert!(PublicKey::parse(&key.to_string()).is_err());
        assert!(PublicKey::parse_witness(&journal.public().to_string()).is_err());
    }

    #[test]
    fn notes_in_one_file_are_told_apart_and_a_torn_last_one_is_left_over() {
        let signer = signer(1);
        let one = signer.sign(&Checkpoint { size: 1, root: [1; 32] });
        let two = signer.sign(&Checkpoint { size: 2, root: [2; 32] });
        let file = format!("{one}{two}\n{one}");
        assert_eq!(split(&file), (vec![&*one, &*two, &*one], ""));
        let torn = format!("{one}{}", &two[..two.len() - 5]);
        assert_eq!(split(&torn), (vec![&*one], &two[..two.len() - 5]));
        assert_eq!(split(""), (vec![], ""));
    }
}
