//! Bits of requests and replies.

/// FUSE_ASYNC_READ: several reads of a file at once.
pub const ASYNC_READ: u64 = 1 << 0;
/// FUSE_POSIX_LOCKS: POSIX locks are the server's.
pub const POSIX_LOCKS: u64 = 1 << 1;
/// FUSE_FILE_OPS.
pub const FILE_OPS: u64 = 1 << 2;
/// FUSE_ATOMIC_O_TRUNC: OPEN truncates.
pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
/// FUSE_EXPORT_SUPPORT: LOOKUP of `.` and `..` works.
pub const EXPORT_SUPPORT: u64 = 1 << 4;
/// FUSE_BIG_WRITES: writes over 4 KiB.
pub const BIG_WRITES: u64 = 1 << 5;
/// FUSE_DONT_MASK: the server applies the umask.
pub const DONT_MASK: u64 = 1 << 6;
/// FUSE_SPLICE_WRITE; of the device file.
pub const SPLICE_WRITE: u64 = 1 << 7;
/// FUSE_SPLICE_MOVE; of the device file.
pub const SPLICE_MOVE: u64 = 1 << 8;
/// FUSE_SPLICE_READ; of the device file.
pub const SPLICE_READ: u64 = 1 << 9;
/// FUSE_FLOCK_LOCKS: flock locks are the server's.
pub const FLOCK_LOCKS: u64 = 1 << 10;
/// FUSE_HAS_IOCTL_DIR: ioctl on directories.
pub const HAS_IOCTL_DIR: u64 = 1 << 11;
/// FUSE_AUTO_INVAL_DATA: cached pages are dropped when size or mtime have changed.
pub const AUTO_INVAL_DATA: u64 = 1 << 12;
/// FUSE_DO_READDIRPLUS: READDIRPLUS works.
pub const DO_READDIRPLUS: u64 = 1 << 13;
/// FUSE_READDIRPLUS_AUTO: the guest decides when to use it.
pub const READDIRPLUS_AUTO: u64 = 1 << 14;
/// FUSE_ASYNC_DIO: several direct requests of a file at once.
pub const ASYNC_DIO: u64 = 1 << 15;
/// FUSE_WRITEBACK_CACHE: the guest keeps writes to itself for a while.
pub const WRITEBACK_CACHE: u64 = 1 << 16;
/// FUSE_NO_OPEN_SUPPORT: ENOSYS to OPEN means that files need no opening.
pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
/// FUSE_PARALLEL_DIROPS: several lookups and readdirs of a directory at once.
pub const PARALLEL_DIROPS: u64 = 1 << 18;
/// FUSE_HANDLE_KILLPRIV: the server drops setuid and setgid whenever a file changes.
pub const HANDLE_KILLPRIV: u64 = 1 << 19;
/// FUSE_POSIX_ACL: the guest enforces ACLs.
pub const POSIX_ACL: u64 = 1 << 20;
/// FUSE_ABORT_ERROR; of the device file.
pub const ABORT_ERROR: u64 = 1 << 21;
/// FUSE_MAX_PAGES: `max_pages` counts.
pub const MAX_PAGES: u64 = 1 << 22;
/// FUSE_CACHE_SYMLINKS: targets of symbolic links are cached.
pub const CACHE_SYMLINKS: u64 = 1 << 23;
/// FUSE_NO_OPENDIR_SUPPORT: ENOSYS to OPENDIR means that directories need no opening.
pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
/// FUSE_EXPLICIT_INVAL_DATA: cached pages are dropped only when the server says so.
pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
/// FUSE_MAP_ALIGNMENT: `map_alignment` counts.
pub const MAP_ALIGNMENT: u64 = 1 << 26;
/// FUSE_SUBMOUNTS: [`ATTR_SUBMOUNT`] is understood.
pub const SUBMOUNTS: u64 = 1 << 27;
/// FUSE_HANDLE_KILLPRIV_V2: the server drops setuid and setgid when a request says so.
pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
/// FUSE_SETXATTR_EXT: SETXATTR has its long form.
pub const SETXATTR_EXT: u64 = 1 << 29;
/// FUSE_INIT_EXT: `flags2` counts.
pub const INIT_EXT: u64 = 1 << 30;
/// FUSE_SECURITY_CTX: a security context comes with new files.
pub const SECURITY_CTX: u64 = 1 << 32;
/// FUSE_HAS_INODE_DAX: DAX for some files.
pub const HAS_INODE_DAX: u64 = 1 << 33;
/// FUSE_CREATE_SUPP_GROUP: a supplementary group comes with new files.
pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
/// FUSE_HAS_EXPIRE_ONLY; of notifications.
pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
/// FUSE_DIRECT_IO_ALLOW_MMAP: shared mappings of files opened with [`FOPEN_DIRECT_IO`].
pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
/// FUSE_PASSTHROUGH; of the device file.
pub const PASSTHROUGH: u64 = 1 << 37;
/// FUSE_NO_EXPORT_SUPPORT: the guest need not try file handles.
pub const NO_EXPORT_SUPPORT: u64 = 1 << 38;
/// FUSE_HAS_RESEND; of notifications.
pub const HAS_RESEND: u64 = 1 << 39;
/// FUSE_ALLOW_IDMAP: idmapped mounts; most requests then come without ids.
pub const ALLOW_IDMAP: u64 = 1 << 40;

/// Of berth's own guest kernel (`kernel-config/patches`): [`ATTR_CALLER_OWNS`], [`ATTR_LOCAL_OPEN`] and [`ATTR_NO_NAMES`] are
/// understood, and with [`FOPEN_NOFLUSH`], FLUSH still comes where somebody has asked for a POSIX lock.
pub const BERTH_ATTRS: u64 = 1 << 62;

/// FOPEN_DIRECT_IO: past the page cache.
pub const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// FOPEN_KEEP_CACHE: what is cached of the file stays.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// FOPEN_NONSEEKABLE.
pub const FOPEN_NONSEEKABLE: u32 = 1 << 2;
/// FOPEN_CACHE_DIR: entries of the directory are cached.
pub const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// FOPEN_STREAM.
pub const FOPEN_STREAM: u32 = 1 << 4;
/// FOPEN_NOFLUSH: no FLUSH when descriptors are closed.
pub const FOPEN_NOFLUSH: u32 = 1 << 5;
/// FOPEN_PARALLEL_DIRECT_WRITES: several direct writes of the file at once.
pub const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
/// FOPEN_PASSTHROUGH; of the device file.
pub const FOPEN_PASSTHROUGH: u32 = 1 << 7;

/// FATTR_MODE.
pub const FATTR_MODE: u32 = 1 << 0;
/// FATTR_UID.
pub const FATTR_UID: u32 = 1 << 1;
/// FATTR_GID.
pub const FATTR_GID: u32 = 1 << 2;
/// FATTR_SIZE.
pub const FATTR_SIZE: u32 = 1 << 3;
/// FATTR_ATIME.
pub const FATTR_ATIME: u32 = 1 << 4;
/// FATTR_MTIME.
pub const FATTR_MTIME: u32 = 1 << 5;
/// FATTR_FH: `fh` counts.
pub const FATTR_FH: u32 = 1 << 6;
/// FATTR_ATIME_NOW: not the time given but now.
pub const FATTR_ATIME_NOW: u32 = 1 << 7;
/// FATTR_MTIME_NOW.
pub const FATTR_MTIME_NOW: u32 = 1 << 8;
/// FATTR_LOCKOWNER: `lock_owner` counts.
pub const FATTR_LOCKOWNER: u32 = 1 << 9;
/// FATTR_CTIME; only with FUSE_WRITEBACK_CACHE.
pub const FATTR_CTIME: u32 = 1 << 10;
/// FATTR_KILL_SUIDGID: drop setuid and setgid.
pub const FATTR_KILL_SUIDGID: u32 = 1 << 11;

/// FUSE_GETATTR_FH: `fh` counts.
pub const GETATTR_FH: u32 = 1 << 0;
/// FUSE_ATTR_SUBMOUNT: the node is the root of another file system.
pub const ATTR_SUBMOUNT: u32 = 1 << 0;
/// FUSE_ATTR_CALLER_OWNS of berth's own guest kernel: the node belongs to whoever asks.
pub const ATTR_CALLER_OWNS: u32 = 1 << 30;
/// FUSE_ATTR_LOCAL_OPEN of berth's own guest kernel: opening for reading needs no OPEN while the attributes are valid.
pub const ATTR_LOCAL_OPEN: u32 = 1 << 29;
/// FUSE_ATTR_NO_NAMES of berth's own guest kernel, in a reply to MKDIR: a name that the guest has not made there itself, nor was told
/// of, does not exist.
pub const ATTR_NO_NAMES: u32 = 1 << 28;
/// The same as [`ATTR_CALLER_OWNS`], in a `fuse_statx`.
pub const STATX_ATTR_CALLER_OWNS: u64 = 1 << 62;
/// The same as [`ATTR_LOCAL_OPEN`], in a `fuse_statx`.
pub const STATX_ATTR_LOCAL_OPEN: u64 = 1 << 61;
/// FUSE_OPEN_KILL_SUIDGID: opening drops setuid and setgid.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// FUSE_RELEASE_FLUSH.
pub const RELEASE_FLUSH: u32 = 1 << 0;
/// FUSE_RELEASE_FLOCK_UNLOCK: flock locks end.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// FUSE_LK_FLOCK: a flock lock.
pub const LK_FLOCK: u32 = 1 << 0;
/// FUSE_WRITE_CACHE: from the page cache, later than whoever wrote.
pub const WRITE_CACHE: u32 = 1 << 0;
/// FUSE_WRITE_LOCKOWNER: `lock_owner` counts.
pub const WRITE_LOCKOWNER: u32 = 1 << 1;
/// FUSE_WRITE_KILL_SUIDGID: drop setuid and setgid.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// FUSE_READ_LOCKOWNER: `lock_owner` counts.
pub const READ_LOCKOWNER: u32 = 1 << 1;
/// FUSE_FSYNC_FDATASYNC: only data.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// FUSE_SETXATTR_ACL_KILL_SGID; only with FUSE_POSIX_ACL.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;

/// STATX_BASIC_STATS.
pub const STATX_BASIC_STATS: u32 = 0x7ff;
/// STATX_BTIME.
pub const STATX_BTIME: u32 = 0x800;

/// The O_* flags that OPEN, CREATE, TMPFILE and OPENDIR hand to the file system.
///
/// Left out: what has happened in the guest (O_CREAT, O_NOCTTY, O_NOFOLLOW, O_CLOEXEC), what would make another kind of
/// descriptor than was asked for (O_PATH, the bit of O_TMPFILE, O_ASYNC), and bits of the guest's kernel that are not open(2)'s
/// (it sends `__FMODE_EXEC`, 0x20, when a program is executed; openat2(2) refuses that one).
pub const OPEN_FLAGS: u32 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_DIRECT
    | libc::O_DIRECTORY
    | libc::O_DSYNC
    | libc::O_EXCL
    | libc::O_NOATIME
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_TRUNC) as u32;
