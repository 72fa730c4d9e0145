//! Locks that end with the process that holds them, whatever ends it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// A lock file could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot lock {path}")]
pub struct LockError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A held lock; dropping it lets go. The file stays: removing a lock file that somebody else waits for would make two
/// locks of one.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, waiting for as long as somebody else holds it.
    pub fn wait(path: &Path) -> Result<Lock, LockError> {
        Self::take(path, FlockOperation::LockExclusive).map_err(|source| LockError {
            path: path.to_owned(),
            source,
        })
    }

    /// Takes the lock, or nothing when somebody else holds it.
    pub fn try_take(path: &Path) -> Result<Option<Lock>, LockError> {
        match Self::take(path, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(source) => Err(LockError {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn take(path: &Path, operation: FlockOperation) -> io::Result<Lock> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation))?;
        Ok(Lock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn a_lock_is_held_once_and_can_be_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::try_take(&path).unwrap().unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());
        let waiter = {
            let path = path.clone();
            std::thread::spawn(move || Lock::wait(&path).unwrap())
        };
        drop(held);
        let held = waiter.join().unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());
        drop(held);
        assert!(Lock::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn a_killed_holder_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut holder = Command::new("flock")
            .arg(&path)
            .args(["sh", "-c", "echo held; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(holder.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        assert!(Lock::try_take(&path).unwrap().is_none());
        // `flock` started the shell as a child that has the lock's descriptor too; it ends when its output does.
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id())).unwrap();
        holder.kill().unwrap();
        holder.wait().unwrap();
        for child in children.split_whitespace() {
            crate::process::ProcessId::of(child.parse().unwrap())
                .unwrap()
                .signal(rustix::process::Signal::KILL)
                .unwrap();
        }
        output.read_line(&mut line).unwrap();
        drop(Lock::wait(&path).unwrap());
    }
}
