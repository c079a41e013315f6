//! The model store: one folder for each model, with a manifest that is written last.
//!
//! A folder without a manifest is not a model, so nothing half-finished ever looks whole. It only reads; what changes
//! a model is a [`super::draft::Draft`].

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wire::ModelName;

use super::{
    Model,
    draft::Draft,
    error::{Error, Result},
    source::{Source, is_safe_path},
};

/// The manifest's name in a model's folder.
pub const MANIFEST: &str = "hive-model.json";

/// The folder of all models (`$HIVE_MODELS`); it need not exist yet.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// What the store knows of a model: the content of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name.
    pub name: ModelName,
    /// Where it came from, as [`super::source::Source`] writes it.
    pub source: String,
    /// The hub's commit it came from, if the hub named one.
    pub revision: Option<String>,
    /// How its weights are quantised, as llama.cpp names it.
    pub quantization: Option<String>,
    /// The longest context it was made for, in tokens, if its file says so.
    pub context: Option<u64>,
    /// All its files; the first is the one an engine is pointed to, unless there are several.
    pub files: Vec<StoredFile>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its name inside the model's folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

impl Store {
    /// The store in that folder.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The folder of the model of that name: distinct names have distinct folders.
    pub fn folder(&self, name: &ModelName) -> PathBuf {
        self.root.join(folder_name(name))
    }

    /// The model of that name, if it is here and all its files have their sizes.
    pub fn get(&self, name: &ModelName) -> Option<Manifest> {
        self.recorded(name).filter(|manifest| self.is_whole(manifest))
    }

    /// The model of that name, whole or damaged.
    pub fn recorded(&self, name: &ModelName) -> Option<Manifest> {
        self.read(&self.folder(name)).filter(|manifest| manifest.name == *name)
    }

    /// The model whose own path in the store the source is.
    pub fn owner_of(&self, source: &Source) -> Option<Manifest> {
        let Source::Path(path) = source else { return None };
        let below = path.strip_prefix(&self.root).ok()?;
        let manifest = self.read(&self.root.join(below.components().next()?))?;
        (self.model(&manifest).path == *path).then_some(manifest)
    }

    /// All models, whole or damaged, by name.
    pub fn all(&self) -> Result<Vec<Manifest>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(format!("reading {}", self.root.display()))(error)),
        };
        let mut all: Vec<_> = entries.flatten().filter_map(|entry| self.read(&entry.path())).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Whether all files of a model are here with their sizes.
    pub fn is_whole(&self, manifest: &Manifest) -> bool {
        let folder = self.folder(&manifest.name);
        manifest
            .files
            .iter()
            .all(|file| fs::metadata(folder.join(&file.name)).is_ok_and(|found| found.len() == file.size))
    }

    /// What others are told of a model.
    pub fn model(&self, manifest: &Manifest) -> Model {
        let folder = self.folder(&manifest.name);
        let (path, sha256) = match manifest.files.as_slice() {
            [only] => (folder.join(&only.name), only.sha256.clone()),
            files => (folder, digest_of_all(files)),
        };
        Model {
            name: manifest.name.clone(),
            path,
            size_bytes: manifest.files.iter().map(|file| file.size).sum(),
            sha256,
            quantization: manifest.quantization.clone(),
            source: manifest.source.clone(),
        }
    }

    /// The right to change the model of that name, once nobody else holds it; `waiting` is called if somebody does.
    pub async fn draft(&self, name: &ModelName, waiting: impl FnOnce()) -> Result<Draft> {
        Draft::take(self.folder(name), waiting).await
    }

    fn read(&self, folder: &Path) -> Option<Manifest> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(folder.join(MANIFEST)).ok()?).ok()?;
        let is_plain = |file: &StoredFile| is_safe_path(&file.name) && !file.name.contains('/');
        let is_ours = self.folder(&manifest.name) == folder && !manifest.files.is_empty();
        (is_ours && manifest.files.iter().all(is_plain)).then_some(manifest)
    }
}

/// A name's folder: the name itself if it is plain, else as much of it as every file system takes and a digest,
/// because some do not tell upper from lower case, and names do. No name has a `~` in it.
fn folder_name(name: &ModelName) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-@+".contains(c);
    let name = name.as_str();
    if name.len() <= 100 && name.chars().all(is_plain) {
        return name.to_owned();
    }
    let start: String = name
        .chars()
        .take(100)
        .map(|c| if matches!(c, '/' | ':') { '-' } else { c })
        .collect();
    format!("{start}~{}", &format!("{:x}", Sha256::digest(name))[..16])
}

/// The digest of a model of several files: SHA-256 over the lines `sha256sum` would print for them.
fn digest_of_all(files: &[StoredFile]) -> String {
    let mut digest = Sha256::new();
    for file in files {
        digest.update(format!("{}  {}\n", file.sha256, file.name));
    }
    format!("{:x}", digest.finalize())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use super::*;

    #[test]
    fn distinct_names_have_distinct_folders_below_the_store() {
        let store = Store::new(Path::new("/s"));
        let long = "x".repeat(150);
        let names = [
            "a/b",
            "a:b",
            "a-b",
            "A-b",
            "a-B",
            "a@b",
            "a+b",
            "a.b",
            &long,
            &format!("{long}y"),
            "a/b~",
        ];
        let folders: Vec<PathBuf> = names
            .iter()
            .filter_map(|name| name.parse().ok())
            .map(|name| store.folder(&name))
            .collect();
        let lower: HashSet<String> = folders
            .iter()
            .map(|folder| folder.to_str().unwrap().to_lowercase())
            .collect();
        assert_eq!((folders.len(), lower.len()), (10, 10), "{folders:?}");
        for folder in folders {
            assert_eq!(folder.parent(), Some(Path::new("/s")));
            assert!(folder.file_name().unwrap().len() < 200);
        }
    }

    #[test]
    fn a_manifest_that_points_out_of_its_folder_is_none() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let file = |name: &str| StoredFile {
            name: name.into(),
            size: 1,
            sha256: "0".repeat(64),
        };
        let mut manifest = Manifest {
            name: "m".parse().unwrap(),
            source: "/x".into(),
            revision: None,
            quantization: None,
            context: None,
            files: vec![file("w.gguf")],
        };
        let folder = store.folder(&manifest.name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("w.gguf"), "x").unwrap();
        let write =
            |manifest: &Manifest| fs::write(folder.join(MANIFEST), serde_json::to_vec(manifest).unwrap()).unwrap();
        write(&manifest);
        assert_eq!(store.get(&manifest.name).as_ref(), Some(&manifest));
        for name in ["../w.gguf", "/etc/passwd", "a/b", ""] {
            manifest.files = vec![file(name)];
            write(&manifest);
            assert_eq!(store.recorded(&manifest.name), None, "{name}");
        }
        manifest.files = vec![file("w.gguf")];
        manifest.name = "other".parse().unwrap();
        write(&manifest);
        assert!(store.all().unwrap().is_empty());
    }
}
