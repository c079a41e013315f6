//! Secrets in files: created for the owner alone, refused when others can read them.
//!
//! It never prints what it reads.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use secrecy::SecretString;

/// Reads a secret of one line from a file that only its owner can read.
pub fn read(path: &Path) -> io::Result<SecretString> {
    let refuse = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        return Err(refuse(
            "others can read it; run: chmod 600 FILE, and make the secret anew if they may have",
        ));
    }
    let text = fs::read_to_string(path)?;
    let secret = text.trim_end_matches(['\n', '\r']);
    if secret.trim().is_empty() || secret.contains(['\n', '\r']) {
        return Err(refuse("it must hold one line with the secret"));
    }
    Ok(secret.into())
}

/// Writes a secret to a new file that only its owner can read; the folder is made if it is not there.
pub fn create(path: &Path, secret: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    // Written beside and renamed, so that a crash leaves the whole secret or none.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = Path::new(&fresh);
    let _ = fs::remove_file(fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(fresh)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_secret_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/secret");
        create(&path, "s3cret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().expose_secret(), "s3cret");
        for mode in [0o640, 0o604, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(read(&path).is_err(), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read(&path).is_ok());
    }

    #[test]
    fn an_empty_or_many_line_secret_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        for (text, good) in [
            ("", false),
            (" \n", false),
            ("a\nb\n", false),
            ("a\r\n", true),
            ("a", true),
        ] {
            create(&path, text).unwrap();
            assert_eq!(read(&path).is_ok(), good, "{text:?}");
        }
    }
}
