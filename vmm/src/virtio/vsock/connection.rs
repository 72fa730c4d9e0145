//! One connection: what the guest's packets and the host's socket do to it, and what it has to say to the guest.
//!
//! A connection has two halves that may end at different times. Its *link* is what the guest knows of; its *socket* is our
//! end of a socketpair. When the link is gone but the host has not read everything yet, the socket half lives on alone and
//! drains: a guest that sends and closes at once loses nothing, however slow the reader.
//!
//! Nothing here ever waits. What is to be sent is kept as flags, one of each kind, so nothing the guest does makes a
//! connection queue packets without bound; data is not queued at all, it stays in the host's socket until the guest has room.

use std::{
    collections::VecDeque,
    io::IoSlice,
    net::Shutdown,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use vmm_sys_util::epoll::EventSet;

use super::{
    buffers::GuestBuffers,
    credit::{CreditExceeded, ReceiveCredit, SendCredit},
    host::ConnectError,
    host_socket::{HostSocket, Read, Write},
    packet::{
        HEADER_SIZE, HOST_CID, Header, MAX_PAYLOAD, Op, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND,
        TYPE_STREAM,
    },
};

/// Where the asker of a connection waits.
pub(super) type ConnectReply = oneshot::Sender<Result<UnixStream, ConnectError>>;

/// What the guest tells connections apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Our port.
    pub(super) host_port: u32,
    /// The guest's port.
    pub(super) guest_port: u32,
}

/// The guest's half.
enum Link {
    /// We asked for a connection; the host program and the ends of its socketpair wait for the answer.
    Requesting(ConnectReply, UnixStream),
    /// Data may flow.
    Open,
    /// Over, but the guest has not been sent its RST yet.
    Resetting,
    /// Over, and the guest knows.
    Gone,
}

/// One connection.
pub(super) struct Connection {
    key: Key,
    guest_cid: u64,
    link: Link,
    socket: Option<HostSocket>,
    send: SendCredit,
    receive: ReceiveCredit,
    /// Bytes from the guest that the host's socket did not take yet; at most the receive credit's `buf_alloc`.
    backlog: VecDeque<u8>,

    /// SHUTDOWN flags the guest sent.
    guest_shutdown: u32,
    /// SHUTDOWN flags we sent.
    sent_shutdown: u32,
    /// The host program will write no more, and everything it wrote has been sent on.
    host_ended: bool,
    /// The host program will read no more.
    host_deaf: bool,
    /// It closed without reading everything.
    host_unread: bool,

    request_pending: bool,
    response_pending: bool,
    update_asked: bool,
    credit_request_pending: bool,
    /// A credit request has been sent or is pending, and no credit has come since.
    credit_requested: bool,
    /// The socket has been looked at since it last changed, and waits for credit.
    waiting_for_credit: bool,

    deadline: Option<Instant>,
    close_timeout: Duration,
}

impl Connection {
    /// A connection we ask the guest for. `ours` and `theirs` are the ends of a socketpair; `theirs` is handed out when the
    /// guest accepts. The guest has until `deadline` to answer.
    pub(super) fn outgoing(
        key: Key,
        guest_cid: u64,
        buf_alloc: u32,
        (ours, theirs): (UnixStream, UnixStream),
        reply: ConnectReply,
        deadline: Instant,
        close_timeout: Duration,
    ) -> Connection {
        Connection {
            request_pending: true,
            deadline: Some(deadline),
            link: Link::Requesting(reply, theirs),
            ..Connection::open(key, guest_cid, buf_alloc, ours, close_timeout)
        }
    }

    /// A connection the guest asked for by `request`, accepted.
    pub(super) fn incoming(
        key: Key,
        buf_alloc: u32,
        ours: UnixStream,
        request: &Header,
        close_timeout: Duration,
    ) -> Connection {
        let mut connection = Connection::open(key, request.src_cid, buf_alloc, ours, close_timeout);
        connection.response_pending = true;
        connection.send.update(request.buf_alloc, request.fwd_cnt);
        connection
    }

    fn open(
        key: Key,
        guest_cid: u64,
        buf_alloc: u32,
        ours: UnixStream,
        close_timeout: Duration,
    ) -> Connection {
        Connection {
            key,
            guest_cid,
            link: Link::Open,
            socket: Some(HostSocket::new(ours)),
            send: SendCredit::default(),
            receive: ReceiveCredit::new(buf_alloc),
            backlog: VecDeque::new(),
            guest_shutdown: 0,
            sent_shutdown: 0,
            host_ended: false,
            host_deaf: false,
            host_unread: false,
            request_pending: false,
            response_pending: false,
            update_asked: false,
            credit_request_pending: false,
            credit_requested: false,
            waiting_for_credit: false,
            deadline: None,
            close_timeout,
        }
    }

    /// The ports.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// The receive buffer promised to the guest.
    pub(super) fn buf_alloc(&self) -> u32 {
        self.receive.buf_alloc()
    }

    /// Whether the guest knows nothing of it any more: its ports are free.
    pub(super) fn is_detached(&self) -> bool {
        matches!(self.link, Link::Gone)
    }

    /// Whether nothing is left of it.
    pub(super) fn is_finished(&self) -> bool {
        self.is_detached() && self.socket.is_none()
    }

    /// Whether both ends of the link have been told to close, and only the guest's RST is missing. A guest may use its port
    /// again from here on.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.link, Link::Open) && self.sent_shutdown == SHUTDOWN_BOTH
    }

    /// When [`Self::expire`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The guest has not answered in time.
    pub(super) fn expire(&mut self) {
        self.deadline = None;
        if let Link::Requesting(..) = self.link {
            self.refuse(ConnectError::TimedOut);
        }
        self.reset();
    }

    /// Takes a packet from the guest; `payload` holds as many bytes from [`HEADER_SIZE`] on as the header says.
    pub(super) fn receive(&mut self, header: &Header, payload: &GuestBuffers) {
        let op = header.operation();
        match self.link {
            Link::Resetting | Link::Gone => {
                if op == Some(Op::Rst) {
                    self.link = Link::Gone;
                }
                return;
            }
            Link::Requesting(..) => {
                match op {
                    Some(Op::Response) => self.accepted(header),
                    Some(Op::Rst) => {
                        self.refuse(ConnectError::Refused);
                        self.detach();
                    }
                    _ => {
                        self.refuse(ConnectError::Refused);
                        self.reset();
                    }
                }
                return;
            }
            Link::Open => {}
        }
        self.note_credit(header);
        match op {
            Some(Op::Rw) => self.receive_data(header.len, payload),
            Some(Op::Shutdown) => self.receive_shutdown(header.flags),
            Some(Op::Rst) => self.detach(),
            Some(Op::CreditUpdate) => {}
            Some(Op::CreditRequest) => self.update_asked = true,
            Some(Op::Request | Op::Response) | None => self.reset(),
        }
    }

    fn accepted(&mut self, header: &Header) {
        self.deadline = None;
        self.note_credit(header);
        if let Link::Requesting(reply, theirs) = std::mem::replace(&mut self.link, Link::Open) {
            // When nobody waits any more, `theirs` is dropped, which ends the connection like any close.
            let _ = reply.send(Ok(theirs));
        }
    }

    fn refuse(&mut self, error: ConnectError) {
        if !matches!(self.link, Link::Requesting(..)) {
            return;
        }
        if let Link::Requesting(reply, theirs) = std::mem::replace(&mut self.link, Link::Resetting) {
            drop(theirs);
            // The asker may have given up.
            let _ = reply.send(Err(error));
        }
    }

    fn note_credit(&mut self, header: &Header) {
        let before = self.send.available();
        self.send.update(header.buf_alloc, header.fwd_cnt);
        if self.send.available() > before {
            self.waiting_for_credit = false;
            self.credit_requested = false;
            self.credit_request_pending = false;
        }
    }

    fn receive_data(&mut self, length: u32, payload: &GuestBuffers) {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return self.reset();
        }
        if self.receive.received(length) == Err(CreditExceeded) {
            tracing::debug!(?self.key, length, "the guest sent more than it may; connection reset");
            return self.reset();
        }
        let (mut offset, mut left) = (HEADER_SIZE, length as usize);
        while left > 0 && self.backlog.is_empty() && !self.host_deaf {
            let Some(socket) = self.socket.as_mut().filter(|socket| socket.writable()) else {
                break;
            };
            match socket.write(payload, offset, left) {
                Write::Taken(taken) => {
                    self.receive.forwarded(taken as u32);
                    offset += taken;
                    left -= taken;
                }
                Write::NotYet => {}
                Write::Closed => self.host_stopped_reading(),
            }
        }
        if self.host_deaf {
            self.host_unread |= left > 0;
            self.receive.forwarded(left as u32);
        } else if left > 0 {
            payload.append_to(offset, left, &mut self.backlog);
        }
    }

    fn receive_shutdown(&mut self, flags: u32) {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown == SHUTDOWN_BOTH {
            // Nothing can come of the link any more; the guest waits for this to free its port.
            self.reset();
            return;
        }
        if self.guest_shutdown & SHUTDOWN_RCV != 0
            && let Some(socket) = &self.socket
        {
            socket.shutdown(Shutdown::Read);
        }
        self.end_socket_when_drained();
    }

    /// Takes note of what epoll said of the host's socket.
    pub(super) fn socket_event(&mut self, events: EventSet) {
        if let Some(socket) = &mut self.socket {
            socket.note(events);
            self.waiting_for_credit = false;
        }
        self.flush();
    }

    /// Moves what the guest sent on to the host's socket, as far as it takes it.
    pub(super) fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let Some(socket) = self.socket.as_mut().filter(|socket| socket.writable()) else {
                break;
            };
            let (front, back) = self.backlog.as_slices();
            match socket.write_slices(&[IoSlice::new(front), IoSlice::new(back)]) {
                Write::Taken(taken) => {
                    self.backlog.drain(..taken);
                    self.receive.forwarded(taken as u32);
                }
                Write::NotYet => break,
                Write::Closed => self.host_stopped_reading(),
            }
        }
        if self.backlog.is_empty() && self.backlog.capacity() > 0 {
            self.backlog = VecDeque::new();
        }
        if self.socket.as_ref().is_some_and(HostSocket::hung_up) {
            if self.guest_shutdown & SHUTDOWN_SEND == 0 {
                self.host_stopped_reading();
            }
            // A guest that does not listen will not have read the rest out of the socket.
            self.host_ended |= self.guest_shutdown & SHUTDOWN_RCV != 0;
        }
        self.end_socket_when_drained();
    }

    fn host_stopped_reading(&mut self) {
        self.host_deaf = true;
        self.host_unread |= !self.backlog.is_empty();
        self.receive.forwarded(self.backlog.len() as u32);
        self.backlog = VecDeque::new();
        self.end_socket_when_drained();
    }

    /// The guest has said its last: once the host has it all, the host is told so.
    fn end_socket_when_drained(&mut self) {
        if !self.backlog.is_empty() {
            return;
        }
        let Some(socket) = &self.socket else { return };
        let link_over = matches!(self.link, Link::Resetting | Link::Gone);
        if link_over && self.guest_shutdown == SHUTDOWN_BOTH {
            // An orderly end: what the host wrote too late is dropped without a reset.
            socket.shutdown(Shutdown::Both);
            socket.discard_unread();
            self.socket = None;
        } else if link_over {
            self.socket = None;
        } else if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            socket.shutdown(Shutdown::Write);
        }
    }

    /// Ends the link with an RST to the guest. What the guest sent before still reaches the host.
    pub(super) fn reset(&mut self) {
        if !matches!(self.link, Link::Gone) {
            self.link = Link::Resetting;
        }
        self.deadline = None;
        self.end_socket_when_drained();
    }

    /// Ends the link: the guest knows already, or is gone itself. What it sent before still reaches the host.
    pub(super) fn detach(&mut self) {
        self.refuse(ConnectError::GuestReset);
        self.link = Link::Gone;
        self.deadline = None;
        self.end_socket_when_drained();
    }

    /// Whether [`Self::next_packet`] has something to look at.
    pub(super) fn wants_to_send(&self) -> bool {
        match self.link {
            Link::Gone => false,
            Link::Resetting => true,
            Link::Requesting(..) => self.request_pending,
            Link::Open => {
                self.response_pending
                    || self.credit_update_due()
                    || self.credit_request_pending
                    || self.wants_to_read()
                    || self.shutdown_due() != 0
            }
        }
    }

    fn credit_update_due(&self) -> bool {
        self.update_asked || self.receive.update_due(self.send.peer_buf_alloc())
    }

    fn wants_to_read(&self) -> bool {
        !self.host_ended
            && self.guest_shutdown & SHUTDOWN_RCV == 0
            && !self.waiting_for_credit
            && self.socket.as_ref().is_some_and(HostSocket::readable)
    }

    /// The SHUTDOWN flags to send: those due, when the guest does not know all of them.
    fn shutdown_due(&self) -> u32 {
        let mut due = self.sent_shutdown;
        if self.host_deaf {
            due |= SHUTDOWN_RCV;
        }
        if self.host_ended {
            due |= SHUTDOWN_SEND;
            if self.socket.as_ref().is_none_or(HostSocket::hung_up) {
                due |= SHUTDOWN_RCV;
            }
        }
        if due == self.sent_shutdown { 0 } else { due }
    }

    /// The next packet for the guest: its payload is written to `buffers` (at least [`HEADER_SIZE`] + 1 bytes) behind the
    /// header, which the caller writes. None when there is nothing to send after all.
    pub(super) fn next_packet(&mut self, buffers: &GuestBuffers, now: Instant) -> Option<Header> {
        match self.link {
            Link::Gone => return None,
            Link::Resetting => {
                self.link = Link::Gone;
                return Some(self.packet(Op::Rst, 0, 0));
            }
            Link::Requesting(..) => {
                return std::mem::take(&mut self.request_pending).then(|| self.packet(Op::Request, 0, 0));
            }
            Link::Open => {}
        }
        if std::mem::take(&mut self.response_pending) {
            return Some(self.packet(Op::Response, 0, 0));
        }
        // That the host is deaf is said before more of its data; when it has closed, there is not much of that, and one packet
        // says all. That it has ended is due only after its data.
        let closed = self.socket.as_ref().is_none_or(HostSocket::hung_up);
        if !closed && let Some(packet) = self.shutdown_packet(now) {
            return Some(packet);
        }
        if self.wants_to_read()
            && let Some(length) = self.read_socket(buffers)
        {
            self.send.sent(length);
            return Some(self.packet(Op::Rw, 0, length));
        }
        if let Some(packet) = self.shutdown_packet(now) {
            return Some(packet);
        }
        if self.credit_update_due() {
            return Some(self.packet(Op::CreditUpdate, 0, 0));
        }
        if std::mem::take(&mut self.credit_request_pending) {
            return Some(self.packet(Op::CreditRequest, 0, 0));
        }
        None
    }

    fn shutdown_packet(&mut self, now: Instant) -> Option<Header> {
        let shutdown = self.shutdown_due();
        if shutdown == 0 {
            return None;
        }
        if shutdown == SHUTDOWN_BOTH && self.host_unread() {
            self.detach();
            return Some(self.packet(Op::Rst, 0, 0));
        }
        self.sent_shutdown = shutdown;
        if shutdown == SHUTDOWN_BOTH {
            self.deadline = Some(now + self.close_timeout);
        }
        Some(self.packet(Op::Shutdown, shutdown, 0))
    }

    /// Whether the host program closed without reading everything the guest sent.
    fn host_unread(&self) -> bool {
        self.host_unread || self.socket.as_ref().is_some_and(HostSocket::was_reset)
    }

    /// Fills `buffers` from the host's socket as far as the guest's credit goes: how many bytes, if any.
    fn read_socket(&mut self, buffers: &GuestBuffers) -> Option<u32> {
        let socket = self.socket.as_mut()?;
        let room = (buffers.len() - HEADER_SIZE).min(MAX_PAYLOAD);
        let credit = self.send.available() as usize;
        let read = if credit == 0 {
            socket.peek()
        } else {
            socket.read(buffers, HEADER_SIZE, room.min(credit))
        };
        match read {
            Read::Data(_) if credit == 0 => {
                self.waiting_for_credit = true;
                if !self.credit_requested {
                    self.credit_requested = true;
                    self.credit_request_pending = true;
                }
                None
            }
            Read::Data(length) => Some(length as u32),
            Read::NotYet => None,
            Read::End => {
                self.host_ended = true;
                if socket.hung_up() && !self.host_deaf && self.guest_shutdown & SHUTDOWN_SEND == 0 {
                    self.host_stopped_reading();
                }
                None
            }
        }
    }

    fn packet(&mut self, op: Op, flags: u32, length: u32) -> Header {
        self.update_asked = false;
        let (buf_alloc, fwd_cnt) = self.receive.tell();
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len: length,
            socket_type: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }
}
