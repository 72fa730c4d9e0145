//! Sequences of requests made from arbitrary bytes: half plausible, so that they get somewhere, half hostile.

use std::sync::Arc;

use super::body::body;
use super::client::{Answer, Client, request_bytes};
use super::input::Input;
use super::ram::RamFs;
use crate::filesystem::FileSystem;
use crate::wire::{
    Dirent, Direntplus, EntryOut, InHeader, Opcode, OpenOut, OutHeader, ROOT_ID, ReleaseIn, SETXATTR_EXT,
    Wire, record_size,
};

/// What the script has been handed out so far.
pub(super) struct Known {
    nodes: Vec<u64>,
    /// Those of them that are directories, or have been.
    directories: Vec<u64>,
    /// Nodes with their handles.
    handles: Vec<(u64, u64)>,
    /// The handle for the request that is being made.
    handle: u64,
    /// SETXATTR has its long form.
    pub(super) long_setxattr: bool,
}

impl Known {
    /// A node that there is or was, seldom another.
    pub(super) fn node(&self, input: &mut Input<'_>) -> u64 {
        match input.byte() {
            250.. => input.number(),
            at => self.nodes[usize::from(at) % self.nodes.len()],
        }
    }

    /// Mostly a directory, every other time the root.
    pub(super) fn directory(&self, input: &mut Input<'_>) -> u64 {
        match input.byte() {
            0..120 => ROOT_ID,
            at @ 120..230 => self.directories[usize::from(at) % self.directories.len()],
            _ => self.node(input),
        }
    }

    /// A node and the handle to go with it: mostly one that is of it.
    fn node_and_handle(&mut self, input: &mut Input<'_>) -> u64 {
        let (node, handle) = match input.byte() {
            at @ 0..250 if !self.handles.is_empty() => self.handles[usize::from(at) % self.handles.len()],
            _ => (self.node(input), input.number()),
        };
        self.handle = handle;
        if input.byte() > 230 {
            self.node(input)
        } else {
            node
        }
    }

    /// The handle that goes with the request's node.
    pub(super) fn handle(&self) -> u64 {
        self.handle
    }

    /// A handle that need not go with anything.
    pub(super) fn other_handle(&self, input: &mut Input<'_>) -> u64 {
        let at = usize::from(input.byte());
        self.handles
            .get(at % self.handles.len().max(1))
            .map_or(0, |&(_, handle)| handle)
    }
}

/// Which requests a script makes, and how often for each: all but those that would end the session, most often those that
/// others build on.
const REQUESTS: &[(Opcode, usize)] = &[
    (Opcode::Lookup, 8),
    (Opcode::Forget, 1),
    (Opcode::BatchForget, 1),
    (Opcode::Getattr, 2),
    (Opcode::Statx, 1),
    (Opcode::Setattr, 4),
    (Opcode::Readlink, 1),
    (Opcode::Symlink, 3),
    (Opcode::Mknod, 3),
    (Opcode::Mkdir, 4),
    (Opcode::Unlink, 2),
    (Opcode::Rmdir, 2),
    (Opcode::Rename, 2),
    (Opcode::Rename2, 4),
    (Opcode::Link, 3),
    (Opcode::Open, 8),
    (Opcode::Create, 5),
    (Opcode::Tmpfile, 1),
    (Opcode::Read, 6),
    (Opcode::Write, 6),
    (Opcode::Flush, 1),
    (Opcode::Fsync, 1),
    (Opcode::Release, 2),
    (Opcode::Opendir, 3),
    (Opcode::Readdir, 2),
    (Opcode::Readdirplus, 3),
    (Opcode::Releasedir, 1),
    (Opcode::Fsyncdir, 1),
    (Opcode::Statfs, 1),
    (Opcode::Syncfs, 1),
    (Opcode::Setxattr, 4),
    (Opcode::Getxattr, 3),
    (Opcode::Listxattr, 1),
    (Opcode::Removexattr, 2),
    (Opcode::Access, 1),
    (Opcode::Getlk, 1),
    (Opcode::Setlk, 3),
    (Opcode::Setlkw, 1),
    (Opcode::Lseek, 2),
    (Opcode::Fallocate, 2),
    (Opcode::CopyFileRange, 3),
    (Opcode::Interrupt, 1),
    (Opcode::Ioctl, 1),
    (Opcode::Poll, 1),
    (Opcode::Bmap, 1),
    (Opcode::Setupmapping, 1),
    (Opcode::Removemapping, 1),
    (Opcode::NotifyReply, 1),
];

fn opcode(input: &mut Input<'_>) -> Opcode {
    let mut all = REQUESTS
        .iter()
        .flat_map(|&(opcode, weight)| std::iter::repeat_n(opcode, weight));
    let count = REQUESTS.iter().map(|(_, weight)| weight).sum::<usize>();
    all.nth(usize::from(input.byte()) % count)
        .unwrap_or(Opcode::Lookup)
}

/// Sends up to 400 requests made from `input` and calls `between` before each of them. `seen` gets every successful reply. At
/// the end all that has been handed out is given back.
pub fn run_script<F: FileSystem>(
    client: &Client<F>,
    input: &mut Input<'_>,
    mut between: impl FnMut(&mut Input<'_>),
    mut seen: impl FnMut(Opcode, &[u8]),
) {
    let mut known = Known {
        nodes: vec![ROOT_ID],
        directories: vec![ROOT_ID],
        handles: Vec::new(),
        handle: 0,
        long_setxattr: client.has(SETXATTR_EXT),
    };
    // How often each of them has been handed out.
    let mut held: Vec<(u64, u64)> = Vec::new();
    let mut open: Vec<(u64, u64, bool)> = Vec::new();
    for _ in 0..400 {
        if input.is_empty() {
            break;
        }
        between(input);
        let opcode = opcode(input);
        let node = match about(opcode) {
            About::Node => known.node(input),
            About::Name => known.directory(input),
            About::Handle => known.node_and_handle(input),
        };
        let unique = client.unique();
        let mut body = body(opcode, input, &known, unique);
        if input.byte() > 245 {
            body.truncate(usize::from(input.byte()));
        }
        let room = match input.byte() {
            0..245 => OutHeader::SIZE + 4096,
            _ => usize::from(input.short()) % 600,
        };
        if opcode == Opcode::Setlkw {
            // The only thread there is must not wait.
            let interrupt = request_bytes(Opcode::Interrupt as u32, 1, 0, &unique.to_le_bytes());
            client.send(&interrupt, 0);
        }
        let request = request_bytes(opcode as u32, unique, node, &body);
        let Answer::Success(reply) = client.send(&request, room) else {
            continue;
        };
        seen(opcode, &reply);
        for entry in entries(opcode, &reply) {
            known.nodes.push(entry.nodeid);
            if entry.attr.mode & libc::S_IFMT == libc::S_IFDIR {
                known.directories.push(entry.nodeid);
            }
            held.push((entry.nodeid, 1));
        }
        if let Some((of, handle)) = handle(opcode, node, &reply) {
            known.handles.push((of, handle));
            open.push((of, handle, opcode == Opcode::Opendir));
        }
        if let (Opcode::Release | Opcode::Releasedir, Some(release)) = (opcode, ReleaseIn::decode(&body)) {
            open.retain(|&(_, handle, _)| handle != release.fh);
        }
    }
    for (node, handle, directory) in open {
        let opcode = if directory {
            Opcode::Releasedir
        } else {
            Opcode::Release
        };
        let release = ReleaseIn {
            fh: handle,
            ..ReleaseIn::default()
        };
        // A handle that a forged request closed is an error here; that is between the guest and itself.
        let _ = client.call(opcode, node, &release.to_vec());
    }
    for (node, count) in held {
        client.tell(Opcode::Forget, node, &count.to_le_bytes());
    }
}

/// What a request's node is.
enum About {
    Node,
    /// The directory that a name is in.
    Name,
    /// Something open.
    Handle,
}

fn about(opcode: Opcode) -> About {
    match opcode {
        Opcode::Lookup
        | Opcode::Symlink
        | Opcode::Mknod
        | Opcode::Mkdir
        | Opcode::Unlink
        | Opcode::Rmdir
        | Opcode::Rename
        | Opcode::Rename2
        | Opcode::Link
        | Opcode::Create
        | Opcode::Tmpfile
        | Opcode::Opendir => About::Name,
        Opcode::Getattr
        | Opcode::Statx
        | Opcode::Setattr
        | Opcode::Read
        | Opcode::Write
        | Opcode::Flush
        | Opcode::Fsync
        | Opcode::Release
        | Opcode::Readdir
        | Opcode::Readdirplus
        | Opcode::Fsyncdir
        | Opcode::Releasedir
        | Opcode::Getlk
        | Opcode::Setlk
        | Opcode::Setlkw
        | Opcode::Lseek
        | Opcode::Fallocate
        | Opcode::CopyFileRange => About::Handle,
        _ => About::Node,
    }
}

/// The nodes with which a reply raises lookups.
fn entries(opcode: Opcode, reply: &[u8]) -> Vec<EntryOut> {
    match opcode {
        Opcode::Lookup
        | Opcode::Symlink
        | Opcode::Mknod
        | Opcode::Mkdir
        | Opcode::Link
        | Opcode::Create
        | Opcode::Tmpfile => EntryOut::decode(reply)
            .into_iter()
            .filter(|entry| entry.nodeid != 0)
            .collect(),
        Opcode::Readdirplus => records(reply, Direntplus::SIZE)
            .filter_map(Direntplus::decode)
            .map(|record| record.entry_out)
            .filter(|entry| entry.nodeid != 0)
            .collect(),
        Opcode::Readdir => {
            records(reply, Dirent::SIZE).for_each(drop);
            Vec::new()
        }
        _ => Vec::new(),
    }
}

/// The records of READDIR or READDIRPLUS. Panics when they do not fill the reply exactly or are not as they should be.
pub(crate) fn records(mut reply: &[u8], fixed: usize) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if reply.is_empty() {
            return None;
        }
        let dirent = Dirent::decode(&reply[fixed - Dirent::SIZE..]).expect("a whole record");
        let name = dirent.namelen as usize;
        let (record, rest) = reply.split_at(record_size(fixed, name));
        assert!((1..=255).contains(&name), "a name of {name} bytes");
        assert!(
            !record[fixed..fixed + name]
                .iter()
                .any(|&byte| byte == b'/' || byte == 0)
        );
        assert!(
            record[fixed + name..].iter().all(|&byte| byte == 0),
            "padding of zeros"
        );
        reply = rest;
        Some(&record[..fixed + name])
    })
}

/// The handle that a reply hands out, with the node it is of.
fn handle(opcode: Opcode, node: u64, reply: &[u8]) -> Option<(u64, u64)> {
    match opcode {
        Opcode::Open | Opcode::Opendir => Some((node, OpenOut::decode(reply)?.fh)),
        Opcode::Create | Opcode::Tmpfile => {
            let opened = OpenOut::decode(reply.get(EntryOut::SIZE..)?)?;
            Some((EntryOut::decode(reply)?.nodeid, opened.fh))
        }
        _ => None,
    }
}

/// The body of the fuzz target `request`: arbitrary bytes as requests, and a script, on a file system in memory.
pub fn fuzz_request(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let client = Client::new(Arc::new(RamFs::new()));
    if input.byte() >= 32 {
        client.init();
    }
    if input.byte() < 128 {
        run_script(&client, &mut input, |_| {}, |_, _| {});
        return;
    }
    while !input.is_empty() {
        let room = match input.byte() {
            0..128 => 4096 + OutHeader::SIZE,
            _ => usize::from(input.byte()),
        };
        let honest = input.byte() < 192;
        let length = usize::from(input.short()) % 1024;
        let mut request = input.bytes(length).to_vec();
        if honest && request.len() >= InHeader::SIZE {
            // Otherwise next to nothing would get past the first check.
            let (length, opcode) = (request.len() as u32, u32::from(request[4]) % 64);
            request[..4].copy_from_slice(&length.to_le_bytes());
            request[4..8].copy_from_slice(&opcode.to_le_bytes());
            request[38..40].fill(0);
        }
        client.send(&request, room);
    }
}
