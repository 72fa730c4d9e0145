//! The image with the programs that are tried on shares: PostgreSQL, git, tar, python with sqlite. `xtask
//! test-image` makes it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::machine::Machine;

/// The image's name; like the base image's it cannot be pulled by mistake.
pub const IMAGE: &str = "berth.invalid/programs:test";

/// An archive of 150 MB goes through the docker client, is hashed and unpacked, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(900);

/// Imports the archive into a machine, unless it has the image.
///
/// # Errors
/// When docker refuses it.
pub fn import(machine: &Machine, archive: &Path) -> Result<()> {
    if machine.docker(["image", "inspect", IMAGE]).run()?.code() == Some(0) {
        return Ok(());
    }
    machine
        .docker(["import"])
        .args([
            "--change",
            "ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/usr/sbin:/bin LC_ALL=C.UTF-8",
        ])
        .args(["--change", "CMD [\"sh\"]", "-", IMAGE])
        .input_file(archive)
        .limit(LIMIT)
        .ok()
        .with_context(|| format!("cannot import {}", archive.display()))?;
    Ok(())
}
