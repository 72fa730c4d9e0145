//! An image with programs of this host beside busybox, each with the libraries it needs: for what busybox cannot do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::base_image;
use crate::machine::Machine;
use crate::options::on_path;
use crate::program::Program;

/// The image's name. It has a registry in it that does not exist, so that a mistaken pull fails at once.
pub const TOOLS: &str = "berth.invalid/tools:test";

/// The programs in it. Their packages have the same names.
const PROGRAMS: &[&str] = &["iperf3", "socat"];

/// Imports the image into a machine that does not have it yet.
///
/// # Errors
/// When a program is not installed here, or docker refuses the image.
pub fn import(machine: &Machine) -> Result<()> {
    if machine.docker(["image", "inspect", TOOLS]).run()?.code() == Some(0) {
        return Ok(());
    }
    let root = machine.dir().join("tools-root");
    base_image::make_tree(&machine.setup().busybox, &root)?;
    for program in PROGRAMS {
        let path = on_path(program)
            .with_context(|| format!("there is no {program}; on Debian: apt install {program}"))?;
        copy(&path, &root.join("bin").join(program))?;
        for library in libraries(&path)? {
            let inside = library.strip_prefix("/").unwrap_or(&library);
            copy(&library, &root.join(inside))?;
        }
    }
    let archive = machine.dir().join("tools.tar");
    base_image::pack(&root, &archive)?;
    base_image::import_archive(machine, &archive, TOOLS).context("cannot import the image with tools")?;
    fs::remove_dir_all(&root).context("cannot delete the tools' tree")?;
    fs::remove_file(&archive).context("cannot delete the tools' archive")
}

/// The files that the dynamic linker would load for `program`, itself included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = Program::new("ldd").arg(program).ok()?;
    let mut libraries: Vec<_> = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect();
    // The C library loads this one by itself when a thread is cancelled.
    let unwinder = libraries
        .iter()
        .find(|library| library.ends_with("libc.so.6"))
        .map(|library| library.with_file_name("libgcc_s.so.1"))
        .filter(|unwinder| unwinder.exists());
    libraries.extend(unwinder);
    Ok(libraries)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
