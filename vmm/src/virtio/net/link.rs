//! The host's end of a network device.

use std::{
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{NetError, connection::Connection};
use crate::virtio::{Interrupt, InterruptCause};

/// Connects and disconnects a network device: cheap to clone, usable from any thread, survives resets of the guest.
#[derive(Clone)]
pub struct NetLink {
    inner: Arc<Inner>,
}

/// What has gone over a link so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetStats {
    /// Frames from the guest to the host.
    pub frames_from_guest: u64,
    /// Their bytes.
    pub bytes_from_guest: u64,
    /// Frames from the host to the guest.
    pub frames_to_guest: u64,
    /// Their bytes.
    pub bytes_to_guest: u64,
    /// Frames of either direction that were dropped: malformed, or nobody there to take them.
    pub dropped: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) frames_from_guest: AtomicU64,
    pub(super) bytes_from_guest: AtomicU64,
    pub(super) frames_to_guest: AtomicU64,
    pub(super) bytes_to_guest: AtomicU64,
    pub(super) dropped: AtomicU64,
}

type Callback = Arc<dyn Fn() + Send + Sync>;

struct Inner {
    state: Mutex<State>,
    /// Readable when `State::next` has changed.
    changed: EventFd,
    counters: Counters,
}

struct State {
    /// What the worker is to use from now on: a connection, or none. Empty when there is no news.
    next: Option<Option<Connection>>,
    up: bool,
    on_detached: Option<Callback>,
    /// The way to the driver while the device is active.
    interrupt: Option<Arc<dyn Interrupt>>,
}

impl NetLink {
    pub(super) fn new() -> Result<NetLink, NetError> {
        Ok(NetLink {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    next: None,
                    up: true,
                    on_detached: None,
                    interrupt: None,
                }),
                changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(NetError::Signal)?,
                counters: Counters::default(),
            }),
        })
    }

    /// Connects the device to a stream socket, in place of the last one, which is closed. None: a link with no other end;
    /// the guest's frames are dropped. The socket's blocking mode does not matter and stays as it is.
    pub fn attach(&self, stream: Option<UnixStream>) -> Result<(), NetError> {
        let previous = self.state().next.replace(stream.map(Connection::new));
        // Closes a socket that was never used, outside the lock.
        drop(previous);
        self.inner.changed.write(1).map_err(NetError::Signal)
    }

    /// Has `callback` called when the other end has closed the connection, or broken its protocol, while the guest's driver
    /// was active. It runs on a device thread: it must be quick, and may call [`Self::attach`]. Replaces the last one.
    pub fn on_detached(&self, callback: Box<dyn Fn() + Send + Sync>) {
        self.state().on_detached = Some(Arc::from(callback));
    }

    /// Pulls the cable out of the guest's network card, or puts it back. It is in at first.
    pub fn set_up(&self, up: bool) -> Result<(), NetError> {
        let interrupt = {
            let mut state = self.state();
            if state.up == up {
                return Ok(());
            }
            state.up = up;
            state.interrupt.clone()
        };
        interrupt.map_or(Ok(()), |interrupt| {
            interrupt.signal(InterruptCause::Config).map_err(NetError::Signal)
        })
    }

    /// What has gone over the link so far.
    pub fn stats(&self) -> NetStats {
        let counters = &self.inner.counters;
        NetStats {
            frames_from_guest: counters.frames_from_guest.load(Ordering::Relaxed),
            bytes_from_guest: counters.bytes_from_guest.load(Ordering::Relaxed),
            frames_to_guest: counters.frames_to_guest.load(Ordering::Relaxed),
            bytes_to_guest: counters.bytes_to_guest.load(Ordering::Relaxed),
            dropped: counters.dropped.load(Ordering::Relaxed),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state().up
    }

    pub(super) fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        self.state().interrupt = interrupt;
    }

    pub(super) fn changed(&self) -> &EventFd {
        &self.inner.changed
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// The news for the worker, if there is any.
    pub(super) fn take_next(&self) -> Option<Option<Connection>> {
        self.state().next.take()
    }

    /// Keeps a connection for the next worker, unless there is newer news. A frame may be half sent on it.
    pub(super) fn give_back(&self, connection: Connection) {
        self.state().next.get_or_insert(Some(connection));
    }

    /// Tells the host that the other end has gone.
    pub(super) fn detached(&self) {
        // Called outside the lock, for the callback may attach.
        let callback = self.state().on_detached.clone();
        if let Some(callback) = callback {
            callback();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Fields are only ever replaced whole, so a panic elsewhere leaves nothing half done.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
