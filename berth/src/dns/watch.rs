//! Learning that a file was changed, by whatever way: written, replaced, or reached by other symbolic links. inotify tells,
//! nobody looks again and again.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How many symbolic links are followed, as by the kernel.
const MOST_LINKS: usize = 40;

/// Tells of changes to one file since it was made.
#[derive(Debug)]
pub struct FileWatch(AsyncFd<OwnedFd>);

impl FileWatch {
    /// Watches `path`, which need not exist, and every link on its way.
    ///
    /// # Errors
    /// When inotify says no; the user may have too many watches already.
    pub fn new(path: &Path) -> io::Result<FileWatch> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            watch_directory(&fd, path.parent().unwrap_or(Path::new("/")))?;
            match fs::read_link(&path) {
                Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
                Err(_) => break,
            }
        }
        watch_file(&fd, &path)?;
        // SAFETY: an owned descriptor always names the same open file, and closes it only when it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(FileWatch(fd))
    }

    /// Returns when something has changed, or may have. Then a new watch is due, because other links may lead there now.
    ///
    /// # Errors
    /// When inotify cannot be read.
    pub async fn changed(self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            match inotify::Reader::new(self.0.get_ref(), &mut buffer).next() {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Watches what names come and go in a directory; in the nearest one above it that there is, when there is none.
fn watch_directory(fd: &OwnedFd, directory: &Path) -> io::Result<()> {
    let flags = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    let mut directory: PathBuf = directory.to_owned();
    loop {
        match inotify::add_watch(fd, &directory, flags) {
            Err(Errno::NOENT | Errno::NOTDIR) if directory.pop() => {}
            result => return result.map(drop).map_err(io::Error::from),
        }
    }
}

/// Watches the file itself: one that is mounted in its place does not show in the directory.
fn watch_file(fd: &OwnedFd, path: &Path) -> io::Result<()> {
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    match inotify::add_watch(fd, path, flags) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(()),
        result => result.map(drop).map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn every_way_of_changing_a_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        fs::create_dir(&etc).unwrap();
        let path = etc.join("resolv.conf");
        let changes: [fn(&Path); 7] = [
            |etc| fs::write(etc.join("resolv.conf"), "a").unwrap(),
            |etc| fs::write(etc.join("resolv.conf"), "b").unwrap(),
            |etc| {
                fs::write(etc.join("new"), "c").unwrap();
                fs::rename(etc.join("new"), etc.join("resolv.conf")).unwrap();
            },
            |etc| {
                fs::remove_file(etc.join("resolv.conf")).unwrap();
                symlink("../run/resolve/stub", etc.join("resolv.conf")).unwrap();
            },
            // Where a link leads that led nowhere.
            |etc| fs::create_dir_all(etc.join("../run/resolve")).unwrap(),
            |etc| fs::write(etc.join("../run/resolve/stub"), "d").unwrap(),
            |etc| fs::write(etc.join("../run/resolve/stub"), "e").unwrap(),
        ];
        for change in changes {
            let watch = FileWatch::new(&path).unwrap();
            change(&etc);
            watch.changed().await.unwrap();
        }
    }

    #[tokio::test]
    async fn links_in_a_circle_are_given_up_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        symlink("a", &path).unwrap();
        // Whether the kernel refuses is its matter.
        let _ = FileWatch::new(&path);
    }
}
