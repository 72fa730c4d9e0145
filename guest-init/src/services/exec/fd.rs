//! Descriptors that are read and written without blocking: ends of pipes, and the terminal side of a pty.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::async_fd;

/// One such descriptor.
#[derive(Debug)]
pub(super) struct Fd(AsyncFd<OwnedFd>);

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now.
    Empty,
    /// Nothing ever again.
    End,
}

impl Fd {
    /// Takes the descriptor over and makes it non-blocking. Its other end is not touched.
    pub(super) fn new(fd: impl Into<OwnedFd>, interest: Interest) -> io::Result<Fd> {
        let fd = fd.into();
        rustix::io::ioctl_fionbio(&fd, true)?;
        async_fd::register(fd, interest).map(Fd)
    }

    /// Reads what is there.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<Read> {
        loop {
            return match rustix::io::read(&self.0, &mut *buffer) {
                // EIO: no process has the pty's other side open any more.
                Ok(0) | Err(Errno::IO) => Ok(Read::End),
                Ok(length) => Ok(Read::Bytes(length)),
                Err(Errno::AGAIN) => Ok(Read::Empty),
                Err(Errno::INTR) => continue,
                Err(e) => Err(e.into()),
            };
        }
    }

    /// Reads, waiting for something to be there; none at the end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let mut guard = self.0.readable().await?;
            match self.read_now(buffer)? {
                Read::Bytes(length) => return Ok(Some(length)),
                Read::End => return Ok(None),
                Read::Empty => guard.clear_ready(),
            }
        }
    }

    /// Writes everything.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.writable().await?;
            match rustix::io::write(&self.0, bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
