//! One request that two readers could take for two: refused and closed, or read as every reader must.

use crate::{client::exchange, harness::Hive};

/// What must never be answered, by a reader that was led astray.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Headers that say in more than one way, or in none, where the body ends.
const LENGTHS: [&str; 15] = [
    "content-length: 5\r\ncontent-length: 6\r\n",
    "content-length: 5, 6\r\n",
    "content-length: +5\r\n",
    "content-length: 0x5\r\n",
    "content-length: 5 5\r\n",
    "content-length: -5\r\n",
    "content-length : 5\r\n",
    "content-length: 5\r\ntransfer-encoding: chunked\r\n",
    "content-length: 5\ntransfer-encoding: chunked\r\n",
    "transfer-encoding: xchunked\r\n",
    "transfer-encoding: chunked, identity\r\n",
    "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
    "transfer-encoding:\r\n chunked\r\n",
    "transfer-encoding\0: chunked\r\n",
    "x: y\r\n transfer-encoding: chunked\r\n",
];

/// Bodies in chunks that end where only a careless reader sees it.
const CHUNKS: [&str; 5] = [
    "0\n\n",
    "zz\r\n\r\n",
    "10000000000000000\r\n",
    "-1\r\n\r\n",
    "0x0\r\n\r\n",
];

fn post(lengths: &str, body: &str) -> String {
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{lengths}\r\n{body}{HIDDEN}")
}

fn attacks() -> Vec<String> {
    let by_head = LENGTHS.iter().map(|lengths| post(lengths, "0\r\n\r\n"));
    let by_body = CHUNKS.iter().map(|body| post("transfer-encoding: chunked\r\n", body));
    by_head.chain(by_body).collect()
}

/// Nothing that was hidden has reached a route.
fn is_unheard(hive: &Hive, attack: &str) {
    assert!(!hive.log().contains("/smuggled"), "{attack:?}");
}

#[tokio::test]
async fn a_request_with_two_ends_is_refused_and_nothing_after_it_is_read() {
    let hive = Hive::start().await;
    for attack in attacks() {
        let answer = exchange(&mut hive.connect().await, attack.as_bytes()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 40"),
            "{attack:?}: {answer}"
        );
        assert_eq!(
            answer.matches("HTTP/1.1").count(),
            usize::from(!answer.is_empty()),
            "{attack:?}: {answer}"
        );
        is_unheard(&hive, &attack);
    }
}

#[tokio::test]
async fn what_is_whole_is_answered_and_what_follows_it_too() {
    let hive = Hive::start().await;
    let one = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    let last = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = exchange(&mut hive.connect().await, format!("{one}{last}").as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 401") && answer.contains("HTTP/1.1 200"),
        "{answer}"
    );
}

/// nginx and HAProxy before the gateway: what they refuse to carry must not get past them inside something else.
#[cfg(feature = "system-tests")]
mod behind {
    use std::process::{Child, Command, Stdio};

    use tempfile::TempDir;
    use tokio::{io::AsyncWriteExt as _, net::TcpStream};

    use super::*;
    use crate::harness::{eventually, new_home, own_address, soon};

    /// A reverse proxy that carries everything but `/smuggled`, on one kept connection.
    struct Front {
        child: Child,
        address: String,
        _folder: TempDir,
    }

    impl Front {
        async fn start(program: &str, file: &str, arguments: &[&str], config: impl Fn(&str) -> String) -> Self {
            let folder = new_home();
            let free = std::net::TcpListener::bind((own_address(), 0)).unwrap();
            let address = free.local_addr().unwrap().to_string();
            drop(free);
            std::fs::write(folder.path().join(file), config(&address)).unwrap();
            let child = Command::new(program)
                .args(arguments)
                .arg(folder.path().join(file))
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("{program}: {error}; .ci/run installs it"));
            let front = Self {
                child,
                address,
                _folder: folder,
            };
            eventually("the proxy listens", async || {
                TcpStream::connect(&front.address).await.ok()
            })
            .await;
            front
        }

        async fn nginx(hive: &Hive) -> Self {
            let upstream = hive.data_address();
            Self::start("nginx", "nginx.conf", &["-e", "stderr", "-p", ".", "-c"], |address| {
                format!(
                    "daemon off; pid nginx.pid; worker_processes 1; error_log stderr crit; events {{}}
                     http {{ access_log off; client_body_temp_path body; proxy_temp_path proxy;
                       fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
                       upstream hive {{ server {upstream}; keepalive 1; }}
                       server {{ listen {address}; location /smuggled {{ return 403; }}
                         location / {{ proxy_pass http://hive; proxy_http_version 1.1;
                           proxy_set_header Connection \"\"; proxy_set_header Host localhost; }} }} }}"
                )
            })
            .await
        }

        async fn haproxy(hive: &Hive) -> Self {
            let upstream = hive.data_address();
            Self::start("haproxy", "haproxy.cfg", &["-db", "-q", "-f"], |address| {
                format!(
                    "defaults\n mode http\n timeout connect 2s\n timeout client 5s\n timeout server 5s\n http-reuse always\n\
                     frontend door\n bind {address}\n http-request deny if {{ path /smuggled }}\n\
                     \x20http-request set-header host localhost\n default_backend hive\n\
                     backend hive\n server hive {upstream}\n"
                )
            })
            .await
        }

        /// What the proxy answers within a second or until it closes.
        async fn tell(&self, bytes: &str) -> String {
            let mut stream = TcpStream::connect(&self.address).await.unwrap();
            stream.write_all(bytes.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let reading = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
            let _waits_for_more = tokio::time::timeout(std::time::Duration::from_millis(300), reading).await;
            String::from_utf8_lossy(&answer).into_owned()
        }
    }

    impl Drop for Front {
        fn drop(&mut self) {
            let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }

    async fn nothing_gets_past(hive: &Hive, front: &Front) {
        let both = [
            "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
        ];
        let more = both.iter().map(|lengths| post(lengths, "0\r\n\r\n"));
        let innocent = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        for attack in attacks().into_iter().chain(more) {
            let _refused = front.tell(&attack).await;
            is_unheard(hive, &attack);
            // Whoever comes next on the kept connection gets the answer to what they asked.
            let answer = soon("the next one is answered", front.tell(innocent)).await;
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.contains("\"status\""),
                "{attack:?}: {answer}"
            );
        }
        assert!(
            front.tell(HIDDEN).await.starts_with("HTTP/1.1 403"),
            "the proxy itself refuses it"
        );
    }

    #[tokio::test]
    async fn nothing_gets_past_nginx() {
        let hive = Hive::start().await;
        nothing_gets_past(&hive, &Front::nginx(&hive).await).await;
    }

    #[tokio::test]
    async fn nothing_gets_past_haproxy() {
        let hive = Hive::start().await;
        nothing_gets_past(&hive, &Front::haproxy(&hive).await).await;
    }
}
