//! What a request asks for.

use super::{AttrOut, EntryOut, InitOut, Kstatfs, LkOut, LseekOut, OpenOut, StatxOut, Wire, WriteOut};

macro_rules! opcodes {
    ($($(#[$meta:meta])* $name:ident = $number:literal,)*) => {
        /// `enum fuse_opcode`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Opcode { $($(#[$meta])* $name = $number,)* }

        impl Opcode {
            /// All of them.
            pub const ALL: &[Opcode] = &[$(Opcode::$name,)*];

            /// The opcode of this number; none for one that this version of FUSE does not have.
            pub fn new(number: u32) -> Option<Opcode> {
                match number {
                    $($number => Some(Opcode::$name),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    /// A name in a directory.
    Lookup = 1,
    /// The guest drops lookups. No reply.
    Forget = 2,
    /// Attributes.
    Getattr = 3,
    /// Changes attributes.
    Setattr = 4,
    /// Target of a symbolic link.
    Readlink = 5,
    /// Makes a symbolic link.
    Symlink = 6,
    /// Makes a file, FIFO, socket or device node.
    Mknod = 8,
    /// Makes a directory.
    Mkdir = 9,
    /// Removes a name.
    Unlink = 10,
    /// Removes a directory.
    Rmdir = 11,
    /// Moves.
    Rename = 12,
    /// Makes a hard link.
    Link = 13,
    /// Opens a file.
    Open = 14,
    /// Reads.
    Read = 15,
    /// Writes.
    Write = 16,
    /// About the file system.
    Statfs = 17,
    /// The last reference to an open file is gone.
    Release = 18,
    /// Makes a file durable.
    Fsync = 20,
    /// Sets an extended attribute.
    Setxattr = 21,
    /// An extended attribute.
    Getxattr = 22,
    /// Names of extended attributes.
    Listxattr = 23,
    /// Removes an extended attribute.
    Removexattr = 24,
    /// A descriptor of an open file was closed.
    Flush = 25,
    /// The session starts.
    Init = 26,
    /// Opens a directory.
    Opendir = 27,
    /// Entries of a directory.
    Readdir = 28,
    /// The last reference to an open directory is gone.
    Releasedir = 29,
    /// Makes a directory durable.
    Fsyncdir = 30,
    /// Tests for a lock.
    Getlk = 31,
    /// Takes or drops a lock.
    Setlk = 32,
    /// Takes a lock, waiting for it.
    Setlkw = 33,
    /// Checks permissions.
    Access = 34,
    /// Makes and opens a file.
    Create = 35,
    /// Ends a request that waits. No reply.
    Interrupt = 36,
    /// Block of a device.
    Bmap = 37,
    /// The session ends.
    Destroy = 38,
    /// ioctl(2).
    Ioctl = 39,
    /// poll(2).
    Poll = 40,
    /// Answer to a notification; there are none over virtio.
    NotifyReply = 41,
    /// Many of `Forget`. No reply.
    BatchForget = 42,
    /// Allocates, zeroes or frees space.
    Fallocate = 43,
    /// Entries of a directory, each with a lookup.
    Readdirplus = 44,
    /// Moves, with flags.
    Rename2 = 45,
    /// Finds data and holes.
    Lseek = 46,
    /// Copies from file to file.
    CopyFileRange = 47,
    /// Maps a part of a file into the DAX window.
    Setupmapping = 48,
    /// Takes mappings away.
    Removemapping = 49,
    /// Makes a file system durable.
    Syncfs = 50,
    /// Makes and opens a file without a name.
    Tmpfile = 51,
    /// Attributes, as statx(2) has them.
    Statx = 52,
}

impl Opcode {
    /// Whether the guest expects an answer.
    pub fn has_reply(self) -> bool {
        !matches!(
            self,
            Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::NotifyReply
        )
    }

    /// Bytes that a successful reply has at least, without its header.
    pub fn reply_size(self) -> usize {
        match self {
            Opcode::Lookup | Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Link => EntryOut::SIZE,
            Opcode::Getattr | Opcode::Setattr => AttrOut::SIZE,
            Opcode::Statx => StatxOut::SIZE,
            Opcode::Open | Opcode::Opendir => OpenOut::SIZE,
            Opcode::Create | Opcode::Tmpfile => EntryOut::SIZE + OpenOut::SIZE,
            Opcode::Write | Opcode::CopyFileRange => WriteOut::SIZE,
            Opcode::Statfs => Kstatfs::SIZE,
            Opcode::Getlk => LkOut::SIZE,
            Opcode::Lseek => LseekOut::SIZE,
            Opcode::Init => InitOut::SIZE,
            _ => 0,
        }
    }
}
