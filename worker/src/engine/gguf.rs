//! Reads the head of a GGUF file and holds it against the file's length, before anything else trusts it.
//!
//! A model file is hostile input: every count and offset is checked against the bytes that are there. It
//! never reads the weights.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use wire::ModelFacts;

use super::LoadError;

/// What the head of a GGUF file says of its model.
#[derive(Debug, Default)]
pub struct Summary {
    /// Architecture, context and quantisation.
    pub facts: ModelFacts,
    /// Numbers in all its tensors together.
    pub elements: u64,
}

/// Reads the head and checks it.
pub fn inspect(path: &Path) -> Result<Summary, LoadError> {
    let unreadable = |source| LoadError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    read_head(BufReader::new(file), length).map_err(|Fault(fault)| LoadError::Damaged {
        path: path.to_owned(),
        fault,
    })
}

/// What is wrong with the file.
#[derive(Debug)]
struct Fault(String);

fn fault<T>(text: impl Into<String>) -> Result<T, Fault> {
    Err(Fault(text.into()))
}

fn read_head(source: impl Read, length: u64) -> Result<Summary, Fault> {
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

    let mut weights: HashMap<u32, u64> = HashMap::new();
    let (mut end, mut elements) = (0, 0_u64);
    for _ in 0..tensors {
        let Tensor {
            kind,
            elements: more,
            size,
            offset,
        } = head.tensor()?;
        elements = elements.saturating_add(more);
        *weights.entry(kind).or_default() += size;
        end = end.max(
            offset
                .checked_add(size)
                .ok_or_else(|| Fault("a tensor's offset overflows".into()))?,
        );
    }
    let start = head.read.next_multiple_of(alignment);
    let needed = start
        .checked_add(end)
        .ok_or_else(|| Fault("its tensors overflow".into()))?;
    if needed > length {
        return fault(format!(
            "its tensors end at byte {needed}, but it has only {length} bytes"
        ));
    }
    let heaviest = weights.into_iter().max_by_key(|&(_, bytes)| bytes);
    facts.quantization = heaviest
        .and_then(|(kind, _)| layout(kind))
        .map(|layout| layout.name.to_owned());
    Ok(Summary { facts, elements })
}

/// One tensor: its type, how many numbers in how many bytes, and where in the file's data.
struct Tensor {
    kind: u32,
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
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
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

    fn skip(&mut self, n: u64) -> Result<(), Fault> {
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

    fn u32(&mut self) -> Result<u32, Fault> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: u64) -> Result<u64, Fault> {
        let count = self.u64()?;
        if count > self.length.saturating_sub(self.read) / least {
            return fault(format!("it declares {count} {what}, more than it has room for"));
        }
        Ok(count)
    }

    fn string(&mut self) -> Result<String, Fault> {
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

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, Fault> {
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

    fn tensor(&mut self) -> Result<Tensor, Fault> {
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
                .ok_or_else(|| Fault(format!("tensor `{name}` overflows")))?;
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let Some(layout) = layout(kind) else {
            return fault(format!(
                "tensor `{name}` has the type {kind}, which the engine does not know"
            ));
        };
        let size = elements.div_ceil(layout.block).checked_mul(layout.bytes);
        let size = size.ok_or_else(|| Fault(format!("tensor `{name}` overflows")))?;
        Ok(Tensor {
            kind,
            elements,
            size,
            offset,
        })
    }
}

/// How a tensor type lies in the file: so many elements in so many bytes.
struct Layout {
    name: &'static str,
    block: u64,
    bytes: u64,
}

/// The types the engine can compute with, by their number in the file.
fn layout(kind: u32) -> Option<Layout> {
    let (name, block, bytes) = match kind {
        0 => ("F32", 1, 4),
        1 => ("F16", 1, 2),
        2 => ("Q4_0", 32, 18),
        3 => ("Q4_1", 32, 20),
        6 => ("Q5_0", 32, 22),
        7 => ("Q5_1", 32, 24),
        8 => ("Q8_0", 32, 34),
        9 => ("Q8_1", 32, 36),
        10 => ("Q2_K", 256, 84),
        11 => ("Q3_K", 256, 110),
        12 => ("Q4_K", 256, 144),
        13 => ("Q5_K", 256, 176),
        14 => ("Q6_K", 256, 210),
        15 => ("Q8_K", 256, 292),
        30 => ("BF16", 1, 2),
        _ => return None,
    };
    Some(Layout { name, block, bytes })
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
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(1_u64.to_le_bytes());
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
        text(&mut out, "blk.0.weight");
        out.extend(1_u32.to_le_bytes());
        out.extend(64_u64.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(0_u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32) + data, 0);
        out
    }

    fn read(bytes: &[u8]) -> Result<Summary, Fault> {
        read_head(bytes, bytes.len() as u64)
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
        let Fault(text) = read(&file(3, 39)).unwrap_err();
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
            let Fault(text) = read(&bytes).unwrap_err();
            assert!(text.contains("more than it has room for"), "{text}");
        }
    }

    #[test]
    fn other_files_and_unknown_types_are_refused() {
        assert!(read(b"<html>404</html>").unwrap_err().0.contains("does not begin with"));
        assert!(read(&file(99, 40)).unwrap_err().0.contains("type 99"));
    }
}
