//! Finding QEMU.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::EngineError;
use crate::process::program::{in_path, is_program};

/// The first release with everything the engine needs: the stream netdev came with 7.2.
const OLDEST: (u32, u32, u32) = (7, 2, 0);
const NAME: &str = "qemu-system-x86_64";
const FIX: &str = "install QEMU 7.2 or newer (Debian and Ubuntu: `sudo apt install qemu-system-x86`)";

/// A QEMU on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuProgram {
    /// The program.
    pub path: PathBuf,
    /// Its version.
    pub version: (u32, u32, u32),
}

impl QemuProgram {
    /// "QEMU 10.0.2".
    pub fn describe(&self) -> String {
        let (major, minor, micro) = self.version;
        format!("QEMU {major}.{minor}.{micro}")
    }
}

/// Finds QEMU: the one the configuration names, else in `PATH`. Blocks until it has said its version.
pub fn find(configured: Option<&Path>) -> Result<QemuProgram, EngineError> {
    let unavailable = |what: String| EngineError::Unavailable {
        what,
        fix: FIX.to_owned(),
    };
    let path = match configured {
        Some(path) if is_program(path) => path.to_owned(),
        Some(path) => {
            return Err(EngineError::Unavailable {
                what: format!(
                    "there is no QEMU at {}, where the configuration says it is",
                    path.display()
                ),
                fix: "correct the path, or remove it to have QEMU searched for".to_owned(),
            });
        }
        None => in_path(NAME).ok_or_else(|| unavailable(format!("there is no {NAME} in PATH")))?,
    };
    let output = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| unavailable(format!("{} cannot be run ({error})", path.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse_version(&text)
        .ok_or_else(|| unavailable(format!("{} does not tell its version", path.display())))?;
    let program = QemuProgram { path, version };
    if version < OLDEST {
        let found = program.describe();
        return Err(unavailable(format!(
            "{found} at {} is too old",
            program.path.display()
        )));
    }
    Ok(program)
}

/// From "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)".
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let rest = text.split_once("version ")?.1;
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let mut numbers = rest[..end].split('.').map(str::parse);
    let mut next = || numbers.next()?.ok();
    let (major, minor) = (next()?, next()?);
    Some((major, minor, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions_are_read() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(parse_version(debian), Some((7, 2, 22)));
        assert_eq!(parse_version("QEMU emulator version 10.1-rc2"), Some((10, 1, 0)));
        assert_eq!(parse_version("QEMU emulator version x"), None);
        assert_eq!(parse_version("version 99999999999.1"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn what_is_not_there_or_too_old_is_said_with_a_fix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu");
        let error = find(Some(&path)).unwrap_err();
        assert!(
            matches!(&error, EngineError::Unavailable { what, .. } if what.contains("no QEMU")),
            "{error}"
        );
        std::fs::write(&path, "#!/bin/sh\necho QEMU emulator version 6.1.0\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = find(Some(&path)).unwrap_err();
        assert!(error.to_string().contains("QEMU 6.1.0"), "{error}");
        assert!(error.to_string().contains("apt install"), "{error}");
    }
}
