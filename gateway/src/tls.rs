//! TLS of a plane: certificate and key from files, and read again when they change.
//!
//! New ones that cannot be used change nothing: what was good stays in use, and the log says why. A private key is in no
//! log and no error.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use secrecy::ExposeSecret as _;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::secret_file;

/// How often the files are looked at.
const GLANCE: Duration = Duration::from_secs(2);

/// Why a plane cannot be served over TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{0}: {1}")]
    File(String, #[source] io::Error),
    /// The certificate's file holds none.
    #[error("{0} holds no certificate in PEM; put the server's own first, then those between it and its authority")]
    NoCertificate(String),
    /// The key's file holds none.
    #[error("{0} holds no private key in PEM (PKCS #8, PKCS #1 or SEC 1, without a passphrase)")]
    NoKey(String),
    /// The two do not belong together, or cannot be used.
    #[error("the certificate {0} and the key {1} cannot be used together")]
    Unfit(String, String, #[source] Box<rustls::Error>),
}

/// A plane's certificate and key.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: ArcSwap<ServerConfig>,
    /// What was last looked at.
    seen: Mutex<Seen>,
}

/// Which state of the two files that was: another inode, length or time is another state.
type Seen = [Option<(u64, u64, i64, i64)>; 2];

impl Tls {
    /// Reads the certificate and its key.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let seen = [certificate, key].map(state);
        Ok(Self {
            config: ArcSwap::from_pointee(read(certificate, key)?),
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            seen: Mutex::new(seen),
        })
    }

    /// What takes the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.config.load_full().into()
    }

    /// Reads both again.
    pub fn reload(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = self.look();
        let certificate = self.certificate.display().to_string();
        match read(&self.certificate, &self.key) {
            Ok(config) => {
                self.config.store(Arc::new(config));
                tracing::info!(certificate, "the new certificate is in use");
            }
            Err(error) => tracing::error!(
                certificate,
                cause = crate::error::chain(&error),
                "the new certificate cannot be used; the one before stays in use"
            ),
        }
    }

    /// Reads both again whenever they have changed; never returns.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(GLANCE).await;
            let has_changed = *self.seen.lock().unwrap_or_else(PoisonError::into_inner) != self.look();
            if has_changed {
                self.reload();
            }
        }
    }

    fn look(&self) -> Seen {
        [&self.certificate, &self.key].map(|path| state(path))
    }
}

fn state(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let [certificate_name, key_name] = [certificate, key].map(|path| path.display().to_string());
    let text = fs::read(certificate).map_err(|error| TlsError::File(certificate_name.clone(), error))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text).map_while(Result::ok).collect();
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(certificate_name));
    }
    let text = secret_file::read_text(key).map_err(|error| TlsError::File(key_name.clone(), error))?;
    let secret = PrivateKeyDer::from_pem_slice(text.expose_secret().as_bytes());
    let secret = secret.map_err(|_| TlsError::NoKey(key_name.clone()))?;
    let unfit = |error| TlsError::Unfit(certificate_name, key_name, Box::new(error));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(unfit)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
