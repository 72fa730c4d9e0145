//! Building programs of the guest, guest-init above all, each as one static binary.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{paths, progress};

/// The guest's architecture, as rustc names it. Naming it even on a host of the same kind keeps the flags below from
/// reaching build scripts and procedural macros, which cannot be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds guest-init and returns the binary's path.
///
/// # Errors
/// When cargo fails; its own messages have been printed.
pub(super) fn build() -> Result<PathBuf> {
    build_static("guest-init", "guest-init")
}

/// Builds the binary `name` of `package` for the guest and returns its path.
///
/// # Errors
/// When cargo fails; its own messages have been printed.
pub(crate) fn build_static(package: &str, name: &str) -> Result<PathBuf> {
    progress::note(&format!("building {name}"));
    let target_dir = paths::cargo_target_dir()?.join("guest");
    let mut cargo = Command::new(paths::cargo());
    cargo
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "guest",
            "--package",
            package,
            "--bin",
            name,
            "--target",
            TARGET,
        ])
        .current_dir(paths::workspace_root()?)
        .env("CARGO_TARGET_DIR", &target_dir)
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        )
        // Either would take the place of the variable above.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // Ours when we run under cargo; they would make the inner cargo rebuild what the outer one has built.
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("CARGO_PKG_NAME")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let status = cargo.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("{name} does not build ({status})");
    }
    Ok(target_dir.join(TARGET).join("guest").join(name))
}
