//! A buffer of which a file system is to see only the first bytes.

use std::io;
use std::os::fd::BorrowedFd;

use crate::buffers::{ReplyBuffer, RequestBuffer};

/// The first `left` bytes of a buffer that has at least as many.
pub(super) struct Bounded<'a, B> {
    pub(super) buffer: &'a mut B,
    pub(super) left: usize,
}

impl<B: RequestBuffer> RequestBuffer for Bounded<'_, B> {
    fn len(&self) -> usize {
        self.left
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(self.left);
        let read = self.buffer.read(&mut bytes[..count]);
        self.left -= read;
        read
    }

    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        count: usize,
        append: bool,
    ) -> io::Result<usize> {
        let written = self.buffer.write_to(file, offset, count.min(self.left), append)?;
        self.left -= written;
        Ok(written)
    }
}

impl<B: ReplyBuffer> ReplyBuffer for Bounded<'_, B> {
    fn len(&self) -> usize {
        self.left
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let written = self.buffer.write(&bytes[..bytes.len().min(self.left)]);
        self.left -= written;
        written
    }

    fn read_from(&mut self, file: BorrowedFd<'_>, offset: u64, count: usize) -> io::Result<usize> {
        let read = self.buffer.read_from(file, offset, count.min(self.left))?;
        self.left -= read;
        Ok(read)
    }
}
