//! Checks a folder of safetensors before the engine maps it: every declared range must lie inside its file.
//!
//! It never reads the weights, and leaves the meaning of `config.json` to the engine.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;
use wire::ModelFacts;

use super::LoadError;

/// Checks the folder's weights and reads from `config.json` what it says of the model.
pub fn inspect(folder: &Path) -> Result<ModelFacts, LoadError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| LoadError::Unreadable { path, source }
    };
    let mut shards: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(unreadable(folder))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    shards.sort();
    if shards.is_empty() {
        let fault = "it holds neither *.gguf nor *.safetensors files".to_owned();
        return Err(LoadError::Damaged {
            path: folder.to_owned(),
            fault,
        });
    }
    for shard in &shards {
        let mut file = File::open(shard).map_err(unreadable(shard))?;
        let length = file.metadata().map_err(unreadable(shard))?.len();
        check(&mut file, length).map_err(|fault| LoadError::Damaged {
            path: shard.clone(),
            fault,
        })?;
    }
    let config = config(folder)?;
    let text = |key: &str| config[key].as_str().map(str::to_owned);
    Ok(ModelFacts {
        context_length: config["max_position_embeddings"]
            .as_u64()
            .and_then(|n| u32::try_from(n).ok()),
        quantization: text("torch_dtype").or_else(|| text("dtype")),
        architecture: text("model_type"),
        ..ModelFacts::default()
    })
}

/// What `config.json` says.
pub fn config(folder: &Path) -> Result<Value, LoadError> {
    let path = folder.join("config.json");
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| LoadError::Damaged {
            path,
            fault: format!("it is not JSON ({error})"),
        }),
        Err(source) => Err(LoadError::Unreadable { path, source }),
    }
}

/// Checks one file of `length` bytes.
fn check(file: &mut impl Read, length: u64) -> Result<(), String> {
    let mut size = [0; 8];
    file.read_exact(&mut size)
        .map_err(|_| format!("it has only {length} bytes"))?;
    let size = u64::from_le_bytes(size);
    let room = length.saturating_sub(8);
    if size > room.min(100_000_000) {
        return Err(format!("its head claims {size} bytes, but the file has {length}"));
    }
    let mut head = Vec::new();
    file.take(size)
        .read_to_end(&mut head)
        .map_err(|error| error.to_string())?;
    let head: Value = serde_json::from_slice(&head).map_err(|error| format!("its head is not JSON ({error})"))?;
    let tensors = head.as_object().ok_or("its head is not a JSON object")?;
    for (name, tensor) in tensors.iter().filter(|(name, _)| *name != "__metadata__") {
        let at = |i: usize| tensor["data_offsets"][i].as_u64();
        match (at(0), at(1)) {
            (Some(start), Some(end)) if start <= end && end <= room - size => {}
            _ => return Err(format!("tensor `{name}` lies outside its {length} bytes")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(head: &str, data: usize) -> Vec<u8> {
        let mut out = (head.len() as u64).to_le_bytes().to_vec();
        out.extend(head.as_bytes());
        out.resize(out.len() + data, 0);
        out
    }

    fn verdict(bytes: &[u8]) -> Result<(), String> {
        check(&mut &bytes[..], bytes.len() as u64)
    }

    #[test]
    fn ranges_inside_the_file_pass_and_all_others_do_not() {
        let head = |start: u64, end: u64| {
            format!(r#"{{"__metadata__":{{}},"w":{{"dtype":"F32","shape":[2],"data_offsets":[{start},{end}]}}}}"#)
        };
        assert_eq!(verdict(&file(&head(0, 8), 8)), Ok(()));
        assert!(verdict(&file(&head(0, 9), 8)).unwrap_err().contains("lies outside"));
        assert!(verdict(&file(&head(9, 8), 8)).unwrap_err().contains("lies outside"));
    }

    #[test]
    fn a_head_longer_than_the_file_is_refused() {
        let mut bytes = file("{}", 0);
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(verdict(&bytes).unwrap_err().contains("its head claims"));
        assert!(verdict(b"abc").unwrap_err().contains("only 3 bytes"));
    }
}
