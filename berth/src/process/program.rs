//! Finding programs of the host.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Whether `path` is a file that may be executed.
pub fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The program `name` in `$PATH`.
pub fn in_path(name: &str) -> Option<PathBuf> {
    find_in(std::env::var_os("PATH").as_deref()?, name)
}

/// Relative directories are passed over: what they lead to depends on where one stands.
fn find_in(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|program| is_program(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_program_in_an_absolute_directory_counts() {
        let dir = tempfile::tempdir().unwrap();
        let docker = dir.path().join("docker");
        std::fs::write(&docker, "").unwrap();
        assert_eq!(find_in(dir.path().as_os_str(), "docker"), None, "not executable");
        std::fs::set_permissions(&docker, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::join_paths([Path::new("relative"), dir.path()]).unwrap();
        assert_eq!(find_in(&path, "docker"), Some(docker));
        assert_eq!(find_in(&path, "podman"), None);
    }
}
