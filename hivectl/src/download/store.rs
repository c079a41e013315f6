//! The model store: one folder for each model, with a manifest that is written last.
//!
//! A folder without a manifest is not a model, so nothing half-finished ever looks whole. All that an interrupted
//! download leaves ends in `.part`. It never deletes anything outside `$HIVE_MODELS`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wire::ModelName;

use super::{
    Model,
    error::{Error, Result},
    source::{Source, has_extension, is_safe_path},
};

const MANIFEST: &str = "hive-model.json";
const NEW_MANIFEST: &str = "hive-model.new.part";
const PLAN: &str = "hive-model.part";

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

/// What an unfinished download needs to know to go on; lost knowledge only costs the bytes again.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Plan {
    /// The source the parts came from.
    source: String,
    /// Files that are complete and checked, though still called `.part`.
    done: Vec<StoredFile>,
    /// For each unfinished file, what the server says has to be the same for its bytes to fit.
    validators: BTreeMap<String, String>,
}

impl Store {
    /// The store in that folder.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The folder of all models.
    pub fn root(&self) -> &Path {
        &self.root
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

    /// Deletes a model and whatever an interrupted download of it left; the bytes that were freed.
    pub fn remove(draft: &Draft) -> Result<u64> {
        let folder = draft.folder();
        let doing = || format!("deleting {}", folder.display());
        let freed = fs::read_dir(folder)
            .map_err(Error::io(doing()))?
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.len())
            .sum();
        // The manifest goes first, so that what is being deleted is no longer a model.
        fs::remove_file(folder.join(MANIFEST))
            .or_else(unless_missing)
            .map_err(Error::io(doing()))?;
        fs::remove_dir_all(folder).map_err(Error::io(doing()))?;
        Ok(freed)
    }

    /// The right to change the model of that name, once nobody else holds it; `waiting` is called if somebody does.
    pub async fn draft(&self, name: &ModelName, waiting: impl FnOnce()) -> Result<Draft> {
        let folder = self.folder(name);
        let doing = || format!("writing to {}", folder.display());
        let mut waiting = Some(waiting);
        loop {
            fs::create_dir_all(&folder).map_err(Error::io(doing()))?;
            let path = folder.join(PLAN);
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path);
            let file = match opened {
                Ok(file) => file,
                // Somebody deleted the folder in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io(doing())(error)),
            };
            match file.try_lock() {
                // Whoever held the lock before may have deleted the file it was on.
                Ok(()) if is_still(&path, &file) => return Ok(Draft::new(folder, file)),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(format!("locking {}", path.display()))(error)),
            }
        }
    }

    fn read(&self, folder: &Path) -> Option<Manifest> {
        let manifest: Manifest = serde_json::from_slice(&fs::read(folder.join(MANIFEST)).ok()?).ok()?;
        let is_plain = |file: &StoredFile| is_safe_path(&file.name) && !file.name.contains('/');
        let is_ours = self.folder(&manifest.name) == folder && !manifest.files.is_empty();
        (is_ours && manifest.files.iter().all(is_plain)).then_some(manifest)
    }
}

/// A model in the making, and the lock that keeps others from making the same one. Dropped, it leaves the parts.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    lock: File,
    plan: Plan,
}

impl Draft {
    fn new(folder: PathBuf, mut lock: File) -> Self {
        let mut text = Vec::new();
        let plan = lock
            .read_to_end(&mut text)
            .ok()
            .and_then(|_| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Self { folder, lock, plan }
    }

    /// The model's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the bytes of that file gather.
    pub fn part(&self, file: &str) -> PathBuf {
        self.folder.join(format!("{file}.part"))
    }

    /// Goes on with what lies here if it came from `source`, and starts anew otherwise.
    pub fn begin(&mut self, source: &str) -> Result<()> {
        if self.plan.source != source {
            self.sweep(|name| has_extension(name, "part") && name != PLAN)?;
            self.plan = Plan {
                source: source.to_owned(),
                ..Plan::default()
            };
            self.save();
        }
        Ok(())
    }

    /// The file of that name, if it was finished earlier.
    pub fn done(&self, file: &str) -> Option<&StoredFile> {
        let is_here = |done: &&StoredFile| fs::metadata(self.part(file)).is_ok_and(|found| found.len() == done.size);
        self.plan.done.iter().find(|done| done.name == file).filter(is_here)
    }

    /// What the server said has to be the same for the bytes of that part to fit.
    pub fn validator(&self, file: &str) -> Option<&str> {
        self.plan.validators.get(file).map(String::as_str)
    }

    /// Keeps what the server said has to be the same for the bytes of that part to fit.
    pub fn set_validator(&mut self, file: &str, validator: Option<&str>) {
        let before = self.plan.validators.remove(file);
        if let Some(validator) = validator {
            self.plan.validators.insert(file.to_owned(), validator.to_owned());
        }
        if before.as_deref() != validator {
            self.save();
        }
    }

    /// Keeps that a file is complete and checked.
    pub fn finish(&mut self, file: StoredFile) {
        self.plan.validators.remove(&file.name);
        self.plan.done.retain(|done| done.name != file.name);
        self.plan.done.push(file);
        self.save();
    }

    /// Throws away the bytes of a part.
    pub fn discard(&mut self, file: &str) -> Result<()> {
        let part = self.part(file);
        fs::remove_file(&part)
            .or_else(unless_missing)
            .map_err(Error::io(format!("deleting {}", part.display())))?;
        self.plan.done.retain(|done| done.name != file);
        self.plan.validators.remove(file);
        self.save();
        Ok(())
    }

    /// Makes the parts a model: all of them or, if this fails midway, none.
    pub fn publish(mut self, manifest: &Manifest) -> Result<()> {
        let folder = self.folder.clone();
        let publish = || -> io::Result<()> {
            fs::remove_file(folder.join(MANIFEST)).or_else(unless_missing)?;
            for file in &manifest.files {
                fs::rename(self.part(&file.name), folder.join(&file.name))?;
            }
            let mut new = File::create(folder.join(NEW_MANIFEST))?;
            serde_json::to_writer_pretty(&mut new, manifest)?;
            new.write_all(b"\n")?;
            new.sync_all()?;
            sync_folder(&folder)?;
            fs::rename(folder.join(NEW_MANIFEST), folder.join(MANIFEST))?;
            sync_folder(&folder)
        };
        publish().map_err(Error::io(format!("writing the manifest in {}", folder.display())))?;
        self.sweep(|name| name != MANIFEST && !manifest.files.iter().any(|file| file.name == name))
    }

    /// Ends a draft that came to nothing; parts worth going on with stay.
    pub fn abandon(mut self) {
        let is_part = |entry: fs::DirEntry| {
            has_extension(&entry.file_name().to_string_lossy(), "part") && entry.file_name() != PLAN
        };
        if fs::read_dir(&self.folder).is_ok_and(|mut entries| !entries.any(|entry| entry.is_ok_and(is_part))) {
            // Nothing is lost if this fails: an empty plan says nothing.
            let _ = self.sweep(|name| name == PLAN);
            let _ = fs::remove_dir(&self.folder);
        }
    }

    /// A plan that cannot be written is no reason to stop: a later run then starts this model anew.
    fn save(&mut self) {
        let text = serde_json::to_vec(&self.plan).unwrap_or_default();
        let lock = &mut self.lock;
        let _ = lock
            .rewind()
            .and_then(|()| lock.set_len(0))
            .and_then(|()| lock.write_all(&text));
    }

    /// Deletes the folder's entries of those names.
    fn sweep(&mut self, goes: impl Fn(&str) -> bool) -> Result<()> {
        let sweep = || -> io::Result<()> {
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                if goes(&entry.file_name().to_string_lossy()) {
                    if entry.file_type()?.is_dir() {
                        fs::remove_dir_all(entry.path())
                    } else {
                        fs::remove_file(entry.path())
                    }?;
                }
            }
            Ok(())
        };
        sweep().map_err(Error::io(format!("tidying {}", self.folder.display())))
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
    format!("{start}~{}", &hex(&Sha256::digest(name))[..16])
}

/// The digest of a model of several files: SHA-256 over the lines `sha256sum` would print for them.
fn digest_of_all(files: &[StoredFile]) -> String {
    let mut digest = Sha256::new();
    for file in files {
        digest.update(format!("{}  {}\n", file.sha256, file.name));
    }
    hex(&digest.finalize())
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string never fails.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn unless_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn is_still(path: &Path, file: &File) -> bool {
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    fs::metadata(path).ok().map(id) == file.metadata().ok().map(id)
}
