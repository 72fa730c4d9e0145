//! Requests and replies in plain memory: for tests, for fuzzing, and for whatever has a request in one piece.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use rustix::io::ReadWriteFlags;

use super::{ReplyBuffer, RequestBuffer, SplitFront};

/// A request that lies in a slice.
#[derive(Debug, Clone, Copy)]
pub struct MemoryRequest<'a>(&'a [u8]);

impl<'a> MemoryRequest<'a> {
    /// The whole of `bytes` is the request.
    pub fn new(bytes: &'a [u8]) -> Self {
        MemoryRequest(bytes)
    }
}

impl RequestBuffer for MemoryRequest<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(self.0.len());
        let (front, rest) = self.0.split_at(count);
        bytes[..count].copy_from_slice(front);
        self.0 = rest;
        count
    }

    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        count: usize,
        append: bool,
    ) -> io::Result<usize> {
        let flags = if append {
            ReadWriteFlags::APPEND
        } else {
            ReadWriteFlags::empty()
        };
        let front = &self.0[..count.min(self.0.len())];
        let written = rustix::io::pwritev2(file, &[IoSlice::new(front)], offset, flags)?;
        self.0 = &self.0[written..];
        Ok(written)
    }
}

/// Room for a reply in a slice.
#[derive(Debug)]
pub struct MemoryReply<'a>(&'a mut [u8]);

impl<'a> MemoryReply<'a> {
    /// All of `room` is for the reply.
    pub fn new(room: &'a mut [u8]) -> Self {
        MemoryReply(room)
    }

    /// Takes off the first `count` bytes, of which there must be as many.
    fn take(&mut self, count: usize) -> &'a mut [u8] {
        let (front, rest) = std::mem::take(&mut self.0).split_at_mut(count);
        self.0 = rest;
        front
    }
}

impl ReplyBuffer for MemoryReply<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.0.len());
        self.take(count).copy_from_slice(&bytes[..count]);
        count
    }

    fn read_from(&mut self, file: BorrowedFd<'_>, offset: u64, count: usize) -> io::Result<usize> {
        let count = count.min(self.0.len());
        let read = rustix::io::preadv(file, &mut [IoSliceMut::new(&mut self.0[..count])], offset)?;
        self.take(read);
        Ok(read)
    }
}

impl SplitFront for MemoryReply<'_> {
    fn split_front(&mut self, count: usize) -> Option<Self> {
        (count <= self.0.len()).then(|| MemoryReply(self.take(count)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn moves_between_file_and_memory_from_the_front() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut request = MemoryRequest::new(b"abcdef");
        assert_eq!(request.read(&mut [0; 1]), 1);
        assert_eq!(request.write_to(file.as_fd(), 2, 3, false).unwrap(), 3);
        assert_eq!(
            request.write_to(file.as_fd(), 0, 100, true).unwrap(),
            2,
            "no more than there is"
        );
        assert!(request.is_empty());

        let mut room = [b'.'; 14];
        let mut reply = MemoryReply::new(&mut room);
        let mut header = reply.split_front(1).unwrap();
        assert_eq!(reply.read_from(file.as_fd(), 1, 4).unwrap(), 4);
        assert_eq!(reply.read_from(file.as_fd(), 5, 100).unwrap(), 7);
        assert_eq!(reply.read_from(file.as_fd(), 12, 100).unwrap(), 0);
        assert_eq!(reply.write(b"xyz"), 2, "no more than there is room for");
        assert_eq!(header.write(b"h"), 1);
        assert_eq!(&room, b"h1bcd56789efxy");
    }

    #[test]
    fn a_front_that_is_not_there_is_not_split_off() {
        let mut room = [0; 4];
        let mut reply = MemoryReply::new(&mut room);
        assert!(reply.split_front(5).is_none());
        assert_eq!(reply.len(), 4);
        assert_eq!(reply.split_front(4).unwrap().len(), 4);
        assert!(reply.is_empty());
    }
}
