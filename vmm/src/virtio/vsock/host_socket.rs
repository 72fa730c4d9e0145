//! Our end of the socketpair whose other end a host program holds.
//!
//! It is watched edge-triggered: what epoll said is remembered here until the kernel says otherwise, so a socket that is
//! ready while the guest is not costs nothing.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use vmm_sys_util::epoll::EventSet;

use super::{buffers::GuestBuffers, socket};

/// What became of an attempt to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// This many bytes.
    Data(usize),
    /// Nothing yet.
    NotYet,
    /// Nothing any more.
    End,
}

/// What became of an attempt to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// This many bytes; possibly fewer than offered.
    Taken(usize),
    /// None now.
    NotYet,
    /// Nobody will ever read them.
    Closed,
}

/// The events to watch a socket for.
pub(super) fn watched_events() -> EventSet {
    EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED
}

/// One end of a socketpair.
pub(super) struct HostSocket {
    stream: UnixStream,
    readable: bool,
    writable: bool,
    hung_up: bool,
    reset: bool,
}

impl HostSocket {
    /// Takes over `stream`, which is to be watched for [`watched_events`].
    pub(super) fn new(stream: UnixStream) -> HostSocket {
        HostSocket {
            stream,
            readable: true,
            writable: true,
            hung_up: false,
            reset: false,
        }
    }

    /// Takes note of what epoll reported.
    pub(super) fn note(&mut self, events: EventSet) {
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.readable |= gone || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        self.writable |= gone || events.contains(EventSet::OUT);
        self.hung_up |= events.contains(EventSet::HANG_UP);
    }

    /// Whether a read is worth trying.
    pub(super) fn readable(&self) -> bool {
        self.readable
    }

    /// Whether a write is worth trying.
    pub(super) fn writable(&self) -> bool {
        self.writable
    }

    /// Whether both directions have ended: the other end is closed, or each side has shut down its own.
    pub(super) fn hung_up(&self) -> bool {
        self.hung_up
    }

    /// Whether the other end is known to have closed without reading everything.
    pub(super) fn was_reset(&self) -> bool {
        self.reset
    }

    /// Reads into guest memory.
    pub(super) fn read(&mut self, buffers: &GuestBuffers, offset: usize, length: usize) -> Read {
        let read = buffers.receive_from(&self.stream, offset, length);
        self.after_read(read)
    }

    /// Whether there is something to read, without reading: [`Read::Data`] says only that there is.
    pub(super) fn peek(&mut self) -> Read {
        let read = socket::peek(&self.stream);
        self.after_read(read)
    }

    fn after_read(&mut self, read: io::Result<usize>) -> Read {
        match read {
            Ok(0) => {
                // A close is told apart from a shutdown now: that makes one packet for the guest instead of two.
                self.hung_up |= socket::hung_up(&self.stream);
                Read::End
            }
            Ok(length) => Read::Data(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Read::NotYet
            }
            // What the other end wrote has been read by now: the kernel reports errors after data.
            Err(error) => {
                self.reset |= error.kind() == io::ErrorKind::ConnectionReset;
                self.hung_up = true;
                Read::End
            }
        }
    }

    /// Writes from guest memory.
    pub(super) fn write(&mut self, buffers: &GuestBuffers, offset: usize, length: usize) -> Write {
        let written = buffers.send_to(&self.stream, offset, length);
        self.after_write(written)
    }

    /// Writes from our own memory.
    pub(super) fn write_slices(&mut self, slices: &[IoSlice]) -> Write {
        let written = socket::send(&self.stream, slices);
        self.after_write(written)
    }

    fn after_write(&mut self, written: io::Result<usize>) -> Write {
        match written {
            Ok(length) => Write::Taken(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Write::NotYet
            }
            Err(error) => {
                self.reset |= error.kind() == io::ErrorKind::ConnectionReset;
                Write::Closed
            }
        }
    }

    /// Tells the other end that nothing more will come, or that nothing more is wanted.
    pub(super) fn shutdown(&self, how: Shutdown) {
        // It fails only when the other end is closed, which is then known or about to be.
        let _ = self.stream.shutdown(how);
    }

    /// Throws away what the other end wrote, after [`Self::shutdown`] of that direction: otherwise closing would tell it
    /// that the connection was reset.
    pub(super) fn discard_unread(&self) {
        socket::discard(&self.stream);
    }
}
