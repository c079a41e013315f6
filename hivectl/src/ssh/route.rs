//! How another machine is named and reached, each part with its one pattern. It starts nothing.

use std::{fmt, path::PathBuf, str::FromStr};

use wire::HostName;

use super::{SshError, Trouble};

/// `[user@]NAME`, NAME as the user's ssh config knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whom to be there; none: as the ssh config says.
    pub user: Option<String>,
    /// The name.
    pub name: HostName,
}

/// The hivectl of another machine: a path or a name that no shell reads as anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteProgram(String);

/// Everything needed to reach a machine's hivectl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which machine.
    pub address: Address,
    /// Its hivectl.
    pub hivectl: RemoteProgram,
    /// The ssh config to go by; none: ssh's own.
    pub config: Option<PathBuf>,
}

/// What is wrong with a name or a path from the command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The user's name.
    #[error("a user name consists of a-z, 0-9, _ and -, begins with a letter or _, and has at most 32 characters")]
    User,
    /// The machine's name.
    #[error(transparent)]
    Host(#[from] wire::NameError),
    /// The program.
    #[error("a path to hivectl consists of ASCII letters, digits and . / _ -, and does not begin with -")]
    Program,
}

impl Route {
    /// What a person types to get there.
    pub fn by_hand(&self) -> String {
        let config = self.config.as_ref().map(|config| format!("-F {} ", config.display()));
        format!("ssh {}{}", config.unwrap_or_default(), self.address)
    }

    /// A trouble on this route.
    pub fn trouble(&self, trouble: Trouble) -> SshError {
        SshError {
            route: self.clone(),
            trouble,
            words: None,
        }
    }

    pub(super) fn config_arguments(&self) -> Vec<String> {
        let config = self
            .config
            .as_ref()
            .map(|config| ["-F".to_owned(), config.to_string_lossy().into_owned()]);
        config.into_iter().flatten().collect()
    }
}

impl RemoteProgram {
    /// The fixed command that is run there.
    pub(super) fn command(&self) -> String {
        format!("{} remote-exec", self.0)
    }
}

impl Default for RemoteProgram {
    fn default() -> Self {
        Self("hivectl".to_owned())
    }
}

impl FromStr for Address {
    type Err = RouteError;
    fn from_str(s: &str) -> Result<Self, RouteError> {
        let (user, name) = match s.rsplit_once('@') {
            Some((user, name)) => (Some(user), name),
            None => (None, s),
        };
        if user.is_some_and(|user| !is_user(user)) {
            return Err(RouteError::User);
        }
        Ok(Self {
            user: user.map(str::to_owned),
            name: name.parse()?,
        })
    }
}

impl FromStr for RemoteProgram {
    type Err = RouteError;
    fn from_str(s: &str) -> Result<Self, RouteError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "./_-".contains(c);
        if s.is_empty() || s.starts_with('-') || !s.chars().all(fine) {
            return Err(RouteError::Program);
        }
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "{user}@{}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl fmt::Display for RemoteProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_user(s: &str) -> bool {
    let begins = s.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    begins
        && s.len() <= 32
        && s.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_machine_is_named_as_the_ssh_config_knows_it() {
        let address: Address = "ops@gpu-1.lab".parse().unwrap();
        assert_eq!(
            (address.user.as_deref(), address.name.as_str()),
            (Some("ops"), "gpu-1.lab")
        );
        assert_eq!(address.to_string(), "ops@gpu-1.lab");
        assert_eq!("10.0.0.7".parse::<Address>().unwrap().user, None);
    }

    #[test]
    fn nothing_that_ssh_or_a_shell_could_read_otherwise_is_a_name() {
        let long = format!("{}@gpu-1", "u".repeat(33));
        for bad in [
            "",
            "@gpu-1",
            "-oProxyCommand=x",
            "-l@gpu-1",
            "a b@gpu-1",
            "a@b@gpu-1",
            "Root@gpu-1",
            "ops@",
            "ops@-x",
            "gpu_1",
            "gpu-1;id",
            "$(id)",
            "gpu-1\n",
            &long,
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "-x",
            "hivectl x",
            "a;b",
            "$HOME/hivectl",
            "~/hivectl",
            "a\nb",
            "a'b",
            "a`b`",
        ] {
            assert!(bad.parse::<RemoteProgram>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "/opt/h-1/hivectl".parse::<RemoteProgram>().unwrap().command(),
            "/opt/h-1/hivectl remote-exec"
        );
    }
}
