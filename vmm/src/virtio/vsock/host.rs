//! The host programs' side of the device: connecting to the guest's ports and serving the guest's connections.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{mpsc, oneshot};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{connection::ConnectReply, worker::Command};
use crate::event_loop::EventLoop;

/// Connections from the guest that wait for a listener to take them; the next one is refused.
const LISTEN_BACKLOG: usize = 128;

/// Why a connection to the guest did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The guest's driver is not there: not yet, or not any more.
    #[error("the guest's vsock driver is not running")]
    NotReady,
    /// The guest answered with a reset.
    #[error("the guest refused the connection; nothing listens on that port, or its backlog is full")]
    Refused,
    /// The guest did not answer.
    #[error("the guest did not answer the connection request in time")]
    TimedOut,
    /// The guest was reset or powered off meanwhile.
    #[error("the guest was reset before it accepted the connection")]
    GuestReset,
    /// Too many connections are open.
    #[error("the guest has {0} vsock connections already, which is the limit")]
    TooMany(usize),
    /// No socketpair could be had.
    #[error(
        "no socketpair could be made for the connection; is the limit of open files (ulimit -n) high enough?"
    )]
    Socket(#[source] io::Error),
}

/// Why a port could not be listened on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ListenError {
    /// It has a listener.
    #[error("vsock port {0} of the host has a listener already")]
    InUse(u32),
}

/// What has gone through the device since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VsockStats {
    /// Connections open now, those that only drain included.
    pub connections: u64,
    /// Connections opened, in either direction.
    pub connections_total: u64,
    /// Packets sent to the guest.
    pub packets_to_guest: u64,
    /// Packets received from the guest.
    pub packets_from_guest: u64,
    /// Bytes of data sent to the guest.
    pub bytes_to_guest: u64,
    /// Bytes of data received from the guest.
    pub bytes_from_guest: u64,
    /// RST packets sent to the guest, refusals included.
    pub resets_to_guest: u64,
    /// RST packets received for connections that were open.
    pub resets_from_guest: u64,
    /// Packets from the guest that were no packets or not the guest's to send.
    pub malformed: u64,
}

/// [`VsockStats`] as the worker counts them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    opened: AtomicU64,
    closed: AtomicU64,
    packets_to_guest: AtomicU64,
    packets_from_guest: AtomicU64,
    bytes_to_guest: AtomicU64,
    bytes_from_guest: AtomicU64,
    resets_to_guest: AtomicU64,
    resets_from_guest: AtomicU64,
    malformed: AtomicU64,
}

impl Counters {
    pub(super) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn to_guest(&self, bytes: u32) {
        self.packets_to_guest.fetch_add(1, Ordering::Relaxed);
        self.bytes_to_guest.fetch_add(u64::from(bytes), Ordering::Relaxed);
    }
    pub(super) fn packet_from_guest(&self) {
        self.packets_from_guest.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn bytes_from_guest(&self, bytes: u32) {
        self.bytes_from_guest
            .fetch_add(u64::from(bytes), Ordering::Relaxed);
    }
    pub(super) fn reset_to_guest(&self) {
        self.resets_to_guest.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn reset_from_guest(&self) {
        self.resets_from_guest.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> VsockStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Closed first: the difference must not go below zero while the worker counts on.
        let closed = get(&self.closed);
        let opened = get(&self.opened);
        VsockStats {
            connections: opened.saturating_sub(closed),
            connections_total: opened,
            packets_to_guest: get(&self.packets_to_guest),
            packets_from_guest: get(&self.packets_from_guest),
            bytes_to_guest: get(&self.bytes_to_guest),
            bytes_from_guest: get(&self.bytes_from_guest),
            resets_to_guest: get(&self.resets_to_guest),
            resets_from_guest: get(&self.resets_from_guest),
            malformed: get(&self.malformed),
        }
    }
}

/// What the worker's thread and the others share.
pub(super) struct Shared {
    /// None when the worker has ended.
    commands: Mutex<Option<VecDeque<Command>>>,
    wake: EventFd,
    listeners: Mutex<HashMap<u32, mpsc::Sender<UnixStream>>>,
    pub(super) stats: Counters,
}

/// A place in a listener's backlog.
pub(super) struct BacklogSlot(mpsc::OwnedPermit<UnixStream>);

impl BacklogSlot {
    /// Hands a connection to the listener.
    pub(super) fn send(self, stream: UnixStream) {
        self.0.send(stream);
    }
}

impl Shared {
    /// Nothing to do and nobody listening.
    pub(super) fn new() -> io::Result<Shared> {
        Ok(Shared {
            commands: Mutex::new(Some(VecDeque::new())),
            wake: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            listeners: Mutex::default(),
            stats: Counters::default(),
        })
    }

    /// Gives the worker something to do. When it has ended, the command is dropped, and with it the asker's way to hear.
    pub(super) fn command(&self, command: Command) {
        if let Some(commands) = lock(&self.commands).as_mut() {
            commands.push_back(command);
        }
        self.wake_worker();
    }

    /// Takes the oldest command.
    pub(super) fn next_command(&self) -> Option<Command> {
        lock(&self.commands).as_mut()?.pop_front()
    }

    /// The worker has ended.
    pub(super) fn close(&self) {
        drop(lock(&self.commands).take());
    }

    /// Makes the worker look again.
    pub(super) fn wake_worker(&self) {
        // The counter is full only when 2^64 - 2 wakes were not seen; then it is readable, which is all that matters.
        let _ = self.wake.write(1);
    }

    /// Becomes readable when the worker is to look.
    pub(super) fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// See [`VsockHost::listen`].
    pub(super) fn listen(&self, port: u32) -> Result<mpsc::Receiver<UnixStream>, ListenError> {
        let mut listeners = lock(&self.listeners);
        if listeners.get(&port).is_some_and(|sender| !sender.is_closed()) {
            return Err(ListenError::InUse(port));
        }
        let (sender, receiver) = mpsc::channel(LISTEN_BACKLOG);
        listeners.insert(port, sender);
        Ok(receiver)
    }

    /// A place in the backlog of whoever listens on `port`, if there is one.
    pub(super) fn backlog_slot(&self, port: u32) -> Option<BacklogSlot> {
        let mut listeners = lock(&self.listeners);
        let sender = listeners.get(&port)?;
        match sender.clone().try_reserve_owned() {
            Ok(permit) => Some(BacklogSlot(permit)),
            Err(mpsc::error::TrySendError::Full(_)) => None,
            Err(mpsc::error::TrySendError::Closed(_)) => {
                listeners.remove(&port);
                None
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps are never left half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The worker's thread, kept by the device and by every handle to it: connections drain to the last byte even when the
/// device is dropped first.
pub(super) struct Runtime {
    pub(super) shared: Arc<Shared>,
    // Ends the thread, and with it every connection, when dropped.
    _event_loop: EventLoop,
}

impl Runtime {
    pub(super) fn new(shared: Arc<Shared>, event_loop: EventLoop) -> Runtime {
        Runtime {
            shared,
            _event_loop: event_loop,
        }
    }
}

/// A handle to the host's end of the device. Usable from any thread, cheap to clone, and good for the device's whole life,
/// however often the guest is reset.
#[derive(Clone)]
pub struct VsockHost {
    runtime: Arc<Runtime>,
}

impl VsockHost {
    pub(super) fn new(runtime: Arc<Runtime>) -> VsockHost {
        VsockHost { runtime }
    }

    /// Connects to `port` of the guest. Resolves when the guest has accepted or refused, or after 30 s without an answer;
    /// dropping the receiver gives up.
    ///
    /// The stream is one end of a socketpair: blocking, close-on-exec. `shutdown` closes either direction for the guest and
    /// is seen when the guest does it. When the guest resets the connection or goes away, what it sent before can still be
    /// read; then comes the end of the stream, or `ECONNRESET` when something written had not been taken by the guest.
    pub fn connect(&self, port: u32) -> oneshot::Receiver<Result<UnixStream, ConnectError>> {
        let (reply, receiver) = oneshot::channel();
        self.connect_with(port, reply);
        receiver
    }

    fn connect_with(&self, port: u32, reply: ConnectReply) {
        self.runtime.shared.command(Command::Connect { port, reply });
    }

    /// Takes the guest's connections to `port` on the host (CID 2), at most 128 of which wait to be received. They are
    /// streams as [`Self::connect`] makes them. When the receiver is dropped, the guest's connections are refused.
    pub fn listen(&self, port: u32) -> Result<mpsc::Receiver<UnixStream>, ListenError> {
        self.runtime.shared.listen(port)
    }

    /// What has gone through the device so far.
    pub fn stats(&self) -> VsockStats {
        self.runtime.shared.stats.read()
    }
}
