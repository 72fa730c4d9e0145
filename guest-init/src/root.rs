//! A root file system on which mount points can be made anywhere.
//!
//! A share of the host appears in the guest at the path it has on the host, which may be any: `/home/me`, `/data`,
//! `/Users/me`. The image is read-only and cannot have a directory for each. So an overlay of the image and a small tmpfs
//! becomes the root. It is mounted read-only as well, for everybody: a write that missed the data disk must fail, not
//! land in memory, and so must dockerd's attempt to make a bind source that is not shared. Only guest-init has a second,
//! writable mount of the same overlay, attached nowhere, through which it makes the directories ([`Root::make_dir`]).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use rustix::fs::{AtFlags, CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags, mount, mount_remount, open_tree, unmount};
use rustix::process::{chdir, pivot_root};

/// An empty directory of the image, under which the new root is put together.
const SCAFFOLD: &str = "/mnt";
/// The most the tmpfs may hold. It holds empty directories.
const SIZE: &str = "size=4m,mode=0755";

/// The way to make directories where the root is read-only.
#[derive(Debug, Default)]
pub(crate) struct Root {
    writable: Option<OwnedFd>,
}

impl Root {
    /// Puts the overlay in the image's place. The kernel must have mounted nothing but the image and, at most, `/dev`:
    /// what is mounted on the old root is gone with it.
    ///
    /// # Errors
    /// When any step fails. The root is then the image, or the overlay without a way to make directories on it.
    pub(crate) fn overlay() -> anyhow::Result<Root> {
        let dir = |name: &str| format!("{SCAFFOLD}/{name}");
        let data = |text: String| std::ffi::CString::new(text).context("a mount option with a NUL");
        mount(
            "tmpfs",
            SCAFFOLD,
            "tmpfs",
            MountFlags::NODEV,
            data(SIZE.into())?.as_c_str(),
        )
        .with_context(|| format!("cannot mount a tmpfs on {SCAFFOLD}"))?;
        for name in ["upper", "work", "root"] {
            fs::create_dir(dir(name)).with_context(|| format!("cannot make {}", dir(name)))?;
        }
        let layers = format!("lowerdir=/,upperdir={},workdir={}", dir("upper"), dir("work"));
        mount(
            "overlay",
            dir("root"),
            "overlay",
            MountFlags::NODEV,
            data(layers)?.as_c_str(),
        )
        .context("cannot mount an overlay of the image")?;
        chdir(dir("root").as_str()).context("cannot enter the overlay")?;
        // With both arguments the same, the old root lands on top of the new one (pivot_root(2)).
        pivot_root(".", ".").context("cannot make the overlay the root")?;
        unmount(".", UnmountFlags::DETACH).context("cannot let go of the old root")?;
        chdir("/").context("cannot enter the new root")?;
        // Before anything is shared: a copy made later would get every mount that is made on the root.
        let writable = open_tree(
            CWD,
            "/",
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .context("cannot get a writable mount of the root")?;
        mount_remount(
            "/",
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV,
            c"",
        )
        .context("cannot make the root read-only")?;
        Ok(Root {
            writable: Some(writable),
        })
    }

    /// Makes the directory `path`, which is absolute and without `..`, with its parents where they are missing. Returns
    /// those that were made, the outermost first.
    ///
    /// # Errors
    /// When something else stands there, or the file system cannot be written. What was made before is removed.
    pub(crate) fn make_dir(&self, path: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        self.make_missing(path, &mut made)
            .inspect_err(|_| self.remove(&made))?;
        Ok(made)
    }

    fn make_missing(&self, path: &Path, made: &mut Vec<PathBuf>) -> anyhow::Result<()> {
        ensure!(path.is_absolute(), "{} is not an absolute path", path.display());
        let mut at = PathBuf::from("/");
        for component in path.components() {
            match component {
                Component::RootDir => continue,
                Component::Normal(name) => at.push(name),
                _ => bail!("{} is not a plain path", path.display()),
            }
            match fs::metadata(&at) {
                Ok(there) if there.is_dir() => continue,
                Ok(_) => bail!("{} is not a directory of the guest", at.display()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(anyhow!(e).context(format!("cannot look at {}", at.display()))),
            }
            self.make_one(&at)
                .with_context(|| format!("cannot make the directory {} in the guest", at.display()))?;
            made.push(at.clone());
        }
        Ok(())
    }

    fn make_one(&self, path: &Path) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o755);
        match (rustix::fs::mkdir(path, mode), &self.writable) {
            (Err(Errno::ROFS), Some(root)) => {
                rustix::fs::mkdirat(root, relative(path), mode)?;
            }
            (result, _) => result?,
        }
        // It may lie on another read-only file system, or under one that hides what the overlay has there.
        fs::metadata(path).map(drop)
    }

    /// Removes directories that [`Root::make_dir`] made, as far as they are empty.
    pub(crate) fn remove(&self, made: &[PathBuf]) {
        for path in made.iter().rev() {
            let removed = match (rustix::fs::rmdir(path), &self.writable) {
                (Err(Errno::ROFS), Some(root)) => {
                    rustix::fs::unlinkat(root, relative(path), AtFlags::REMOVEDIR)
                }
                (removed, _) => removed,
            };
            if removed.is_err() {
                // Somebody uses it, and an empty directory does no harm.
                return;
            }
        }
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_parents_are_made_and_removed_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::default();
        let path = dir.path().join("a/b/c");
        let made = root.make_dir(&path).unwrap();
        assert_eq!(
            made,
            ["a", "a/b", "a/b/c"].map(|name| dir.path().join(name)).to_vec()
        );
        assert_eq!(root.make_dir(&path).unwrap(), Vec::<PathBuf>::new());
        fs::write(dir.path().join("a/file"), "").unwrap();
        root.remove(&made);
        assert!(dir.path().join("a/file").exists() && !dir.path().join("a/b").exists());
    }

    #[test]
    fn what_stands_in_the_way_is_named_and_nothing_half_made_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::default();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = root.make_dir(&dir.path().join("file/x")).unwrap_err();
        assert!(
            format!("{error:#}").contains("file is not a directory"),
            "{error:#}"
        );
        let long = "x".repeat(300);
        let error = root.make_dir(&dir.path().join("new").join(&long)).unwrap_err();
        assert!(format!("{error:#}").contains(&long), "{error:#}");
        assert!(!dir.path().join("new").exists());
        assert!(root.make_dir(Path::new("a")).is_err() && root.make_dir(Path::new("/a/../b")).is_err());
    }
}
