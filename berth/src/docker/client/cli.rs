//! Finding the docker client: the user's own, else the one berth brings.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let path = in_path(std::env::var_os("PATH").as_deref()).or_else(|| {
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

fn in_path(path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("docker"))
        .find(|program| is_program(program))
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
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

    #[test]
    fn only_a_program_in_an_absolute_directory_counts() {
        let dir = tempfile::tempdir().unwrap();
        let docker = dir.path().join("docker");
        std::fs::write(&docker, "").unwrap();
        assert_eq!(in_path(Some(dir.path().as_os_str())), None, "not executable");
        std::fs::set_permissions(&docker, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::join_paths([Path::new("relative"), dir.path()]).unwrap();
        assert_eq!(in_path(Some(&path)), Some(docker));
    }
}
