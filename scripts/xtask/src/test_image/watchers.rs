//! The programs that watch files, from the registries of npm, Python and Rust, as Debian does not have them or has old ones.
//!
//! Which versions is said in `tests/watchers`, with their hashes; of Rust's programs the index has the hash, and their own lock
//! files those of the rest. They are fetched by the host's `npm`, `pip3` and `cargo` as these are configured, so that a mirror of
//! the site is used where there is one; nothing of npm's and Python's is run here, and of Rust's what compiling runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::compiled;
use crate::cache::Cache;
use crate::digest::Inputs;
use crate::{command, progress};

/// Files that say what to fetch, in this directory of the tree.
const LISTS: &str = "tests/watchers";
const NPM_PACKAGES: &str = "package.json";
const NPM_LOCK: &str = "package-lock.json";
const PYTHON_PACKAGES: &str = "requirements.txt";
const CRATES: &str = "crates.txt";

/// Where the image's Python looks for what does not come from Debian.
const PYTHON_DIRECTORY: &str = "usr/local/lib/python3.13/dist-packages";
/// What pip is to find files for.
const PYTHON_TARGET: [&str; 6] = [
    "--python-version=3.13",
    "--implementation=cp",
    "--platform=manylinux2014_x86_64",
    "--only-binary=:all:",
    "--no-deps",
    "--require-hashes",
];

/// The ends of the names of npm's files that no program reads: types, maps to sources, and manuals.
const UNREAD: [&str; 6] = [".d.ts", ".d.mts", ".d.cts", ".map", ".md", ".flow"];

/// What the lists say.
pub(super) struct Watchers {
    lists: [(&'static str, Vec<u8>); 3],
    crates: String,
}

impl Watchers {
    /// Reads the lists.
    ///
    /// # Errors
    /// When one is missing.
    pub(super) fn read(workspace: &Path) -> Result<Self> {
        let read = |name: &'static str| {
            let path = workspace.join(LISTS).join(name);
            let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            anyhow::Ok((name, text))
        };
        Ok(Self {
            lists: [read(NPM_PACKAGES)?, read(NPM_LOCK)?, read(PYTHON_PACKAGES)?],
            crates: String::from_utf8(read(CRATES)?.1).context("the list of crates is not text")?,
        })
    }

    /// Compiles what has to be, unless the cache has it, and returns where it is.
    ///
    /// # Errors
    /// When that fails.
    pub(super) fn compile(&self, cache: &Cache) -> Result<PathBuf> {
        compiled::ensure(cache, &compiled::crates(&self.crates))
    }

    /// Adds everything that decides what is installed.
    pub(super) fn add_to(&self, inputs: &mut Inputs) {
        inputs.add("compiled", compiled::inputs(&compiled::crates(&self.crates)));
        for (name, text) in &self.lists {
            inputs.add(name, text);
        }
        for item in PYTHON_TARGET.iter().chain(&UNREAD) {
            inputs.add("watchers", item);
        }
    }

    /// Puts npm's packages into `/node_modules`, where every program finds them, and Python's where its others are.
    ///
    /// # Errors
    /// When the host has no npm or pip, or a package cannot be fetched or is not the one with that hash.
    pub(super) fn install(&self, root: &Path, scratch: &Path) -> Result<()> {
        for (program, package) in [("npm", "npm"), ("pip3", "python3-pip")] {
            if !command::on_path(program) {
                bail!(
                    "there is no {program}, which fetches programs for the tests; on Debian: apt install {package}"
                );
            }
        }
        for (name, text) in &self.lists {
            let path = scratch.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        progress::note("fetching the programs that watch files (npm, PyPI)");
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"])
            .current_dir(scratch);
        command::output(&mut npm).context("cannot fetch the packages of npm; is there a network?")?;
        let modules = scratch.join("node_modules");
        remove_unread(&modules)?;
        fs::rename(&modules, root.join("node_modules"))
            .context("cannot move npm's packages into the image")?;

        let mut pip = Command::new("pip3");
        pip.args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-compile",
        ])
        .args(PYTHON_TARGET)
        .arg("--target")
        .arg(root.join(PYTHON_DIRECTORY))
        .arg("--requirement")
        .arg(scratch.join(PYTHON_PACKAGES));
        command::output(&mut pip)
            .context("cannot fetch the packages of Python; is there a network?")
            .map(drop)
    }
}

/// Removes the files that end in one of [`UNREAD`].
fn remove_unread(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .with_context(|| format!("cannot look at {}", path.display()))?;
        if kind.is_dir() {
            remove_unread(&path)?;
        } else if is_unread(&entry.file_name().to_string_lossy()) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn is_unread(name: &str) -> bool {
    UNREAD.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    #[test]
    fn what_programs_read_stays() {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("@scope/package");
        fs::create_dir_all(&package).unwrap();
        let files = [
            "index.js",
            "index.d.ts",
            "index.js.map",
            "README.md",
            "package.json",
        ];
        for name in files {
            fs::write(package.join(name), "").unwrap();
        }

        remove_unread(dir.path()).unwrap();

        let left = files.map(|name| package.join(name).exists());
        assert_eq!(left, [true, false, false, false, true]);
    }

    #[test]
    fn every_package_has_a_hash_and_none_a_registry() {
        let watchers = Watchers::read(&paths::workspace_root().unwrap()).unwrap();
        let [packages, lock, requirements] = &watchers.lists;
        let json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
        let (packages, lock) = (json(&packages.1), json(&lock.1));
        assert_eq!(lock["packages"][""]["dependencies"], packages["dependencies"]);
        for (path, package) in lock["packages"].as_object().unwrap() {
            assert!(path.is_empty() || package["integrity"].is_string(), "{path}");
            assert!(package["resolved"].is_null(), "{path}");
        }
        for line in String::from_utf8_lossy(&requirements.1).lines() {
            assert!(
                line.starts_with('#') || line.contains("==") && line.contains(" --hash=sha256:"),
                "{line}"
            );
        }
    }
}
