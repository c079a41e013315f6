//! A model in the making: the lock on its folder, the parts that gather there, and the step that makes them a model.
//!
//! All that an interrupted download leaves ends in `.part`, and a later one goes on from it. It never touches anything
//! outside the model's folder.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    error::{Error, Result},
    part::Part,
    promise::Promise,
    source::has_extension,
    store::{MANIFEST, Manifest, StoredFile},
};

/// The lock, and in it the plan.
const PLAN: &str = "hive-model.part";
const NEW_MANIFEST: &str = "hive-model.new.part";

/// A model in the making, and the lock that keeps others from making the same one. Dropped, it leaves the parts.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    lock: File,
    plan: Plan,
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

impl Draft {
    /// The right to change the model in that folder, once nobody else holds it; `waiting` is called if somebody does.
    pub async fn take(folder: PathBuf, waiting: impl FnOnce()) -> Result<Self> {
        let doing = || format!("writing to {}", folder.display());
        let path = folder.join(PLAN);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut waiting = Some(waiting);
        loop {
            fs::create_dir_all(&folder).map_err(Error::io(doing()))?;
            let file = match options.open(&path) {
                Ok(file) => file,
                // Somebody deleted the folder in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io(doing())(error)),
            };
            match file.try_lock() {
                // Whoever held the lock before may have deleted the file it was on.
                Ok(()) if is_still(&path, &file) => return Ok(Self::new(folder, file)),
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

    /// Ends a part that was filled in one go: the file, if that went well and it is what was promised; else nothing
    /// of it stays.
    pub fn settle(&mut self, name: &str, part: Part, filled: Result<()>, promise: &Promise) -> Result<StoredFile> {
        let size = part.length();
        let file = filled.and_then(|()| part.finish());
        match file.and_then(|sha256| {
            promise.check(StoredFile {
                name: name.to_owned(),
                size,
                sha256,
            })
        }) {
            Ok(file) => {
                self.finish(file.clone());
                Ok(file)
            }
            Err(error) => {
                self.discard(name)?;
                Err(error)
            }
        }
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

    /// Deletes the model and whatever an interrupted download of it left; the bytes that were freed.
    pub fn remove(self) -> Result<u64> {
        let doing = || format!("deleting {}", self.folder.display());
        let entries = fs::read_dir(&self.folder).map_err(Error::io(doing()))?;
        let freed = entries
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.len())
            .sum();
        // The manifest goes first, so that what is being deleted is no longer a model.
        fs::remove_file(self.folder.join(MANIFEST))
            .or_else(unless_missing)
            .map_err(Error::io(doing()))?;
        fs::remove_dir_all(&self.folder).map_err(Error::io(doing()))?;
        Ok(freed)
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
