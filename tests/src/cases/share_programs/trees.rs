//! A tree with everything that archives and copies have to keep, brought onto a directory of the host by tar and by
//! cp.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Shared, TARGET, USER, all_ours, no_image, walk};
use crate::docker::same;
use crate::suite::{Context, Verdict};

/// What `tree.py` says of a path.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Entry {
    kind: String,
    mode: u32,
    uid: u32,
    gid: u32,
    /// Nanoseconds.
    mtime: String,
    size: Option<u64>,
    sha256: Option<String>,
    target: Option<String>,
    xattrs: Option<BTreeMap<String, String>>,
    /// The first path that is the same file.
    same: Option<String>,
}

type Tree = BTreeMap<String, Entry>;

pub(super) fn trees_are_copied_and_unpacked_unchanged(context: &Context) -> Result<Verdict> {
    let Some(shared) = Shared::new(context, "trees")? else {
        return Ok(no_image());
    };
    for user in ["0:0", USER] {
        let name = user.replace(':', "-");
        let top = format!("{TARGET}/{name}");
        let listed = shared
            .run(&["-u", user])
            .args(["sh", "/programs/trees.sh", &top])
            .ok()
            .with_context(|| format!("as {user}"))?;

        let trees = listed
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Tree>, _>>()
            .context("a tree is not JSON")?;
        ensure!(trees.len() == 3, "expected three trees, found {}", trees.len());
        let source = &trees[0];
        ensure!(source.len() > 190, "the tree has only {} entries", source.len());
        for (copy, how) in trees[1..].iter().zip(["tar", "cp"]) {
            equal(source, copy).with_context(|| format!("unpacked by {how} as {user}, in the container"))?;
            on_the_host(source, &shared.dir.join(&name).join(how))
                .with_context(|| format!("unpacked by {how} as {user}, on the host"))?;
        }
    }
    all_ours(&shared.dir)?;
    Ok(Verdict::Passed)
}

fn equal(source: &Tree, copy: &Tree) -> Result<()> {
    same(
        "paths",
        &copy.keys().collect::<Vec<_>>(),
        &source.keys().collect(),
    )?;
    for (path, entry) in source {
        same(path, &&copy[path], &entry)?;
    }
    Ok(())
}

/// What has to be the same on the host: everything but owners and modes, which are the host's.
fn on_the_host(source: &Tree, top: &Path) -> Result<()> {
    let mut paths = BTreeMap::new();
    walk(top, &mut |path, metadata| {
        let below = path.strip_prefix(top).context("a path in the tree")?;
        paths.insert(format!("./{}", text(below)), (path.to_owned(), metadata.clone()));
        Ok(())
    })?;
    same(
        "paths",
        &paths.keys().collect::<Vec<_>>(),
        &source.keys().collect(),
    )?;
    for (name, entry) in source {
        let (path, metadata) = &paths[name];
        let found = (
            kind(metadata),
            mtime(metadata),
            size(metadata),
            content(path, metadata)?,
        );
        let expected = (
            entry.kind.as_str(),
            entry.mtime.clone(),
            entry.size,
            entry.sha256.clone().or_else(|| entry.target.clone()),
        );
        same(name, &found, &expected)?;
        if let Some(first) = &entry.same {
            same(&format!("file of {name}"), &metadata.ino(), &paths[first].1.ino())?;
        }
        let privileges = if metadata.is_dir() { 0o4000 } else { 0o6000 };
        same(
            &format!("privileges of {name}"),
            &(metadata.mode() & privileges),
            &0,
        )?;
    }
    Ok(())
}

/// A path as `tree.py` shows it: each byte as the character of its number.
fn text(path: &Path) -> String {
    path.as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| char::from(*byte))
        .collect()
}

fn kind(metadata: &fs::Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_file() {
        "file"
    } else if kind.is_dir() {
        "dir"
    } else if kind.is_symlink() {
        "link"
    } else if kind.is_fifo() {
        "fifo"
    } else {
        "something else"
    }
}

fn mtime(metadata: &fs::Metadata) -> String {
    (i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())).to_string()
}

fn size(metadata: &fs::Metadata) -> Option<u64> {
    metadata.is_file().then_some(metadata.len())
}

/// A file's digest or a link's target.
fn content(path: &PathBuf, metadata: &fs::Metadata) -> Result<Option<String>> {
    let read = || format!("cannot read {}", path.display());
    if metadata.is_symlink() {
        return Ok(Some(text(&fs::read_link(path).with_context(read)?)));
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    let digest = Sha256::digest(fs::read(path).with_context(read)?);
    Ok(Some(digest.iter().map(|byte| format!("{byte:02x}")).collect()))
}
