//! Whether a model in the store still is what it was when it came.
//!
//! It changes nothing: what is damaged stays until somebody fetches it anew.

use std::fs;

use crate::output::Output;

use super::{
    part::digest,
    store::{MANIFEST, Manifest, Store},
};

/// Reads a model's files from the first byte to the last; what is wrong with them.
pub async fn damage(store: &Store, manifest: &Manifest, output: &Output) -> Option<String> {
    let folder = store.folder(&manifest.name);
    let total = manifest.files.iter().map(|file| file.size).sum();
    let bar = output.bar(Some(total), manifest.name.as_str());
    let mut problem = None;
    for file in &manifest.files {
        let path = folder.join(&file.name);
        problem = match fs::metadata(&path) {
            Err(error) => Some(format!("{} cannot be read: {error}", path.display())),
            Ok(found) if found.len() != file.size => Some(format!(
                "{} should have {} bytes and has {}",
                path.display(),
                file.size,
                found.len()
            )),
            Ok(_) => match digest(&path, |bytes| bar.inc(bytes)).await {
                Err(error) => Some(format!("{} cannot be read: {error}", path.display())),
                Ok(digest) if digest != file.sha256 => Some(format!(
                    "the SHA-256 of {} should be {} and is {digest}",
                    path.display(),
                    file.sha256
                )),
                Ok(_) => None,
            },
        };
        if problem.is_some() {
            break;
        }
    }
    bar.finish_and_clear();
    problem
}

/// As [`damage`], for a model that somebody wrote to since it came: reading large ones at every start would take minutes.
pub async fn damage_since(store: &Store, manifest: &Manifest, output: &Output) -> Option<String> {
    let folder = store.folder(&manifest.name);
    let written = |name: &str| fs::metadata(folder.join(name)).and_then(|found| found.modified()).ok();
    let came = written(MANIFEST);
    if manifest.files.iter().all(|file| written(&file.name) <= came) {
        return None;
    }
    damage(store, manifest, output).await
}
