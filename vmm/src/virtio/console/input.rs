//! What is typed on the host, on its way to the guest.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// As much as a terminal buffers of what nobody reads.
const CAPACITY: usize = 4096;

/// The host's keyboard: cheap to clone, usable from any thread, survives resets of the guest.
#[derive(Clone)]
pub struct ConsoleInput {
    inner: Arc<Inner>,
}

struct Inner {
    bytes: Mutex<VecDeque<u8>>,
    /// Readable when bytes have come since the worker looked last.
    arrived: EventFd,
}

impl ConsoleInput {
    pub(super) fn new() -> io::Result<ConsoleInput> {
        Ok(ConsoleInput {
            inner: Arc::new(Inner {
                bytes: Mutex::new(VecDeque::new()),
                arrived: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            }),
        })
    }

    /// Types `bytes`; returns how many of them were taken: fewer when the guest does not read, then try again later.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let taken = {
            let mut queue = self.bytes();
            let taken = bytes.len().min(CAPACITY - queue.len());
            queue.extend(&bytes[..taken]);
            taken
        };
        if taken > 0 {
            self.inner.arrived.write(1)?;
        }
        Ok(taken)
    }

    pub(super) fn arrived(&self) -> &EventFd {
        &self.inner.arrived
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// Hands the bytes to `sink`, which says how many of them it took.
    pub(super) fn take(&self, sink: impl FnOnce(&[u8]) -> usize) -> usize {
        let mut queue = self.bytes();
        let taken = sink(queue.make_contiguous());
        queue.drain(..taken);
        taken
    }

    fn bytes(&self) -> MutexGuard<'_, VecDeque<u8>> {
        // A queue of bytes is whole at any moment.
        self.inner.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
