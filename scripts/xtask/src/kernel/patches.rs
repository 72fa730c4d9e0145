//! What berth changes in the kernel's source: `kernel-config/patches/`, applied in the order of their names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::digest::Inputs;

/// A patch as git and patch(1) read it, with the reason for it at its beginning.
#[derive(Debug)]
struct Patch {
    path: PathBuf,
    text: String,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Patches(Vec<Patch>);

impl Patches {
    /// Reads the patches of a checkout's `kernel-config/patches`.
    ///
    /// # Errors
    /// When one cannot be read or does not begin with its reason.
    pub(super) fn load(dir: &Path) -> Result<Self> {
        let mut patches = Vec::new();
        let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("cannot list {}", dir.display()))?
                .path();
            if path.extension().is_none_or(|extension| extension != "patch") {
                bail!("{} is not a patch; only *.patch belong there", path.display());
            }
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if text.starts_with("--- ") || text.starts_with("diff ") {
                bail!("{} does not begin with the reason for it", path.display());
            }
            patches.push(Patch { path, text });
        }
        patches.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Self(patches))
    }

    /// Adds them to what a kernel is made from.
    pub(super) fn add_to(&self, inputs: &mut Inputs) {
        for patch in &self.0 {
            inputs.add("patch", &patch.text);
        }
    }

    /// Applies them to an unpacked source.
    ///
    /// # Errors
    /// When one does not apply as it is: it was made for another version, and somebody has to look.
    pub(super) fn apply(&self, tree: &Path, log: &Path) -> Result<()> {
        for patch in &self.0 {
            let mut program = Command::new("patch");
            program
                .args(["--strip=1", "--forward", "--batch", "--fuzz=0", "--directory"])
                .arg(tree)
                .arg("--input")
                .arg(&patch.path);
            command::logged(&mut program, log, |_| {}).with_context(|| {
                format!(
                    "{} does not apply to this kernel; bring it up to date",
                    patch.path.display()
                )
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Why it is needed.\n\n--- a/file\n+++ b/file\n@@ -1 +1 @@\n-before\n+after\n";

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn patches_are_applied_and_count_in_the_cache_key() {
        let tree = directory(&[("file", "before\n")]);
        let dir = directory(&[("0001-a.patch", TEXT)]);
        let patches = Patches::load(dir.path()).unwrap();

        patches.apply(tree.path(), &dir.path().join("log")).unwrap();

        assert_eq!(fs::read_to_string(tree.path().join("file")).unwrap(), "after\n");
        let key = |patches: &Patches| {
            let mut inputs = Inputs::new("test", 1);
            patches.add_to(&mut inputs);
            inputs.finish()
        };
        assert_ne!(key(&patches), key(&Patches(Vec::new())));
    }

    #[test]
    fn a_patch_for_another_version_is_named() {
        let tree = directory(&[("file", "other\n")]);
        let dir = directory(&[("0001-a.patch", TEXT)]);

        let error = Patches::load(dir.path())
            .unwrap()
            .apply(tree.path(), &dir.path().join("log"))
            .unwrap_err();

        assert!(
            format!("{error:#}").contains("0001-a.patch does not apply"),
            "{error:#}"
        );
    }

    #[test]
    fn a_patch_without_a_reason_is_refused() {
        let dir = directory(&[("0001-a.patch", "--- a/file\n+++ b/file\n")]);
        assert!(
            Patches::load(dir.path())
                .unwrap_err()
                .to_string()
                .contains("reason")
        );
        let dir = directory(&[("notes.txt", "x")]);
        assert!(Patches::load(dir.path()).is_err());
    }

    #[test]
    fn those_of_this_checkout_can_be_read() {
        let dir = crate::paths::workspace_root()
            .unwrap()
            .join("kernel-config/patches");
        assert!(!Patches::load(&dir).unwrap().0.is_empty());
    }
}
