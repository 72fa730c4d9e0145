//! The real git, brought along from the host.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// How it is run where it is on the path.
const ON_PATH: [&str; 1] = ["git"];

fn git<W: AsRef<OsStr>>(words: &[W]) -> Command {
    let mut words = words.iter();
    let mut git = Command::new(words.next().map_or(OsStr::new("git"), AsRef::as_ref));
    git.args(words);
    // Whoever owns the tree; and the index stays as it is, so that every run does the same.
    git.args(["-c", "safe.directory=*", "--no-optional-locks"])
        .env("HOME", "/tmp")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    git
}

/// Which git it is, if there is one.
pub(super) fn version() -> Option<String> {
    let output = git(&ON_PATH).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Asks git whether anything in a tree has changed, which must not be the case.
pub(super) fn status(tree: &Path) -> Result<()> {
    status_by(&ON_PATH, tree)
}

/// The same, with a git that these words run.
pub(in crate::bench) fn status_by<W: AsRef<OsStr>>(words: &[W], tree: &Path) -> Result<()> {
    let output = git(words)
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
