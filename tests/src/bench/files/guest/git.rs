//! The real git, brought along from the host.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

fn git() -> Command {
    let mut git = Command::new("git");
    // Whoever owns the tree; and the index stays as it is, so that every run does the same.
    git.args(["-c", "safe.directory=*", "--no-optional-locks"])
        .env("HOME", "/tmp")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    git
}

/// Which git it is, if there is one.
pub(super) fn version() -> Option<String> {
    let output = git().arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Asks git whether anything in a tree has changed, which must not be the case.
pub(super) fn status(tree: &Path) -> Result<()> {
    let output = git()
        .args(["status", "--porcelain"])
        .current_dir(tree)
        .output()
        .context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.stdout.is_empty(),
        "git sees changes, the first being {:?}",
        String::from_utf8_lossy(&output.stdout).lines().next()
    );
    Ok(())
}
