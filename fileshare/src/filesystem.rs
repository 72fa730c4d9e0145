//! What a file system is to the server: one method for each FUSE request, in terms of node ids and handles.
//!
//! The server ([`crate::server`]) parses requests and encodes replies; what is behind the methods knows nothing of the
//! wire. Names have been checked when they arrive here: not empty, no slash, no NUL, not `.` or `..`, at most 255 bytes.
//! Names of extended attributes are not empty and at most 255 bytes. Offsets and sizes fit into an `i64`. Open flags are
//! those of [`crate::wire::OPEN_FLAGS`], with one of the three access modes: whatever else the guest's kernel leaves in
//! there (or a hostile guest puts there) is gone.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use crate::buffers::{ReplyBuffer, RequestBuffer};

/// An error number of the host, which goes to the guest as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Errno {
        Errno(error.raw_os_error())
    }
}

/// What a method returns.
pub type Result<T> = std::result::Result<T, Errno>;

/// A node the guest knows. 1 is the root.
pub type NodeId = u64;

/// What `open`, `create` and `opendir` hand out. 0 stands for "none": the request came without an open.
pub type Handle = u64;

/// Who asks: the caller's ids in the guest and its thread id there (0 when the guest's kernel acts on nobody's behalf).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Context {
    /// fsuid.
    pub uid: u32,
    /// fsgid.
    pub gid: u32,
    /// Thread id.
    pub pid: u32,
}

/// Attributes as the guest is to see them (`struct fuse_attr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Last access: seconds since 1970 and nanoseconds.
    pub atime: (i64, u32),
    /// Last change of the contents.
    pub mtime: (i64, u32),
    /// Last change of anything.
    pub ctime: (i64, u32),
    /// Creation, where the host's file system has it.
    pub btime: Option<(i64, u32)>,
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, of a device node.
    pub rdev: u32,
    /// Preferred I/O size.
    pub blksize: u32,
    /// The node is the root of another file system (FUSE_ATTR_SUBMOUNT).
    pub submount: bool,
    /// Whoever asks is the owner: `uid` and `gid` are this caller's ([`crate::wire::ATTR_CALLER_OWNS`]).
    pub caller_owns: bool,
    /// For as long as these attributes are valid, the guest may open the file for reading, or the directory, without asking
    /// ([`crate::wire::ATTR_LOCAL_OPEN`]).
    pub local_open: bool,
    /// Of a directory that `mkdir` has just made: there is nothing in it, and the guest will be told of all that others make there
    /// ([`crate::wire::ATTR_NO_NAMES`]).
    pub no_names: bool,
}

/// An answer to `lookup` and to whatever makes a node (`struct fuse_entry_out`). Counts as one lookup of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The node; 0 for a negative entry that may be cached for `entry_timeout`.
    pub node: NodeId,
    /// Tells a reused node id apart.
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the attributes may be cached.
    pub attr_timeout: Duration,
    /// How long the name may be cached.
    pub entry_timeout: Duration,
}

/// What `open`, `create` and `opendir` answer (`struct fuse_open_out`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opened {
    /// The handle.
    pub handle: Handle,
    /// FOPEN_* flags.
    pub flags: u32,
}

/// A time that `setattr` sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The host's now.
    Now,
    /// This one.
    At(i64, u32),
}

/// What `setattr` changes; none is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change.
    pub mtime: Option<SetTime>,
    /// FATTR_KILL_SUIDGID: the change takes the setuid and setgid bits away as a write by a plain user does.
    pub kill_suidgid: bool,
}

/// One lock (`struct fuse_file_lock`), of the POSIX kind unless `flock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `i64::MAX` for the end of the file.
    pub end: u64,
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub kind: i32,
    /// The holder's process id in the guest.
    pub pid: u32,
}

/// Where `readdir` puts entries. Each method says whether the entry fitted; after one that did not, stop.
pub trait DirSink {
    /// Whether attributes are wanted with each entry (READDIRPLUS).
    fn plus(&self) -> bool;
    /// Whether an entry with this name would fit now. Asked before a lookup is made for `add_plus`, it saves the lookup.
    fn fits(&self, name: &[u8]) -> bool {
        let _ = name;
        true
    }
    /// Adds a name. `next` is the offset that continues after it; `kind` is a DT_* value.
    fn add(&mut self, ino: u64, next: u64, kind: u8, name: &[u8]) -> bool;
    /// Adds a name with its entry; only when `plus`. When it does not fit, the lookup counted in `entry` is the caller's
    /// to take back. `None` stands for "no attributes with this one" (the entry's node is then sent as 0); `.` and `..` must
    /// be added so, because the guest does not count lookups of these.
    fn add_plus(&mut self, entry: Option<&Entry>, ino: u64, next: u64, kind: u8, name: &[u8]) -> bool;
}

/// What cancels a request that waits: the guest's FUSE_INTERRUPT.
pub trait Interruption: Sync {
    /// Whether the request has been interrupted.
    fn is_interrupted(&self) -> bool;
    /// Waits until the request is interrupted, at most `timeout`. Returns whether it has been.
    fn wait(&self, timeout: Duration) -> bool {
        if !self.is_interrupted() {
            std::thread::sleep(timeout);
        }
        self.is_interrupted()
    }
}

/// A file system. All methods may be called from several threads at once.
#[allow(unused_variables, clippy::too_many_arguments)]
pub trait FileSystem: Send + Sync {
    /// The session starts. `offered` are the FUSE_* INIT flags the guest offers (64 bits, `flags` and `flags2`); returned
    /// are those to turn on, of those offered.
    fn init(&self, offered: u64) -> u64;
    /// The session ends or starts over: all nodes but the root, all handles and locks are forgotten.
    fn destroy(&self);

    /// LOOKUP.
    fn lookup(&self, ctx: &Context, parent: NodeId, name: &CStr) -> Result<Entry>;
    /// LOOKUP of `.`: the node itself, for a guest that knows it only from a file handle of its own. Counts as a lookup.
    /// Sent only when FUSE_EXPORT_SUPPORT is on.
    fn lookup_self(&self, ctx: &Context, node: NodeId) -> Result<Entry> {
        Err(Errno(libc::ESTALE))
    }
    /// LOOKUP of `..`: the directory that `node`, a directory, is in. Counts as a lookup of that directory. Sent only when
    /// FUSE_EXPORT_SUPPORT is on.
    fn lookup_parent(&self, ctx: &Context, node: NodeId) -> Result<Entry> {
        Err(Errno(libc::ESTALE))
    }
    /// FORGET: the guest drops `count` of the lookups it holds.
    fn forget(&self, node: NodeId, count: u64);
    /// GETATTR and STATX: attributes and how long they may be cached.
    fn getattr(&self, ctx: &Context, node: NodeId, handle: Option<Handle>) -> Result<(Attr, Duration)>;
    /// SETATTR.
    fn setattr(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Option<Handle>,
        set: &SetAttr,
    ) -> Result<(Attr, Duration)>;
    /// READLINK.
    fn readlink(&self, ctx: &Context, node: NodeId) -> Result<Vec<u8>>;
    /// SYMLINK.
    fn symlink(&self, ctx: &Context, parent: NodeId, name: &CStr, target: &CStr) -> Result<Entry>;
    /// MKNOD. `mode` has the type; `umask` has not been applied when FUSE_DONT_MASK is on.
    fn mknod(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> Result<Entry>;
    /// MKDIR.
    fn mkdir(&self, ctx: &Context, parent: NodeId, name: &CStr, mode: u32, umask: u32) -> Result<Entry>;
    /// UNLINK.
    fn unlink(&self, ctx: &Context, parent: NodeId, name: &CStr) -> Result<()>;
    /// RMDIR.
    fn rmdir(&self, ctx: &Context, parent: NodeId, name: &CStr) -> Result<()>;
    /// RENAME and RENAME2, with RENAME_* flags.
    fn rename(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        new_parent: NodeId,
        new_name: &CStr,
        flags: u32,
    ) -> Result<()>;
    /// LINK.
    fn link(&self, ctx: &Context, node: NodeId, new_parent: NodeId, new_name: &CStr) -> Result<Entry>;
    /// OPEN with O_* flags; `kill_suidgid` is FUSE_OPEN_KILL_SUIDGID.
    fn open(&self, ctx: &Context, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened>;
    /// CREATE.
    fn create(
        &self,
        ctx: &Context,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        flags: u32,
        umask: u32,
        kill_suidgid: bool,
    ) -> Result<(Entry, Opened)>;
    /// TMPFILE: a file without a name in `parent`.
    fn tmpfile(
        &self,
        ctx: &Context,
        parent: NodeId,
        mode: u32,
        flags: u32,
        umask: u32,
    ) -> Result<(Entry, Opened)>;
    /// READ: at most `size` bytes from `offset` straight into `into`, which has room for them; fewer only at the end of
    /// the file. Returns how many.
    fn read(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        into: &mut dyn ReplyBuffer,
    ) -> Result<usize>;
    /// WRITE: `size` bytes at `offset` straight from `from`, which has at least that many. `delayed` is FUSE_WRITE_CACHE,
    /// `kill_suidgid` is FUSE_WRITE_KILL_SUIDGID, `flags` the open flags of the file. Returns how many were written.
    fn write(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        from: &mut dyn RequestBuffer,
        delayed: bool,
        kill_suidgid: bool,
        flags: u32,
    ) -> Result<usize>;
    /// FLUSH: a descriptor of the file was closed; `lock_owner`'s POSIX locks on it end.
    fn flush(&self, ctx: &Context, node: NodeId, handle: Handle, lock_owner: u64) -> Result<()>;
    /// FSYNC; only data when `datasync`.
    fn fsync(&self, ctx: &Context, node: NodeId, handle: Handle, datasync: bool) -> Result<()>;
    /// RELEASE. `flock_owner` is given when flock locks end with it.
    fn release(&self, ctx: &Context, node: NodeId, handle: Handle, flock_owner: Option<u64>) -> Result<()>;
    /// OPENDIR.
    fn opendir(&self, ctx: &Context, node: NodeId, flags: u32) -> Result<Opened>;
    /// READDIR and READDIRPLUS from `offset` (0 is the start) until the sink is full or the directory ends.
    fn readdir(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        offset: u64,
        sink: &mut dyn DirSink,
    ) -> Result<()>;
    /// FSYNCDIR.
    fn fsyncdir(&self, ctx: &Context, node: NodeId, handle: Handle, datasync: bool) -> Result<()>;
    /// RELEASEDIR.
    fn releasedir(&self, ctx: &Context, node: NodeId, handle: Handle) -> Result<()>;
    /// STATFS.
    fn statfs(&self, ctx: &Context, node: NodeId) -> Result<libc::statvfs64>;
    /// SYNCFS.
    fn syncfs(&self, ctx: &Context, node: NodeId) -> Result<()>;
    /// SETXATTR with XATTR_* flags.
    fn setxattr(&self, ctx: &Context, node: NodeId, name: &CStr, value: &[u8], flags: u32) -> Result<()>;
    /// GETXATTR. Returns the whole value; the server deals with sizes.
    fn getxattr(&self, ctx: &Context, node: NodeId, name: &CStr) -> Result<Vec<u8>>;
    /// LISTXATTR: names, each with its NUL.
    fn listxattr(&self, ctx: &Context, node: NodeId) -> Result<Vec<u8>>;
    /// REMOVEXATTR.
    fn removexattr(&self, ctx: &Context, node: NodeId, name: &CStr) -> Result<()>;
    /// ACCESS with R_OK, W_OK, X_OK. Only when the guest does not check permissions itself.
    fn access(&self, ctx: &Context, node: NodeId, mask: u32) -> Result<()>;
    /// GETLK: the lock that stands in the way of `lock`, of kind F_UNLCK when none does.
    fn getlk(&self, ctx: &Context, node: NodeId, handle: Handle, owner: u64, lock: &Lock) -> Result<Lock>;
    /// SETLK (`waiting` none) and SETLKW: takes or drops a lock. A wait ends with EINTR when interrupted.
    fn setlk(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        owner: u64,
        lock: &Lock,
        flock: bool,
        waiting: Option<&dyn Interruption>,
    ) -> Result<()>;
    /// LSEEK with SEEK_HOLE or SEEK_DATA.
    fn lseek(&self, ctx: &Context, node: NodeId, handle: Handle, offset: u64, whence: u32) -> Result<u64>;
    /// FALLOCATE with FALLOC_FL_* in `mode`.
    fn fallocate(
        &self,
        ctx: &Context,
        node: NodeId,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<()>;
    /// COPY_FILE_RANGE. Returns how many bytes were copied.
    fn copy_file_range(
        &self,
        ctx: &Context,
        from: (NodeId, Handle, u64),
        to: (NodeId, Handle, u64),
        length: u64,
        flags: u64,
    ) -> Result<usize>;
}
