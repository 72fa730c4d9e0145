//! System calls as they are wanted here, and those that rustix does not have.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, Statx, StatxFlags, Timestamps};
use rustix::io::Errno;

use crate::filesystem::SetTime;

/// Attributes, with the time of birth and the mount where the kernel knows them.
pub(super) fn stat(fd: impl AsFd) -> rustix::io::Result<Statx> {
    stat_at(fd, c"", AtFlags::EMPTY_PATH)
}

/// The same of the name in a directory; a symbolic link is not followed.
pub(super) fn stat_name(dir: impl AsFd, name: &CStr) -> rustix::io::Result<Statx> {
    stat_at(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn stat_at(fd: impl AsFd, name: &CStr, flags: AtFlags) -> rustix::io::Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    rustix::fs::statx(fd, name, flags | AtFlags::NO_AUTOMOUNT, mask)
}

/// Device number of the file system that `st` is on.
pub(super) fn device(st: &Statx) -> u64 {
    rustix::fs::makedev(st.stx_dev_major, st.stx_dev_minor)
}

/// The name in a directory as an O_PATH descriptor; a symbolic link is not followed.
pub(super) fn open_path(dir: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        dir,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// What `setattr` says as utimensat(2) wants it.
pub(super) fn timestamps(atime: Option<SetTime>, mtime: Option<SetTime>) -> Timestamps {
    let spec = |time: Option<SetTime>| match time {
        None => rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        Some(SetTime::Now) => rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        // Not more than a second, or the number might be one of the two special ones.
        Some(SetTime::At(seconds, nanos)) => rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.min(999_999_999).into(),
        },
    };
    Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    }
}

/// getdents64(2). 0 at the end.
pub(super) fn getdents(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which is ours for the time of the call.
    let read = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            fd.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Whether a directory, of which `fd` may be an O_PATH descriptor, has nothing in it and tells large and small letters apart.
pub(super) fn is_empty_directory(fd: impl AsFd) -> io::Result<bool> {
    /// FS_CASEFOLD_FL of `linux/fs.h`.
    const CASEFOLD: u32 = 0x4000_0000;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(fd, c".", flags, Mode::empty())?;
    // What has no such flags does not fold.
    if rustix::fs::ioctl_getflags(&dir).is_ok_and(|flags| flags.bits() & CASEFOLD != 0) {
        return Ok(false);
    }
    // More than the longest name takes.
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(&dir, &mut buffer);
    while let Some(entry) = entries.next() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// statvfs64 of the file system that `fd` is on.
pub(super) fn statvfs(fd: BorrowedFd<'_>) -> io::Result<libc::statvfs64> {
    let mut out = MaybeUninit::<libc::statvfs64>::zeroed();
    // SAFETY: `out` is room for one statvfs64, which the call fills.
    if unsafe { libc::fstatvfs64(fd.as_raw_fd(), out.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero is a statvfs64, and the call has filled it in on top.
    Ok(unsafe { out.assume_init() })
}

/// A statvfs64 of nothing.
pub(super) fn empty_statvfs() -> libc::statvfs64 {
    // SAFETY: the structure is integers only, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// Closes a copy of a descriptor, for what close(2) has to say.
pub(super) fn close_copy(fd: impl AsFd) -> io::Result<()> {
    let copy = fd.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is ours alone, and nobody closes it again, whatever close(2) says.
    match unsafe { libc::close(copy.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// fcntl(2) with F_OFD_SETLK or F_OFD_GETLK: locks of an open file description, which other programs of the host see.
pub(super) fn ofd_lock(fd: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock64) -> io::Result<()> {
    // SAFETY: these commands read and write one flock64, which `lock` is.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A file handle (name_to_handle_at(2)): names an inode for as long as it exists, and its successor under the same
/// number never. The first four bytes are the type.
pub(super) type FileHandle = Box<[u8]>;

/// Room for `struct file_handle` with the longest handle there is.
#[repr(C, align(4))]
struct RawHandle {
    header: [u32; 2],
    bytes: [u8; libc::MAX_HANDLE_SZ as usize],
}

/// The handle of the name in a directory (not followed), or of the descriptor itself when the name is empty. EOPNOTSUPP
/// where the file system has none.
pub(super) fn file_handle(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<FileHandle> {
    handle_with(fd, name, 0)
}

fn handle_with(fd: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> io::Result<FileHandle> {
    let mut raw = RawHandle {
        header: [libc::MAX_HANDLE_SZ as u32, 0],
        bytes: [0; libc::MAX_HANDLE_SZ as usize],
    };
    let mut mount: libc::c_int = 0;
    let flags = flags | if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: `raw` is laid out as struct file_handle (two 32-bit numbers, then bytes) with the room its first field
    // says.
    let done = unsafe {
        let handle = std::ptr::from_mut(&mut raw).cast::<libc::file_handle>();
        libc::name_to_handle_at(fd.as_raw_fd(), name.as_ptr(), handle, &mut mount, flags)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = (raw.header[0] as usize).min(raw.bytes.len());
    Ok(raw.header[1]
        .to_ne_bytes()
        .iter()
        .chain(&raw.bytes[..length])
        .copied()
        .collect())
}

/// The handle by which fanotify(7) names what `fd` refers to: also where handles cannot be opened (AT_HANDLE_FID of
/// Linux 6.5).
pub(super) fn event_handle(fd: BorrowedFd<'_>) -> io::Result<FileHandle> {
    /// AT_HANDLE_FID of `linux/fcntl.h`.
    const HANDLE_FID: libc::c_int = 0x200;
    match file_handle(fd, c"") {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => handle_with(fd, c"", HANDLE_FID),
        result => result,
    }
}

/// The type of the file system that `fd` is on (its magic number) and its id (`f_fsid`).
pub(super) fn file_system(fd: BorrowedFd<'_>) -> io::Result<(u64, [u8; 8])> {
    let status = rustix::fs::fstatfs(fd)?;
    // SAFETY: an Fsid is two 32-bit numbers, the kernel's `__kernel_fsid_t`, for which any bytes are a value; it lets nobody
    // look at them.
    let id = unsafe { std::mem::transmute::<rustix::fs::Fsid, [u8; 8]>(status.f_fsid) };
    Ok((status.f_type as u64, id))
}

/// An O_PATH descriptor of what a handle names. EPERM without CAP_DAC_READ_SEARCH; ESTALE when it is gone.
pub(super) fn open_file_handle(mount: BorrowedFd<'_>, handle: &FileHandle) -> io::Result<OwnedFd> {
    let mut raw = RawHandle {
        header: [0; 2],
        bytes: [0; libc::MAX_HANDLE_SZ as usize],
    };
    let Some((kind, bytes)) = handle
        .split_first_chunk::<4>()
        .filter(|(_, bytes)| bytes.len() <= raw.bytes.len())
    else {
        return Err(Errno::INVAL.into());
    };
    raw.header = [bytes.len() as u32, u32::from_ne_bytes(*kind)];
    raw.bytes[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: `raw` is laid out as struct file_handle, with as many bytes as its first field says. The descriptor
    // returned is new and nobody else's.
    unsafe {
        let handle = std::ptr::from_mut(&mut raw).cast::<libc::file_handle>();
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        match libc::open_by_handle_at(mount.as_raw_fd(), handle, flags) {
            fd if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_names_the_inode_and_not_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        std::fs::write(dir.path().join("a"), b"").unwrap();
        let Ok(by_name) = file_handle(fd.as_fd(), c"a") else {
            return;
        }; // a file system without handles
        let file = open_path(&fd, c"a").unwrap();
        assert_eq!(file_handle(file.as_fd(), c"").unwrap(), by_name);
        std::fs::write(dir.path().join("b"), b"").unwrap();
        assert_ne!(file_handle(fd.as_fd(), c"b").unwrap(), by_name);
    }

    #[test]
    fn an_empty_directory_has_no_names_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        assert!(is_empty_directory(&fd).unwrap());
        for name in ["...", ".a", "-", &"n".repeat(255)] {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            assert!(!is_empty_directory(&fd).unwrap(), "{name}");
            std::fs::remove_file(path).unwrap();
        }
        assert!(is_empty_directory(&fd).unwrap());
        let file = tempfile::tempfile().unwrap();
        assert!(is_empty_directory(&file).is_err());
    }

    #[test]
    fn a_short_or_oversized_handle_is_refused() {
        let fd = rustix::fs::open("/", OFlags::RDONLY, Mode::empty()).unwrap();
        for length in [0, 3, 4 + libc::MAX_HANDLE_SZ as usize + 1] {
            let handle = vec![0; length].into_boxed_slice();
            assert_eq!(
                open_file_handle(fd.as_fd(), &handle).unwrap_err().raw_os_error(),
                Some(libc::EINVAL)
            );
        }
    }
}
