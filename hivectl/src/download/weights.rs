//! What model files say of themselves: which files make a model, whether they are sound, how they are quantised.
//!
//! Model files are hostile input: every length and offset is checked against the file before it is used. It reads
//! headers only, never weights, and never changes a file.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use serde::Deserialize;

use super::{
    gguf::{self, Reader},
    source::{has_extension, shard},
};

/// What a model's files say of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// How its weights are quantised, as llama.cpp names it.
    pub quantization: Option<String>,
    /// The longest context it was made for, in tokens.
    pub context: Option<u64>,
    /// A tensor type among its weights that the worker's engine cannot compute with.
    pub unsupported: Option<String>,
}

/// Checks one file of a model by its header and tells what it says; an `Err` is the reason why it is not sound.
///
/// A model of one file is a GGUF, whatever it is called.
pub fn inspect(name: &str, is_only_one: bool, path: &Path) -> Result<Facts, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if is_only_one || has_extension(name, "gguf") {
        let facts = gguf::inspect(&mut Reader::new(file, length))?;
        let in_name = || gguf::quantization_in(name).map(str::to_owned);
        return Ok(Facts {
            quantization: facts.quantization.or_else(in_name),
            ..facts
        });
    }
    if has_extension(name, "safetensors") {
        safetensors(file, length)?;
    } else if has_extension(name, "json") {
        return json(name, path);
    }
    Ok(Facts::default())
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

/// A tensor in a safetensors header.
#[derive(Deserialize)]
struct Tensor {
    data_offsets: (u64, u64),
}

fn safetensors(mut file: File, length: u64) -> Result<(), String> {
    const MAX_HEADER: u64 = 100_000_000;
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes).map_err(|_| "it ends within its header")?;
    let header_length = u64::from_le_bytes(bytes);
    let Some(data) = (length - 8)
        .checked_sub(header_length)
        .filter(|_| header_length <= MAX_HEADER)
    else {
        return Err(format!("its header claims {header_length} of its {length} bytes"));
    };
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_reader(BufReader::new(file).take(header_length))
            .map_err(|error| format!("its header is no JSON: {error}"))?;
    for (name, tensor) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let tensor: Tensor =
            serde_json::from_value(tensor).map_err(|_| format!("tensor {name:?} has no place in it"))?;
        let (from, to) = tensor.data_offsets;
        if from > to || to > data {
            return Err(format!(
                "tensor {name:?} lies beyond its {length} bytes: it was cut short"
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
        unsupported: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn inspect_bytes(name: &str, bytes: &[u8]) -> Result<Facts, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        inspect(name, false, &path)
    }

    fn safetensors(header: &str, data: usize) -> Result<Facts, String> {
        let length = u64::try_from(header.len()).unwrap().to_le_bytes();
        inspect_bytes("m.safetensors", &[&length, header.as_bytes(), &vec![0; data]].concat())
    }

    #[test]
    fn a_repository_is_a_model_only_if_it_is_exactly_one() {
        let whole = names(&[
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "tokenizer.json",
        ]);
        let extra = names(&[
            "README.md",
            "pytorch_model.bin",
            "evil.py",
            "consolidated.safetensors",
            "onnx/config.json",
        ]);
        let mut chosen = choose(&[whole.clone(), extra].concat()).unwrap();
        chosen.sort();
        assert_eq!(chosen, whole);

        let shards = names(&["q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf"]);
        assert_eq!(choose(&shards).unwrap(), shards);
        assert_eq!(choose(&names(&["README.md", "m.gguf"])).unwrap(), names(&["m.gguf"]));
        assert!(
            choose(&names(&["a.gguf", "b.gguf"]))
                .unwrap_err()
                .contains("2 GGUF files")
        );
        assert!(choose(&[shards, names(&["q8/m.gguf"])].concat()).is_err());
        assert!(choose(&names(&["model.safetensors"])).is_err());
        assert!(choose(&names(&["pytorch_model.bin", "config.json"])).is_err());
        assert!(shards_of("m-00001-of-99999.gguf").is_err());
    }

    #[test]
    fn safetensors_that_were_cut_short_are_noticed() {
        let header = r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(safetensors(header, 8).is_ok());
        assert!(safetensors(header, 7).unwrap_err().contains("cut short"));
        assert!(safetensors(r#"{"w":{"data_offsets":[8,0]}}"#, 8).is_err());
        assert!(safetensors("<html>", 8).is_err());
        assert!(inspect_bytes("m.safetensors", &u64::MAX.to_le_bytes()).is_err());
        assert!(inspect_bytes("m.safetensors", b"123").is_err());
    }

    #[test]
    fn a_config_tells_quantisation_and_context() {
        let facts = inspect_bytes(
            "config.json",
            br#"{"torch_dtype":"bfloat16","max_position_embeddings":2048}"#,
        )
        .unwrap();
        assert_eq!(
            facts,
            Facts {
                quantization: Some("BF16".into()),
                context: Some(2048),
                unsupported: None,
            }
        );
        let facts = inspect_bytes(
            "config.json",
            br#"{"dtype":"float16","quantization_config":{"quant_method":"awq"}}"#,
        );
        assert_eq!(facts.unwrap().quantization.as_deref(), Some("awq"));
        assert!(inspect_bytes("tokenizer.json", b"<html>").is_err());
    }
}
