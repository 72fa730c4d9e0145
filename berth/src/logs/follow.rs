//! Reading a log file from its last lines, and on as it grows, without looking again and again: inotify says when.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// How much is read at once, in bytes.
const CHUNK: usize = 64 * 1024;

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// There is none.
    #[error("there is no log {0} yet")]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read the log {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A log that is being read.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    file: File,
    /// Set when the log is to be read on as it grows.
    watch: Option<AsyncFd<OwnedFd>>,
}

impl Follow {
    /// Reads `path` from `tail` lines before its end (from its beginning when none), and on as it grows with `follow`.
    pub fn open(path: &Path, tail: Option<u64>, follow: bool) -> Result<Follow, FollowError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => FollowError::Missing(path.to_owned()),
            _ => FollowError::Read {
                path: path.to_owned(),
                source,
            },
        };
        // Watched before it is first read, so that nothing falls between.
        let watch = if follow {
            Some(watch(path).map_err(failed)?)
        } else {
            None
        };
        let mut file = File::open(path).map_err(failed)?;
        if let Some(lines) = tail {
            let start = tail_start(&mut file, lines).map_err(failed)?;
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
        }
        Ok(Follow {
            path: path.to_owned(),
            file,
            watch,
        })
    }

    /// The next bytes; none at the end, which never comes when following. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, FollowError> {
        loop {
            let mut buffer = vec![0; CHUNK];
            let n = self
                .file
                .read(&mut buffer)
                .map_err(|source| self.failed(source))?;
            if n > 0 {
                buffer.truncate(n);
                return Ok(Some(buffer));
            }
            if self.watch.is_none() {
                return Ok(None);
            }
            // At the end: perhaps the log was set aside or begun anew.
            if !self.turned().map_err(|source| self.failed(source))? {
                self.changed().await.map_err(|source| self.failed(source))?;
            }
        }
    }

    fn failed(&self, source: io::Error) -> FollowError {
        FollowError::Read {
            path: self.path.clone(),
            source,
        }
    }

    /// Goes over to a new file at the same path, or to the beginning of one that was cut; whether there was anything to do.
    fn turned(&mut self) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        if self.file.stream_position()? > ours.len() {
            self.file.seek(SeekFrom::Start(0))?;
            return Ok(true);
        }
        match File::open(&self.path) {
            Ok(file) => {
                let theirs = file.metadata()?;
                let other = (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino());
                if other {
                    self.file = file;
                }
                Ok(other)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn changed(&self) -> io::Result<()> {
        let Some(watch) = &self.watch else {
            return Ok(());
        };
        let mut ready = watch.readable().await?;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(watch.get_ref(), &mut buffer);
        // What changed does not matter, only that something did.
        loop {
            match reader.next() {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}

/// Watches the directory: the file itself may be replaced by another.
fn watch(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
    inotify::add_watch(&fd, dir, flags)?;
    // SAFETY: an `OwnedFd` stays the same open descriptor until it is dropped.
    let watch = unsafe { AsyncFd::register(fd) }?;
    Ok(watch)
}

/// Where the last `lines` lines of `file` begin.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut position = end;
    let mut seen = 0;
    let mut buffer = vec![0; CHUNK];
    while position > 0 {
        let length = position.min(CHUNK as u64);
        position -= length;
        // At most CHUNK.
        let chunk = &mut buffer[..length as usize];
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(chunk)?;
        for (index, byte) in chunk.iter().enumerate().rev() {
            let at = position + index as u64;
            // The newline that ends the last line begins no line.
            if *byte == b'\n' && at + 1 != end {
                seen += 1;
                if seen == lines {
                    return Ok(at + 1);
                }
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    async fn all(path: &Path, tail: Option<u64>) -> String {
        let mut follow = Follow::open(path, tail, false).unwrap();
        let mut text = Vec::new();
        while let Some(bytes) = follow.next().await.unwrap() {
            text.extend(bytes);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn the_last_lines_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        fs::write(&path, "1\n2\n3\n").unwrap();
        assert_eq!(all(&path, None).await, "1\n2\n3\n");
        assert_eq!(all(&path, Some(0)).await, "");
        assert_eq!(all(&path, Some(2)).await, "2\n3\n");
        assert_eq!(all(&path, Some(9)).await, "1\n2\n3\n");
        fs::write(&path, "1\n2\n3").unwrap();
        assert_eq!(all(&path, Some(1)).await, "3");
        let long: String = (0..40_000).map(|n| format!("{n}\n")).collect();
        fs::write(&path, &long).unwrap();
        assert_eq!(
            all(&path, Some(30_000)).await,
            long[long.find("\n10000\n").unwrap() + 1..]
        );
    }

    #[tokio::test]
    async fn a_growing_log_is_followed_when_it_is_cut_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        fs::write(&path, "old\n").unwrap();
        let mut follow = Follow::open(&path, Some(0), true).unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"grown\n").unwrap();
        assert_eq!(follow.next().await.unwrap().unwrap(), b"grown\n");

        fs::rename(&path, dir.path().join("x.log.1")).unwrap();
        fs::write(&path, "replaced\n").unwrap();
        assert_eq!(follow.next().await.unwrap().unwrap(), b"replaced\n");

        let (cut, next) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                fs::write(&path, "cut\n")
            },
            follow.next()
        );
        cut.unwrap();
        assert_eq!(next.unwrap().unwrap(), b"cut\n");
    }

    #[tokio::test]
    async fn a_log_that_is_not_there_is_said_to_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        assert!(matches!(
            Follow::open(&path, None, false),
            Err(FollowError::Missing(_))
        ));
        assert!(matches!(
            Follow::open(&dir.path().join("no/x.log"), None, true),
            Err(FollowError::Missing(_))
        ));
    }
}
