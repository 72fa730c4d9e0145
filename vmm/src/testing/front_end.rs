//! A vhost-user front end that sends anything.

use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixListener,
        unix::net::UnixStream,
    },
};

use vmm_sys_util::{
    eventfd::{EFD_NONBLOCK, EventFd},
    sock_ctrl_msg::ScmSocket,
};

use super::input::Input;
use crate::{vhost_user::VhostUserServer, virtio::rng::Rng};

const MEMORY_SIZE: u64 = 1 << 20;
/// Where the memory is for the guest, and in the front end's address space.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7f00_0000_0000;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

/// Requests of the vhost-user protocol, by their numbers.
mod request {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_OWNER: u32 = 3;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const SET_VRING_ERR: u32 = 14;
    pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const GET_CONFIG: u32 = 24;
    pub(super) const SET_CONFIG: u32 = 25;
    pub(super) const ADD_MEM_REG: u32 = 37;
    pub(super) const REM_MEM_REG: u32 = 38;
    /// More than there are.
    pub(super) const COUNT: u8 = 50;
}

struct FrontEnd {
    stream: UnixStream,
    memory: File,
    kick: EventFd,
    null: File,
    /// The server has hung up.
    closed: bool,
}

/// The body of the fuzz target `vhost_user`.
pub fn fuzz_vhost_user(bytes: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = VhostUserServer::spawn("fuzz", listener, Box::new(Rng::new())).unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_nonblocking(true).unwrap();
    let memory = tempfile::tempfile_in(directory.path()).unwrap();
    memory.set_len(MEMORY_SIZE).unwrap();
    let mut front = FrontEnd {
        stream,
        memory,
        kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        null: File::open("/dev/null").unwrap(),
        closed: false,
    };
    let mut input = Input::new(bytes);
    if !input.chance(40) {
        front.negotiate();
    }
    while !input.is_empty() && !front.closed {
        front.step(&mut input);
    }
    drop(front);
    // Fails when the server has panicked.
    server.wait().unwrap();
}

impl FrontEnd {
    /// Sends a message with descriptors, and takes what has come back.
    fn send(&mut self, request: u32, flags: u32, size: u32, body: &[u8], descriptors: &[RawFd]) {
        let header: Vec<u8> = [request, flags, size]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let message = [&header, body].concat();
        match self.stream.send_with_fds(&[message.as_slice()], descriptors) {
            Ok(_) => {}
            // The server is slow: this message is lost, or part of it, which is as good as any.
            Err(error) if error.errno() == libc::EAGAIN => std::thread::yield_now(),
            Err(_) => self.closed = true,
        }
        let mut answer = [0; 4096];
        while let Ok(count) = self.stream.read(&mut answer) {
            if count == 0 {
                self.closed = true;
                break;
            }
        }
    }

    fn plain(&mut self, request: u32, body: &[u8], descriptors: &[RawFd]) {
        self.send(request, VERSION, body.len() as u32, body, descriptors);
    }

    fn negotiate(&mut self) {
        self.plain(request::SET_OWNER, &[], &[]);
        self.plain(request::GET_FEATURES, &[], &[]);
        let features = 1u64 << 32 | 1 << 30;
        self.plain(request::SET_FEATURES, &features.to_le_bytes(), &[]);
        self.plain(request::GET_PROTOCOL_FEATURES, &[], &[]);
        // MQ, REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS.
        let features = 1u64 | 1 << 3 | 1 << 9 | 1 << 15;
        self.plain(request::SET_PROTOCOL_FEATURES, &features.to_le_bytes(), &[]);
        let table = [
            &1u32.to_le_bytes()[..],
            &[0; 4],
            &region(GUEST, MEMORY_SIZE, USER, 0),
        ]
        .concat();
        self.plain(request::SET_MEM_TABLE, &table, &[self.memory.as_raw_fd()]);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let user = |input: &mut Input<'_>| match input.byte() {
            0..160 => USER + u64::from(input.short()) * 16,
            160..220 => (USER + MEMORY_SIZE).wrapping_sub(u64::from(input.short())),
            _ => input.long(),
        };
        let ring = |input: &mut Input<'_>| {
            if input.chance(20) { input.number() } else { 0 }
        };
        let state = |ring: u32, number: u32| [ring.to_le_bytes(), number.to_le_bytes()].concat();
        match input.byte() {
            0..25 => {
                let size = if input.chance(128) {
                    1 << (input.byte() % 16)
                } else {
                    input.number()
                };
                let body = state(ring(input), size);
                self.plain(request::SET_VRING_NUM, &body, &[]);
            }
            25..55 => {
                let mut body = state(ring(input), u32::from(input.chance(10)));
                for _ in 0..4 {
                    body.extend((user(input) & !15).to_le_bytes());
                }
                self.plain(request::SET_VRING_ADDR, &body, &[]);
            }
            55..75 => {
                let body = state(ring(input), input.number());
                self.plain(request::SET_VRING_BASE, &body, &[]);
            }
            75..90 => {
                let body = state(ring(input), 0);
                self.plain(request::GET_VRING_BASE, &body, &[]);
            }
            90..125 => {
                let request = input.pick(&[
                    request::SET_VRING_KICK,
                    request::SET_VRING_CALL,
                    request::SET_VRING_ERR,
                ]);
                let body = if input.chance(20) { input.long() } else { 0 };
                let descriptor = self.descriptor(input);
                self.plain(request, &body.to_le_bytes(), &descriptor);
            }
            125..145 => {
                let body = state(ring(input), u32::from(input.byte() % 3));
                self.plain(request::SET_VRING_ENABLE, &body, &[]);
            }
            145..165 => {
                let size = if input.chance(128) {
                    u64::from(input.short()) * 4096 % (2 * MEMORY_SIZE)
                } else {
                    input.long()
                };
                let guest = if input.chance(200) {
                    GUEST + u64::from(input.byte()) * 4096
                } else {
                    input.long()
                };
                let region = region(guest, size, user(input) & !4095, u64::from(input.byte()) * 4096);
                let request =
                    input.pick(&[request::ADD_MEM_REG, request::REM_MEM_REG, request::SET_MEM_TABLE]);
                let descriptor = self.descriptor(input);
                let start = if request == request::SET_MEM_TABLE {
                    u64::from(input.byte() % 4)
                } else {
                    0
                };
                self.plain(
                    request,
                    &[&start.to_le_bytes()[..], &region].concat(),
                    &descriptor,
                );
            }
            165..185 => {
                let (offset, size) = (input.number(), input.number());
                let request = input.pick(&[request::GET_CONFIG, request::SET_CONFIG]);
                let mut body: Vec<u8> = [offset, size, 0]
                    .iter()
                    .flat_map(|word| word.to_le_bytes())
                    .collect();
                body.resize(12 + size.min(300) as usize, 7);
                self.plain(request, &body, &[]);
            }
            185..205 => {
                // What a driver puts into its rings.
                let at = u64::from(input.short()) * 16;
                let _ = std::os::unix::fs::FileExt::write_at(
                    &self.memory,
                    input.bytes(64),
                    at.min(MEMORY_SIZE - 64),
                );
                let _ = self.kick.write(1);
            }
            205..230 => {
                let request = u32::from(input.byte() % request::COUNT);
                let length = usize::from(input.byte() % 80);
                let body = input.bytes(length);
                let flags = VERSION | if input.chance(60) { NEED_REPLY } else { 0 };
                let descriptor = self.descriptor(input);
                self.send(request, flags, body.len() as u32, body, &descriptor);
            }
            _ => {
                let (request, flags, size) = (input.number(), input.number(), input.number());
                let length = usize::from(input.byte());
                let body = input.bytes(length);
                self.send(request, flags, size, body, &[]);
            }
        }
    }

    /// A descriptor for a message: mostly of a kind that makes sense somewhere, or none.
    fn descriptor(&self, input: &mut Input<'_>) -> Vec<RawFd> {
        match input.byte() {
            0..120 => vec![self.kick.as_raw_fd()],
            120..200 => vec![self.memory.as_raw_fd()],
            200..215 => vec![self.null.as_raw_fd()],
            215..230 => vec![self.memory.as_raw_fd(), self.kick.as_raw_fd()],
            _ => Vec::new(),
        }
    }
}

fn region(guest: u64, size: u64, user: u64, offset: u64) -> Vec<u8> {
    [guest, size, user, offset]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}
