//! A log file that cannot fill the disk, and that a full disk cannot stop.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The size at which a log is set aside, in bytes. One older file is kept, so a log takes at most twice this.
const LIMIT: u64 = 8 << 20;

/// A log file. When it has reached its limit it becomes `NAME.1` and a new one is begun.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl RotatingFile {
    /// Opens the log at `path` to add to it.
    pub fn open(path: PathBuf) -> io::Result<RotatingFile> {
        Self::with_limit(path, LIMIT)
    }

    fn with_limit(path: PathBuf, limit: u64) -> io::Result<RotatingFile> {
        let file = open(&path)?;
        let size = file.metadata()?.len();
        Ok(RotatingFile {
            path,
            file,
            size,
            limit,
        })
    }

    /// Adds `bytes`. What cannot be written is lost: a log is never a reason to stop.
    pub fn append(&mut self, bytes: &[u8]) {
        if self.size > 0 && self.size + bytes.len() as u64 > self.limit {
            self.rotate();
        }
        if self.file.write_all(bytes).is_ok() {
            self.size += bytes.len() as u64;
        } else {
            // Part of it may be there.
            self.size = self.file.metadata().map_or(self.size, |metadata| metadata.len());
        }
    }

    fn rotate(&mut self) {
        let mut aside = self.path.clone().into_os_string();
        aside.push(".1");
        let renamed = fs::rename(&self.path, &aside).is_ok();
        match open(&self.path) {
            Ok(file) if renamed => {
                self.file = file;
                self.size = 0;
            }
            // It cannot be set aside, so it is begun anew: the newest lines are worth more than the oldest.
            _ => {
                if self.file.set_len(0).is_ok() {
                    self.size = 0;
                }
            }
        }
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// A log file shared by all threads, as `tracing` writes to it.
#[derive(Debug, Clone)]
pub struct SharedLog(Arc<Mutex<RotatingFile>>);

impl SharedLog {
    /// Shares `file`.
    pub fn new(file: RotatingFile) -> SharedLog {
        SharedLog(Arc::new(Mutex::new(file)))
    }
}

impl Write for SharedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_set_aside_at_its_limit_and_one_old_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let old = dir.path().join("x.log.1");
        let mut log = RotatingFile::with_limit(path.clone(), 10).unwrap();
        log.append(b"12345\n");
        log.append(b"6789");
        assert!(!old.exists());
        log.append(b"next\n");
        assert_eq!(fs::read(&old).unwrap(), b"12345\n6789");
        assert_eq!(fs::read(&path).unwrap(), b"next\n");
        log.append(b"one over the limit");
        assert_eq!(fs::read(&old).unwrap(), b"next\n");
        drop(log);
        let mut log = RotatingFile::with_limit(path.clone(), 10).unwrap();
        log.append(b"x");
        assert_eq!(fs::read(&path).unwrap(), b"x", "its size was taken over");
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_reason_to_stop() {
        // Every write to this device fails with ENOSPC.
        let mut log = RotatingFile::with_limit("/dev/full".into(), 10).unwrap();
        log.append(b"lost");
        log.append(b"lost as well, and longer than the limit");
        assert_eq!(log.size, 0);
    }
}
