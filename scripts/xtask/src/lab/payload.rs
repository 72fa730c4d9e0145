//! What a run brings along: one read-only disk with the built programs, the guest, extra files, and the command itself.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::root::LabRoot;
use crate::{command, paths};

const MAIN: &str = include_str!("main.sh");

/// The files of a payload, chosen but not yet copied.
pub(super) struct Contents {
    /// Source and destination below `/payload`.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Contents {
    /// Chooses the programs in `bin_dir`, the guest in `guest_dir`, and `extra` entries of the form `PATH` or
    /// `PATH=NAME`. Without a directory named, the usual one is taken if it is there.
    ///
    /// # Errors
    /// When something that was named is not there, or a name would leave `/payload`.
    pub(super) fn choose(
        bin_dir: Option<PathBuf>,
        guest_dir: Option<PathBuf>,
        extra: &[String],
    ) -> Result<Self> {
        let mut files = Vec::new();
        if let Some(dir) = named_or_usual(bin_dir, usual_bin_dirs()?)? {
            for program in programs(&dir)? {
                let name = program.file_name().context("a directory entry has a name")?;
                files.push((program.clone(), Path::new("bin").join(name)));
            }
        }
        if let Some(dir) = named_or_usual(guest_dir, usual_guest_dirs()?)? {
            files.push((dir, PathBuf::from("guest")));
        }
        for entry in extra {
            files.push(parse_extra(entry)?);
        }
        Ok(Self { files })
    }

    /// Writes the disk image. `directory` is emptied space for staging on the same file system as the image.
    ///
    /// # Errors
    /// When a file cannot be read or the image not be written.
    pub(super) fn write(
        &self,
        root: &LabRoot,
        directory: &Path,
        image: &Path,
        command: &str,
        environment: &str,
    ) -> Result<()> {
        for (source, name) in &self.files {
            let destination = directory.join(name);
            if let Some(parent) = destination.parent() {
                fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            }
            copy(source, &destination)?;
        }
        let control = directory.join(".lab");
        fs::create_dir_all(&control).with_context(|| format!("cannot create {}", control.display()))?;
        for (name, content) in [
            ("main.sh", MAIN),
            ("command", command),
            ("environment", environment),
        ] {
            let path = control.join(name);
            fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        }
        command::output(
            root.program("usr/bin/mkfs.erofs")
                .arg("--quiet")
                .arg("--all-root")
                .arg(image)
                .arg(directory),
        )?;
        Ok(())
    }
}

fn usual_bin_dirs() -> Result<[PathBuf; 2]> {
    let target = paths::cargo_target_dir()?;
    Ok([target.join("release"), target.join("debug")])
}

fn usual_guest_dirs() -> Result<[PathBuf; 1]> {
    Ok([match std::env::var_os("BERTH_GUEST_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => paths::data_dir()?.join("guest"),
    }])
}

/// The named directory, which must exist, or the first of the usual ones that does.
fn named_or_usual<const N: usize>(named: Option<PathBuf>, usual: [PathBuf; N]) -> Result<Option<PathBuf>> {
    match named {
        Some(dir) if !dir.is_dir() => bail!("{} is not a directory", dir.display()),
        Some(dir) => Ok(Some(dir)),
        None => Ok(usual.into_iter().find(|dir| dir.is_dir())),
    }
}

/// The executable files directly in a cargo output directory.
fn programs(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("cannot list {}", dir.display()))?
            .path();
        let metadata = fs::metadata(&path).with_context(|| format!("cannot stat {}", path.display()))?;
        let executable = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
        if executable && path.extension().is_none() {
            found.push(path);
        }
    }
    Ok(found)
}

fn parse_extra(entry: &str) -> Result<(PathBuf, PathBuf)> {
    let (source, name) = match entry.split_once('=') {
        Some((source, name)) => (PathBuf::from(source), PathBuf::from(name)),
        None => {
            let source = PathBuf::from(entry);
            let name = source
                .file_name()
                .with_context(|| format!("{entry} has no name; use PATH=NAME"))?;
            (source.clone(), PathBuf::from(name))
        }
    };
    if !source.exists() {
        bail!("{} does not exist", source.display());
    }
    if name.as_os_str().is_empty() || !name.components().all(|part| matches!(part, Component::Normal(_))) {
        bail!("{:?} is not a name below /payload", name.display());
    }
    Ok((source, name))
}

/// Copies a file or a tree, following symbolic links at the top only. Files are linked where the file system allows:
/// the image is written at once, so nobody sees a source change under it.
fn copy(source: &Path, destination: &Path) -> Result<()> {
    let real = fs::canonicalize(source).with_context(|| format!("cannot find {}", source.display()))?;
    if real.is_dir() {
        fs::create_dir_all(destination)
            .with_context(|| format!("cannot create {}", destination.display()))?;
        for entry in fs::read_dir(&real).with_context(|| format!("cannot list {}", real.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", real.display()))?;
            let path = entry.path();
            let target = destination.join(entry.file_name());
            if path.is_symlink() {
                let link = fs::read_link(&path).with_context(|| format!("cannot read {}", path.display()))?;
                std::os::unix::fs::symlink(&link, &target)
                    .with_context(|| format!("cannot create {}", target.display()))?;
            } else {
                copy(&path, &target)?;
            }
        }
        return Ok(());
    }
    match fs::hard_link(&real, destination) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("two parts of the payload have the name {}", destination.display())
        }
        Err(_) => fs::copy(&real, destination)
            .map(drop)
            .with_context(|| format!("cannot copy {} to {}", real.display(), destination.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extra_file_may_be_renamed_but_not_leave_the_payload() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "").unwrap();
        let file = file.to_str().unwrap();

        assert_eq!(parse_extra(file).unwrap().1, Path::new("a"));
        assert_eq!(parse_extra(&format!("{file}=b/c")).unwrap().1, Path::new("b/c"));
        for bad in ["", "..", "/etc", "a/../b"] {
            assert!(parse_extra(&format!("{file}={bad}")).is_err(), "{bad}");
        }
        assert!(parse_extra("/does/not/exist").is_err());
    }

    #[test]
    fn programs_are_executables_without_an_extension() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [
            ("berth", 0o755),
            ("libx.so", 0o755),
            ("berth.d", 0o644),
            ("notes", 0o644),
        ] {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }

        assert_eq!(programs(dir.path()).unwrap(), [dir.path().join("berth")]);
    }
}
