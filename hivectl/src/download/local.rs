//! A model that lies on this machine already: it is copied into the store, so that nothing done to the original later
//! reaches a worker.

use std::{
    fs::{self, File, FileTimes},
    path::{Path, PathBuf},
};

use crate::output::Output;

use super::{
    draft::Draft,
    error::{Error, Result},
    part::{self, Part},
    promise::Promise,
    source::has_extension,
    store::{Manifest, Store, StoredFile},
    weights,
};

/// Copies a file or a folder's model into the draft.
pub async fn fetch(draft: &mut Draft, path: &Path, out: &Output) -> Result<Vec<StoredFile>> {
    let originals = originals(path)?;
    let mut total = 0;
    for (_, original) in &originals {
        total += fs::metadata(original)
            .map_err(Error::io(format!("reading {}", original.display())))?
            .len();
    }
    part::check_space(draft.folder(), total)?;
    let bar = out.bar(Some(total), &path.display().to_string());
    let mut files = Vec::new();
    for (name, original) in originals {
        let mut part = Part::open(&draft.part(&name)).await?;
        part.restart()?;
        let copied = part.copy(&original, |bytes| bar.inc(bytes)).await;
        files.push(draft.settle(&name, part, copied, &Promise::default())?);
        keep_time(&original, &draft.part(&name));
    }
    bar.finish_and_clear();
    Ok(files)
}

/// Whether the original still is, by sizes and times, what was copied into the store; also if it is gone.
pub fn is_unchanged(store: &Store, manifest: &Manifest, path: &Path) -> bool {
    let Ok(originals) = originals(path) else { return true };
    let folder = store.folder(&manifest.name);
    let looks = |path: &Path| {
        fs::metadata(path)
            .and_then(|found| Ok((found.len(), found.modified()?)))
            .ok()
    };
    originals.len() == manifest.files.len()
        && originals
            .iter()
            .all(|(name, original)| looks(original) == looks(&folder.join(name)))
}

/// The files of the model at `path`: each one's name in the store, and where it lies.
fn originals(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let place = path.display().to_string();
    let ambiguous = |why: String, example: Option<String>| Error::Ambiguous {
        place: place.clone(),
        why,
        example,
    };
    let reading = || format!("reading {place}");
    let found = fs::metadata(path).map_err(Error::io(reading()))?;
    let (folder, names) = if found.is_dir() {
        let entries = fs::read_dir(path).map_err(Error::io(reading()))?;
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        let example = names
            .iter()
            .find(|name| has_extension(name, "gguf"))
            .map(|name| path.join(name).display().to_string());
        (path, weights::choose(&names).map_err(|why| ambiguous(why, example))?)
    } else {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| ambiguous("its name is not valid UTF-8".into(), None))?;
        (
            path.parent().unwrap_or(path),
            weights::shards_of(name).map_err(|why| ambiguous(why, None))?,
        )
    };
    Ok(names
        .into_iter()
        .map(|name| (name.clone(), folder.join(name)))
        .collect())
}

/// The copy gets the original's time, by which a later change is noticed. Without it, the copy is only made anew.
fn keep_time(original: &Path, copy: &Path) {
    if let (Ok(found), Ok(copy)) = (fs::metadata(original), File::options().write(true).open(copy))
        && let Ok(modified) = found.modified()
    {
        let _ = copy.set_times(FileTimes::new().set_modified(modified));
    }
}
