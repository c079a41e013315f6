//! A model hub on loopback that answers as a test tells it to, and remembers what it was asked.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    thread::{self, JoinHandle},
};

use sha2::{Digest, Sha256};

/// The commit the hub says all its files belong to.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Path and query.
    pub path: String,
    headers: HashMap<String, String>,
}

impl Asked {
    /// A header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of a range request.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// What to answer.
#[derive(Default)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    has_no_length: bool,
    cut_after: Option<usize>,
    hold_after: Option<(usize, Receiver<()>)>,
}

impl Reply {
    /// A status, and a body that must never become a model.
    pub fn status(status: u16) -> Self {
        let body = format!("<html>this is no model: {status}</html>")
            .repeat(50)
            .into_bytes();
        Self {
            status,
            body,
            ..Self::default()
        }
        .with("content-type", "text/html; charset=utf-8")
    }

    /// A redirect.
    pub fn redirect(to: &str) -> Self {
        Self {
            status: 302,
            ..Self::default()
        }
        .with("location", to)
    }

    /// The bytes, or those that a range request asks for, with an etag that is none of the hub's.
    pub fn bytes(asked: &Asked, bytes: &[u8]) -> Self {
        let reply = match asked.from() {
            Some(from) if from < bytes.len() => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Self {
                    status: 206,
                    body: bytes[from..].to_vec(),
                    ..Self::default()
                }
                .with("content-range", &range)
            }
            Some(_) => Self {
                status: 416,
                ..Self::default()
            },
            None => Self {
                status: 200,
                body: bytes.to_vec(),
                ..Self::default()
            },
        };
        reply.with("etag", &format!("\"{}\"", "c".repeat(64)))
    }

    /// The bytes as the hub itself gives them, with their digest, size and commit.
    pub fn file(asked: &Asked, bytes: &[u8]) -> Self {
        Self::bytes(asked, bytes)
            .with("x-linked-etag", &format!("\"{}\"", sha256(bytes)))
            .with("x-linked-size", &bytes.len().to_string())
            .with("x-repo-commit", COMMIT)
    }

    /// JSON.
    pub fn json(value: &serde_json::Value) -> Self {
        Self {
            status: 200,
            body: value.to_string().into_bytes(),
            ..Self::default()
        }
        .with("content-type", "application/json")
    }

    /// Adds a header, or replaces it.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends another body.
    pub fn with_body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }

    /// Sends the body in one chunk of unknown length.
    pub fn without_length(mut self) -> Self {
        self.has_no_length = true;
        self
    }

    /// Resets the connection after so many bytes of the body.
    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    /// Says nothing after so many bytes of the body, until the sender is used or dropped.
    pub fn hold_after(mut self, bytes: usize, until: Receiver<()>) -> Self {
        self.hold_after = Some((bytes, until));
        self
    }

    fn send(mut self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut head = vec![format!("HTTP/1.1 {} Whatever", self.status), "connection: close".into()];
        if self.has_no_length {
            head.push("transfer-encoding: chunked".into());
            self.body = [
                format!("{:x}\r\n", self.body.len()).as_bytes(),
                &self.body,
                b"\r\n0\r\n\r\n",
            ]
            .concat();
        } else if !self.headers.iter().any(|(name, _)| name == "content-length") {
            head.push(format!("content-length: {}", self.body.len()));
        }
        head.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        head.extend([String::new(), String::new()]);
        stream.write_all(head.join("\r\n").as_bytes())?;
        if let Some(bytes) = self.cut_after {
            stream.write_all(&self.body[..bytes])?;
            return stream.shutdown(Shutdown::Both);
        }
        if let Some((bytes, until)) = self.hold_after {
            stream.write_all(&self.body[..bytes])?;
            let _ = until.recv();
            self.body.drain(..bytes);
        }
        stream.write_all(&self.body)
    }
}

/// The hub; dropped, it is gone and its port is closed.
pub struct FakeHub {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stops: Arc<AtomicBool>,
    listens: Option<JoinHandle<()>>,
}

impl FakeHub {
    /// A hub that answers each request, counted from 0, as `answer` says.
    pub fn start(answer: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stops = Arc::new(AtomicBool::new(false));
        let answer = Arc::new(answer);
        let listens = thread::spawn({
            let (asked, stops) = (asked.clone(), stops.clone());
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if stops.load(Ordering::SeqCst) {
                        return;
                    }
                    let (asked, answer) = (asked.clone(), answer.clone());
                    thread::spawn(move || {
                        let Some((request, mut stream)) = read(stream) else {
                            return;
                        };
                        let count = {
                            let mut asked = asked.lock().unwrap();
                            asked.push(request.clone());
                            asked.len() - 1
                        };
                        // The other side may have gone; that is what some tests are about.
                        let _ = answer(count, &request).send(&mut stream);
                    });
                }
            }
        });
        Self {
            address,
            asked,
            stops,
            listens: Some(listens),
        }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(listens) = self.listens.take() {
            let _ = listens.join();
        }
    }
}

/// The SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// A sound GGUF of one F32 tensor, of about so many bytes; `seed` makes it different from others.
pub fn gguf(bytes: u64, seed: u8) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let elements = bytes / 4;
    let mut file = [
        b"GGUF".as_slice(),
        &3_u32.to_le_bytes(),
        &1_u64.to_le_bytes(),
        &1_u64.to_le_bytes(),
    ]
    .concat();
    file.extend(
        [
            text("general.file_type"),
            4_u32.to_le_bytes().into(),
            0_u32.to_le_bytes().into(),
        ]
        .concat(),
    );
    file.extend([text("w"), 1_u32.to_le_bytes().into(), elements.to_le_bytes().into()].concat());
    file.extend([0_u32.to_le_bytes().as_slice(), &0_u64.to_le_bytes()].concat());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend((0..elements * 4).map(|i| u8::try_from(i % 251).unwrap() ^ seed));
    file
}

fn read(stream: TcpStream) -> Option<(Asked, TcpStream)> {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => return Some((Asked { path, headers }, lines.into_inner())),
        };
    }
}
