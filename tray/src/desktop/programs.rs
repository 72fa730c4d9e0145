//! Programs of the host: finding them, and starting them so that they outlive the icon.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::DesktopError;

/// Where a program is in `$PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| is_program(path))
}

/// Whether there is a program.
pub(crate) fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// A program that shares nothing with the icon: no input, no output, no signals from a terminal.
pub(crate) fn apart(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command
}

/// Starts it.
pub(crate) fn start(command: &mut Command) -> Result<Child, DesktopError> {
    command.spawn().map_err(|source| DesktopError::Start {
        program: command.as_std().get_program().to_string_lossy().into_owned(),
        source,
    })
}

/// Starts it and leaves it to itself.
pub(crate) fn launch(command: &mut Command) -> Result<(), DesktopError> {
    let mut child = start(command)?;
    // Somebody has to take note of its end.
    tokio::spawn(async move { drop(child.wait().await) });
    Ok(())
}
