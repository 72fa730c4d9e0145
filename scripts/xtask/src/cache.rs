//! The cache of what cargo cannot build: one directory per hash of all inputs, complete or absent.
//!
//! A product is made under a temporary name and renamed when it is whole, under a lock, so that neither a killed build
//! nor two builds at once leave a directory that looks finished and is not.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::paths;
use crate::progress;

/// The cache directory.
pub(crate) struct Cache {
    root: PathBuf,
}

/// A finished product.
pub(crate) struct Product {
    /// Its directory.
    pub(crate) dir: PathBuf,
}

/// What to do when the product is already there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Use it.
    Keep,
    /// Make it again and put the new one in its place.
    Replace,
}

impl Cache {
    /// Opens the user's cache, creating its directory.
    ///
    /// # Errors
    /// When the directory cannot be named or created.
    pub(crate) fn open() -> Result<Self> {
        Self::at(paths::cache_dir()?)
    }

    /// Opens a cache in the given directory, creating it.
    pub(crate) fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(root.join("locks"))
            .with_context(|| format!("cannot create the cache directory {}", root.display()))?;
        Ok(Self { root })
    }

    /// Returns `KIND-HASH`, calling `make` with an empty directory to fill when it is not there yet.
    ///
    /// # Errors
    /// When `make` fails, or the file system does. Nothing of a failed product stays behind.
    pub(crate) fn product(
        &self,
        kind: &str,
        hash: &str,
        existing: Existing,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Product> {
        let name = format!("{kind}-{hash}");
        let dir = self.root.join(&name);
        if existing == Existing::Keep && dir.is_dir() {
            return Ok(Product { dir });
        }
        let _lock = self.lock(&name)?;
        if existing == Existing::Keep && dir.is_dir() {
            return Ok(Product { dir });
        }
        let staging = self.scratch(&format!(".new-{name}"))?;
        make(staging.path())?;
        sync_tree(staging.path())?;
        if dir.exists() {
            // Out of the way first: a directory can be renamed over an empty one only.
            let old = self.scratch(&format!(".old-{name}"))?;
            fs::rename(&dir, old.path().join("product"))
                .with_context(|| format!("cannot replace {}", dir.display()))?;
        }
        fs::rename(staging.path(), &dir)
            .with_context(|| format!("cannot move the finished product to {}", dir.display()))?;
        File::open(&self.root)
            .and_then(|root| root.sync_all())
            .with_context(|| format!("cannot sync {}", self.root.display()))?;
        Ok(Product { dir })
    }

    /// An empty directory in the cache, deleted when the returned value is dropped. One of the same name that an
    /// earlier, killed run left is deleted first: the caller must hold the product's lock or be its only user.
    pub(crate) fn scratch(&self, name: &str) -> Result<Scratch> {
        let path = self.root.join(name);
        remove_tree(&path)?;
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Scratch { path })
    }

    /// Where the build log of a product goes. Kept after the build: it is what explains a failure.
    pub(crate) fn log_file(&self, name: &str) -> Result<PathBuf> {
        let logs = self.root.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(logs.join(format!("{name}.log")))
    }

    /// The cache directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Waits for and takes the lock of a product; dropping the file gives it back, as does the end of the process.
    fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join("locks").join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open the lock file {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                progress::note(&format!("another process is building {name}; waiting for it"));
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

/// A directory that lives as long as this value.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            progress::note(&format!("{error:#}; delete it by hand"));
        }
    }
}

/// Deletes a directory tree that may not exist.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a small tree to the disk, so that the rename that follows cannot survive a power cut that its files do not.
fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let kind = entry
            .file_type()
            .with_context(|| format!("cannot stat {}", entry.path().display()))?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())
                .and_then(|file| file.sync_all())
                .with_context(|| format!("cannot sync {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::bail;

    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        (dir, cache)
    }

    #[test]
    fn a_product_is_made_once() {
        let (_dir, cache) = cache();
        let make = |dir: &Path| Ok(fs::write(dir.join("file"), "content")?);

        let first = cache.product("kernel", "12", Existing::Keep, make).unwrap();
        let second = cache
            .product("kernel", "12", Existing::Keep, |_| bail!("made twice"))
            .unwrap();

        assert_eq!(first.dir, second.dir);
        assert_eq!(fs::read_to_string(second.dir.join("file")).unwrap(), "content");
    }

    #[test]
    fn a_failed_product_leaves_nothing() {
        let (_dir, cache) = cache();

        let result = cache.product("kernel", "12", Existing::Keep, |dir| {
            fs::write(dir.join("half"), "")?;
            bail!("no compiler")
        });

        assert_eq!(result.err().unwrap().to_string(), "no compiler");
        let left: Vec<_> = fs::read_dir(cache.root())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["locks"]);
    }

    #[test]
    fn what_a_killed_build_left_does_not_reach_the_product() {
        let (_dir, cache) = cache();
        let stale = cache.root().join(".new-image-12");
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join("half"), "").unwrap();

        let product = cache.product("image", "12", Existing::Keep, |_| Ok(())).unwrap();

        assert_eq!(fs::read_dir(product.dir).unwrap().count(), 0);
    }

    #[test]
    fn replacing_puts_the_new_product_in_place() {
        let (_dir, cache) = cache();
        for content in ["old", "new"] {
            cache
                .product("root", "12", Existing::Replace, |dir| {
                    Ok(fs::write(dir.join("file"), content)?)
                })
                .unwrap();
        }

        assert_eq!(
            fs::read_to_string(cache.root().join("root-12/file")).unwrap(),
            "new"
        );
    }

    #[test]
    fn builds_at_the_same_time_make_one_product() {
        let (_dir, cache) = cache();
        let made = AtomicUsize::new(0);

        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    cache
                        .product("kernel", "12", Existing::Keep, |dir| {
                            made.fetch_add(1, Ordering::SeqCst);
                            Ok(fs::write(dir.join("file"), "whole")?)
                        })
                        .unwrap();
                });
            }
        });

        assert_eq!(made.load(Ordering::SeqCst), 1);
    }
}
