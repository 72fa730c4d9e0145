//! Waiting, with inotify, for directories to change: they, and those above them that are not there yet.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// What is of interest in a directory. That a file in it is written is not: a machine's disk is all the time.
const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// Directories that are watched.
#[derive(Debug)]
pub(crate) struct Directories {
    inotify: AsyncFd<OwnedFd>,
    watches: HashMap<PathBuf, i32>,
}

impl Directories {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the user has too many inotify instances, or the process too many files.
    pub(crate) fn new() -> io::Result<Directories> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // SAFETY: the descriptor is open, and an OwnedFd is one and the same until it is dropped, with the AsyncFd.
        let inotify = unsafe { AsyncFd::register(inotify) }?;
        Ok(Directories {
            inotify,
            watches: HashMap::new(),
        })
    }

    /// Watches these directories from now on, and no others. For one that is not there, the nearest above it that is.
    ///
    /// To be called before the directories are looked at, so that nothing is missed.
    ///
    /// # Errors
    /// When the user has too many watches.
    pub(crate) fn watch(&mut self, wanted: &[PathBuf]) -> io::Result<()> {
        let mut watches = HashMap::new();
        for dir in wanted {
            for dir in dir.ancestors() {
                match inotify::add_watch(&self.inotify, dir, CHANGES) {
                    Ok(watch) => {
                        watches.insert(dir.to_owned(), watch);
                        break;
                    }
                    Err(Errno::NOSPC | Errno::NOMEM) => return Err(Errno::NOSPC.into()),
                    // Not there, not a directory, or not ours to read.
                    Err(_) => {}
                }
            }
        }
        for (dir, watch) in &self.watches {
            if !watches.values().any(|kept| kept == watch) && !watches.contains_key(dir) {
                // It may be gone with its directory.
                let _ = inotify::remove_watch(&self.inotify, *watch);
            }
        }
        self.watches = watches;
        Ok(())
    }

    /// Waits until something has changed in one of them.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.try_io(|inotify| drain(inotify.get_ref())) {
                Ok(Ok(true)) => return Ok(()),
                // Nothing but the ends of watches that were taken away, or nothing at all.
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

/// Reads all that is there; whether something has changed. What does not matter: whoever waited looks for himself.
fn drain(inotify: &OwnedFd) -> io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(inotify, &mut buffer);
    let mut changed = false;
    loop {
        match events.next() {
            Ok(event) => changed |= event.events() != ReadFlags::IGNORED,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if changed => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a path is a directory below which others cannot be confused: it is one, and not a link.
pub(crate) fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn directories_that_come_later_are_seen() {
        let base = tempfile::tempdir().unwrap();
        let wanted = [base.path().join("a/b")];
        let mut directories = Directories::new().unwrap();
        directories.watch(&wanted).unwrap();

        fs::create_dir(base.path().join("a")).unwrap();
        directories.changed().await.unwrap();
        directories.watch(&wanted).unwrap();
        fs::create_dir(&wanted[0]).unwrap();
        directories.changed().await.unwrap();
        directories.watch(&wanted).unwrap();
        fs::write(wanted[0].join("x"), "").unwrap();
        directories.changed().await.unwrap();
        // They go and come again.
        fs::remove_dir_all(base.path().join("a")).unwrap();
        directories.changed().await.unwrap();
        directories.watch(&wanted).unwrap();
        fs::create_dir_all(&wanted[0]).unwrap();
        directories.changed().await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_written_wakes_nobody() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("data.img");
        fs::write(&file, "").unwrap();
        let mut directories = Directories::new().unwrap();
        directories.watch(&[base.path().to_owned()]).unwrap();

        fs::write(&file, "more").unwrap();
        // Nor does a watch that is taken away, which the kernel reports.
        directories.watch(&[]).unwrap();
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(50), directories.changed()).await;
        assert!(quiet.is_err());
    }
}
