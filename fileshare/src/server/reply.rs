//! Putting a reply together. A reply is written once, whole, and never beyond the room the guest gave.

use crate::buffers::{ReplyBuffer, SplitFront};
use crate::filesystem::{Errno, Result};
use crate::wire::{Encoder, OutHeader, Wire};

/// Room for the reply to one request.
pub(super) struct Reply<R> {
    room: R,
    unique: u64,
    /// Bytes of the reply that has been written; 0 until then.
    written: usize,
}

/// The longest reply of fixed size, with its header.
const LONGEST: usize = 320;

impl<R: ReplyBuffer + SplitFront> Reply<R> {
    pub(super) fn new(room: R, unique: u64) -> Reply<R> {
        Reply {
            room,
            unique,
            written: 0,
        }
    }

    /// How many bytes can follow the header; none when not even that one fits.
    pub(super) fn room(&self) -> Option<usize> {
        self.room.len().checked_sub(OutHeader::SIZE)
    }

    /// Bytes of the reply that has been written; 0 when none has.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Success, with nothing to say.
    pub(super) fn empty(&mut self) -> Result<()> {
        self.bytes(&[])
    }

    /// Success, with a structure.
    pub(super) fn one<T: Wire>(&mut self, value: &T) -> Result<()> {
        const { assert!(OutHeader::SIZE + T::SIZE <= LONGEST) };
        self.fixed(T::SIZE, |to| value.put(to))
    }

    /// Success, with two structures.
    pub(super) fn two<A: Wire, B: Wire>(&mut self, first: &A, second: &B) -> Result<()> {
        const { assert!(OutHeader::SIZE + A::SIZE + B::SIZE <= LONGEST) };
        self.fixed(A::SIZE + B::SIZE, |to| {
            first.put(to);
            second.put(to);
        })
    }

    /// Header and structures in one write.
    fn fixed(&mut self, size: usize, put: impl FnOnce(&mut Encoder<'_>)) -> Result<()> {
        self.check(size)?;
        let mut bytes = [0; LONGEST];
        let mut to = Encoder::new(&mut bytes);
        header(self.unique, size, 0).put(&mut to);
        put(&mut to);
        let filled = to.filled();
        self.written = self.room.write(&bytes[..filled]);
        Ok(())
    }

    /// Success, with these bytes; EINVAL, and nothing written, when they do not fit.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.check(bytes.len())?;
        let header = encode(&header(self.unique, bytes.len(), 0));
        self.written = self.room.write(&header) + self.room.write(bytes);
        Ok(())
    }

    /// Success, with what `fill` puts into the room behind the header, unless that fails.
    pub(super) fn data(&mut self, fill: impl FnOnce(&mut R) -> Result<()>) -> Result<()> {
        let mut front = self
            .room
            .split_front(OutHeader::SIZE)
            .ok_or(Errno(libc::EINVAL))?;
        let before = self.room.len();
        let result = fill(&mut self.room);
        let header = match result {
            Ok(()) => header(self.unique, before - self.room.len(), 0),
            Err(error) => header(self.unique, 0, negative(error)),
        };
        front.write(&encode(&header));
        // Widening: a u32.
        self.written = header.len as usize;
        Ok(())
    }

    /// Failure.
    pub(super) fn error(&mut self, error: Errno) {
        debug_assert_eq!(self.written, 0, "one reply to a request");
        if self.room().is_some() {
            self.written = self.room.write(&encode(&header(self.unique, 0, negative(error))));
        }
    }

    /// Whether a reply of `size` bytes fits.
    fn check(&self, size: usize) -> Result<()> {
        match self.room() {
            Some(room) if size <= room => Ok(()),
            _ => Err(Errno(libc::EINVAL)),
        }
    }
}

/// A header for `size` bytes behind it. Sizes are far below 4 GiB: nothing here is longer than one request's room, which is
/// what the guest's kernel puts into one descriptor chain.
fn header(unique: u64, size: usize, error: i32) -> OutHeader {
    OutHeader {
        len: u32::try_from(OutHeader::SIZE + size).unwrap_or(u32::MAX),
        error,
        unique,
    }
}

fn encode(header: &OutHeader) -> [u8; OutHeader::SIZE] {
    let mut bytes = [0; OutHeader::SIZE];
    header.put(&mut Encoder::new(&mut bytes));
    bytes
}

/// An error number as a reply has it. The guest's kernel takes those from 1 to 511 only; others would be a mistake of ours.
fn negative(error: Errno) -> i32 {
    match error.0 {
        1..512 => -error.0,
        _ => -libc::EIO,
    }
}
