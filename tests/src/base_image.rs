//! The base image of all tests: a static busybox and nothing else, made here, so that no registry is asked.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use crate::machine::Machine;
use crate::program::Program;

/// The image's name. It has a registry in it that does not exist, so that a mistaken pull fails at once.
pub const IMAGE: &str = "berth.invalid/busybox:test";

/// Makes the image's root file system as a tar archive.
///
/// # Errors
/// When busybox cannot be copied or tar fails.
pub fn archive(busybox: &Path, work_dir: &Path, archive: &Path) -> Result<()> {
    let root = work_dir.join("busybox-root");
    make_tree(busybox, &root)?;
    pack(&root, archive)?;
    fs::remove_dir_all(&root).context("cannot delete the base image's tree")
}

/// Makes the image's root file system in `root`.
pub(crate) fn make_tree(busybox: &Path, root: &Path) -> Result<()> {
    for dir in ["bin", "etc", "tmp", "root"] {
        fs::create_dir_all(root.join(dir)).with_context(|| format!("cannot make {dir} of the base image"))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).context("cannot set a mode")?;
    fs::copy(busybox, root.join("bin/busybox"))
        .with_context(|| format!("cannot copy {}", busybox.display()))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nguest:x:1234:1234::/tmp:/bin/sh\n",
    )
    .context("cannot write the base image's users")?;
    fs::write(root.join("etc/group"), "root:x:0:\nguest:x:1234:\n")
        .context("cannot write the base image's groups")?;
    for applet in Program::new(busybox)
        .arg("--list")
        .ok()?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("cannot link {applet}"))?;
    }
    Ok(())
}

/// Makes an archive of a root file system.
pub(crate) fn pack(root: &Path, archive: &Path) -> Result<()> {
    Program::new("tar")
        .args(["--owner=0", "--group=0", "--numeric-owner", "-C"])
        .arg(root)
        .arg("-cf")
        .arg(archive)
        .arg(".")
        .ok()?;
    Ok(())
}

/// Imports the image into a machine.
///
/// # Errors
/// When docker refuses it.
pub fn import(machine: &Machine) -> Result<()> {
    let path = machine.dir().join("busybox.tar");
    archive(&machine.setup().busybox, machine.dir(), &path)?;
    import_archive(machine, &path, IMAGE).context("cannot import the base image; is busybox static?")
}

/// Imports an archive of a root file system with busybox in it.
pub(crate) fn import_archive(machine: &Machine, archive: &Path, image: &str) -> Result<()> {
    machine
        .docker([
            "import",
            "--change",
            "CMD [\"sh\"]",
            "--change",
            "ENV PATH=/bin",
            "-",
            image,
        ])
        .input_file(archive)
        .ok()?;
    Ok(())
}
