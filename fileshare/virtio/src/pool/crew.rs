//! Where the threads of a queue sleep.

use std::{io, os::fd::AsRawFd, time::Duration};

use vmm::virtio::VirtQueue;
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

/// Threads that may do the same things, and where they sleep.
pub(super) struct Crew {
    /// What threads without work sleep in: the driver's kick, `more` and `stop`.
    sleepers: Epoll,
    /// Level-triggered: written to wake all for good, when this is not the pool's crew any more.
    stop: EventFd,
}

impl Crew {
    /// Wakes one when the driver of `queue` kicks and when `more` is written.
    pub(super) fn new(queue: &VirtQueue, more: &EventFd) -> io::Result<Crew> {
        let sleepers = Epoll::new()?;
        let stop = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        // The counters are never read: an edge is a write, whatever the counter was.
        let watched = [
            (queue.kick_fd().as_raw_fd(), edge),
            (more.as_raw_fd(), edge),
            (stop.as_raw_fd(), EventSet::IN),
        ];
        for (descriptor, events) in watched {
            sleepers.ctl(ControlOperation::Add, descriptor, EpollEvent::new(events, 0))?;
        }
        Ok(Crew { sleepers, stop })
    }

    /// Wakes all of them, now and whenever one is about to sleep.
    pub(super) fn wake_to_end(&self) {
        if let Err(error) = self.stop.write(1) {
            tracing::error!(device = super::NAME, %error, "sleeping threads could not be woken to end");
        }
    }

    /// Kicks are not listened to any more.
    pub(super) fn forget(&self, queue: &VirtQueue) {
        let kick = queue.kick_fd().as_raw_fd();
        // The only failure is that it was not watched.
        let _ = self
            .sleepers
            .ctl(ControlOperation::Delete, kick, EpollEvent::default());
    }

    /// Returns when there may be work, or when stopped.
    pub(super) fn sleep(&self) -> io::Result<()> {
        self.wait(-1)
    }

    /// The same, after `time` at the latest. In whole milliseconds.
    pub(super) fn pause(&self, time: Duration) -> io::Result<()> {
        self.wait(i32::try_from(time.as_millis()).unwrap_or(i32::MAX))
    }

    fn wait(&self, milliseconds: i32) -> io::Result<()> {
        let mut events = [EpollEvent::default()];
        match self.sleepers.wait(milliseconds, &mut events) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}
