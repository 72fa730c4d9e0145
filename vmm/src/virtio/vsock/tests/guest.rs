//! A guest for tests: sockets with the credit logic of Linux's driver on top of [`TestQueue`]s, and the worker beside them,
//! run turn by turn on one thread so that every test is repeatable.

use std::{
    collections::{HashMap, VecDeque},
    os::unix::net::UnixStream,
    sync::{Arc, mpsc},
};

use tokio::sync::oneshot;

use super::super::{
    host::{ConnectError, Shared},
    muxer::Limits,
    packet::{HEADER_SIZE, HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND, TYPE_STREAM},
    worker::{Command, Queues, Worker},
};
use crate::virtio::{
    VirtQueue,
    test_driver::{TestMachine, TestQueue},
};

pub(super) const GUEST_CID: u64 = 3;
/// What one receive buffer of Linux holds, header included.
const RX_BUFFER: u32 = 3776;
const RX_BUFFERS: usize = 64;
/// Linux's bookkeeping for each packet it queues.
const PACKET_OVERHEAD: usize = 576;
const MAX_PACKET: usize = 64 * 1024;

/// (guest port, host port)
pub(super) type Ports = (u32, u32);

/// A stream socket of the guest.
#[derive(Debug)]
pub(super) struct GuestSocket {
    pub(super) established: bool,
    /// RST has come or been sent.
    pub(super) reset: bool,
    /// SHUTDOWN flags of the host.
    pub(super) host_shutdown: u32,
    pub(super) buf_alloc: u32,
    pub(super) peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    tx_cnt: u32,
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    rx: VecDeque<(Vec<u8>, usize)>,
    pub(super) rx_bytes: usize,
}

impl GuestSocket {
    fn new(buf_alloc: u32) -> GuestSocket {
        GuestSocket {
            established: false,
            reset: false,
            host_shutdown: 0,
            buf_alloc,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            tx_cnt: 0,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            rx: VecDeque::new(),
            rx_bytes: 0,
        }
    }

    pub(super) fn space(&self) -> usize {
        let window = self.peer_buf_alloc.min(self.buf_alloc);
        window.saturating_sub(self.tx_cnt.wrapping_sub(self.peer_fwd_cnt)) as usize
    }

    /// Nothing more will come: the stream has ended for a reader.
    pub(super) fn at_end(&self) -> bool {
        self.rx_bytes == 0 && (self.reset || self.host_shutdown & SHUTDOWN_SEND != 0)
    }
}

/// The guest and the worker.
pub(super) struct Guest {
    pub(super) worker: Worker,
    pub(super) shared: Arc<Shared>,
    pub(super) rx: TestQueue,
    pub(super) tx: TestQueue,
    pub(super) event: TestQueue,
    pub(super) sockets: HashMap<Ports, GuestSocket>,
    /// Ports something listens on.
    pub(super) listening: Vec<u32>,
    /// Packets for the device, as they are to lie in memory.
    outbox: VecDeque<Vec<Vec<u8>>>,
    /// Packets that were for no socket.
    pub(super) strays: Vec<Header>,
    /// All packets that came, in order; for tests that look at them.
    pub(super) log: Vec<Header>,
    /// Sizes to cut packets into, used in turn; whole packets when empty.
    pub(super) cuts: Vec<usize>,
    next_cut: usize,
    /// Whether to give the device receive buffers.
    pub(super) refill: bool,
    pub(super) buf_alloc: u32,
    /// Whether what comes is only logged.
    pub(super) silent: bool,
}

impl Guest {
    pub(super) fn new() -> Guest {
        Guest::with(Limits::default(), 64, true)
    }

    pub(super) fn with(limits: Limits, tx_size: u16, event_idx: bool) -> Guest {
        let shared = Arc::new(Shared::new().unwrap());
        let worker = Worker::new(GUEST_CID, limits, Arc::clone(&shared)).unwrap();
        let machine = TestMachine::new();
        let mut guest = Guest {
            worker,
            shared,
            rx: machine.queue(0, 128),
            tx: machine.queue(1, tx_size),
            event: machine.queue(2, 8),

            sockets: HashMap::new(),
            listening: Vec::new(),
            outbox: VecDeque::new(),
            strays: Vec::new(),
            log: Vec::new(),
            cuts: Vec::new(),
            next_cut: 0,
            refill: true,
            buf_alloc: 256 * 1024,
            silent: false,
        };
        let queues = [
            guest.rx.device_queue_with(event_idx),
            guest.tx.device_queue_with(event_idx),
            guest.event.device_queue_with(event_idx),
        ];
        guest.activate(queues);
        guest
    }

    fn activate(&mut self, [rx, tx, event]: [VirtQueue; 3]) {
        let (done, receiver) = mpsc::sync_channel(1);
        self.shared.command(Command::Activate {
            queues: Box::new(Queues {
                rx,
                tx,
                event: Some(event),
            }),
            done,
        });
        self.worker.turn();
        receiver.recv().unwrap().unwrap();
    }

    pub(super) fn deactivate(&mut self) {
        let (done, receiver) = mpsc::sync_channel(1);
        self.shared.command(Command::Deactivate { done });
        self.worker.turn();
        receiver.recv().unwrap();
    }

    /// Asks the device for a connection.
    pub(super) fn host_connect(&mut self, port: u32) -> oneshot::Receiver<Result<UnixStream, ConnectError>> {
        let (reply, receiver) = oneshot::channel();
        self.shared.command(Command::Connect { port, reply });
        receiver
    }

    /// A connection from the host to a guest's listening port: the host's stream and the guest's ports.
    pub(super) fn connected_from_host(&mut self, port: u32) -> (UnixStream, Ports) {
        if !self.listening.contains(&port) {
            self.listening.push(port);
        }
        let before: Vec<Ports> = self.sockets.keys().copied().collect();
        let mut receiver = self.host_connect(port);
        self.settle();
        let stream = receiver.try_recv().unwrap().unwrap();
        stream.set_nonblocking(true).unwrap();
        let ports = *self.sockets.keys().find(|ports| !before.contains(ports)).unwrap();
        (stream, ports)
    }

    /// Sends REQUEST from a new socket.
    pub(super) fn guest_connect(&mut self, ports: Ports) {
        self.sockets.insert(ports, GuestSocket::new(self.buf_alloc));
        self.control(ports, Op::Request, 0);
    }

    pub(super) fn header(&mut self, (guest_port, host_port): Ports, op: Op, flags: u32, len: u32) -> Header {
        let (mut buf_alloc, mut fwd_cnt) = (0, 0);
        if let Some(socket) = self.sockets.get_mut(&(guest_port, host_port)) {
            socket.told_fwd_cnt = socket.fwd_cnt;
            (buf_alloc, fwd_cnt) = (socket.buf_alloc, socket.fwd_cnt);
        }
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len,
            socket_type: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    pub(super) fn control(&mut self, ports: Ports, op: Op, flags: u32) {
        let header = self.header(ports, op, flags, 0);
        self.post(&header, &[]);
    }

    /// Queues any packet at all.
    pub(super) fn post(&mut self, header: &Header, data: &[u8]) {
        let whole = [&header.to_bytes()[..], data].concat();
        let mut pieces = Vec::new();
        let mut rest = &whole[..];
        while !rest.is_empty() {
            let cut = if self.cuts.is_empty() || pieces.len() > 12 {
                rest.len()
            } else {
                self.next_cut += 1;
                self.cuts[self.next_cut % self.cuts.len()].clamp(1, rest.len())
            };
            let (piece, later) = rest.split_at(cut);
            pieces.push(piece.to_vec());
            rest = later;
        }
        self.outbox.push_back(pieces);
    }

    /// Sends as much of `data` as credit allows: how many bytes.
    pub(super) fn send(&mut self, ports: Ports, data: &[u8]) -> usize {
        let socket = self.sockets.get_mut(&ports).unwrap();
        assert!(socket.established && !socket.reset);
        let length = data.len().min(socket.space());
        socket.tx_cnt = socket.tx_cnt.wrapping_add(length as u32);
        for packet in data[..length].chunks(MAX_PACKET) {
            let header = self.header(ports, Op::Rw, 0, packet.len() as u32);
            self.post(&header, packet);
        }
        length
    }

    /// Reads up to `length` bytes, with Linux's rule of when to tell the host.
    pub(super) fn read(&mut self, ports: Ports, length: usize) -> Vec<u8> {
        let socket = self.sockets.get_mut(&ports).unwrap();
        let mut out = Vec::new();
        while out.len() < length
            && let Some((packet, offset)) = socket.rx.front_mut()
        {
            let now = (length - out.len()).min(packet.len() - *offset);
            out.extend(&packet[*offset..*offset + now]);
            *offset += now;
            if *offset == packet.len() {
                socket.fwd_cnt = socket.fwd_cnt.wrapping_add(packet.len() as u32);
                socket.rx.pop_front();
            }
        }
        socket.rx_bytes -= out.len();
        let delta = socket.fwd_cnt.wrapping_sub(socket.told_fwd_cnt);
        let free = socket.buf_alloc.wrapping_sub(delta);
        if delta != 0 && (free < MAX_PACKET as u32 || socket.rx_bytes == 0) && !socket.reset {
            self.control(ports, Op::CreditUpdate, 0);
        }
        out
    }

    /// One round of everything: true when something moved.
    pub(super) fn turn(&mut self) -> bool {
        let mut moved = false;
        while self.tx.take_used().is_some() {
            moved = true;
        }
        while let Some(pieces) = self.outbox.front()
            && pieces.len() <= self.tx.free_descriptors()
        {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            self.tx.offer(&pieces, &[]);
            self.outbox.pop_front();
            moved = true;
        }
        if moved {
            self.tx.kick();
        }
        if self.refill {
            let mut filled = false;
            while self.rx.free_descriptors() > self.rx_reserve() {
                self.rx.offer(&[], &[RX_BUFFER]);
                filled = true;
            }
            if filled {
                self.rx.kick();
            }
        }
        self.worker.turn();
        while let Some((head, written)) = self.rx.take_used() {
            moved = true;
            let packet = self.rx.buffer(head, 0);
            self.take(&packet[..written as usize]);
        }
        moved
    }

    fn rx_reserve(&self) -> usize {
        128 - RX_BUFFERS
    }

    /// Turns until nothing moves any more.
    pub(super) fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..1_000_000 {
            quiet = if self.turn() { 0 } else { quiet + 1 };
            if quiet == 3 {
                return;
            }
        }
        panic!("the device and the guest never come to rest");
    }

    fn take(&mut self, packet: &[u8]) {
        let header = Header::parse(packet[..HEADER_SIZE].try_into().unwrap());
        assert_eq!(packet.len(), HEADER_SIZE + header.len as usize);
        assert_eq!(header.dst_cid, GUEST_CID);
        self.log.push(header);
        if self.silent {
            return;
        }
        let ports = (header.dst_port, header.src_port);
        let op = header.operation().unwrap();
        if op == Op::Request && self.listening.contains(&header.dst_port) {
            let mut socket = GuestSocket::new(self.buf_alloc);
            socket.established = true;
            socket.peer_buf_alloc = header.buf_alloc;
            assert!(
                self.sockets.insert(ports, socket).is_none(),
                "a port pair was used twice"
            );
            self.control(ports, Op::Response, 0);
            return;
        }
        let Some(socket) = self.sockets.get_mut(&ports).filter(|socket| !socket.reset) else {
            self.strays.push(header);
            if op != Op::Rst {
                let mut reply = header.reset_reply();
                reply.src_cid = GUEST_CID;
                self.post(&reply, &[]);
            }
            return;
        };
        socket.peer_buf_alloc = header.buf_alloc;
        socket.peer_fwd_cnt = header.fwd_cnt;
        match op {
            Op::Response => socket.established = true,
            Op::Rw => {
                let data = packet[HEADER_SIZE..].to_vec();
                assert!(!data.is_empty(), "an empty packet");
                assert!(socket.host_shutdown & SHUTDOWN_SEND == 0, "data after the end");
                socket.rx_bytes += data.len();
                socket.rx.push_back((data, 0));
                let buffered: usize = socket.rx.iter().map(|(packet, _)| packet.len()).sum();
                assert!(
                    buffered <= socket.buf_alloc as usize,
                    "the device overran the guest's buffer"
                );
                assert!(
                    socket.rx.len() * PACKET_OVERHEAD <= socket.buf_alloc as usize,
                    "the device sent more packets than Linux queues"
                );
            }
            Op::Shutdown => {
                socket.host_shutdown |= header.flags;
                if socket.host_shutdown == SHUTDOWN_BOTH {
                    socket.reset = true;
                    self.control(ports, Op::Rst, 0);
                }
            }
            Op::Rst => socket.reset = true,
            Op::CreditRequest => self.control(ports, Op::CreditUpdate, 0),
            Op::CreditUpdate | Op::Request => {}
        }
    }
}

/// The byte at a place of a stream.
pub(super) fn byte(stream: u64, offset: usize) -> u8 {
    let word = (offset as u64 / 8)
        .wrapping_add(stream << 40)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (word ^ (word >> 31)).to_le_bytes()[offset % 8]
}

/// The bytes of a stream from a place on.
pub(super) fn bytes(stream: u64, offset: usize, length: usize) -> Vec<u8> {
    (offset..offset + length).map(|at| byte(stream, at)).collect()
}
