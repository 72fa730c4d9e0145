//! The buffers of a descriptor chain as host I/O vectors, so that data moves between a file or socket and guest memory
//! without a copy of ours in between.
//!
//! A chain comes apart into a [`Readable`] and a [`Writable`] half (virtio 1.2, 2.7.4: device-readable buffers come first,
//! device-writable ones after them). Every address and length is checked against guest memory once, here; what is taken
//! from the front of a half afterwards can never reach outside it. Both halves keep the mapping they point into alive.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
};

use vm_memory::{GuestMemoryBackend, VolatileSlice};

use super::{Chain, QueueError, VirtQueue};
use crate::memory::GuestRegions;

/// The longest chain a device accepts, in descriptors. Chains through an indirect table may be longer than the queue;
/// this bounds the host memory that one chain can claim.
pub const MAX_DESCRIPTORS: usize = 1024;

/// The most I/O vectors that the kernel takes in one call (UIO_MAXIOV).
const IOV_MAX: usize = 1024;

/// A chain taken apart.
pub struct ChainBuffers {
    /// What the driver wrote for the device.
    pub readable: Readable,
    /// Where the device writes for the driver.
    pub writable: Writable,
}

impl ChainBuffers {
    /// Walks a chain that `queue` returned. Refused: an empty chain, one that loops or leaves its table, one of more than
    /// [`MAX_DESCRIPTORS`] or 2^32 bytes, buffers outside guest memory, and device-readable buffers after
    /// device-writable ones. A descriptor of length zero is skipped.
    pub fn new(queue: &VirtQueue, chain: Chain) -> Result<ChainBuffers, QueueError> {
        let memory = queue.memory().into_inner();
        let mut readable = Parts::new(Arc::clone(&memory));
        let mut writable = Parts::new(memory);
        let mut descriptors = 0;
        // The iterator ends silently at anything malformed; the last descriptor then still promises a next one.
        let mut ends_well = false;
        for descriptor in chain {
            descriptors += 1;
            if descriptors > MAX_DESCRIPTORS {
                return Err(queue.chain_error("it has more descriptors than the device accepts"));
            }
            ends_well = !descriptor.has_next();
            let half = if descriptor.is_write_only() {
                &mut writable
            } else if writable.iovecs.is_empty() {
                &mut readable
            } else {
                return Err(queue.chain_error("a device-readable buffer follows a device-writable one"));
            };
            // Widening: lengths are 32 bits, usize has 64 on every host this runs on.
            half.push(descriptor.addr(), descriptor.len() as usize)
                .map_err(|OutsideMemory| queue.chain_error("a buffer lies outside guest memory"))?;
        }
        if !ends_well {
            return Err(queue.chain_error("its descriptors do not form a chain that ends"));
        }
        Ok(ChainBuffers {
            readable: Readable(readable),
            writable: Writable(writable),
        })
    }
}

struct OutsideMemory;

/// Consecutive pieces of guest memory; a prefix can be taken off.
struct Parts {
    /// Keeps the mapping alive that `iovecs` point into.
    memory: Arc<GuestRegions>,
    /// The pieces, none of them empty; the first `done` are used up.
    iovecs: Vec<libc::iovec>,
    done: usize,
    /// Bytes left.
    left: usize,
}

// SAFETY: the pointers lead into the guest memory mapping that `memory` keeps alive, which is shared between threads by
// its nature and only accessed through system calls and volatile copies.
unsafe impl Send for Parts {}

impl Parts {
    fn new(memory: Arc<GuestRegions>) -> Parts {
        Parts {
            memory,
            iovecs: Vec::new(),
            done: 0,
            left: 0,
        }
    }

    fn push(&mut self, address: vm_memory::GuestAddress, length: usize) -> Result<(), OutsideMemory> {
        // A zero-length buffer yields no slice, wherever it points.
        for slice in self.memory.get_slices(address, length) {
            let slice = slice.map_err(|_| OutsideMemory)?;
            self.iovecs.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        self.left += length;
        Ok(())
    }

    fn rest(&self) -> &[libc::iovec] {
        &self.iovecs[self.done..]
    }

    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.rest().iter().map(|iovec| {
            // SAFETY: `push` took pointer and length from a checked slice of `self.memory`, later steps only narrowed
            // them, and the returned slice borrows `self`, hence the mapping.
            unsafe { VolatileSlice::new(iovec.iov_base.cast(), iovec.iov_len) }
        })
    }

    /// Takes `count` bytes, at most what is left, off the front.
    fn advance(&mut self, count: usize) {
        let mut count = count.min(self.left);
        self.left -= count;
        while count > 0 {
            let iovec = &mut self.iovecs[self.done];
            if iovec.iov_len <= count {
                count -= iovec.iov_len;
                self.done += 1;
            } else {
                // In bounds: count is less than the length of this piece.
                iovec.iov_base = iovec.iov_base.cast::<u8>().wrapping_add(count).cast();
                iovec.iov_len -= count;
                count = 0;
            }
        }
    }

    /// Divides at `at`, at most what is left: keeps the front, returns the back.
    fn split_off(&mut self, at: usize) -> Parts {
        let at = at.min(self.left);
        let mut back = Parts::new(Arc::clone(&self.memory));
        back.left = self.left - at;
        let mut front_left = at;
        let mut keep = self.done;
        while front_left > 0 {
            let iovec = &mut self.iovecs[keep];
            keep += 1;
            if iovec.iov_len <= front_left {
                front_left -= iovec.iov_len;
            } else {
                back.iovecs.push(libc::iovec {
                    iov_base: iovec.iov_base.cast::<u8>().wrapping_add(front_left).cast(),
                    iov_len: iovec.iov_len - front_left,
                });
                iovec.iov_len = front_left;
                front_left = 0;
            }
        }
        back.iovecs.extend(self.iovecs.drain(keep..));
        self.left = at;
        back
    }

    /// One vectored system call on what is left, repeated when interrupted; takes off what it moved.
    fn transfer(
        &mut self,
        mut call: impl FnMut(*const libc::iovec, libc::c_int) -> isize,
    ) -> io::Result<usize> {
        let rest = self.rest();
        let count = rest.len().min(IOV_MAX) as libc::c_int;
        let moved = retry_interrupted(|| call(rest.as_ptr(), count))?;
        self.advance(moved);
        Ok(moved)
    }

    /// [`Self::transfer`] of no more than the first `limit` bytes.
    fn transfer_up_to(
        &mut self,
        limit: usize,
        mut call: impl FnMut(*const libc::iovec, libc::c_int) -> isize,
    ) -> io::Result<usize> {
        if limit == 0 || self.left == 0 {
            return Ok(0);
        }
        if limit >= self.left {
            return self.transfer(call);
        }
        // The piece in which the limit lies is made shorter for as long as the call takes.
        let mut before = 0;
        let mut last = self.done;
        while before + self.iovecs[last].iov_len < limit {
            before += self.iovecs[last].iov_len;
            last += 1;
        }
        let whole = std::mem::replace(&mut self.iovecs[last].iov_len, limit - before);
        let pieces = last + 1 - self.done;
        let count = pieces.min(IOV_MAX) as libc::c_int;
        let iovecs = self.rest().as_ptr();
        let moved = retry_interrupted(|| call(iovecs, count));
        self.iovecs[last].iov_len = whole;
        let moved = moved?;
        self.advance(moved);
        Ok(moved)
    }
}

/// Repeats a system call that a signal interrupted. What it returns is negative exactly when it failed.
pub(super) fn retry_interrupted(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(moved) => return Ok(moved),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// The device-readable part of a chain, consumed from the front.
pub struct Readable(Parts);

impl Readable {
    /// Bytes left.
    pub fn len(&self) -> usize {
        self.0.left
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.left == 0
    }

    /// Copies as much as there is and fits into `buffer`, and takes it off the front. Returns how much.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut copied = 0;
        for slice in self.0.slices() {
            if copied == buffer.len() {
                break;
            }
            copied += slice.copy_to(&mut buffer[copied..]);
        }
        self.0.advance(copied);
        copied
    }

    /// Takes exactly N bytes off the front; none, and nothing is taken, when there are fewer.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.0.left < N {
            return None;
        }
        let mut array = [0; N];
        self.read(&mut array);
        Some(array)
    }

    /// Drops `count` bytes, at most what is left, from the front.
    pub fn skip(&mut self, count: usize) {
        self.0.advance(count);
    }

    /// What is left, piece by piece.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.0.slices()
    }

    /// Writes what is left to `file` at `offset`, all of it.
    pub fn write_all_at(&mut self, file: BorrowedFd<'_>, mut offset: u64) -> io::Result<()> {
        while !self.is_empty() {
            let position = file_position(offset)?;
            let written = self.0.transfer(|iovecs, count| {
                // SAFETY: the vectors point into guest memory that `self` keeps mapped; the call only reads from it.
                unsafe { libc::pwritev(file.as_raw_fd(), iovecs, count, position) }
            })?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
        }
        Ok(())
    }

    /// One pwritev2(2) of at most `count` bytes from the front to `file` at `offset`; with `append` to its end, wherever
    /// that is (RWF_APPEND). Takes what was written off the front. Returns how much, which may be less than asked.
    pub fn write_some_at(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        count: usize,
        append: bool,
    ) -> io::Result<usize> {
        let position = file_position(offset)?;
        let flags = if append { libc::RWF_APPEND } else { 0 };
        self.0.transfer_up_to(count, |iovecs, count| {
            // SAFETY: the vectors point into guest memory that `self` keeps mapped; the call only reads from it.
            unsafe { libc::pwritev2(file.as_raw_fd(), iovecs, count, position, flags) }
        })
    }

    /// Sends `prefix` and then what is left to a stream socket, in one call that never blocks and raises no SIGPIPE.
    /// Returns how much of both together was sent, and takes the buffers' share off the front.
    pub fn send_after(&mut self, socket: BorrowedFd<'_>, prefix: &[u8]) -> io::Result<usize> {
        let rest = self.0.rest();
        let mut iovecs = Vec::with_capacity(rest.len().min(IOV_MAX - 1) + 1);
        iovecs.push(libc::iovec {
            iov_base: prefix.as_ptr().cast_mut().cast(),
            iov_len: prefix.len(),
        });
        iovecs.extend_from_slice(&rest[..rest.len().min(IOV_MAX - 1)]);
        // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iovecs.as_mut_ptr();
        // The field's type differs between C libraries.
        message.msg_iovlen = iovecs.len() as _;
        let sent = retry_interrupted(|| {
            // SAFETY: `message` describes `prefix` and guest memory that `self` keeps mapped; the call only reads both.
            unsafe {
                libc::sendmsg(
                    socket.as_raw_fd(),
                    &raw const message,
                    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
                )
            }
        })?;
        self.0.advance(sent.saturating_sub(prefix.len()));
        Ok(sent)
    }
}

/// The device-writable part of a chain, filled from the front.
pub struct Writable(Parts);

impl Writable {
    /// Bytes of room left.
    pub fn len(&self) -> usize {
        self.0.left
    }

    /// Whether no room is left.
    pub fn is_empty(&self) -> bool {
        self.0.left == 0
    }

    /// Copies as much of `bytes` as there is room for, and takes that room off the front. Returns how much.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut copied = 0;
        for slice in self.0.slices() {
            if copied == bytes.len() {
                break;
            }
            let count = slice.len().min(bytes.len() - copied);
            slice.copy_from(&bytes[copied..copied + count]);
            copied += count;
        }
        self.0.advance(copied);
        copied
    }

    /// Takes the first `count` bytes of room off the front; none, and nothing is taken, when there are fewer.
    pub fn split_front(&mut self, count: usize) -> Option<Writable> {
        if count > self.0.left {
            return None;
        }
        let mut front = Parts::new(Arc::clone(&self.0.memory));
        front.left = count;
        let mut missing = count;
        for piece in self.0.rest() {
            if missing == 0 {
                break;
            }
            let taken = piece.iov_len.min(missing);
            front.iovecs.push(libc::iovec {
                iov_base: piece.iov_base,
                iov_len: taken,
            });
            missing -= taken;
        }
        self.0.advance(count);
        Some(Writable(front))
    }

    /// Takes the last `count` bytes of room off the end; none, and nothing is taken, when there are fewer.
    pub fn split_end(&mut self, count: usize) -> Option<Writable> {
        let at = self.0.left.checked_sub(count)?;
        Some(Writable(self.0.split_off(at)))
    }

    /// Keeps only the first `count` bytes of room.
    pub fn truncate(&mut self, count: usize) {
        drop(self.0.split_off(count));
    }

    /// The room that is left, piece by piece.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.0.slices()
    }

    /// One preadv(2) of at most `count` bytes from `file` at `offset` to the front. Takes what was filled off the front.
    /// Returns how much; 0 at the end of the file.
    pub fn read_some_at(&mut self, file: BorrowedFd<'_>, offset: u64, count: usize) -> io::Result<usize> {
        let position = file_position(offset)?;
        self.0.transfer_up_to(count, |iovecs, count| {
            // SAFETY: the vectors point into guest memory that `self` keeps mapped, which is writable and shared by its
            // nature.
            unsafe { libc::preadv(file.as_raw_fd(), iovecs, count, position) }
        })
    }

    /// Fills all the room that is left from `file` at `offset`. The end of the file before that is an error.
    pub fn read_exact_at(&mut self, file: BorrowedFd<'_>, mut offset: u64) -> io::Result<()> {
        while !self.is_empty() {
            let position = file_position(offset)?;
            let read = self.0.transfer(|iovecs, count| {
                // SAFETY: the vectors point into guest memory that `self` keeps mapped, which is writable and shared by
                // its nature.
                unsafe { libc::preadv(file.as_raw_fd(), iovecs, count, position) }
            })?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += read as u64;
        }
        Ok(())
    }
}

fn file_position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests;
