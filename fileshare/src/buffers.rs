//! Where requests come from and replies go: pieces of guest memory in the machine, plain memory in tests.
//!
//! Both are consumed from the front. The file transfers move data between a file and the pieces without a copy of ours.

pub mod memory;

use std::io;
use std::os::fd::BorrowedFd;

/// A request, read from the front.
pub trait RequestBuffer {
    /// Bytes left.
    fn len(&self) -> usize;
    /// Whether nothing is left.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Copies as much as there is and fits into `bytes`, and takes it off the front. Returns how much.
    fn read(&mut self, bytes: &mut [u8]) -> usize;
    /// One pwritev2 of at most `count` bytes from the front to `file` at `offset`; `append` sets RWF_APPEND. Takes what was
    /// written off the front. Returns how much, which may be less than asked.
    fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        count: usize,
        append: bool,
    ) -> io::Result<usize>;
}

/// Room for a reply, filled from the front.
pub trait ReplyBuffer {
    /// Bytes of room left.
    fn len(&self) -> usize;
    /// Whether no room is left.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Copies as much of `bytes` as there is room for, and takes that room off the front. Returns how much.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// One preadv of at most `count` bytes from `file` at `offset` to the front. Takes what was filled off the front.
    /// Returns how much; 0 at the end of the file.
    fn read_from(&mut self, file: BorrowedFd<'_>, offset: u64, count: usize) -> io::Result<usize>;
}

/// A buffer that can be cut in two, so that data can be put behind a header that is written later.
pub trait SplitFront: Sized {
    /// Takes the first `count` bytes off as a buffer of their own; none, and nothing taken, when there are fewer.
    fn split_front(&mut self, count: usize) -> Option<Self>;
}
