//! The tree of Debian packages under the image: fetched by apt with what they depend on, unpacked and trimmed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Existing};
use crate::debian::{self, Archive};
use crate::digest::Inputs;
use crate::progress;

/// Changed whenever the code here would make a different tree from the same lists.
const VERSION: u32 = 2;

/// A tree of unpacked packages.
pub(super) struct PackageTree {
    /// The root of the tree.
    pub(super) root: PathBuf,
    /// Changes with the content: Debian's updates arrive under the same list of names.
    pub(super) identity: String,
}

/// The trimmed tree for the lists `packages` and `trim` in `sources`.
///
/// # Errors
/// When a list is wrong or the packages cannot be fetched.
pub(super) fn tree(cache: &Cache, sources: &Path, existing: Existing) -> Result<PackageTree> {
    let read = |name: &str| {
        let path = sources.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let packages = parse_list(&read("packages")?);
    let trim = parse_list(&read("trim")?);
    if packages.is_empty() {
        bail!("{} names no package", sources.join("packages").display());
    }
    let mut inputs = Inputs::new("debian", VERSION);
    inputs
        .add("suite", debian::SUITE)
        .add("architecture", debian::ARCHITECTURE);
    for package in &packages {
        inputs.add("package", package);
    }
    for pattern in &trim {
        inputs.add("trim", pattern);
    }
    let hash = inputs.finish();
    let product = cache.product("debian", &hash, existing, |staging| {
        fetch(cache, &hash, &packages, &trim, staging)
    })?;
    let identity = fs::read_to_string(product.dir.join("identity"))
        .context("cannot read the package tree's identity")?;
    Ok(PackageTree {
        root: product.dir.join("root"),
        identity,
    })
}

/// Unpacked, not installed: no maintainer script runs, so nothing of the host or of chance gets in, and no right beyond
/// that of writing files is needed.
fn fetch(cache: &Cache, hash: &str, packages: &[String], trim: &[String], staging: &Path) -> Result<()> {
    progress::note(&format!(
        "fetching the packages of the guest image (Debian {})",
        debian::SUITE
    ));
    let archive = Archive::open(cache, &format!("debian-{hash}"))?;
    let files = archive.download_with_dependencies(packages)?;
    let root = staging.join("root");
    fs::create_dir(&root).with_context(|| format!("cannot create {}", root.display()))?;
    debian::extract_all(&files, &root, trim, "guest image: packages unpacked")?;
    // A file's name has its version.
    let identity: Vec<_> = files.iter().map(|file| debian::file_name(file)).collect();
    fs::write(staging.join("identity"), identity.join("\n") + "\n").context("cannot write the identity")
}

/// One item per line; `#` starts a comment.
fn parse_list(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split_once('#').map_or(line, |(item, _)| item).trim())
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_comments_and_blank_lines() {
        let list = parse_list("# head\n\nrunc   # starts containers\n  tini\n#gone\n");

        assert_eq!(list, ["runc", "tini"]);
    }
}
