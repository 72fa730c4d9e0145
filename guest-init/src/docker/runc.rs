//! runc, kept as the sealed copy that it would make of itself.
//!
//! Before runc enters a container it copies itself into sealed memory and goes on from there, so that nothing in the container
//! can change the program on the image (CVE-2019-5736). That is ten megabytes for each container that starts and each
//! `docker exec`, and an emulator has to translate every copy anew. A runc that was started from a sealed copy makes none. So there
//! is one, as long as the machine runs; services find it before the program on the image.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::tool;

/// Where services look for programs before all other places.
pub(super) const DIRECTORY: &str = "/run/berth/bin";

const NAME: &str = "runc";

/// The seals that runc looks for, and no others.
const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// A sealed copy that is there for who looks for runc in [`DIRECTORY`], until this is dropped.
#[derive(Debug)]
pub(super) struct Sealed {
    _memory: File,
    link: PathBuf,
}

impl Drop for Sealed {
    fn drop(&mut self) {
        // A link that leads nowhere is passed over by who looks for a program.
        let _ = fs::remove_file(&self.link);
    }
}

/// Makes the copy. Blocks while the program is read.
///
/// # Errors
/// When the image has no runc, or there is no memory for the copy. Without it runc makes its own.
pub(super) fn seal() -> anyhow::Result<Sealed> {
    let program = tool::PATH
        .split(':')
        .map(|directory| Path::new(directory).join(NAME))
        .find(|path| path.is_file())
        .context("the image has no runc")?;
    seal_as(&program, Path::new(DIRECTORY))
}

fn seal_as(program: &Path, directory: &Path) -> anyhow::Result<Sealed> {
    let copying = || format!("cannot copy {} into memory", program.display());
    let memory = copy(program).with_context(copying)?;
    fcntl_add_seals(&memory, SEALS).with_context(copying)?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let link = directory.join(NAME);
    let memory_path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    symlink(memory_path, &link).with_context(|| format!("cannot make the link {}", link.display()))?;
    Ok(Sealed {
        _memory: memory,
        link,
    })
}

fn copy(program: &Path) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut memory = File::from(memfd_create(NAME, flags)?);
    io::copy(&mut File::open(program)?, &mut memory)?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use rustix::fs::fcntl_get_seals;
    use tempfile::tempdir;

    use super::*;

    #[test]
    fn the_copy_runs_cannot_be_written_and_is_gone_with_its_owner() {
        let directory = tempdir().unwrap();
        let sealed = seal_as(Path::new("/bin/echo"), directory.path()).unwrap();
        let link = directory.path().join(NAME);

        let output = Command::new(&link).arg("here").output().unwrap();
        assert_eq!(output.stdout, b"here\n");
        assert_eq!(fcntl_get_seals(&sealed._memory).unwrap(), SEALS);
        let mut writable = File::options().write(true).open(&link).unwrap();
        assert!(writable.write_all(b"#").is_err());
        assert!(sealed._memory.set_len(0).is_err());

        drop(sealed);
        assert!(!link.is_symlink());
    }

    #[test]
    fn a_missing_program_is_named() {
        let directory = tempdir().unwrap();
        let error = seal_as(Path::new("/nowhere/runc"), directory.path()).unwrap_err();
        assert_eq!(error.to_string(), "cannot copy /nowhere/runc into memory");
    }
}
