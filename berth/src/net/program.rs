//! Finding passt and what it can do. Its options differ between the releases that distributions carry.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::NetError;
use crate::process::program::{in_path, is_program};

/// A passt on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasstProgram {
    /// The program.
    pub path: PathBuf,
    /// Its version as it says it; some builds say "unknown version".
    pub version: String,
    /// Whether it must be told to log to standard error. Later releases do so by themselves and dislike being told.
    pub(super) wants_stderr: bool,
}

/// Finds passt: the one the configuration names, else in `PATH`.
pub fn find(configured: Option<&Path>) -> Result<PasstProgram, NetError> {
    let path = match configured {
        Some(path) if is_program(path) => path.to_owned(),
        Some(path) => {
            return Err(NetError::NotFound {
                place: format!(" at {}, where the configuration says it is", path.display()),
            });
        }
        None => in_path("passt").ok_or(NetError::NotFound { place: String::new() })?,
    };
    let ask = |option| {
        let output = Command::new(&path)
            .arg(option)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| NetError::Unusable {
                path: path.clone(),
                source,
            })?;
        // Releases differ in where they print.
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text += &String::from_utf8_lossy(&output.stderr);
        Ok(text)
    };
    let version = parse_version(&ask("--version")?);
    let wants_stderr = ask("--help")?.contains("--stderr");
    Ok(PasstProgram {
        path,
        version,
        wants_stderr,
    })
}

/// From "passt 0.0~git20250503.587980c-2".
fn parse_version(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("passt "));
    line.unwrap_or("of unknown version").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_far_as_there_is_one() {
        assert_eq!(
            parse_version("passt unknown version\nCopyright"),
            "unknown version"
        );
        assert_eq!(parse_version("Failed to x\npasst 0.0~git2025\n"), "0.0~git2025");
        assert_eq!(parse_version(""), "of unknown version");
    }

    #[test]
    fn a_configured_passt_that_is_not_there_is_named() {
        let error = find(Some(Path::new("/nonexistent/passt")))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent/passt") && error.contains("apt install"),
            "{error}"
        );
    }
}
