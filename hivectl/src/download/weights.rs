//! What model files say of themselves: which files make a model, whether they are sound, how they are quantised.
//!
//! Model files are hostile input: every length and offset is checked against the file before it is used. It reads
//! headers only, never weights, and never changes a file.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use serde::Deserialize;

use super::source::{has_extension, shard};

/// What a model's files say of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// How its weights are quantised, as llama.cpp names it.
    pub quantization: Option<String>,
    /// The longest context it was made for, in tokens.
    pub context: Option<u64>,
}

/// Checks one file of a model by its header and tells what it says; an `Err` is the reason why it is not sound.
///
/// A model of one file is a GGUF, whatever it is called.
pub fn inspect(name: &str, is_only_one: bool, path: &Path) -> Result<Facts, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut reader = Reader {
        inner: BufReader::new(file),
        at: 0,
        length,
    };
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension {
        _ if is_only_one => gguf(&mut reader),
        "gguf" => gguf(&mut reader),
        "safetensors" => safetensors(&mut reader).map(|()| Facts::default()),
        "json" => json(name, path),
        _ => Ok(Facts::default()),
    }
}

/// The files that make up the one model in a folder or repository; an `Err` says why there is not exactly one.
///
/// Pickled weights and code (`.bin`, `.pt`, `.py`) are never among them.
pub fn choose(files: &[String]) -> Result<Vec<String>, String> {
    let with = |extension: &str| -> Vec<&String> {
        files
            .iter()
            .filter(|file| has_extension(file, extension) && !file.contains('/'))
            .collect()
    };
    if files.iter().any(|file| file == "config.json") && !with("safetensors").is_empty() {
        let mut weights = with("safetensors");
        // Some repositories hold the same weights a second time, as one `consolidated` file or under another name.
        if weights.iter().any(|file| file.starts_with("model")) {
            weights.retain(|file| file.starts_with("model"));
        }
        let beside = |file: &&String| {
            !file.contains('/')
                && !file.starts_with("hive-model")
                && (has_extension(file, "json")
                    || has_extension(file, "jinja")
                    || matches!(file.as_str(), "tokenizer.model" | "merges.txt" | "vocab.txt"))
        };
        let chosen: Vec<String> = weights
            .into_iter()
            .chain(files.iter().filter(beside))
            .cloned()
            .collect();
        return Ok(chosen);
    }
    let gguf: Vec<&String> = files.iter().filter(|file| has_extension(file, "gguf")).collect();
    match gguf.as_slice() {
        [] => Err("it holds neither a GGUF file nor safetensors files with a config.json".into()),
        [only] => shards_of(only),
        [first, rest @ ..] => {
            let set = shards_of(first)?;
            if rest.iter().all(|file| set.contains(file)) && set.iter().all(|file| gguf.contains(&file)) {
                Ok(set)
            } else {
                Err(format!("it holds {} GGUF files", gguf.len()))
            }
        }
    }
}

/// A GGUF file and, if it is one part of a model, all the other parts.
pub fn shards_of(file: &str) -> Result<Vec<String>, String> {
    let (folder, name) = file
        .rsplit_once('/')
        .map_or(("", file), |(folder, name)| (folder, name));
    let folder = if folder.is_empty() {
        String::new()
    } else {
        format!("{folder}/")
    };
    match shard(name) {
        None => Ok(vec![file.to_owned()]),
        Some(shard) if shard.of > 1_000 => Err(format!("{name} claims to be one of {} parts", shard.of)),
        Some(shard) => Ok((1..=shard.of)
            .map(|part| format!("{folder}{}-{part:05}-of-{:05}.gguf", shard.stem, shard.of))
            .collect()),
    }
}

/// A file read front to back, which never goes beyond its end and says so in a sentence.
struct Reader {
    inner: BufReader<File>,
    at: u64,
    length: u64,
}

impl Reader {
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

fn gguf(reader: &mut Reader) -> Result<Facts, String> {
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
            (b"general.file_type", Some(number)) => facts.quantization = file_type(number).map(str::to_owned),
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
        let end = elements
            .and_then(|elements| tensor_bytes(kind, elements))
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

/// The bytes of so many elements of a ggml type, each block of elements taking so many bytes (`ggml.c`); a type that
/// is not known here counts as nothing.
fn tensor_bytes(kind: u32, elements: u64) -> Option<u64> {
    let (block, bytes) = match kind {
        24 => (1, 1),
        1 | 25 | 30 => (1, 2),
        0 | 26 => (1, 4),
        27 | 28 => (1, 8),
        39 => (32, 17),
        2 | 20 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        19 => (256, 50),
        34 => (256, 54),
        29 => (256, 56),
        16 | 35 => (256, 66),
        17 => (256, 74),
        22 => (256, 82),
        10 => (256, 84),
        18 => (256, 98),
        11 | 21 => (256, 110),
        23 => (256, 136),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        _ => return Some(0),
    };
    elements.div_ceil(block).checked_mul(bytes)
}

/// The name of a `general.file_type` (`llama_ftype` in `llama.h`).
fn file_type(number: u64) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        _ => return None,
    })
}

/// A tensor in a safetensors header.
#[derive(Deserialize)]
struct Tensor {
    data_offsets: (u64, u64),
}

fn safetensors(reader: &mut Reader) -> Result<(), String> {
    const MAX_HEADER: u64 = 100_000_000;
    let length = reader.count(1, "bytes of header")?;
    if length > MAX_HEADER {
        return Err(format!("its header claims {length} bytes"));
    }
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_reader((&mut reader.inner).take(length))
        .map_err(|error| format!("its header is no JSON: {error}"))?;
    reader
        .inner
        .seek(SeekFrom::Start(8 + length))
        .map_err(|error| error.to_string())?;
    let data = reader.length - 8 - length;
    for (name, tensor) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let tensor: Tensor =
            serde_json::from_value(tensor).map_err(|_| format!("tensor {name:?} has no place in it"))?;
        let (from, to) = tensor.data_offsets;
        if from > to || to > data {
            return Err(format!(
                "tensor {name:?} lies beyond its {} bytes: it was cut short",
                reader.length
            ));
        }
    }
    Ok(())
}

/// What matters here of a `config.json`.
#[derive(Deserialize)]
struct ModelConfig {
    torch_dtype: Option<String>,
    dtype: Option<String>,
    max_position_embeddings: Option<u64>,
    quantization_config: Option<QuantizationConfig>,
}

#[derive(Deserialize)]
struct QuantizationConfig {
    quant_method: Option<String>,
}

fn json(name: &str, path: &Path) -> Result<Facts, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    if name != "config.json" {
        return serde_json::from_slice::<serde::de::IgnoredAny>(&text)
            .map(|_| Facts::default())
            .map_err(|error| error.to_string());
    }
    let config: ModelConfig = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let quantization = config
        .quantization_config
        .and_then(|quantization| quantization.quant_method);
    let dtype = || {
        config.torch_dtype.or(config.dtype).map(|dtype| match dtype.as_str() {
            "bfloat16" => "BF16".into(),
            "float16" => "F16".into(),
            "float32" => "F32".into(),
            _ => dtype,
        })
    };
    Ok(Facts {
        quantization: quantization.or_else(dtype),
        context: config.max_position_embeddings,
    })
}
