//! TLS of both planes: from files, followed when they change, and never given up for a bad one.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, pem::PemObject as _},
    },
};

use crate::{
    certificate::Certificate,
    harness::{Hive, Signal, eventually, soon},
    starting::{FREE, fails},
};

/// A folder with a certificate and its key.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new(certificate: &Certificate) -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        files.hold(certificate);
        files
    }

    /// Puts another certificate in their place, as tools that renew them do: written beside, and renamed.
    fn hold(&self, certificate: &Certificate) {
        self.put("key", &certificate.key);
        self.put("certificate", &certificate.certificate);
    }

    fn put(&self, name: &str, text: &str) {
        let fresh = self.path("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(fresh, self.path(name)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn here() -> std::net::IpAddr {
    [127, 0, 0, 1].into()
}

/// A hive whose planes both have the certificate in these files.
async fn hive(files: &Files, more: &[(&str, &str)]) -> Hive {
    let [certificate, key] = ["certificate", "key"].map(|name| files.path(name).to_str().unwrap().to_owned());
    let settings = [
        ("server.tls_cert", certificate.as_str()),
        ("server.tls_key", key.as_str()),
        ("control.tls_cert", certificate.as_str()),
        ("control.tls_key", key.as_str()),
    ];
    Hive::with(&settings.into_iter().chain(more.iter().copied()).collect::<Vec<_>>()).await
}

/// The plane's URL by a name that the certificates are for.
fn named(url: &str) -> String {
    let port = url.rsplit_once(':').unwrap().1;
    format!("https://localhost:{port}")
}

/// A client that believes this certificate, for a hive on an address of its own.
fn client_of(hive: &Hive, certificate: &Certificate) -> reqwest::Client {
    let root = reqwest::Certificate::from_pem(certificate.certificate.as_bytes()).unwrap();
    let address: SocketAddr = hive.data_address();
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([root])
        .resolve("localhost", SocketAddr::new(address.ip(), 0))
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap()
}

/// A connection on which these protocols were offered (RFC 7301).
async fn handshake(address: SocketAddr, certificate: &Certificate, offered: &[&str]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector
        .connect("localhost".try_into().unwrap(), stream)
        .await
        .unwrap()
}

/// The status of a request over HTTP/2.
pub async fn over_http2(address: SocketAddr, certificate: &Certificate, path: &str, key: &str) -> u16 {
    let stream = handshake(address, certificate, &["h2"]).await;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request =
        hyper::Request::get(format!("https://localhost{path}")).header("authorization", format!("Bearer {key}"));
    let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap());
    let status = soon("an answer", answer).await.unwrap().status().as_u16();
    connection.abort();
    status
}

async fn is_served(hive: &Hive, certificate: &Certificate) -> bool {
    let url = format!("{}/healthz", named(&hive.data));
    client_of(hive, certificate).get(url).send().await.is_ok()
}

#[tokio::test]
async fn both_planes_speak_tls_alone_where_they_have_a_certificate() {
    let certificate = Certificate::new(here(), 1);
    let files = Files::new(&certificate);
    let hive = hive(&files, &[]).await;
    assert!(hive.data.starts_with("https://") && hive.control.starts_with("https://"));
    let http = client_of(&hive, &certificate);
    for (plane, path) in [(&hive.data, "/v1/models"), (&hive.control, "/control/v1/keys")] {
        let request = http.get(format!("{}{path}", named(plane)));
        let answer = request.try_clone().unwrap().bearer_auth(&hive.admin).send().await;
        assert_eq!(answer.unwrap().status(), 200);
        let address = plane.strip_prefix("https://").unwrap().parse().unwrap();
        assert_eq!(over_http2(address, &certificate, path, &hive.admin).await, 200);
        assert_eq!(request.send().await.unwrap().status(), 401);
        // Nobody who believes another certificate hears anything, nor does one who speaks plainly.
        let another = client_of(&hive, &Certificate::new(here(), 2));
        assert!(
            another
                .get(format!("{}{path}", named(plane)))
                .send()
                .await
                .unwrap_err()
                .is_connect()
        );
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut said = Vec::new();
        let _ = soon("it hangs up", plain.read_to_end(&mut said)).await;
        assert!(!said.starts_with(b"HTTP"), "{said:?}");
    }
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let stream = handshake(hive.data_address(), &certificate, offered).await;
        let agreed = stream.get_ref().1.alpn_protocol();
        assert_eq!(agreed, chosen.map(str::as_bytes), "{offered:?}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_restart_and_a_bad_one_is_not() {
    let [first, second, third] = [1, 2, 3].map(|serial| Certificate::new(here(), serial));
    let files = Files::new(&first);
    let hive = hive(&files, &[]).await;
    assert!(is_served(&hive, &first).await);
    // By itself …
    files.hold(&second);
    eventually("the new certificate", async || {
        is_served(&hive, &second).await.then_some(())
    })
    .await;
    assert!(!is_served(&hive, &first).await);
    // … never a bad one …
    for (name, text) in [
        ("certificate", "nothing"),
        ("key", third.key.as_str()),
        ("key", "nothing"),
    ] {
        files.hold(&second);
        eventually("the good one again", async || {
            is_served(&hive, &second).await.then_some(())
        })
        .await;
        let complaints = || hive.log().matches("the one before stays in use").count();
        let before = complaints();
        files.put(name, text);
        eventually("it is told", async || (complaints() > before).then_some(())).await;
        assert!(is_served(&hive, &second).await, "{name}");
    }
    // … and at once on SIGHUP, which ends nothing.
    files.hold(&third);
    hive.signal(Signal::SIGHUP);
    eventually("the third certificate", async || {
        is_served(&hive, &third).await.then_some(())
    })
    .await;
    let log = hive.log();
    assert!(
        !log.contains("PRIVATE KEY") && !log.contains(third.key.lines().nth(1).unwrap()),
        "{log}"
    );
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_ended() {
    let certificate = Certificate::new(here(), 1);
    let files = Files::new(&certificate);
    let hive = hive(&files, &[("server.head_timeout", "300ms")]).await;
    let address: SocketAddr = hive.data_address();
    // Silence, and the begin of a client's hello (RFC 8446, section 5.1).
    for begin in [vec![], vec![0x16, 3, 1, 2, 0, 1]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&begin).await.unwrap();
        let mut said = Vec::new();
        let _ = soon("it hangs up", stream.read_to_end(&mut said)).await;
    }
    assert!(is_served(&hive, &certificate).await);
}

#[tokio::test]
async fn a_stream_is_relayed_over_tls_as_it_comes() {
    let certificate = Certificate::new(here(), 1);
    let files = Files::new(&certificate);
    let mut hive = hive(&files, &[]).await;
    hive.http = client_of(&hive, &certificate);
    (hive.data, hive.control) = (named(&hive.data), named(&hive.control));
    hive.worker("a").join().await;
    let reply = hive.chat("m").stream().send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.events().await.last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_stops_the_start_with_the_reason() {
    let [one, other] = [1, 2].map(|serial| Certificate::new(here(), serial));
    let files = Files::new(&one);
    files.put("other", &other.key);
    files.put("empty", "");
    let path = |name: &str| files.path(name).to_str().unwrap().to_owned();
    std::fs::copy(path("key"), path("open")).unwrap();
    std::fs::set_permissions(path("open"), std::fs::Permissions::from_mode(0o644)).unwrap();
    for (certificate, key, code, word) in [
        ("certificate", Some("other"), 1, "together"),
        ("certificate", Some("open"), 1, "chmod 600"),
        ("certificate", Some("empty"), 1, "private key"),
        ("empty", Some("key"), 1, "no certificate"),
        ("nowhere", Some("key"), 1, "nowhere"),
        ("certificate", None, 2, "server.tls_key"),
    ] {
        let (certificate, key) = (path(certificate), key.map(path));
        let mut settings = vec![("server.tls_cert", certificate.as_str())];
        settings.extend(key.as_deref().map(|key| ("server.tls_key", key)));
        let said = fails(&crate::harness::new_home(), &FREE, &settings, code).await;
        assert!(said.contains(word), "{word}: {said}");
        assert!(!said.contains(one.key.lines().nth(1).unwrap()), "{said}");
    }
}
