//! A guest's kernel in miniature: sends requests to a server and checks the form of every reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buffers::memory::{MemoryReply, MemoryRequest};
use crate::filesystem::{Errno, FileSystem, Result};
use crate::server::Server;
use crate::wire::{InHeader, InitIn, InitInShort, InitOut, Opcode, OutHeader, Wire};

/// What untouched room is full of.
const UNTOUCHED: u8 = 0xa5;

/// A whole request.
pub fn request_bytes(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let header = InHeader {
        len: (InHeader::SIZE + body.len()) as u32,
        opcode,
        unique,
        nodeid: node,
        uid: 1000,
        gid: 1000,
        pid: 1,
        ..InHeader::default()
    };
    [&header.to_vec(), body].concat()
}

/// A guest with a session.
pub struct Client<F> {
    /// The server.
    pub server: Server<F>,
    next: AtomicU64,
    features: AtomicU64,
}

/// A reply that has been checked: nothing, or success with bytes, or an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// No reply.
    None,
    /// Success, with what follows the header.
    Success(Vec<u8>),
    /// An error.
    Error(Errno),
}

impl<F: FileSystem> Client<F> {
    /// A server for `fs` that awaits INIT.
    pub fn new(fs: Arc<F>) -> Client<F> {
        Client {
            server: Server::new(fs),
            next: AtomicU64::new(2),
            features: AtomicU64::new(0),
        }
    }

    /// The file system.
    pub fn fs(&self) -> &F {
        self.server.file_system()
    }

    /// Starts the session, offering all there is. Returns the features that are on.
    pub fn init(&self) -> u64 {
        let init = InitIn {
            start: InitInShort {
                major: 7,
                minor: 41,
                max_readahead: 131_072,
                flags: u32::MAX,
            },
            flags2: u32::MAX,
            ..InitIn::default()
        };
        let reply = self
            .call(Opcode::Init, 0, &init.to_vec())
            .expect("INIT is answered");
        let reply = InitOut::decode(&reply).expect("INIT's answer is whole");
        let features = u64::from(reply.flags) | u64::from(reply.flags2) << 32;
        self.features.store(features, Ordering::Relaxed);
        features
    }

    /// Whether this feature is on.
    pub fn has(&self, feature: u64) -> bool {
        self.features.load(Ordering::Relaxed) & feature != 0
    }

    /// A number for the next request.
    pub fn unique(&self) -> u64 {
        self.next.fetch_add(2, Ordering::Relaxed)
    }

    /// Sends a request with room for any reply. Panics when no reply comes.
    pub fn call(&self, opcode: Opcode, node: u64, body: &[u8]) -> Result<Vec<u8>> {
        self.call_with_room(opcode, node, body, 4096 + OutHeader::SIZE)
    }

    /// Sends a request with `room` bytes for header and reply.
    pub fn call_with_room(&self, opcode: Opcode, node: u64, body: &[u8], room: usize) -> Result<Vec<u8>> {
        let request = request_bytes(opcode as u32, self.unique(), node, body);
        match self.send(&request, room) {
            Answer::Success(bytes) => Ok(bytes),
            Answer::Error(error) => Err(error),
            Answer::None => panic!("{opcode:?} got no reply"),
        }
    }

    /// Sends a request and takes the structure at the start of its reply.
    pub fn get<T: Wire>(&self, opcode: Opcode, node: u64, body: &[u8]) -> Result<T> {
        let reply = self.call(opcode, node, body)?;
        Ok(T::decode(&reply).expect("the reply is whole"))
    }

    /// Sends a request that has no reply.
    pub fn tell(&self, opcode: Opcode, node: u64, body: &[u8]) {
        let request = request_bytes(opcode as u32, self.unique(), node, body);
        assert_eq!(self.send(&request, 4096), Answer::None, "{opcode:?}");
    }

    /// Sends bytes that need not be a request, with `room` bytes for the reply. Panics when the reply is not of the form
    /// that every reply has.
    pub fn send(&self, request: &[u8], room: usize) -> Answer {
        let mut memory = vec![UNTOUCHED; room];
        let written = self
            .server
            .handle(MemoryRequest::new(request), MemoryReply::new(&mut memory));
        let sent = InHeader::decode(request).unwrap_or_default();
        let opcode = Opcode::new(sent.opcode);
        if written == 0 {
            let unanswered = opcode.is_some_and(|opcode| !opcode.has_reply()) || room < OutHeader::SIZE;
            assert!(unanswered, "no reply to {opcode:?}");
            assert!(
                memory.iter().all(|&byte| byte == UNTOUCHED),
                "a reply of no bytes"
            );
            return Answer::None;
        }
        assert!(written <= room, "{written} bytes of reply in {room} of room");
        let header = OutHeader::decode(&memory).expect("a reply starts with a header");
        assert_eq!(header.len as usize, written, "{opcode:?}");
        assert_eq!(header.unique, sent.unique, "{opcode:?}");
        if header.error != 0 {
            assert!((-511..0).contains(&header.error), "{opcode:?}: {}", header.error);
            assert_eq!(written, OutHeader::SIZE, "{opcode:?}: an error with data");
            return Answer::Error(Errno(-header.error));
        }
        // Room that a file was read into and then not used may differ; nothing writes so far as this without reading.
        let reply = memory[OutHeader::SIZE..written].to_vec();
        let opcode = opcode.expect("success of something unknown");
        assert!(
            reply.len() >= opcode.reply_size(),
            "{opcode:?}: {} bytes",
            reply.len()
        );
        if opcode.reply_size() > 0 {
            assert_eq!(reply.len(), opcode.reply_size(), "{opcode:?}");
        }
        Answer::Success(reply)
    }
}
