//! The header of a GGUF file: whether the file is sound, how it is quantised, and for which context it was made.
//!
//! A GGUF is hostile input: every length, count and offset is checked against the file before it is used.

use std::{
    fs::File,
    io::{self, BufReader, Read},
};

use wire::TensorType;

use super::weights::Facts;

/// A file read front to back, which never goes beyond its end and says so in a sentence.
pub struct Reader {
    inner: BufReader<File>,
    at: u64,
    length: u64,
}

impl Reader {
    /// Reads a file of that length.
    pub fn new(file: File, length: u64) -> Self {
        Self {
            inner: BufReader::new(file),
            at: 0,
            length,
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "it ends within its header".into(),
            _ => error.to_string(),
        })?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A count of things of at least `least` bytes each, all of which have to fit into the rest of the file.
    fn count(&mut self, least: u64, what: &str) -> Result<u64, String> {
        let count = self.u64()?;
        match count.checked_mul(least) {
            Some(bytes) if bytes <= self.length - self.at => Ok(count),
            _ => Err(format!(
                "it declares {count} {what}, more than fit into its {} bytes",
                self.length
            )),
        }
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        if bytes > self.length - self.at {
            return Err("it ends within its header".into());
        }
        let distance = i64::try_from(bytes).map_err(|error| error.to_string())?;
        self.inner.seek_relative(distance).map_err(|error| error.to_string())?;
        self.at += bytes;
        Ok(())
    }

    fn text(&mut self) -> Result<Vec<u8>, String> {
        let length = self.count(1, "bytes of text")?;
        let mut text = vec![0; usize::try_from(length.min(MAX_TEXT)).unwrap_or_default()];
        self.inner.read_exact(&mut text).map_err(|error| error.to_string())?;
        self.at += text.len() as u64;
        self.skip(length - text.len() as u64)?;
        Ok(text)
    }
}

/// Keys, architectures and tensor names are short; of longer texts, such as chat templates, only this much is kept.
const MAX_TEXT: u64 = 256;

/// Checks the header and that all weights lie inside the file; an `Err` is the reason why they do not.
pub fn inspect(reader: &mut Reader) -> Result<Facts, String> {
    if reader.length < 4 || &reader.bytes::<4>()? != b"GGUF" {
        return Err("it does not begin with `GGUF`".into());
    }
    match reader.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => return Err("it is a big-endian GGUF".into()),
        version => return Err(format!("its GGUF version is {version}, not 2 or 3")),
    }
    let tensors = reader.count(24, "tensors")?;
    let keys = reader.count(13, "keys")?;
    let (mut facts, mut alignment) = (Facts::default(), 32);
    for _ in 0..keys {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = value(reader, kind, 0)?;
        match (key.as_slice(), value) {
            (b"general.file_type", Some(number)) => facts.quantization = quantization(number),
            (b"general.alignment", Some(number)) => alignment = number,
            (key, Some(number)) if key.ends_with(b".context_length") => facts.context = Some(number),
            _ => {}
        }
    }
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(format!("its alignment is {alignment}"));
    }
    let mut end_of_data = 0_u64;
    for _ in 0..tensors {
        let name = reader.text()?;
        let dimensions = reader.u32()?;
        if dimensions > 8 {
            return Err(format!("tensor {} has {dimensions} dimensions", name.escape_ascii()));
        }
        let mut elements = Some(1_u64);
        for _ in 0..dimensions {
            let dimension = reader.u64()?;
            elements = elements.and_then(|elements| elements.checked_mul(dimension));
        }
        let (kind, offset) = (reader.u32()?, reader.u64()?);
        // How much room an unknown type takes is unknown too.
        let (block, bytes) = if let Some(layout) = TensorType::of(kind) {
            if !layout.is_supported {
                facts.unsupported.get_or_insert_with(|| layout.name.to_owned());
            }
            (layout.block, layout.bytes)
        } else {
            facts.unsupported.get_or_insert_with(|| kind.to_string());
            (1, 0)
        };
        let end = elements
            .and_then(|elements| elements.div_ceil(block).checked_mul(bytes))
            .and_then(|bytes| offset.checked_add(bytes));
        let end = end.ok_or_else(|| format!("tensor {} has an impossible size", name.escape_ascii()))?;
        end_of_data = end_of_data.max(end);
    }
    let start = reader.at.next_multiple_of(alignment);
    match start.checked_add(end_of_data) {
        Some(end) if end <= reader.length => Ok(facts),
        _ => Err(format!(
            "its weights end beyond its {} bytes: it was cut short",
            reader.length
        )),
    }
}

/// Reads or skips one value of a GGUF header; the number it is, if it is a whole one that is not negative.
fn value(reader: &mut Reader, kind: u32, depth: u32) -> Result<Option<u64>, String> {
    Ok(match kind {
        0 | 7 => Some(u64::from(reader.bytes::<1>()?[0])),
        2 => Some(u64::from(u16::from_le_bytes(reader.bytes()?))),
        4 => Some(u64::from(reader.u32()?)),
        5 => u64::try_from(i32::from_le_bytes(reader.bytes()?)).ok(),
        10 => Some(reader.u64()?),
        11 => u64::try_from(i64::from_le_bytes(reader.bytes()?)).ok(),
        1 => reader.skip(1).map(|()| None)?,
        3 => reader.skip(2).map(|()| None)?,
        6 => reader.skip(4).map(|()| None)?,
        12 => reader.skip(8).map(|()| None)?,
        8 => reader.text().map(|_| None)?,
        9 if depth < 3 => {
            let kind = reader.u32()?;
            let (least, is_flat) = match kind {
                0 | 1 | 7 => (1, true),
                2 | 3 => (2, true),
                4..=6 => (4, true),
                10..=12 => (8, true),
                _ => (8, false),
            };
            let count = reader.count(least, "values")?;
            if is_flat {
                reader.skip(count * least)?;
            } else {
                for _ in 0..count {
                    value(reader, kind, depth + 1)?;
                }
            }
            None
        }
        _ => return Err(format!("a value in its header has the unknown type {kind}")),
    })
}

fn quantization(file_type: u64) -> Option<String> {
    FILE_TYPES
        .iter()
        .find(|(number, _)| *number == file_type)
        .map(|(_, name)| (*name).to_owned())
}

/// How a file's name says that its weights are quantised, as in `model.Q4_K_M.gguf`.
pub fn quantization_in(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_uppercase();
    let named = FILE_TYPES
        .iter()
        .map(|(_, quantization)| *quantization)
        .filter(|quantization| name.contains(quantization));
    named.max_by_key(|quantization| quantization.len())
}

/// The names of `general.file_type` (`llama_ftype` in `llama.h`).
const FILE_TYPES: [(u64, &str); 33] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Seek, Write};

    use super::*;

    /// A GGUF of one tensor of 64 elements of type `Q4_1` (40 bytes), whose counts and offset can be wrong.
    fn file(version: u32, keys: u64, tensors: u64, dimension: u64, offset: u64) -> Vec<u8> {
        file_of(3, version, keys, tensors, dimension, offset)
    }

    fn file_of(kind: u32, version: u32, keys: u64, tensors: u64, dimension: u64, offset: u64) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        bytes.extend(version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        text(&mut bytes, "general.file_type");
        bytes.extend([4_u32, 3].map(u32::to_le_bytes).concat());
        text(&mut bytes, "llama.context_length");
        bytes.extend([4_u32, 8192].map(u32::to_le_bytes).concat());
        text(&mut bytes, "tokenizer.ggml.tokens");
        bytes.extend([9_u32, 8].map(u32::to_le_bytes).concat());
        bytes.extend(2_u64.to_le_bytes());
        text(&mut bytes, "a");
        text(&mut bytes, &"b".repeat(1_000));
        text(&mut bytes, "w");
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(dimension.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32) + 40, 0);
        bytes
    }

    fn inspect_bytes(bytes: &[u8]) -> Result<Facts, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        inspect(&mut Reader::new(file, bytes.len() as u64))
    }

    #[test]
    fn a_sound_file_tells_quantisation_and_context() {
        let facts = Facts {
            quantization: Some("Q4_1".into()),
            context: Some(8192),
            unsupported: None,
        };
        assert_eq!(inspect_bytes(&file(3, 3, 1, 64, 0)), Ok(facts));
    }

    #[test]
    fn weights_the_engine_cannot_compute_with_are_named() {
        for (kind, name) in [(20, Some("IQ4_NL")), (39, Some("MXFP4")), (99, Some("99")), (8, None)] {
            let facts = inspect_bytes(&file_of(kind, 3, 3, 1, 32, 0)).unwrap();
            assert_eq!(facts.unsupported.as_deref(), name);
        }
    }

    #[test]
    fn a_file_name_tells_the_quantisation_too() {
        for (name, quantization) in [
            ("m.Q4_K_M.gguf", Some("Q4_K_M")),
            ("qwen2.5-0.5b-instruct-q8_0.gguf", Some("Q8_0")),
            ("m-bf16.gguf", Some("BF16")),
            ("m.gguf", None),
        ] {
            assert_eq!(quantization_in(name), quantization, "{name}");
        }
    }

    #[test]
    fn a_file_that_was_cut_short_anywhere_is_noticed() {
        let whole = file(3, 3, 1, 64, 0);
        for length in 0..whole.len() {
            assert!(
                inspect_bytes(&whole[..length]).is_err(),
                "{length} of {} bytes",
                whole.len()
            );
        }
    }

    #[test]
    fn sizes_and_counts_beyond_the_file_are_refused() {
        for (bytes, why) in [
            (file(3, 3, 1, 96, 0), "cut short"),
            (file(3, 3, 1, 64, 32), "cut short"),
            (file(3, 3, 1, u64::MAX, 0), "cut short"),
            (file(3, 3, 1, 64, u64::MAX), "impossible size"),
            (file(3, 3, u64::MAX, 64, 0), "tensors, more than fit"),
            (file(3, u64::MAX / 13, 1, 64, 0), "keys, more than fit"),
            (file(1, 3, 1, 64, 0), "version is 1"),
            (file(3_u32.swap_bytes(), 3, 1, 64, 0), "big-endian"),
            (b"<!DOCTYPE html><html></html>".to_vec(), "does not begin with"),
        ] {
            let said = inspect_bytes(&bytes).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
