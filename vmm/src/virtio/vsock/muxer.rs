//! All connections of the device: which packet belongs to which, and whose turn it is to send.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{
    buffers::GuestBuffers,
    connection::{ConnectReply, Connection, Key},
    host::{ConnectError, Shared},
    host_socket::watched_events,
    packet::{HEADER_SIZE, HOST_CID, Header, Op, TYPE_STREAM},
};

/// Ids below this are not connections; the worker uses them for its own descriptors.
pub(super) const FIRST_CONNECTION_ID: u64 = 16;
/// Our ports for connections to the guest: high, so that they meet no service, and many, so that none is used again soon.
const EPHEMERAL_PORTS: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x7fff_ffff;
/// RSTs to packets of no connection that wait for room in the rx queue. A guest that makes more of them without giving us
/// room loses the rest, as a network would.
const MAX_STRAY_RESETS: usize = 1024;

/// The limits of a muxer.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Connections at once, those that only drain included.
    pub(super) connections: usize,
    /// Receive buffer of a connection, in bytes. Linux sends no more than 256 KiB ahead unless told to.
    pub(super) window: u32,
    /// Receive buffer of a connection once `window_budget` is spent.
    pub(super) small_window: u32,
    /// How many bytes all full-size receive buffers may be together.
    pub(super) window_budget: usize,
    /// How long the guest may take to accept a connection.
    pub(super) connect_timeout: Duration,
    /// How long the guest may take to end a closed connection; Linux itself waits 8 s.
    pub(super) close_timeout: Duration,
}

impl Default for Limits {
    /// At most 64 MiB + 3840 * 32 KiB = 184 MiB are ever buffered for a guest that does its worst.
    fn default() -> Self {
        Limits {
            connections: 4096,
            window: 256 * 1024,
            small_window: 32 * 1024,
            window_budget: 64 << 20,
            connect_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(8),
        }
    }
}

/// The connections.
pub(super) struct Muxer {
    guest_cid: u64,
    limits: Limits,
    shared: Arc<Shared>,
    epoll: Arc<Epoll>,
    connections: HashMap<u64, Entry>,
    by_key: HashMap<Key, u64>,
    next_id: u64,
    next_port: u32,
    /// Connections with something to send, each once, in turn.
    ready: VecDeque<u64>,
    strays: VecDeque<Header>,
    deadlines: BTreeSet<(Instant, u64)>,
    full_windows: usize,
}

struct Entry {
    connection: Connection,
    in_ready: bool,
    attached: bool,
    deadline: Option<Instant>,
}

impl Muxer {
    /// No connections yet. Sockets are watched on `epoll`, with a connection's id as data.
    pub(super) fn new(guest_cid: u64, limits: Limits, shared: Arc<Shared>, epoll: Arc<Epoll>) -> Muxer {
        Muxer {
            guest_cid,
            limits,
            shared,
            epoll,
            connections: HashMap::new(),
            by_key: HashMap::new(),
            next_id: FIRST_CONNECTION_ID,
            next_port: *EPHEMERAL_PORTS.start(),
            ready: VecDeque::new(),
            strays: VecDeque::new(),
            deadlines: BTreeSet::new(),
            full_windows: 0,
        }
    }

    /// Opens a connection to the guest's `port`; `reply` hears what became of it.
    pub(super) fn connect(&mut self, port: u32, reply: ConnectReply, now: Instant) {
        if self.connections.len() >= self.limits.connections {
            let _ = reply.send(Err(ConnectError::TooMany(self.limits.connections)));
            return;
        }
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => {
                let _ = reply.send(Err(ConnectError::Socket(error)));
                return;
            }
        };
        let key = Key {
            host_port: self.ephemeral_port(port),
            guest_port: port,
        };
        let id = self.allocate_id();
        if let Err(error) = self.watch(id, ours.as_raw_fd()) {
            let _ = reply.send(Err(ConnectError::Socket(error)));
            return;
        }
        let connection = Connection::outgoing(
            key,
            self.guest_cid,
            self.window(),
            (ours, theirs),
            reply,
            now + self.limits.connect_timeout,
            self.limits.close_timeout,
        );
        self.insert(id, connection);
    }

    /// Takes a packet from the guest. `payload` is the whole packet, header first.
    pub(super) fn receive(&mut self, payload: &GuestBuffers) {
        let Some(bytes) = payload.read_header() else {
            self.shared.stats.malformed();
            return;
        };
        let header = Header::parse(&bytes);
        self.shared.stats.packet_from_guest();
        if header.src_cid != self.guest_cid {
            // Not the guest's to send; an answer would go to somebody else.
            self.shared.stats.malformed();
            return;
        }
        if header.dst_cid != HOST_CID || header.socket_type != TYPE_STREAM {
            self.stray(&header);
            return;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let Some(&id) = self.by_key.get(&key) else {
            self.receive_unknown(key, &header);
            return;
        };
        let Some(entry) = self.connections.get_mut(&id) else {
            return;
        };
        let op = header.operation();
        if op == Some(Op::Request) && entry.connection.is_closing() {
            // The guest has forgotten the old connection before saying so, and uses its port again.
            entry.connection.detach();
            self.settle(id);
            self.receive_unknown(key, &header);
            return;
        }
        match op {
            Some(Op::Rst) => self.shared.stats.reset_from_guest(),
            Some(Op::Rw) => {
                if header.len as usize > payload.len() - HEADER_SIZE {
                    // Bytes of a stream are missing: it cannot go on.
                    self.shared.stats.malformed();
                    entry.connection.reset();
                    self.settle(id);
                    return;
                }
                self.shared.stats.bytes_from_guest(header.len);
            }
            _ => {}
        }
        entry.connection.receive(&header, payload);
        self.settle(id);
    }

    fn receive_unknown(&mut self, key: Key, header: &Header) {
        match header.operation() {
            Some(Op::Request) => self.accept(key, header),
            _ => self.stray(header),
        }
    }

    fn accept(&mut self, key: Key, request: &Header) {
        if self.connections.len() >= self.limits.connections {
            tracing::warn!(
                limit = self.limits.connections,
                port = key.host_port,
                "the guest has too many vsock connections; refused one more"
            );
            return self.stray(request);
        }
        let Some(slot) = self.shared.backlog_slot(key.host_port) else {
            return self.stray(request);
        };
        let id = self.allocate_id();
        let pair = UnixStream::pair().and_then(|(ours, theirs)| {
            self.watch(id, ours.as_raw_fd())?;
            Ok((ours, theirs))
        });
        let (ours, theirs) = match pair {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!(%error, port = key.host_port, "a vsock connection from the guest could not be taken");
                return self.stray(request);
            }
        };
        let connection = Connection::incoming(key, self.window(), ours, request, self.limits.close_timeout);
        slot.send(theirs);
        self.insert(id, connection);
    }

    /// Answers a packet of no connection with RST.
    fn stray(&mut self, header: &Header) {
        if header.operation() == Some(Op::Rst) {
            return;
        }
        let reply = header.reset_reply();
        if self.strays.len() < MAX_STRAY_RESETS {
            self.strays.push_back(reply);
        }
    }

    /// Takes note of what epoll said of a connection's socket.
    pub(super) fn socket_event(&mut self, id: u64, events: EventSet) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.connection.socket_event(events);
            self.settle(id);
        }
    }

    /// Whether [`Self::next_packet`] may have something.
    pub(super) fn has_packets(&self) -> bool {
        !self.strays.is_empty() || !self.ready.is_empty()
    }

    /// Writes the next packet for the guest to `buffers`, which hold more than a header: how many bytes it has, or none when
    /// there is nothing to send. Each connection sends one packet in turn.
    pub(super) fn next_packet(&mut self, buffers: &GuestBuffers, now: Instant) -> Option<u32> {
        if let Some(header) = self.strays.pop_front() {
            return Some(self.write_packet(&header, buffers));
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(entry) = self.connections.get_mut(&id) else {
                continue;
            };
            entry.in_ready = false;
            let packet = entry.connection.next_packet(buffers, now);
            self.settle(id);
            if let Some(header) = packet {
                return Some(self.write_packet(&header, buffers));
            }
        }
        None
    }

    fn write_packet(&self, header: &Header, buffers: &GuestBuffers) -> u32 {
        buffers.write_header(&header.to_bytes());
        self.shared.stats.to_guest(header.len);
        if header.op == Op::Rst as u16 {
            self.shared.stats.reset_to_guest();
        }
        HEADER_SIZE as u32 + header.len
    }

    /// When [`Self::expire`] is due.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Ends what the guest has not answered by `now`.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                return;
            }
            self.deadlines.remove(&(deadline, id));
            if let Some(entry) = self.connections.get_mut(&id) {
                entry.deadline = None;
                entry.connection.expire();
                self.settle(id);
            }
        }
    }

    /// The guest is gone: ends every connection. What it sent before still reaches the host.
    pub(super) fn detach_all(&mut self) {
        let ids: Vec<u64> = self.by_key.values().copied().collect();
        for id in ids {
            if let Some(entry) = self.connections.get_mut(&id) {
                entry.connection.detach();
                self.settle(id);
            }
        }
        self.strays.clear();
        self.ready.clear();
    }

    fn insert(&mut self, id: u64, connection: Connection) {
        self.by_key.insert(connection.key(), id);
        if connection.buf_alloc() == self.limits.window {
            self.full_windows += 1;
        }
        self.shared.stats.opened();
        self.connections.insert(
            id,
            Entry {
                connection,
                in_ready: false,
                attached: true,
                deadline: None,
            },
        );
        self.settle(id);
    }

    /// Brings the tables in line with what a connection has become.
    fn settle(&mut self, id: u64) {
        let Some(entry) = self.connections.get_mut(&id) else {
            return;
        };
        if entry.connection.wants_to_send() && !entry.in_ready {
            entry.in_ready = true;
            self.ready.push_back(id);
        }
        if entry.deadline != entry.connection.deadline() {
            if let Some(old) = entry.deadline {
                self.deadlines.remove(&(old, id));
            }
            entry.deadline = entry.connection.deadline();
            if let Some(new) = entry.deadline {
                self.deadlines.insert((new, id));
            }
        }
        if entry.connection.is_detached() && entry.attached {
            entry.attached = false;
            self.by_key.remove(&entry.connection.key());
        }
        if entry.connection.is_finished() {
            if entry.connection.buf_alloc() == self.limits.window {
                self.full_windows -= 1;
            }
            self.connections.remove(&id);
            self.shared.stats.closed();
        }
    }

    fn window(&self) -> u32 {
        let spent = (self.full_windows + 1).saturating_mul(self.limits.window as usize);
        if spent <= self.limits.window_budget {
            self.limits.window
        } else {
            self.limits.small_window
        }
    }

    fn watch(&self, id: u64, fd: i32) -> io::Result<()> {
        // Closing the socket ends the watch: nobody else has a descriptor of it.
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(watched_events(), id))
    }

    fn allocate_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn ephemeral_port(&mut self, guest_port: u32) -> u32 {
        // Ends: there are far fewer connections than ports.
        loop {
            let host_port = self.next_port;
            self.next_port = if host_port == *EPHEMERAL_PORTS.end() {
                *EPHEMERAL_PORTS.start()
            } else {
                host_port + 1
            };
            let key = Key {
                host_port,
                guest_port,
            };
            if !self.by_key.contains_key(&key) {
                return host_port;
            }
        }
    }
}
