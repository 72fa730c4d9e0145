//! Requests on open files and directories.

use super::codec::wire_struct;

wire_struct! {
    /// `fuse_open_in`, of OPEN and OPENDIR.
    pub struct OpenIn {
        /// O_*.
        pub flags: u32,
        /// FUSE_OPEN_*.
        pub open_flags: u32,
    }
}

wire_struct! {
    /// `fuse_create_in`, of CREATE and TMPFILE, followed by the name.
    pub struct CreateIn {
        /// O_*.
        pub flags: u32,
        /// Permissions.
        pub mode: u32,
        /// Of who asks.
        pub umask: u32,
        /// FUSE_OPEN_*.
        pub open_flags: u32,
    }
}

wire_struct! {
    /// `fuse_open_out`.
    pub struct OpenOut {
        /// The handle.
        pub fh: u64,
        /// FOPEN_*.
        pub open_flags: u32,
        /// With FOPEN_PASSTHROUGH.
        pub backing_id: i32,
    }
}

wire_struct! {
    /// `fuse_release_in`, of RELEASE and RELEASEDIR.
    pub struct ReleaseIn {
        /// The handle.
        pub fh: u64,
        /// O_*.
        pub flags: u32,
        /// FUSE_RELEASE_*.
        pub release_flags: u32,
        /// Whose locks may end.
        pub lock_owner: u64,
    }
}

wire_struct! {
    /// `fuse_flush_in`.
    pub struct FlushIn {
        /// The handle.
        pub fh: u64,
        /// Not used.
        pub unused: u32,
        /// Not used.
        pub padding: u32,
        /// Whose POSIX locks end.
        pub lock_owner: u64,
    }
}

wire_struct! {
    /// `fuse_read_in`, of READ, READDIR and READDIRPLUS.
    pub struct ReadIn {
        /// The handle.
        pub fh: u64,
        /// Where to start: a position, or what an entry of the directory gave.
        pub offset: u64,
        /// The most bytes.
        pub size: u32,
        /// FUSE_READ_*.
        pub read_flags: u32,
        /// With FUSE_READ_LOCKOWNER.
        pub lock_owner: u64,
        /// O_* of the file.
        pub flags: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_write_in`, followed by the data.
    pub struct WriteIn {
        /// The handle.
        pub fh: u64,
        /// Position.
        pub offset: u64,
        /// Bytes.
        pub size: u32,
        /// FUSE_WRITE_*.
        pub write_flags: u32,
        /// With FUSE_WRITE_LOCKOWNER.
        pub lock_owner: u64,
        /// O_* of the file.
        pub flags: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_write_out`, of WRITE and COPY_FILE_RANGE.
    pub struct WriteOut {
        /// Bytes written.
        pub size: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_fsync_in`, of FSYNC and FSYNCDIR.
    pub struct FsyncIn {
        /// The handle.
        pub fh: u64,
        /// FUSE_FSYNC_*.
        pub fsync_flags: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_file_lock`.
    pub struct FileLock {
        /// First byte.
        pub start: u64,
        /// Last byte, inclusive.
        pub end: u64,
        /// F_RDLCK, F_WRLCK, F_UNLCK.
        pub kind: u32,
        /// The holder's process id in the guest.
        pub pid: u32,
    }
}

wire_struct! {
    /// `fuse_lk_in`, of GETLK, SETLK and SETLKW.
    pub struct LkIn {
        /// The handle.
        pub fh: u64,
        /// Whose lock.
        pub owner: u64,
        /// The lock.
        pub lk: FileLock,
        /// FUSE_LK_*.
        pub lk_flags: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_lk_out`, of GETLK.
    pub struct LkOut {
        /// The lock that stands in the way.
        pub lk: FileLock,
    }
}

wire_struct! {
    /// `fuse_lseek_in`.
    pub struct LseekIn {
        /// The handle.
        pub fh: u64,
        /// Position.
        pub offset: u64,
        /// SEEK_HOLE, SEEK_DATA.
        pub whence: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_lseek_out`.
    pub struct LseekOut {
        /// Position.
        pub offset: u64,
    }
}

wire_struct! {
    /// `fuse_fallocate_in`.
    pub struct FallocateIn {
        /// The handle.
        pub fh: u64,
        /// Position.
        pub offset: u64,
        /// Bytes.
        pub length: u64,
        /// FALLOC_FL_*.
        pub mode: u32,
        /// Not used.
        pub padding: u32,
    }
}

wire_struct! {
    /// `fuse_copy_file_range_in`. The request's node is the source.
    pub struct CopyFileRangeIn {
        /// The source's handle.
        pub fh_in: u64,
        /// Position there.
        pub off_in: u64,
        /// The destination.
        pub nodeid_out: u64,
        /// Its handle.
        pub fh_out: u64,
        /// Position there.
        pub off_out: u64,
        /// Bytes.
        pub len: u64,
        /// For copy_file_range(2); none are defined.
        pub flags: u64,
    }
}
