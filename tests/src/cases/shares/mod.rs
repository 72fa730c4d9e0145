//! Directories of the host in containers: the same files on both sides, and a clear word where that cannot be.

mod files;
mod life;
mod sources;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::docker::same;
use crate::machine::Machine;
use crate::suite::{Case, Context};

pub(super) const CASES: [&[Case]; 3] = [files::CASES, sources::CASES, life::CASES];

/// A new directory in the machine's home, which is shared.
fn directory(context: &Context, machine: &Machine, stem: &str) -> Result<PathBuf> {
    let dir = machine.home().join(context.name(stem));
    fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// A directory of the host that is not shared.
fn outside(machine: &Machine, name: &str) -> Result<PathBuf> {
    let dir = machine.dir().join(name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn bind(source: &Path, target: &str) -> String {
    format!("{}:{target}", source.display())
}

/// Who this test runs as, whose all files on the host are to be.
fn user() -> (u32, u32) {
    (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    )
}

fn is_ours(path: &Path) -> Result<()> {
    let metadata =
        fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    same(
        &format!("owner of {}", path.display()),
        &(metadata.uid(), metadata.gid()),
        &user(),
    )
}

/// What `berth share list --json` says of a directory.
fn share(machine: &Machine, path: &Path) -> Result<Option<Value>> {
    let text = machine.berth(["share", "list", "--json"]).ok()?;
    let report: Value = serde_json::from_str(&text).context("berth share list --json did not print JSON")?;
    let shares = report["shares"].as_array().cloned().unwrap_or_default();
    Ok(shares.into_iter().find(|share| share["path"] == json!(path)))
}
