//! The halves of a descriptor chain as the server's buffers: data moves between files and guest memory without a copy of
//! ours.

use std::{io, os::fd::BorrowedFd};

use fileshare::buffers::{ReplyBuffer, RequestBuffer, SplitFront};
use vmm::virtio::buffers::{Readable, Writable};

/// A request in guest memory.
pub struct Request(Readable);

impl Request {
    pub(crate) fn new(readable: Readable) -> Request {
        Request(readable)
    }

    /// The opcode in the header (`struct fuse_in_header`), which stays where it is. None when it is cut off.
    pub(crate) fn opcode(&self) -> Option<u32> {
        const OPCODE: std::ops::Range<usize> = 4..8;
        let mut bytes = [0; OPCODE.end];
        let mut got = 0;
        for slice in self.0.slices() {
            if got == bytes.len() {
                break;
            }
            got += slice.copy_to(&mut bytes[got..]);
        }
        let opcode = bytes[OPCODE].try_into().ok()?;
        (got == bytes.len()).then_some(u32::from_le_bytes(opcode))
    }
}

impl RequestBuffer for Request {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&mut self, bytes: &mut [u8]) -> usize {
        self.0.read(bytes)
    }

    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        count: usize,
        append: bool,
    ) -> io::Result<usize> {
        self.0.write_some_at(file, offset, count, append)
    }
}

/// Room for a reply in guest memory.
pub struct Reply(Writable);

impl Reply {
    pub(crate) fn new(writable: Writable) -> Reply {
        Reply(writable)
    }
}

impl ReplyBuffer for Reply {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.0.write(bytes)
    }

    fn read_from(&mut self, file: BorrowedFd<'_>, offset: u64, count: usize) -> io::Result<usize> {
        self.0.read_some_at(file, offset, count)
    }
}

impl SplitFront for Reply {
    fn split_front(&mut self, count: usize) -> Option<Reply> {
        self.0.split_front(count).map(Reply)
    }
}
