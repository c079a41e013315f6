//! The growing `.part` of one file: every byte in it has gone through the digest.
//!
//! It is opened with what an earlier run left, and dropping it keeps the bytes.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use crate::error::is_full;

const CHUNK: usize = 1 << 20;

/// A file in the making.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    file: File,
    digest: Sha256,
    length: u64,
}

impl Part {
    /// Opens the part, and reads what is already in it.
    pub async fn open(path: &Path) -> Result<Self> {
        let doing = || format!("writing {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let mut part = Self {
            path: path.to_owned(),
            file: file.map_err(Error::io(doing()))?,
            digest: Sha256::new(),
            length: 0,
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = part.file.read(&mut chunk).map_err(Error::io(doing()))?;
            if read == 0 {
                return Ok(part);
            }
            part.digest.update(&chunk[..read]);
            part.length += read as u64;
            tokio::task::yield_now().await;
        }
    }

    /// How many bytes are here.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds bytes; a full disk is an [`Error::Space`] that names what is still `missing`.
    pub fn write(&mut self, bytes: &[u8], missing: u64) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|error| self.failed(error, missing))?;
        self.digest.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Adds the content of a file; `progress` is told of every piece.
    pub async fn copy(&mut self, from: &Path, progress: impl Fn(u64)) -> Result<()> {
        let doing = || format!("reading {}", from.display());
        let mut file = File::open(from).map_err(Error::io(doing()))?;
        let mut missing = file.metadata().map_err(Error::io(doing()))?.len();
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = file.read(&mut chunk).map_err(Error::io(doing()))?;
            if read == 0 {
                return Ok(());
            }
            self.write(&chunk[..read], missing)?;
            missing = missing.saturating_sub(read as u64);
            progress(read as u64);
            // Ctrl-C is noticed between two pieces.
            tokio::task::yield_now().await;
        }
    }

    /// Throws away all bytes.
    pub fn restart(&mut self) -> Result<()> {
        let restart = |file: &mut File| file.rewind().and_then(|()| file.set_len(0));
        restart(&mut self.file).map_err(Error::io(format!("writing {}", self.path.display())))?;
        (self.digest, self.length) = (Sha256::new(), 0);
        Ok(())
    }

    /// Puts the bytes on the disk for good; their digest, in lower-case hexadecimal.
    pub fn finish(self) -> Result<String> {
        self.file.sync_all().map_err(|error| self.failed(error, 0))?;
        Ok(format!("{:x}", self.digest.finalize()))
    }

    fn failed(&self, error: io::Error, missing: u64) -> Error {
        if !is_full(&error) {
            return Error::io(format!("writing {}", self.path.display()))(error);
        }
        let folder = self.path.parent().unwrap_or(&self.path).to_owned();
        let free = free_space(&folder).unwrap_or(0);
        Error::Space {
            folder,
            needed: missing,
            free,
        }
    }
}

/// The SHA-256 of a file, in lower-case hexadecimal; `progress` is told of every piece read.
pub async fn digest(path: &Path, progress: impl Fn(u64)) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut digest, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(format!("{:x}", digest.finalize()));
        }
        digest.update(&chunk[..read]);
        progress(read as u64);
        tokio::task::yield_now().await;
    }
}

/// Refuses to begin what the disk of `folder` has no room for.
pub fn check_space(folder: &Path, needed: u64) -> Result<()> {
    // A file system that does not tell is found out while writing.
    match free_space(folder) {
        Ok(free) if free < needed => Err(Error::Space {
            folder: folder.to_owned(),
            needed,
            free,
        }),
        _ => Ok(()),
    }
}

#[allow(clippy::useless_conversion, reason = "macOS counts blocks in 32 bits")]
fn free_space(folder: &Path) -> io::Result<u64> {
    let found = nix::sys::statvfs::statvfs(folder)?;
    Ok(u64::from(found.blocks_available()).saturating_mul(found.fragment_size()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn bytes_of_an_earlier_run_count_for_the_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.part");
        let mut part = Part::open(&path).await.unwrap();
        part.write(b"hello ", 5).unwrap();
        drop(part);
        let mut part = Part::open(&path).await.unwrap();
        assert_eq!(part.length(), 6);
        part.write(b"world", 0).unwrap();
        let digest = part.finish().unwrap();
        assert_eq!(
            digest,
            "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
        );
        assert_eq!(super::digest(&path, |_| ()).await.unwrap(), digest);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_disk_that_fills_up_midway_is_told_with_both_figures() {
        let mut part = Part {
            path: "/dev/full".into(),
            file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
            digest: Sha256::new(),
            length: 0,
        };
        match part.write(&[0; 4096], 12_345) {
            Err(Error::Space {
                needed: 12_345, folder, ..
            }) => assert_eq!(folder, Path::new("/dev")),
            other => panic!("{other:?}"),
        }
    }
}
