//! Why a conversation with another machine failed, read from ssh's exit code and its own words.
//!
//! ssh has one exit code (255) for everything that is its own fault, so its words must be read; those are the same in
//! every language. It never prints.

use std::{fmt, io};

use super::{CONNECT_S, Hello, Route};
use crate::error::Failure;

/// A conversation that failed: with whom, how, and ssh's own words.
#[derive(Debug)]
pub struct SshError {
    /// With whom.
    pub route: Route,
    /// How.
    pub trouble: Trouble,
    /// What ssh, or what runs there, said last.
    pub words: Option<String>,
}

/// How a conversation failed, as the end of a sentence that begins with the machine's name.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// There is no ssh here.
    #[error("cannot be called: this machine's ssh does not start")]
    NoSsh(#[source] io::Error),
    /// The ssh config.
    #[error("cannot be called: ssh does not accept its configuration")]
    Config,
    /// No answer to a connection.
    #[error("did not answer within {CONNECT_S} s")]
    Timeout,
    /// Nobody listens.
    #[error("refused the connection: no sshd listens there")]
    Refused,
    /// No such name.
    #[error("is a name that nobody knows")]
    UnknownName,
    /// No way there.
    #[error("cannot be reached: the network knows no way there")]
    NoWay,
    /// Our key is not accepted.
    #[error("refused your key")]
    KeyRefused,
    /// A host key we have not seen.
    #[error("has an unknown host key: this machine has never seen it")]
    UnknownHostKey,
    /// Another host key than the one we know; perhaps with ssh's command that forgets the old one.
    #[error("has changed its host key, or is not the machine it was")]
    ChangedHostKey(Option<String>),
    /// Anything else that is ssh's fault.
    #[error("cannot be reached over ssh")]
    Other,
    /// No hivectl there.
    #[error("has no {0} that it could run")]
    NoHivectl(String),
    /// Another version of hivectl there.
    #[error("runs hivectl {0}, and this machine {own}", own = Hello::own().hivectl)]
    OtherVersion(String),
    /// A hivectl without `remote-exec`.
    #[error("runs an older hivectl than this machine's {own}, which takes no commands from elsewhere", own = Hello::own().hivectl)]
    TooOld,
    /// Connected, but hivectl does not say hello; how long we waited, in seconds.
    #[error("answered, but its hivectl said nothing within {0} s")]
    Silent(u64),
    /// The program there ended at once.
    #[error("has a hivectl that ended before it said anything{}", code(*.0))]
    Stillborn(Option<i32>),
    /// The connection ended too early.
    #[error("was lost in the middle of the command")]
    Lost,
    /// hivectl there ended too early.
    #[error("has a hivectl that ended in the middle of the command{}", code(*.0))]
    Died(Option<i32>),
    /// It says what we do not understand.
    #[error("sent something that no hivectl says")]
    Nonsense(String),
}

impl fmt::Display for SshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.route.address, self.trouble)
    }
}

impl std::error::Error for SshError {}

impl From<SshError> for Failure {
    fn from(error: SshError) -> Self {
        let (what, next) = (error.to_string(), error.next());
        let failure = match &error.trouble {
            Trouble::NoSsh(_) => Self::task(what, next),
            Trouble::Config => Self::usage(what, next),
            _ => Self::other_side(what, next),
        };
        match (error.trouble, error.words) {
            (Trouble::NoSsh(cause), _) => failure.because(cause),
            (Trouble::Nonsense(why), _) => failure.because(why),
            (_, Some(words)) => failure.because(words),
            (_, None) => failure,
        }
    }
}

impl SshError {
    fn next(&self) -> String {
        let by_hand = self.route.by_hand();
        match &self.trouble {
            Trouble::NoSsh(_) => "install the OpenSSH client (Debian: `apt-get install openssh-client`)".to_owned(),
            Trouble::Config => "correct your ssh config where ssh says".to_owned(),
            Trouble::Timeout | Trouble::NoWay => {
                format!("check that it is on, and that no firewall lies between: `{by_hand}`")
            }
            Trouble::Refused => "start sshd there, or correct `Port` in your ssh config".to_owned(),
            Trouble::UnknownName => "correct the name, or give it a `HostName` in your ssh config".to_owned(),
            Trouble::KeyRefused => format!(
                "let the account there know your key with `ssh-copy-id`, or name another key in your ssh config; a key with a passphrase must be in the ssh-agent; `{by_hand}` must work without a question"
            ),
            Trouble::UnknownHostKey => {
                format!("connect once with `{by_hand}`, compare the fingerprint with the machine's own, and accept it")
            }
            Trouble::ChangedHostKey(forget) => format!(
                "if it was set up anew, forget its old key with `{}` and connect once with `{by_hand}`; if it was not, somebody may be in between: do not connect",
                forget.as_deref().unwrap_or("ssh-keygen -R NAME")
            ),
            Trouble::Other => format!("see that `{by_hand}` works"),
            Trouble::NoHivectl(program) if program.contains('/') => {
                format!("correct --remote-hivectl, or install hivectl there as {program}")
            }
            Trouble::NoHivectl(_) => {
                "install hivectl there, or name where it lies with --remote-hivectl PATH; the PATH of a command over ssh is often shorter than that of a login".to_owned()
            }
            Trouble::OtherVersion(_) | Trouble::TooOld => {
                "install the same version on both machines, or name another one there with --remote-hivectl PATH"
                    .to_owned()
            }
            Trouble::Silent(_) | Trouble::Stillborn(_) | Trouble::Nonsense(_) => format!(
                "see what `{by_hand} {} --version` prints there, or name another one with --remote-hivectl PATH",
                self.route.hivectl
            ),
            Trouble::Lost | Trouble::Died(_) => format!(
                "run it again when `{by_hand}` works; `hivectl worker list --host {}` shows what is there",
                self.route.address
            ),
        }
    }
}

/// What ended a conversation: `code` is ssh's exit code, which is the remote command's unless it is 255, and `words`
/// what came on stderr.
pub(super) fn diagnose(route: &Route, has_begun: bool, code: Option<i32>, words: &str) -> SshError {
    let has = |text: &str| words.contains(text);
    let trouble = match code {
        // The connection's own end; `None` if even that did not come.
        None | Some(255) if has_begun => Trouble::Lost,
        None | Some(255) => connection(words),
        code if has_begun => Trouble::Died(code),
        Some(126 | 127) => Trouble::NoHivectl(route.hivectl.to_string()),
        Some(2) if has("remote-exec") => Trouble::TooOld,
        code => Trouble::Stillborn(code),
    };
    SshError {
        route: route.clone(),
        trouble,
        words: last_words(words),
    }
}

/// What kept ssh from connecting, in the words of OpenSSH since 7.
fn connection(words: &str) -> Trouble {
    let has = |text: &str| words.contains(text);
    if has("HOST IDENTIFICATION HAS CHANGED") || has("REVOKED HOST KEY") {
        let forget = words
            .lines()
            .map(str::trim)
            .find(|line| line.starts_with("ssh-keygen -f "));
        Trouble::ChangedHostKey(forget.map(str::to_owned))
    } else if has("Host key verification failed") || has("host key is known for") {
        Trouble::UnknownHostKey
    } else if has("Permission denied (") || has("Too many authentication failures") {
        Trouble::KeyRefused
    } else if has("Could not resolve hostname") {
        Trouble::UnknownName
    } else if has("Connection refused") {
        Trouble::Refused
    } else if has("timed out") {
        Trouble::Timeout
    } else if has("No route to host") || has("Network is unreachable") {
        Trouble::NoWay
    } else if has("onfiguration option") || has("user config file") || has("Bad owner or permissions on") {
        Trouble::Config
    } else {
        Trouble::Other
    }
}

/// The last line that says something.
fn last_words(words: &str) -> Option<String> {
    words
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .map(str::to_owned)
}

fn code(code: Option<i32>) -> String {
    code.map(|code| format!(" (exit code {code})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn route() -> Route {
        Route {
            address: "ops@gpu-1".parse().unwrap(),
            hivectl: super::super::RemoteProgram::default(),
            config: None,
        }
    }

    fn failure(has_begun: bool, code: i32, words: &str) -> Failure {
        diagnose(&route(), has_begun, Some(code), words).into()
    }

    #[test]
    fn each_of_ssh_s_failures_is_a_sentence_of_its_own() {
        let changed = "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nOffending ED25519 key in /k:1\n  remove with:\n  \
                       ssh-keygen -f \"/k\" -R \"[10.0.0.7]:22\"\nHost key verification failed.\n";
        let unknown = "No ED25519 host key is known for gpu-1 and you have requested strict checking.\nHost key verification failed.\n";
        let cases = [
            (
                "Connection timed out during banner exchange\nConnection to 10.0.0.7 port 22 timed out\n",
                "did not answer within 10 s",
            ),
            (
                "ssh: connect to host 10.0.0.7 port 22: Connection timed out\n",
                "did not answer within 10 s",
            ),
            (
                "ssh: connect to host 10.0.0.7 port 1: Connection refused\n",
                "refused the connection",
            ),
            (
                "ssh: Could not resolve hostname gpu-1: Name or service not known\n",
                "nobody knows",
            ),
            ("ops@10.0.0.7: Permission denied (publickey).\n", "refused your key"),
            (unknown, "unknown host key"),
            (changed, "changed its host key"),
            (
                "ssh: connect to host 10.0.0.7 port 22: No route to host\n",
                "no way there",
            ),
            (
                "/c: line 1: Bad configuration option: foo\n/c: terminating, 1 bad configuration options\n",
                "configuration",
            ),
            (
                "kex_exchange_identification: Connection closed by remote host\n",
                "over ssh",
            ),
        ];
        let mut sentences = Vec::new();
        for (words, sentence) in cases {
            let failure = failure(false, 255, words);
            assert!(
                failure.what().starts_with("ops@gpu-1 ") && failure.what().contains(sentence),
                "{failure:?}"
            );
            assert_eq!(failure.exit_code(), if sentence == "configuration" { 2 } else { 3 });
            assert!(failure.why().unwrap().lines().count() == 1, "{failure:?}");
            sentences.push(failure.what().to_owned());
        }
        sentences.dedup();
        assert_eq!(sentences.len(), 9, "{sentences:?}");
        assert!(
            failure(false, 255, changed)
                .next()
                .contains("ssh-keygen -f \"/k\" -R \"[10.0.0.7]:22\"")
        );
    }

    #[test]
    fn what_the_other_shell_says_is_not_taken_for_ssh_s_words() {
        let missing = failure(false, 127, "bash: hivectl: command not found\n");
        assert!(missing.what().contains("has no hivectl"), "{missing:?}");
        assert!(missing.next().contains("--remote-hivectl"), "{missing:?}");
        let forbidden = failure(false, 126, "bash: /opt/hivectl: Permission denied\n");
        assert!(forbidden.what().contains("has no hivectl"), "{forbidden:?}");
        let old = failure(false, 2, "error: unrecognized subcommand 'remote-exec'\n");
        assert!(old.what().contains("older hivectl"), "{old:?}");
    }

    #[test]
    fn a_machine_that_goes_away_is_told_from_a_program_that_dies() {
        assert!(
            failure(true, 255, "Connection to 10.0.0.7 closed by remote host.\n")
                .what()
                .contains("was lost")
        );
        assert!(failure(true, 137, "").what().contains("(exit code 137)"));
        assert!(
            failure(false, 101, "thread 'main' panicked\n")
                .what()
                .contains("before it said anything (exit code 101)")
        );
    }
}
