//! Reading an open directory of the host from an offset, a buffer at a time.
//!
//! Offsets are the host's own (`d_off`), so they stay good however the directory changes and whoever asks. A reader
//! that goes on where it stopped is served from what is buffered; any other offset is a seek.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::SeekFrom;

use super::handles::OfNode;
use super::node::Node;
use super::sys;
use crate::filesystem::{Errno, Result};

/// Bytes asked of the host at once; about a thousand short names.
const BUFFER: usize = 32 * 1024;
/// How often a directory that is empty from its very start, without `.` and `..`, is read again. Linux 6.18 has been seen to say
/// so, of a directory in ext4 that others were changing; the guest would keep it.
const EMPTY_TRIES: usize = 2;
/// Of struct linux_dirent64, before the name.
const HEADER: usize = 19;

/// A directory that is open.
#[derive(Debug)]
pub(super) struct OpenDir {
    pub(super) node: Arc<Node>,
    pub(super) fd: OwnedFd,
    cursor: Mutex<Cursor>,
}

impl OfNode for OpenDir {
    fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

#[derive(Debug, Default)]
struct Cursor {
    /// Nothing until the first read; only directories that are being read have one.
    buffer: Vec<u8>,
    /// What of it has not been handed out.
    start: usize,
    /// Offset of what is at `start`.
    offset: u64,
}

/// One entry as the host has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawEntry<'a> {
    pub(super) ino: u64,
    /// The offset that continues after it.
    pub(super) next: u64,
    /// DT_*.
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
}

impl OpenDir {
    /// A directory opened for reading, at its start.
    pub(super) fn new(node: Arc<Node>, fd: OwnedFd) -> OpenDir {
        OpenDir {
            node,
            fd,
            cursor: Mutex::default(),
        }
    }

    /// Hands entries from `offset` on to `each` until it returns false (that entry is handed out again next time) or
    /// the directory ends.
    pub(super) fn read(&self, offset: u64, mut each: impl FnMut(RawEntry<'_>) -> bool) -> Result<()> {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        // What is buffered of the start may be from before the reader came.
        if cursor.offset != offset || offset == 0 {
            rustix::fs::seek(self.fd.as_fd(), SeekFrom::Start(offset))?;
            cursor.buffer.clear();
            cursor.start = 0;
            cursor.offset = offset;
        }
        let mut tries = if offset == 0 { EMPTY_TRIES } else { 0 };
        loop {
            while cursor.start < cursor.buffer.len() {
                let (entry, length) = parse(&cursor.buffer[cursor.start..]).ok_or(Errno(libc::EIO))?;
                let next = entry.next;
                if !each(entry) {
                    return Ok(());
                }
                cursor.start += length;
                cursor.offset = next;
            }
            cursor.buffer.resize(BUFFER, 0);
            let read = sys::getdents(self.fd.as_fd(), &mut cursor.buffer);
            cursor.buffer.truncate(*read.as_ref().unwrap_or(&0));
            cursor.start = 0;
            if read? > 0 {
                tries = 0;
            } else if tries > 0 {
                tries -= 1;
                rustix::fs::seek(self.fd.as_fd(), SeekFrom::Start(offset))?;
            } else {
                return Ok(());
            }
        }
    }
}

/// The entry at the front of `bytes` and its length.
fn parse(bytes: &[u8]) -> Option<(RawEntry<'_>, usize)> {
    let number = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let (ino, next) = (number(0)?, number(8)?);
    let length = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let kind = *bytes.get(18)?;
    let name = bytes.get(HEADER..length)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    Some((
        RawEntry {
            ino,
            next,
            kind,
            name: &name[..end],
        },
        length,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_an_entry() {
        let mut bytes = vec![0; 24];
        bytes[0] = 7;
        bytes[8] = 9;
        bytes[16] = 24;
        bytes[18] = libc::DT_DIR;
        bytes[19] = b'x';
        let expected = RawEntry {
            ino: 7,
            next: 9,
            kind: libc::DT_DIR,
            name: b"x",
        };
        assert_eq!(parse(&bytes), Some((expected, 24)));
        assert_eq!(parse(&bytes[..23]), None, "cut off");
        bytes[16] = 3;
        assert_eq!(parse(&bytes), None, "shorter than its header");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
