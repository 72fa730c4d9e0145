//! The programs that watch files and are written in Rust, compiled here: where their users have them from, there are no binaries.
//!
//! A product of its own in the cache, as compiling takes minutes and the rest of the image changes more often. They are static,
//! so that they run in the image whatever system they were compiled on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::cache::{Cache, Existing};
use crate::digest::Inputs;
use crate::{command, paths, progress};

/// Changed whenever the code here would make other programs from the same list.
const VERSION: u32 = 1;
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What is not said by the list. The programs' own profiles would take several times as long.
const ENVIRONMENT: [(&str, &str); 6] = [
    (
        "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
        "-C target-feature=+crt-static",
    ),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
];

/// The `CRATE@VERSION` lines of a list.
pub(super) fn crates(list: &str) -> Vec<&str> {
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// The hash of everything that decides how the programs of `crates` come out.
pub(super) fn inputs(crates: &[&str]) -> String {
    let mut inputs = Inputs::new("testprograms", VERSION);
    for item in crates {
        inputs.add("crate", item);
    }
    for (name, value) in ENVIRONMENT {
        inputs.add(name, value);
    }
    inputs.finish()
}

/// A directory with the programs of `crates`, made if the cache does not have it.
///
/// # Errors
/// When one cannot be fetched or does not compile.
pub(super) fn ensure(cache: &Cache, crates: &[&str]) -> Result<PathBuf> {
    let hash = inputs(crates);
    let product = cache.product("testprograms", &hash, Existing::Keep, |staging| {
        progress::note(&format!(
            "compiling programs that watch files ({})",
            crates.join(", ")
        ));
        let scratch = cache.scratch(&format!(".build-testprograms-{hash}"))?;
        let mut cargo = Command::new(paths::cargo());
        cargo
            .args(["install", "--locked", "--no-track", "--target", TARGET])
            .args(["--root".as_ref(), staging.as_os_str()])
            .args(crates)
            // Away from the configuration of this tree.
            .current_dir(scratch.path())
            .env("CARGO_TARGET_DIR", scratch.path().join("target"))
            .envs(ENVIRONMENT)
            // Either would take the place of the flags above.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .stdin(Stdio::null());
        let log = cache.log_file(&format!("testprograms-{hash}"))?;
        command::logged(&mut cargo, &log, |_| {})
            .context("cannot compile programs from crates.io; is there a network?")
    })?;
    Ok(product.dir.join("bin"))
}

/// Copies the programs into the image.
pub(super) fn install(programs: &Path, root: &Path) -> Result<()> {
    let target = root.join("usr/local/bin");
    fs::create_dir_all(&target).context("cannot make /usr/local/bin of the image")?;
    for entry in fs::read_dir(programs).with_context(|| format!("cannot list {}", programs.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", programs.display()))?;
        fs::copy(entry.path(), target.join(entry.file_name()))
            .with_context(|| format!("cannot copy {}", entry.path().display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_no_crates() {
        assert_eq!(crates("# x@1\n\n a@1.2.3\nb@4.5.6\n"), ["a@1.2.3", "b@4.5.6"]);
    }
}
