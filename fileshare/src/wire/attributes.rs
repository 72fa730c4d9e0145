//! What a node looks like, and changing it.

use super::codec::wire_struct;
use super::flags::{
    ATTR_CALLER_OWNS, ATTR_LOCAL_OPEN, ATTR_NO_NAMES, ATTR_SUBMOUNT, STATX_ATTR_CALLER_OWNS,
    STATX_ATTR_LOCAL_OPEN, STATX_BASIC_STATS, STATX_BTIME,
};
use crate::filesystem::{Attr, Entry};

wire_struct! {
    /// `fuse_attr`.
    pub struct FuseAttr {
        /// Inode number.
        pub ino: u64,
        /// Bytes.
        pub size: u64,
        /// 512-byte blocks.
        pub blocks: u64,
        /// Last access, in seconds since 1970.
        pub atime: i64,
        /// Last change of the contents.
        pub mtime: i64,
        /// Last change of anything.
        pub ctime: i64,
        /// Nanoseconds of `atime`.
        pub atimensec: u32,
        /// Nanoseconds of `mtime`.
        pub mtimensec: u32,
        /// Nanoseconds of `ctime`.
        pub ctimensec: u32,
        /// Type and permissions.
        pub mode: u32,
        /// Hard links.
        pub nlink: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Device number, in the kernel's 32-bit form.
        pub rdev: u32,
        /// Preferred I/O size.
        pub blksize: u32,
        /// FUSE_ATTR_*.
        pub flags: u32,
    }
}

wire_struct! {
    /// `fuse_attr_out`: the answer to GETATTR and SETATTR.
    pub struct AttrOut {
        /// How long the attributes may be cached, in seconds.
        pub attr_valid: u64,
        /// Nanoseconds of it.
        pub attr_valid_nsec: u32,
        /// Not used.
        pub dummy: u32,
        /// The attributes.
        pub attr: FuseAttr,
    }
}

wire_struct! {
    /// `fuse_entry_out`: the answer to LOOKUP and to whatever makes a node.
    pub struct EntryOut {
        /// The node.
        pub nodeid: u64,
        /// Tells reused node ids apart.
        pub generation: u64,
        /// How long the name may be cached, in seconds.
        pub entry_valid: u64,
        /// How long the attributes may be cached, in seconds.
        pub attr_valid: u64,
        /// Nanoseconds of `entry_valid`.
        pub entry_valid_nsec: u32,
        /// Nanoseconds of `attr_valid`.
        pub attr_valid_nsec: u32,
        /// The attributes.
        pub attr: FuseAttr,
    }
}

wire_struct! {
    /// `fuse_getattr_in`.
    pub struct GetattrIn {
        /// FUSE_GETATTR_*.
        pub getattr_flags: u32,
        /// Not used.
        pub dummy: u32,
        /// The handle, with FUSE_GETATTR_FH.
        pub fh: u64,
    }
}

wire_struct! {
    /// `fuse_setattr_in`.
    pub struct SetattrIn {
        /// FATTR_*: what to change.
        pub valid: u32,
        /// Not used.
        pub padding: u32,
        /// The handle, with FATTR_FH.
        pub fh: u64,
        /// With FATTR_SIZE.
        pub size: u64,
        /// With FATTR_LOCKOWNER.
        pub lock_owner: u64,
        /// With FATTR_ATIME, in seconds since 1970.
        pub atime: i64,
        /// With FATTR_MTIME.
        pub mtime: i64,
        /// With FATTR_CTIME.
        pub ctime: i64,
        /// Nanoseconds of `atime`.
        pub atimensec: u32,
        /// Nanoseconds of `mtime`.
        pub mtimensec: u32,
        /// Nanoseconds of `ctime`.
        pub ctimensec: u32,
        /// With FATTR_MODE.
        pub mode: u32,
        /// Not used.
        pub unused4: u32,
        /// With FATTR_UID.
        pub uid: u32,
        /// With FATTR_GID.
        pub gid: u32,
        /// Not used.
        pub unused5: u32,
    }
}

wire_struct! {
    /// `fuse_statx_in`.
    pub struct StatxIn {
        /// FUSE_GETATTR_*.
        pub getattr_flags: u32,
        /// Not used.
        pub reserved: u32,
        /// The handle, with FUSE_GETATTR_FH.
        pub fh: u64,
        /// AT_STATX_*.
        pub sx_flags: u32,
        /// STATX_*: what is wanted.
        pub sx_mask: u32,
    }
}

wire_struct! {
    /// `fuse_sx_time`.
    pub struct SxTime {
        /// Seconds since 1970.
        pub tv_sec: i64,
        /// Nanoseconds.
        pub tv_nsec: u32,
        /// Not used.
        pub reserved: i32,
    }
}

wire_struct! {
    /// `fuse_statx_out`, with the `fuse_statx` in it from `mask` on.
    pub struct StatxOut {
        /// How long the attributes may be cached, in seconds.
        pub attr_valid: u64,
        /// Nanoseconds of it.
        pub attr_valid_nsec: u32,
        /// Not used yet.
        pub flags: u32,
        /// Not used.
        pub spare: [u64; 2],
        /// STATX_*: what is given.
        pub mask: u32,
        /// Preferred I/O size.
        pub blksize: u32,
        /// STATX_ATTR_*.
        pub attributes: u64,
        /// Hard links.
        pub nlink: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Type and permissions.
        pub mode: u16,
        /// Not used.
        pub spare0: u16,
        /// Inode number.
        pub ino: u64,
        /// Bytes.
        pub size: u64,
        /// 512-byte blocks.
        pub blocks: u64,
        /// Which of `attributes` are known.
        pub attributes_mask: u64,
        /// Last access.
        pub atime: SxTime,
        /// Creation.
        pub btime: SxTime,
        /// Last change of anything.
        pub ctime: SxTime,
        /// Last change of the contents.
        pub mtime: SxTime,
        /// Of a device node.
        pub rdev_major: u32,
        /// Of a device node.
        pub rdev_minor: u32,
        /// Of the file system; the guest puts its own here.
        pub dev_major: u32,
        /// Of the file system.
        pub dev_minor: u32,
        /// Not used.
        pub spare2: [u64; 14],
    }
}

wire_struct! {
    /// `fuse_kstatfs`, all that is in `fuse_statfs_out`.
    pub struct Kstatfs {
        /// Size, in units of `frsize`.
        pub blocks: u64,
        /// Free.
        pub bfree: u64,
        /// Free to all.
        pub bavail: u64,
        /// Inodes.
        pub files: u64,
        /// Free ones.
        pub ffree: u64,
        /// Preferred I/O size.
        pub bsize: u32,
        /// The longest name, in bytes.
        pub namelen: u32,
        /// Unit of the sizes, in bytes.
        pub frsize: u32,
        /// Not used.
        pub padding: u32,
        /// Not used.
        pub spare: [u32; 6],
    }
}

/// Major and minor number in a `rdev` of [`FuseAttr`]: the minor's high bits lie above the major.
pub fn device_numbers(rdev: u32) -> (u32, u32) {
    ((rdev & 0xfff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xfff00))
}

fn flag(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}

fn marked(on: bool, bit: u64) -> u64 {
    if on { bit } else { 0 }
}

impl FuseAttr {
    /// `submounts`: whether the guest knows FUSE_ATTR_SUBMOUNT.
    pub fn new(attr: &Attr, submounts: bool) -> FuseAttr {
        FuseAttr {
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            atime: attr.atime.0,
            mtime: attr.mtime.0,
            ctime: attr.ctime.0,
            atimensec: attr.atime.1,
            mtimensec: attr.mtime.1,
            ctimensec: attr.ctime.1,
            mode: attr.mode,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            blksize: attr.blksize,
            flags: flag(attr.submount && submounts, ATTR_SUBMOUNT)
                | flag(attr.caller_owns, ATTR_CALLER_OWNS)
                | flag(attr.local_open, ATTR_LOCAL_OPEN)
                | flag(attr.no_names, ATTR_NO_NAMES),
        }
    }
}

impl EntryOut {
    /// As [`FuseAttr::new`].
    pub fn new(entry: &Entry, submounts: bool) -> EntryOut {
        EntryOut {
            nodeid: entry.node,
            generation: entry.generation,
            entry_valid: entry.entry_timeout.as_secs(),
            attr_valid: entry.attr_timeout.as_secs(),
            entry_valid_nsec: entry.entry_timeout.subsec_nanos(),
            attr_valid_nsec: entry.attr_timeout.subsec_nanos(),
            attr: FuseAttr::new(&entry.attr, submounts),
        }
    }
}

impl AttrOut {
    /// As [`FuseAttr::new`].
    pub fn new(attr: &Attr, timeout: std::time::Duration, submounts: bool) -> AttrOut {
        AttrOut {
            attr_valid: timeout.as_secs(),
            attr_valid_nsec: timeout.subsec_nanos(),
            dummy: 0,
            attr: FuseAttr::new(attr, submounts),
        }
    }
}

impl StatxOut {
    /// All that is known, whatever was asked for: the guest's kernel picks what it wants by `mask`.
    pub fn new(attr: &Attr, timeout: std::time::Duration) -> StatxOut {
        let time = |(tv_sec, tv_nsec)| SxTime {
            tv_sec,
            tv_nsec,
            reserved: 0,
        };
        let (rdev_major, rdev_minor) = device_numbers(attr.rdev);
        StatxOut {
            attr_valid: timeout.as_secs(),
            attr_valid_nsec: timeout.subsec_nanos(),
            mask: STATX_BASIC_STATS | if attr.btime.is_some() { STATX_BTIME } else { 0 },
            attributes: marked(attr.caller_owns, STATX_ATTR_CALLER_OWNS)
                | marked(attr.local_open, STATX_ATTR_LOCAL_OPEN),
            // Known either way. A kernel that does not know these bits does not look at them.
            attributes_mask: STATX_ATTR_CALLER_OWNS | STATX_ATTR_LOCAL_OPEN,
            blksize: attr.blksize,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            // Types and permissions are 16 bits.
            mode: attr.mode as u16,
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            atime: time(attr.atime),
            btime: time(attr.btime.unwrap_or_default()),
            ctime: time(attr.ctime),
            mtime: time(attr.mtime),
            rdev_major,
            rdev_minor,
            ..StatxOut::default()
        }
    }
}

impl From<&libc::statvfs64> for Kstatfs {
    fn from(stat: &libc::statvfs64) -> Kstatfs {
        // These three are small on every file system there is; a larger one is best told as "very large".
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Kstatfs {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: narrow(stat.f_bsize),
            namelen: narrow(stat.f_namemax),
            frsize: narrow(stat.f_frsize),
            ..Kstatfs::default()
        }
    }
}
