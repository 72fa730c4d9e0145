//! Requests made from arbitrary choices.

use super::input::Input;
use super::script::Known;
use crate::wire::{
    AccessIn, BatchForgetIn, CopyFileRangeIn, CreateIn, FallocateIn, FileLock, FlushIn, ForgetOne, FsyncIn,
    GetattrIn, GetxattrIn, LinkIn, LkIn, LseekIn, MkdirIn, MknodIn, Opcode, OpenIn, ReadIn, ReleaseIn,
    Rename2In, SetattrIn, SetxattrIn, SetxattrInShort, StatxIn, Wire, WriteIn,
};

/// Names that scripts use, besides arbitrary ones. Few, so that they meet.
const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"dir",
    b"file",
    b"out-file",
    b"out-dir",
    b"up",
    b"hidden",
    b"secret",
    b"c",
    b"fifo",
    b"\xff\xfe",
    b".",
    b"..",
    b"",
    b"a/b",
    b"../outside",
    b"/etc/passwd",
    b"dir/../..",
];

/// Where symbolic links of scripts point to.
const TARGETS: &[&[u8]] = &[
    b"a",
    b"..",
    b"../outside",
    b"../outside/secret",
    b"/",
    b"/proc/self/root",
    b"dir",
    b"",
    b"up/up",
];

/// Extended attributes that scripts use.
const XATTRS: &[&[u8]] = &[
    b"user.a",
    b"user.b",
    b"user.berth.owner",
    b"security.capability",
    b"system.posix_acl_access",
    b"trusted.overlay.opaque",
    b"",
];

fn name(input: &mut Input<'_>) -> Vec<u8> {
    let mut name = match input.byte() {
        0..200 => input.pick(&NAMES[..9]).to_vec(),
        200..230 => input.pick(NAMES).to_vec(),
        230..240 => vec![b'x'; 250 + usize::from(input.byte() % 10)],
        _ => {
            let length = usize::from(input.byte() % 32);
            input.bytes(length).to_vec()
        }
    };
    if input.byte() < 250 {
        name.push(0);
    }
    name
}

/// What follows the header of a request.
pub(super) fn body(opcode: Opcode, input: &mut Input<'_>, known: &Known, unique: u64) -> Vec<u8> {
    let flags = |input: &mut Input<'_>| {
        let access = input.pick(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR]);
        let more = [
            libc::O_APPEND,
            libc::O_TRUNC,
            libc::O_EXCL,
            libc::O_NONBLOCK,
            libc::O_SYNC,
            libc::O_PATH,
        ];
        let more = more.into_iter().filter(|_| input.byte() > 220).sum::<i32>();
        (access | more) as u32
    };
    // Small enough that no script fills a disk.
    let size = |input: &mut Input<'_>| u32::from(input.short()) % 8192;
    match opcode {
        Opcode::Lookup | Opcode::Unlink | Opcode::Rmdir => name(input),
        Opcode::Symlink => {
            let mut body = name(input);
            body.extend(input.pick(TARGETS));
            body.push(0);
            body
        }
        Opcode::Forget => u64::from(input.byte() % 3).to_le_bytes().to_vec(),
        Opcode::BatchForget => {
            let count = input.byte() % 4;
            let claimed = if input.byte() > 250 {
                u32::MAX
            } else {
                u32::from(count)
            };
            let mut body = BatchForgetIn {
                count: claimed,
                dummy: 0,
            }
            .to_vec();
            for _ in 0..count {
                let one = ForgetOne {
                    nodeid: known.node(input),
                    nlookup: u64::from(input.byte() % 2),
                };
                body.extend(one.to_vec());
            }
            body
        }
        Opcode::Getattr => GetattrIn {
            getattr_flags: u32::from(input.byte() & 1),
            dummy: 0,
            fh: known.handle(),
        }
        .to_vec(),
        Opcode::Statx => StatxIn {
            getattr_flags: u32::from(input.byte() & 1),
            fh: known.handle(),
            ..StatxIn::default()
        }
        .to_vec(),
        Opcode::Setattr => SetattrIn {
            valid: u32::from(input.short()),
            fh: known.handle(),
            size: input.number() % (1 << 30),
            atime: input.number() as i64,
            mtime: input.number() as i64,
            mtimensec: input.number() as u32,
            mode: u32::from(input.short()),
            uid: u32::from(input.byte()),
            gid: u32::from(input.byte()),
            ..SetattrIn::default()
        }
        .to_vec(),
        Opcode::Mknod => {
            let kind = input.pick(&[
                0,
                libc::S_IFREG,
                libc::S_IFIFO,
                libc::S_IFSOCK,
                libc::S_IFCHR,
                libc::S_IFDIR,
            ]);
            let arg = MknodIn {
                mode: kind | u32::from(input.short()) & 0o7777,
                rdev: 0x103,
                umask: 0o22,
                padding: 0,
            };
            [arg.to_vec(), name(input)].concat()
        }
        Opcode::Mkdir => {
            let arg = MkdirIn {
                mode: u32::from(input.short()),
                umask: 0o22,
            };
            [arg.to_vec(), name(input)].concat()
        }
        Opcode::Rename => [
            known.directory(input).to_le_bytes().to_vec(),
            name(input),
            name(input),
        ]
        .concat(),
        Opcode::Rename2 => {
            let arg = Rename2In {
                newdir: known.directory(input),
                flags: input.pick(&[0, 0, 1, 2, 3, 8]),
                padding: 0,
            };
            [arg.to_vec(), name(input), name(input)].concat()
        }
        Opcode::Link => {
            let arg = LinkIn {
                oldnodeid: known.node(input),
            };
            [arg.to_vec(), name(input)].concat()
        }
        Opcode::Open | Opcode::Opendir => OpenIn {
            flags: flags(input),
            open_flags: u32::from(input.byte() & 1),
        }
        .to_vec(),
        Opcode::Create | Opcode::Tmpfile => {
            let arg = CreateIn {
                flags: flags(input),
                mode: u32::from(input.short()),
                umask: 0o22,
                open_flags: u32::from(input.byte() & 1),
            };
            [arg.to_vec(), name(input)].concat()
        }
        Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => ReadIn {
            fh: known.handle(),
            offset: input.number(),
            size: size(input),
            ..ReadIn::default()
        }
        .to_vec(),
        Opcode::Write => {
            let size = size(input);
            let arg = WriteIn {
                fh: known.handle(),
                offset: input.number() % (1 << 30),
                size: if input.byte() > 250 { u32::MAX } else { size },
                write_flags: u32::from(input.byte() & 7),
                ..WriteIn::default()
            };
            [arg.to_vec(), vec![b'w'; size as usize]].concat()
        }
        Opcode::Flush => FlushIn {
            fh: known.handle(),
            lock_owner: u64::from(input.byte() & 1),
            ..FlushIn::default()
        }
        .to_vec(),
        Opcode::Fsync | Opcode::Fsyncdir => FsyncIn {
            fh: known.handle(),
            fsync_flags: u32::from(input.byte() & 1),
            padding: 0,
        }
        .to_vec(),
        Opcode::Release | Opcode::Releasedir => ReleaseIn {
            fh: known.handle(),
            release_flags: u32::from(input.byte() & 3),
            lock_owner: u64::from(input.byte() & 1),
            ..ReleaseIn::default()
        }
        .to_vec(),
        Opcode::Setxattr => {
            let value = vec![b'v'; input.byte().into()];
            let start = SetxattrInShort {
                size: value.len() as u32,
                flags: input.pick(&[0, 0, 0, 1, 2, 3]),
            };
            let mut arg = start.to_vec();
            if known.long_setxattr {
                arg = SetxattrIn {
                    start,
                    ..SetxattrIn::default()
                }
                .to_vec();
            }
            [arg, [input.pick(XATTRS), b"\0"].concat(), value].concat()
        }
        Opcode::Getxattr => {
            let arg = GetxattrIn {
                size: size(input),
                padding: 0,
            };
            [arg.to_vec(), [input.pick(XATTRS), b"\0"].concat()].concat()
        }
        Opcode::Listxattr => GetxattrIn {
            size: size(input),
            padding: 0,
        }
        .to_vec(),
        Opcode::Removexattr => [input.pick(XATTRS), b"\0"].concat(),
        Opcode::Access => AccessIn {
            mask: u32::from(input.byte() & 15),
            padding: 0,
        }
        .to_vec(),
        Opcode::Getlk | Opcode::Setlk | Opcode::Setlkw => LkIn {
            fh: known.handle(),
            owner: u64::from(input.byte() & 1),
            lk: FileLock {
                start: input.number(),
                end: input.number(),
                kind: u32::from(input.byte() % 4),
                pid: 1,
            },
            lk_flags: u32::from(input.byte() & 1),
            padding: 0,
        }
        .to_vec(),
        Opcode::Lseek => LseekIn {
            fh: known.handle(),
            offset: input.number(),
            whence: u32::from(input.byte() % 6),
            padding: 0,
        }
        .to_vec(),
        Opcode::Fallocate => FallocateIn {
            fh: known.handle(),
            offset: input.number() % (1 << 24),
            length: u64::from(size(input)),
            mode: match input.byte() {
                0..128 => 0,
                mode => u32::from(mode) & 0x7f,
            },
            padding: 0,
        }
        .to_vec(),
        Opcode::CopyFileRange => CopyFileRangeIn {
            fh_in: known.handle(),
            off_in: input.number(),
            nodeid_out: known.node(input),
            fh_out: known.other_handle(input),
            off_out: input.number() % (1 << 24),
            len: u64::from(size(input)),
            flags: 0,
        }
        .to_vec(),
        Opcode::Interrupt => unique
            .wrapping_add(u64::from(input.byte()))
            .to_le_bytes()
            .to_vec(),
        // No structure: whatever comes.
        _ => {
            let length = usize::from(input.byte() % 64);
            input.bytes(length).to_vec()
        }
    }
}
