//! `system_fingerprint`: a short name for everything that decides what a seed answers. It never reads the weights.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// How much of a file tells it from others: a GGUF's head is in there, with all it says of itself.
const BEGINNING: u64 = 1 << 20;

/// The name for the model at `path` (a file, or the files of a folder) with these settings.
pub fn of(path: &Path, settings: &[&str]) -> std::io::Result<String> {
    let mut digest = Sha256::new();
    for setting in settings {
        digest.update(setting);
        digest.update([0]);
    }
    let mut files: Vec<PathBuf> = match std::fs::read_dir(path) {
        Ok(entries) => entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect(),
        Err(_) => vec![path.to_owned()],
    };
    files.sort();
    for file in files {
        let file = File::open(file)?;
        digest.update(file.metadata()?.len().to_le_bytes());
        let mut beginning = Vec::new();
        file.take(BEGINNING).read_to_end(&mut beginning)?;
        digest.update(&beginning);
    }
    Ok(short(&digest.finalize()))
}

/// The name for settings alone.
pub fn of_settings(settings: &[&str]) -> String {
    short(&Sha256::digest(settings.join("\0")))
}

fn short(digest: &[u8]) -> String {
    format!("fp_{}", crate::state::hex(&digest[..6]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_stays_until_a_file_or_a_setting_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        std::fs::write(&path, "weights").unwrap();
        let before = of(&path, &["cpu"]).unwrap();
        assert_eq!(before, of(&path, &["cpu"]).unwrap());
        assert_ne!(before, of(&path, &["cuda:0"]).unwrap());
        assert_eq!(of(folder.path(), &["cpu"]).unwrap(), before, "a folder is its files");
        std::fs::write(&path, "Weights").unwrap();
        assert_ne!(before, of(&path, &["cpu"]).unwrap());
        assert!(before.starts_with("fp_") && before.len() == 15, "{before}");
    }
}
