//! Finding the docker client: the user's own, else the one berth brings.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::program::{in_path, is_program};

/// A docker client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerCli {
    /// The program.
    pub path: PathBuf,
    /// Its version, if it tells.
    pub version: Option<String>,
}

/// The docker client in `PATH`, else berth's own.
pub fn find_cli() -> Option<DockerCli> {
    let path = in_path("docker").or_else(|| {
        let own = own_dir()?.join("docker");
        is_program(&own).then_some(own)
    })?;
    let version = version(&path);
    Some(DockerCli { path, version })
}

/// Where berth keeps the docker client and the plugins it brings (`docs/seams.md`, "Build products").
fn own_dir() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")))?;
    Some(data.join("berth/docker"))
}

/// Where the plugins are that berth brings.
pub fn own_plugins() -> Option<PathBuf> {
    Some(own_dir()?.join("cli-plugins"))
}

fn version(path: &Path) -> Option<String> {
    let output = Command::new(path).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// From "Docker version 28.0.1, build 068a01e".
fn parse_version(text: &str) -> Option<String> {
    let rest = text.split_once("version ")?.1;
    let version = rest.split([',', ' ', '\n']).next()?;
    (!version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read() {
        let version = |text| parse_version(text);
        assert_eq!(
            version("Docker version 28.0.1, build 068a01e\n").as_deref(),
            Some("28.0.1")
        );
        assert_eq!(
            version("Docker version 26.1.5+dfsg1, build a72d7cd").as_deref(),
            Some("26.1.5+dfsg1")
        );
        assert_eq!(version("podman"), None);
    }
}
