//! Talking with the hivectl of another machine over the system's `ssh`: one JSON line after the other, both ways.
//!
//! The only file that starts ssh. The remote command is fixed text, so nothing that a user, a file or another machine
//! said ever meets a shell. Host keys are checked, nobody is asked for a password, and every wait has an end.

mod route;
mod trouble;

use std::{
    io,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

pub use route::{Address, RemoteProgram, Route};
pub use trouble::{SshError, Trouble};

/// How long a machine may take to answer at all, in seconds; ssh's own `ConnectTimeout`.
const CONNECT_S: u64 = 10;
/// How long it may take from there to the first word of its hivectl: proxies, key exchange, a slow profile.
const HELLO: Duration = Duration::from_secs(30);
/// How long an ended ssh may take to be gone.
const END: Duration = Duration::from_secs(5);
/// The longest line another machine may send, in bytes.
const LONGEST_LINE: u64 = 1024 * 1024;
/// How many bytes a profile there may print before hivectl says hello.
const MOST_NOISE: usize = 64 * 1024;
/// How much of ssh's own words is kept, in bytes.
const MOST_WORDS: usize = 16 * 1024;

/// ssh's settings that a user's config must not change for us.
const SETTINGS: [&str; 10] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    // What it says is read, below.
    "LogLevel=INFO",
    // A master would outlive the command; one that is there is used.
    "ControlMaster=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "ConnectionAttempts=1",
];

/// The first line of an answering hivectl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its version.
    pub hivectl: String,
}

impl Hello {
    /// Our own.
    pub fn own() -> Self {
        Self {
            hivectl: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A conversation with the hivectl of another machine; dropping it ends both sides.
#[derive(Debug)]
pub struct Session {
    route: Route,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// What has come of the next line.
    line: Vec<u8>,
    words: Arc<Mutex<Vec<u8>>>,
    listener: JoinHandle<()>,
}

impl Session {
    /// Connects, starts hivectl there and waits until it has said that it is of our version.
    pub async fn open(route: &Route) -> Result<Self, SshError> {
        let mut child = Command::new("ssh")
            .args(arguments(route))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A terminal's Ctrl-C is for us: we let the other side end first.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| route.trouble(Trouble::NoSsh(error)))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(route.trouble(Trouble::NoSsh(io::Error::other("it has no pipes"))));
        };
        let words = Arc::default();
        let mut session = Self {
            route: route.clone(),
            child,
            stdin: Some(stdin),
            stdout: BufReader::new(stdout),
            line: Vec::new(),
            listener: tokio::spawn(listen(stderr, Arc::clone(&words))),
            words,
        };
        let hello = timeout(HELLO, session.hello())
            .await
            .map_err(|_| route.trouble(Trouble::Silent(HELLO.as_secs())))??;
        if hello != Hello::own() {
            return Err(route.trouble(Trouble::OtherVersion(hello.hivectl)));
        }
        Ok(session)
    }

    /// Says one thing. If nobody listens any more, what is heard next tells why.
    pub async fn say(&mut self, thing: &impl Serialize) -> Result<(), SshError> {
        let mut line = serde_json::to_vec(thing).map_err(|error| self.nonsense(error))?;
        line.push(b'\n');
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(&line).await.is_err()
        {
            self.stdin = None;
        }
        Ok(())
    }

    /// Hears the next thing; the conversation's end is a failure, because it ends with a word of its own. It may be
    /// dropped and called again without losing anything.
    pub async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, SshError> {
        match self.next_line().await {
            Ok(Some(line)) => serde_json::from_slice(&line).map_err(|error| self.nonsense(error)),
            Ok(None) => Err(self.ended(true).await),
            Err(error) => Err(self.nonsense(error)),
        }
    }

    /// Says good-bye: the command there ends as with Ctrl-C, and may still be heard.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    fn nonsense(&self, why: impl std::fmt::Display) -> SshError {
        self.route.trouble(Trouble::Nonsense(why.to_string()))
    }

    async fn hello(&mut self) -> Result<Hello, SshError> {
        let mut noise = 0;
        while let Ok(Some(line)) = self.next_line().await {
            if let Ok(hello) = serde_json::from_slice(&line) {
                return Ok(hello);
            }
            // A profile or a greeting came first.
            noise += line.len();
            if noise > MOST_NOISE {
                return Err(self.nonsense("it printed too much before hivectl began"));
            }
        }
        Err(self.ended(false).await)
    }

    /// The next line without its end. What has come of a line is kept when this is dropped.
    async fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let room = LONGEST_LINE.saturating_sub(self.line.len() as u64);
        (&mut self.stdout).take(room).read_until(b'\n', &mut self.line).await?;
        if self.line.pop_if(|byte| *byte == b'\n').is_some() {
            return Ok(Some(std::mem::take(&mut self.line)));
        }
        if self.line.len() as u64 == LONGEST_LINE {
            return Err(io::Error::other("it sent a line without an end"));
        }
        // A line that was cut off says nothing.
        Ok(None)
    }

    /// Why the conversation has ended.
    async fn ended(&mut self, has_begun: bool) -> SshError {
        self.stdin = None;
        let status = timeout(END, self.child.wait()).await.ok().and_then(Result::ok);
        // Its last words may still be in the pipe; somebody it left behind may hold that open.
        let _ = timeout(END, &mut self.listener).await;
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let code = status.as_ref().and_then(ExitStatus::code);
        trouble::diagnose(&self.route, has_begun, code, &String::from_utf8_lossy(&words))
    }
}

/// Where ssh will connect to, in the words of the user's ssh config: a name or an address.
pub async fn real_host(route: &Route) -> Option<String> {
    let mut command = Command::new("ssh");
    command
        .arg("-G")
        .args(route.config_arguments())
        .args(["--", route.address.name.as_str()]);
    let answer = timeout(END, command.stdin(Stdio::null()).kill_on_drop(true).output())
        .await
        .ok()?
        .ok()?;
    let text = String::from_utf8_lossy(&answer.stdout);
    text.lines()
        .find_map(|line| line.strip_prefix("hostname "))
        .map(str::to_owned)
}

fn arguments(route: &Route) -> Vec<String> {
    let mut arguments: Vec<String> = ["-T", "-a", "-x"].map(str::to_owned).into();
    arguments.extend(route.config_arguments());
    let settings = SETTINGS
        .map(str::to_owned)
        .into_iter()
        .chain([format!("ConnectTimeout={CONNECT_S}")]);
    arguments.extend(settings.flat_map(|setting| ["-o".to_owned(), setting]));
    if let Some(user) = &route.address.user {
        arguments.extend(["-l".to_owned(), user.clone()]);
    }
    arguments.extend(["--".to_owned(), route.address.name.to_string(), route.hivectl.command()]);
    arguments
}

/// Keeps the last of what ssh, and whatever runs there, says on stderr.
async fn listen(mut stderr: ChildStderr, words: Arc<Mutex<Vec<u8>>>) {
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut piece).await {
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend_from_slice(&piece[..length]);
        let excess = words.len().saturating_sub(MOST_WORDS);
        words.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn all_that_varies_on_ssh_s_command_line_has_passed_a_pattern() {
        let route = Route {
            address: "ops@gpu-1".parse().unwrap(),
            hivectl: "/opt/hive/hivectl".parse().unwrap(),
            config: None,
        };
        let arguments = arguments(&route);
        let end: Vec<&str> = arguments[arguments.len() - 5..].iter().map(String::as_str).collect();
        assert_eq!(end, ["-l", "ops", "--", "gpu-1", "/opt/hive/hivectl remote-exec"]);
        for setting in ["BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10"] {
            assert!(arguments.iter().any(|argument| argument == setting), "{setting}");
        }
    }
}
