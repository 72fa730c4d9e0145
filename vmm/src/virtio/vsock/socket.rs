//! Non-blocking, signal-free I/O between a host socket and memory that lies in pieces.

use std::{
    io::{self, IoSlice},
    marker::PhantomData,
    os::fd::AsRawFd,
};

use vm_memory::VolatileSlice;

use crate::virtio::buffers::retry_interrupted;

/// Pieces per system call. A packet in more of them takes more calls.
const MAX_VECTORS: usize = 64;

/// Pieces of guest memory for one system call.
pub(super) struct IoList<'a> {
    vectors: [libc::iovec; MAX_VECTORS],
    count: usize,
    memory: PhantomData<VolatileSlice<'a>>,
}

impl<'a> IoList<'a> {
    /// No pieces.
    pub(super) fn new() -> IoList<'a> {
        IoList {
            vectors: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; MAX_VECTORS],
            count: 0,
            memory: PhantomData,
        }
    }

    /// Adds a piece; one too many is left for another call.
    pub(super) fn push(&mut self, piece: VolatileSlice<'a>) {
        if let Some(vector) = self.vectors.get_mut(self.count) {
            vector.iov_base = piece.ptr_guard_mut().as_ptr().cast();
            vector.iov_len = piece.len();
            self.count += 1;
        }
    }

    /// Sends the pieces.
    pub(super) fn send(&self, socket: &impl AsRawFd) -> io::Result<usize> {
        let message = self.message();
        retry_interrupted(|| {
            // SAFETY: the message names `count` vectors, each of which lies in guest memory that stays mapped for 'a; the
            // kernel only reads them.
            unsafe {
                libc::sendmsg(
                    socket.as_raw_fd(),
                    &message,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            }
        })
    }

    /// Receives into the pieces.
    pub(super) fn receive(&mut self, socket: &impl AsRawFd) -> io::Result<usize> {
        let mut message = self.message();
        retry_interrupted(|| {
            // SAFETY: the message names `count` vectors, each of which lies in guest memory that stays mapped for 'a and
            // that nothing in this process holds a reference to: guest memory is only ever touched as volatile.
            unsafe {
                libc::recvmsg(
                    socket.as_raw_fd(),
                    &mut message,
                    libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
                )
            }
        })
    }

    fn message(&self) -> libc::msghdr {
        // SAFETY: a msghdr is plain data, for which all zeroes is "nothing".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vectors.as_ptr().cast_mut();
        message.msg_iovlen = self.count as _;
        message
    }
}

/// Sends these buffers of our own; as much as the socket takes now.
pub(super) fn send(socket: &impl AsRawFd, buffers: &[IoSlice]) -> io::Result<usize> {
    // SAFETY: as above.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // An IoSlice has the layout of an iovec, as the standard library promises.
    message.msg_iov = buffers.as_ptr().cast_mut().cast();
    message.msg_iovlen = buffers.len() as _;
    retry_interrupted(|| {
        // SAFETY: the message names `buffers`, which are borrowed until this returns; the kernel only reads them.
        unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                &message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        }
    })
}

/// Looks at whether there are bytes without taking them: 0 at the end of the stream, `WouldBlock` when none are there yet.
pub(super) fn peek(socket: &impl AsRawFd) -> io::Result<usize> {
    let mut byte = 0u8;
    retry_interrupted(|| {
        // SAFETY: the buffer is one byte and outlives the call.
        unsafe {
            libc::recv(
                socket.as_raw_fd(),
                (&raw mut byte).cast(),
                1,
                libc::MSG_PEEK | libc::MSG_DONTWAIT,
            )
        }
    })
}

/// Whether both directions have ended.
pub(super) fn hung_up(socket: &impl AsRawFd) -> bool {
    let mut state = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: the structure is one pollfd and outlives the call, which does not wait.
    let polled = unsafe { libc::poll(&mut state, 1, 0) };
    polled == 1 && state.revents & libc::POLLHUP != 0
}

/// Throws away what the socket holds and will not grow any more.
pub(super) fn discard(socket: &impl AsRawFd) {
    let mut scratch = [0u8; 16 * 1024];
    loop {
        let read = retry_interrupted(|| {
            // SAFETY: the buffer is as long as said and outlives the call.
            unsafe {
                libc::recv(
                    socket.as_raw_fd(),
                    scratch.as_mut_ptr().cast(),
                    scratch.len(),
                    libc::MSG_DONTWAIT,
                )
            }
        });
        if !matches!(read, Ok(1..)) {
            return;
        }
    }
}
