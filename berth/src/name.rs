//! The name of a machine.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The machine used when none is named.
pub const DEFAULT: &str = "default";

/// A valid machine name: `[a-z0-9][a-z0-9_.-]{0,62}`. It is a file name, a host name's base and part of a docker
/// context's name, and cannot be `.`, `..` or an option.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineName(String);

/// Why a text is not a machine name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a machine name; use 1 to 63 lower-case letters, digits, '_', '.' and '-', beginning with a letter or digit"
)]
pub struct NameError(String);

impl MachineName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the machine used when none is named.
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT
    }

    /// What the guest calls itself: `berth` or `berth-NAME`, with what a host name cannot hold replaced by `-`.
    pub fn hostname(&self) -> String {
        if self.is_default() {
            return "berth".into();
        }
        let mut name = format!("berth-{}", self.0).replace(['_', '.'], "-");
        name.truncate(63);
        name.trim_end_matches('-').to_owned()
    }
}

impl Default for MachineName {
    fn default() -> Self {
        MachineName(DEFAULT.into())
    }
}

impl FromStr for MachineName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let ok = text.len() <= 63
            && text.bytes().next().is_some_and(letter)
            && text.bytes().all(|c| letter(c) || b"_.-".contains(&c));
        if ok {
            Ok(MachineName(text.into()))
        } else {
            Err(NameError(text.into()))
        }
    }
}

impl TryFrom<String> for MachineName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<MachineName> for String {
    fn from(name: MachineName) -> String {
        name.0
    }
}

impl AsRef<Path> for MachineName {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_safe_as_file_names_are_taken() {
        let long = "a".repeat(63);
        for name in ["default", "a", "0", "my-machine_2.x", long.as_str()] {
            assert_eq!(name.parse::<MachineName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_are_not_are_refused() {
        let long = "a".repeat(64);
        for name in [
            "",
            ".",
            "..",
            "-a",
            ".a",
            "_a",
            "a/b",
            "A",
            "a b",
            "ä",
            "a\0",
            "a\n",
            long.as_str(),
        ] {
            assert!(name.parse::<MachineName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn host_names_hold_only_what_host_names_may() {
        assert_eq!(MachineName::default().hostname(), "berth");
        assert_eq!("a_b.c".parse::<MachineName>().unwrap().hostname(), "berth-a-b-c");
        let longest = "-a".repeat(31).replacen('-', "0", 1) + "-";
        let host = longest.parse::<MachineName>().unwrap().hostname();
        assert!(host.len() <= 63 && !host.ends_with('-'), "{host}");
    }
}
