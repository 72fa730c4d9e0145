//! Directories of the host in containers: the same files on both sides, and a clear word where that cannot be.

mod both_sides;
mod coherence;
mod files;
mod life;
mod sources;
mod watching;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::docker::{STATE_LIMIT, same};
use crate::machine::Machine;
use crate::processes::wait_until;
use crate::suite::{Case, Context, Verdict};

pub(super) const CASES: [&[Case]; 6] = [
    files::CASES,
    sources::CASES,
    watching::CASES,
    coherence::CASES,
    both_sides::CASES,
    life::CASES,
];

/// The first Linux that can tell a program without privileges of all changes in a directory (`docs/coherence.md`).
const TELLING_KERNEL: (u32, u32) = (5, 17);

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

/// Waits until the machine is told of host changes at once. On a host whose kernel cannot tell, that is the verdict.
pub(super) fn told_of_changes(machine: &Machine) -> Result<Option<Verdict>> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    if version(&release).with_context(|| format!("{release:?} is no version of Linux"))? < TELLING_KERNEL {
        let why = format!("Linux {release} cannot tell of changes in directories; 5.17 can");
        return Ok(Some(Verdict::NotHere(why)));
    }
    let mut last = Value::Null;
    wait_until("the machine to be told of host changes", STATE_LIMIT, || {
        last = machine.status()?["coherence"].take();
        Ok(last["coherent"] == json!(true))
    })
    .with_context(|| format!("last, `coherence` was {last}"))?;
    Ok(None)
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_by_its_numbers() {
        assert_eq!(version("6.1.0-44-amd64"), Some((6, 1)));
        assert_eq!(version("5.17-rc1"), Some((5, 17)));
        assert!(version("5.4.0").unwrap() < TELLING_KERNEL && version("5.17.0").unwrap() >= TELLING_KERNEL);
        assert_eq!(version("new"), None);
    }
}
