//! Secrets in files: created for the owner alone, refused when others can read them.
//!
//! It never prints what it reads.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use secrecy::{ExposeSecret as _, SecretString};

/// Where systemd puts the credentials of system services; it lets a service read its own through an access list, which
/// a file's mode shows as the group's right (systemd.exec(5)).
const CREDENTIALS: &str = "/run/credentials";

/// Reads a secret of one line from a file that only its owner can read.
pub fn read(path: &Path) -> io::Result<SecretString> {
    let text = read_text(path)?;
    let secret = text.expose_secret().trim_end_matches(['\n', '\r']);
    if secret.trim().is_empty() || secret.contains(['\n', '\r']) {
        return Err(refuse(path, "it must hold one line with the secret"));
    }
    Ok(secret.into())
}

/// Reads a secret of any shape from a file that only its owner can read.
pub fn read_text(path: &Path) -> io::Result<SecretString> {
    if !is_private(path, fs::metadata(path)?.permissions().mode()) {
        return Err(refuse(
            path,
            "others can read it; run: chmod 600 FILE, and make the secret anew if they may have",
        ));
    }
    fs::read_to_string(path).map(SecretString::from)
}

fn is_private(path: &Path, mode: u32) -> bool {
    let others = if path.starts_with(CREDENTIALS) { 0o037 } else { 0o077 };
    mode & others == 0
}

fn refuse(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
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
    use super::*;

    #[test]
    fn a_credential_of_systemds_is_its_services_alone_although_its_group_has_a_right() {
        let credential = Path::new("/run/credentials/hive-gateway.service/tls");
        assert!(is_private(credential, 0o440) && is_private(credential, 0o400));
        assert!(!is_private(credential, 0o444) && !is_private(credential, 0o460));
        assert!(!is_private(Path::new("/run/credentials-of-all/tls"), 0o440));
    }

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
