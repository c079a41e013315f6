//! Names, each with its one validator: what a model, a worker or a host may be called, at every door.

use std::{fmt, ops::Range, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a name was refused; the text names the rule that was broken and never echoes the input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {rule}")]
pub struct NameError {
    what: &'static str,
    rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                $check(s).map_err(|rule| NameError { what: $what, rule })?;
                Ok(Self(s.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The id of a model, as clients send it in `model`: a catalogue name, a file stem, or what an attached server calls it.
    ModelName, "a model name", check_model
}

name! {
    /// The id of a worker, unique in one hive; it stays the same across restarts, the epoch does not.
    WorkerId, "a worker id", check_worker
}

name! {
    /// A host alias as the user's ssh config knows it.
    HostName, "a host name", check_host
}

/// Where a secret of the hive's stands in a text: what of an API key `hvk_…`, a join token `hvj_…` or a worker's
/// credential `hvw_…` must be written nowhere. A mistyped one is one, too.
pub fn secret_in(text: &str) -> Option<Range<usize>> {
    // The public id of a key is no secret; each has at least so many characters behind it.
    const SHORTEST: usize = 32;
    let places = [("hvk_", "12345678_".len()), ("hvj_", 0), ("hvw_", 0)]
        .into_iter()
        .flat_map(|(mark, public)| text.match_indices(mark).map(move |(at, _)| at + mark.len() + public));
    let whole = places.filter_map(|start| {
        let rest = text.get(start..)?;
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        Some(start..end.map_or(text.len(), |end| start + end))
    });
    whole
        .filter(|secret| secret.len() >= SHORTEST)
        .min_by_key(|secret| secret.start)
}

const NO_SECRET: &str = "is no API key or token";

fn check_model(s: &str) -> Result<(), &'static str> {
    if s.is_empty() || s.len() > 200 {
        return Err("has 1 to 200 characters");
    }
    if secret_in(s).is_some() {
        return Err(NO_SECRET);
    }
    let ok = |c: char| c.is_ascii_alphanumeric() || "._-/:@+".contains(c);
    if !s.chars().all(ok) {
        return Err("consists of ASCII letters, digits and . _ - / : @ +");
    }
    if !s.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("starts with a letter or a digit");
    }
    if s.ends_with('/') || s.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("has no empty, `.` or `..` part between slashes");
    }
    Ok(())
}

fn check_worker(s: &str) -> Result<(), &'static str> {
    if s.is_empty() || s.len() > 64 {
        return Err("has 1 to 64 characters");
    }
    if secret_in(s).is_some() {
        return Err(NO_SECRET);
    }
    if !s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return Err("consists of ASCII letters, digits and . _ -");
    }
    if !s.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("starts with a letter or a digit");
    }
    Ok(())
}

fn check_host(s: &str) -> Result<(), &'static str> {
    if s.is_empty() || s.len() > 253 {
        return Err("has 1 to 253 characters");
    }
    if !s.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c)) {
        return Err("consists of ASCII letters, digits, dots and hyphens");
    }
    if !s.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("starts with a letter or a digit");
    }
    Ok(())
}

/// What somebody else wrote, as a message or a log may show it: one line of at most so many characters, none of which
/// steers a terminal or turns the direction of what is read.
pub fn printable(text: &str, most: usize) -> String {
    let steers = |c: &char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let line = text.trim().chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    line.filter(|c| !steers(c)).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legitimate_names_are_never_refused() {
        for name in [
            "smollm2-135m",
            "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
            "llama3:8b",
            "a@rev",
            "x+y",
            "gpt-4.1_mini",
        ] {
            assert!(name.parse::<ModelName>().is_ok(), "{name}");
        }
        for name in ["w1", "cpu-0", "gpu_1.a"] {
            assert!(name.parse::<WorkerId>().is_ok(), "{name}");
        }
        for name in ["gpu-1", "host.example.org", "10.0.0.7"] {
            assert!(name.parse::<HostName>().is_ok(), "{name}");
        }
    }

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for name in [
            "",
            "../x",
            "a/../b",
            "a//b",
            "/etc",
            "a b",
            "a\nb",
            "ä",
            "-rf",
            "a/",
            "$(x)",
            "a\u{202e}b",
        ] {
            assert!(name.parse::<ModelName>().is_err(), "{name:?}");
        }
        for name in ["", "a/b", "-x", ".x", "a b", &"x".repeat(65)] {
            assert!(name.parse::<WorkerId>().is_err(), "{name:?}");
        }
        for name in ["", "-oProxyCommand=x", "a_b", "a b", "user@host", "a;b"] {
            assert!(name.parse::<HostName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_secret_is_no_name_and_its_place_is_known() {
        let (secret, seal) = ("x1".repeat(16), "abcdef");
        for (before, hidden) in [
            ("hvk_12345678_", format!("{secret}_{seal}")),
            ("/v1/models/hvk_12345678_", secret.clone()),
            ("hvj_", format!("{secret}{secret}_{seal}")),
            ("a-hvk_-hvw_", secret.clone()),
        ] {
            let text = format!("{before}{hidden}");
            let place = secret_in(&text).unwrap();
            assert_eq!(&text[place], hidden, "{text}");
            assert!(text.parse::<ModelName>().is_err(), "{text}");
        }
        let key = format!("hvk_12345678_{secret}_{seal}");
        assert!(key.parse::<WorkerId>().is_err());
        assert_eq!(secret_in(&format!("{key}/x")), Some(13..key.len()));
        for none in [
            "hvk_12345678",
            "hvk_",
            "hvk_1234567ä_",
            "hvj_and-some-words-of-a-name-that-is-long",
            "ä hvw_",
        ] {
            assert_eq!(secret_in(none), None, "{none}");
        }
    }

    #[test]
    fn a_bad_name_is_refused_while_reading_json() {
        let error = serde_json::from_str::<ModelName>("\"a b\"").unwrap_err();
        assert!(error.to_string().contains("a model name consists of"), "{error}");
    }

    #[test]
    fn what_somebody_else_wrote_is_one_short_line() {
        assert_eq!(
            printable(" a\nb\tc \u{1b}[2J\u{7}\u{202e}d\u{2028}é\n", 20),
            "a b c [2Jd é"
        );
        assert_eq!(printable("ééé", 2), "éé");
    }
}
