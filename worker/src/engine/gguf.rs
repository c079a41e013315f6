//! Reads the head of a GGUF file and holds it against the file's length, before anything else trusts it.
//!
//! A model file is hostile input: every count and offset is checked against the bytes that are there. It
//! never reads the weights.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use wire::{ModelFacts, TensorType};

use super::LoadError;

/// What the head of a GGUF file says of its model.
#[derive(Debug, Default)]
pub struct Summary {
    /// Architecture, context and quantisation.
    pub facts: ModelFacts,
    /// Numbers in all its tensors together.
    pub elements: u64,
}

/// The GGUF files that a path stands for: itself, or the shards in a folder in their order; none in any other folder.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return vec![path.to_owned()];
    };
    let mut shards: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
        .collect();
    shards.sort();
    shards
}

/// Reads the head and checks it.
pub fn inspect(path: &Path) -> Result<Summary, LoadError> {
    let unreadable = |source| LoadError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let path = path.to_owned();
    read_head(BufReader::new(file), length).map_err(|refusal| match refusal {
        Refusal::Damaged(fault) => LoadError::Damaged { path, fault },
        Refusal::Unsupported(kind) => LoadError::Unsupported { path, kind },
    })
}

/// Why the engine does not get the file.
#[derive(Debug)]
enum Refusal {
    /// What is wrong with it.
    Damaged(String),
    /// Nothing, but its weights are of this type, which the engine cannot compute with.
    Unsupported(String),
}

fn fault<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Damaged(text.into()))
}

fn read_head(source: impl Read, length: u64) -> Result<Summary, Refusal> {
    let mut head = Head {
        source,
        read: 0,
        length,
    };
    if &head.bytes::<4>()? != b"GGUF" {
        return fault("it does not begin with `GGUF`");
    }
    let version = head.u32()?;
    if !(2..=3).contains(&version) {
        return fault(format!("GGUF version {version} is unknown; 2 and 3 are known"));
    }
    let tensors = head.count("tensors", 24)?;
    let entries = head.count("metadata entries", 13)?;

    let mut facts = ModelFacts::default();
    let mut contexts = HashMap::new();
    let mut alignment = 32;
    for _ in 0..entries {
        let key = head.string()?;
        let kind = head.u32()?;
        match head.value(kind, 0)? {
            Value::Text(text) if key == "general.architecture" => facts.architecture = Some(text),
            Value::Number(n) if key == "general.alignment" => alignment = n,
            Value::Number(n) if key.ends_with(".context_length") => drop(contexts.insert(key, n)),
            _ => {}
        }
    }
    let Some(architecture) = &facts.architecture else {
        return fault("it does not name its architecture");
    };
    facts.context_length = contexts
        .get(&format!("{architecture}.context_length"))
        .and_then(|&n| u32::try_from(n).ok());
    if alignment == 0 || alignment > 1 << 20 {
        return fault(format!("its alignment is {alignment}"));
    }

    // Sums saturate: tensors may overlap, so that only the one that ends last is held against the length.
    let mut weights: HashMap<&str, u64> = HashMap::new();
    let (mut end, mut elements, mut unsupported) = (0, 0_u64, None);
    for _ in 0..tensors {
        let tensor = head.tensor()?;
        elements = elements.saturating_add(tensor.elements);
        end = end.max(tensor.offset.saturating_add(tensor.size));
        match tensor.layout {
            Some(TensorType {
                name,
                is_supported: true,
                ..
            }) => {
                let weight = weights.entry(name).or_default();
                *weight = weight.saturating_add(tensor.size);
            }
            Some(TensorType { name, .. }) => unsupported = unsupported.or(Some(name.to_owned())),
            None => unsupported = unsupported.or(Some(tensor.kind.to_string())),
        }
    }
    let needed = head.read.next_multiple_of(alignment).saturating_add(end);
    if needed > length {
        return fault(format!(
            "its tensors end at byte {needed}, but it has only {length} bytes"
        ));
    }
    if let Some(kind) = unsupported {
        return Err(Refusal::Unsupported(kind));
    }
    let heaviest = weights.into_iter().max_by_key(|&(_, bytes)| bytes);
    facts.quantization = heaviest.map(|(kind, _)| kind.to_owned());
    Ok(Summary { facts, elements })
}

/// One tensor: how it lies in the file, how many numbers in how many bytes, and where in the file's data.
struct Tensor {
    kind: u32,
    layout: Option<TensorType>,
    elements: u64,
    size: u64,
    offset: u64,
}

/// The values this room looks at; all others are read past.
enum Value {
    Text(String),
    Number(u64),
    Other,
}

struct Head<R> {
    source: R,
    read: u64,
    length: u64,
}

impl<R: Read> Head<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut bytes = [0; N];
        if self.source.read_exact(&mut bytes).is_err() {
            return fault(format!(
                "it ends after {} bytes, in the middle of its head",
                self.length
            ));
        }
        self.read += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, n: u64) -> Result<(), Refusal> {
        let skipped = std::io::copy(&mut self.source.by_ref().take(n), &mut std::io::sink()).unwrap_or(0);
        self.read += skipped;
        if skipped < n {
            return fault(format!(
                "it ends after {} bytes, in the middle of its head",
                self.length
            ));
        }
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: u64) -> Result<u64, Refusal> {
        let count = self.u64()?;
        if count > self.length.saturating_sub(self.read) / least {
            return fault(format!("it declares {count} {what}, more than it has room for"));
        }
        Ok(count)
    }

    fn string(&mut self) -> Result<String, Refusal> {
        let length = self.count("bytes of text", 1)?;
        // Names and templates are short; only what claims to be huge is not worth holding.
        if length > 1 << 24 {
            self.skip(length)?;
            return Ok(String::new());
        }
        let mut bytes = Vec::new();
        let read = self.source.by_ref().take(length).read_to_end(&mut bytes).unwrap_or(0) as u64;
        self.read += read;
        if read < length {
            return fault(format!(
                "it ends after {} bytes, in the middle of its head",
                self.length
            ));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, Refusal> {
        match kind {
            0 | 1 | 7 => self.skip(1)?,
            2 | 3 => self.skip(2)?,
            4 => return self.u32().map(|n| Value::Number(n.into())),
            5 => return self.u32().map(|n| Value::Number(n.into())),
            6 => self.skip(4)?,
            8 => return self.string().map(Value::Text),
            9 if depth < 4 => {
                let kind = self.u32()?;
                let least = if matches!(kind, 8 | 9) { 8 } else { 1 };
                for _ in 0..self.count("list entries", least)? {
                    self.value(kind, depth + 1)?;
                }
            }
            10 => return self.u64().map(Value::Number),
            11 | 12 => self.skip(8)?,
            _ => return fault(format!("a metadata entry has the unknown type {kind}")),
        }
        Ok(Value::Other)
    }

    fn tensor(&mut self) -> Result<Tensor, Refusal> {
        let name = self.string()?;
        let dimensions = self.u32()?;
        if dimensions > 8 {
            return fault(format!("tensor `{name}` has {dimensions} dimensions"));
        }
        let mut elements: u64 = 1;
        for _ in 0..dimensions {
            let n = self.u64()?;
            elements = elements
                .checked_mul(n)
                .ok_or_else(|| Refusal::Damaged(format!("tensor `{name}` overflows")))?;
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let layout = TensorType::of(kind);
        // How much room an unknown type takes is unknown too.
        let (block, bytes) = layout.map_or((1, 0), |layout| (layout.block, layout.bytes));
        let size = elements.div_ceil(block).checked_mul(bytes);
        let size = size.ok_or_else(|| Refusal::Damaged(format!("tensor `{name}` overflows")))?;
        Ok(Tensor {
            kind,
            layout,
            elements,
            size,
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(out: &mut Vec<u8>, s: &str) {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    }

    /// A whole little file: two metadata entries, one list, one tensor of 64 elements in `kind`.
    fn file(kind: u32, data: usize) -> Vec<u8> {
        file_of(&[(kind, 64)], data)
    }

    /// The same with these tensors, type and number of elements, all at the same place.
    fn file_of(tensors: &[(u32, u64)], data: usize) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(3_u64.to_le_bytes());
        text(&mut out, "general.architecture");
        out.extend(8_u32.to_le_bytes());
        text(&mut out, "llama");
        text(&mut out, "llama.context_length");
        out.extend(4_u32.to_le_bytes());
        out.extend(2048_u32.to_le_bytes());
        text(&mut out, "tokenizer.ggml.tokens");
        out.extend(9_u32.to_le_bytes());
        out.extend(8_u32.to_le_bytes());
        out.extend(2_u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "b");
        for (kind, elements) in tensors {
            text(&mut out, "blk.0.weight");
            out.extend(1_u32.to_le_bytes());
            out.extend(elements.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend(0_u64.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32) + data, 0);
        out
    }

    fn read(bytes: &[u8]) -> Result<Summary, Refusal> {
        read_head(bytes, bytes.len() as u64)
    }

    #[track_caller]
    fn damage(bytes: &[u8]) -> String {
        match read(bytes) {
            Err(Refusal::Damaged(fault)) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_whole_file_tells_its_facts() {
        let Summary { facts, elements } = read(&file(3, 40)).unwrap();
        assert_eq!(elements, 64);
        assert_eq!(facts.architecture.as_deref(), Some("llama"));
        assert_eq!(facts.context_length, Some(2048));
        assert_eq!(facts.quantization.as_deref(), Some("Q4_1"));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let whole = file(3, 40);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn tensors_beyond_the_end_are_named_with_both_figures() {
        let text = damage(&file(3, 39));
        let whole = file(3, 40).len();
        assert!(
            text.contains(&format!("end at byte {whole}, but it has only {} bytes", whole - 1)),
            "{text}"
        );
    }

    #[test]
    fn absurd_counts_are_refused_at_once() {
        for at in [8, 16] {
            let mut bytes = file(3, 40);
            bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
            let text = damage(&bytes);
            assert!(text.contains("more than it has room for"), "{text}");
        }
    }

    #[test]
    fn tensors_larger_together_than_a_number_holds_are_refused() {
        let text = damage(&file_of(&[(0, 1 << 61), (0, 1 << 61)], 40));
        assert!(text.contains("its tensors end at byte"), "{text}");
        assert!(damage(&file_of(&[(0, u64::MAX)], 40)).contains("overflows"));
    }

    #[test]
    fn a_sound_file_the_engine_cannot_compute_with_is_not_called_damaged() {
        for (tensors, size, name) in [
            (&[(23, 256)][..], 136, "IQ4_XS"),
            (&[(39, 64)], 34, "MXFP4"),
            (&[(12, 256), (20, 32)], 144, "IQ4_NL"),
            (&[(12, 256), (99, 32)], 144, "99"),
        ] {
            let whole = file_of(tensors, size);
            assert!(
                matches!(read(&whole), Err(Refusal::Unsupported(kind)) if kind == name),
                "{name}"
            );
            assert!(damage(&whole[..whole.len() - 1]).contains("its tensors end at byte"));
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert!(damage(b"<html>404</html>").contains("does not begin with"));
    }
}
