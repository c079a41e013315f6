//! What is promised of a file before it is here, by a catalogue, a listing or a server's headers, and whether it is kept.

use super::{
    error::{Error, Result},
    store::StoredFile,
};

/// What is known of a file before or while it comes.
#[derive(Debug, Clone, Default)]
pub struct Promise {
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: Option<String>,
    /// The hub's commit it belongs to.
    pub revision: Option<String>,
}

impl Promise {
    /// Takes in what else is promised of the file of that name; promises must not contradict each other.
    pub fn join(&mut self, name: &str, said: Self) -> Result<()> {
        match (self.size, said.size) {
            (Some(expected), Some(got)) if expected != got => {
                return Err(Error::Size {
                    file: name.to_owned(),
                    expected,
                    got,
                });
            }
            (None, size) => self.size = size,
            _ => {}
        }
        match (&self.sha256, said.sha256) {
            (Some(expected), Some(got)) if *expected != got => {
                return Err(Error::Digest {
                    file: name.to_owned(),
                    expected: expected.clone(),
                    got,
                });
            }
            (None, sha256) => self.sha256 = sha256,
            _ => {}
        }
        self.revision = self.revision.take().or(said.revision);
        Ok(())
    }

    /// The file, if it is what was promised.
    pub fn check(&self, file: StoredFile) -> Result<StoredFile> {
        self.clone().join(
            &file.name,
            Self {
                size: Some(file.size),
                sha256: Some(file.sha256.clone()),
                revision: None,
            },
        )?;
        Ok(file)
    }
}
