//! `/proc/self/fd`, through which O_PATH descriptors become usable ones.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Access, AtFlags, Mode, OFlags, Timestamps};
use rustix::io::Errno;
use rustix::path::DecInt;

/// PROC_SUPER_MAGIC.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// A descriptor of `/proc/self/fd`, through which O_PATH descriptors become usable ones.
///
/// Kept open so that it works however the process restricts itself later. It belongs to the process that opened it: a
/// process that forks must open another.
#[derive(Debug)]
pub(super) struct ProcFd {
    dir: OwnedFd,
    /// getxattrat(2) turned out not to be there.
    no_getxattrat: AtomicBool,
}

impl ProcFd {
    /// Opens it. ENOSYS when `/proc` is not there or is not procfs.
    pub(super) fn open() -> io::Result<ProcFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        if rustix::fs::fstatfs(&fd)?.f_type as u64 != PROC_SUPER_MAGIC {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        Ok(ProcFd {
            dir: fd,
            no_getxattrat: AtomicBool::new(false),
        })
    }

    /// Opens what `fd` refers to anew. The caller has made sure that it is a regular file or a directory: opening a
    /// FIFO blocks, opening a device does whatever its driver does.
    pub(super) fn reopen(&self, fd: impl AsFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = (flags | OFlags::CLOEXEC) - OFlags::NOFOLLOW;
        rustix::fs::openat(&self.dir, DecInt::from_fd(fd), flags, Mode::empty())
    }

    /// chmod(2) of what `fd` refers to.
    pub(super) fn chmod(&self, fd: impl AsFd, mode: u32) -> rustix::io::Result<()> {
        rustix::fs::chmodat(
            &self.dir,
            DecInt::from_fd(fd),
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )
    }

    /// utimensat(2) of what `fd` refers to.
    pub(super) fn set_times(&self, fd: impl AsFd, times: &Timestamps) -> rustix::io::Result<()> {
        rustix::fs::utimensat(&self.dir, DecInt::from_fd(fd), times, AtFlags::empty())
    }

    /// linkat(2): another name for what `fd` refers to.
    pub(super) fn link(&self, fd: impl AsFd, dir: impl AsFd, name: &CStr) -> rustix::io::Result<()> {
        rustix::fs::linkat(&self.dir, DecInt::from_fd(fd), dir, name, AtFlags::SYMLINK_FOLLOW)
    }

    /// access(2), as this process.
    pub(super) fn access(&self, fd: impl AsFd, access: Access) -> rustix::io::Result<()> {
        rustix::fs::accessat(&self.dir, DecInt::from_fd(fd), access, AtFlags::EACCESS)
    }

    /// getxattr(2) of what `fd`, an O_PATH descriptor, refers to; `dir` when that is a directory.
    ///
    /// For most files this is asked once, to learn that they have none; it is what makes a lookup expensive.
    pub(super) fn get_xattr(
        &self,
        fd: impl AsFd,
        dir: bool,
        name: &CStr,
        value: &mut [u8],
    ) -> rustix::io::Result<usize> {
        if !self.no_getxattrat.load(Ordering::Relaxed) {
            // Half the price, when the directory may be entered.
            let direct = if dir {
                getxattrat(fd.as_fd(), c".", name, value)
            } else {
                Err(Errno::ACCESS)
            };
            let result = match direct {
                Err(Errno::ACCESS) => {
                    getxattrat(self.dir.as_fd(), DecInt::from_fd(&fd).as_c_str(), name, value)
                }
                result => result,
            };
            if result != Err(Errno::NOSYS) {
                return result;
            }
            self.no_getxattrat.store(true, Ordering::Relaxed);
        }
        rustix::fs::getxattr(proc_path(fd), name, value)
    }
}

/// getxattrat(2), of Linux 6.13.
fn getxattrat(dir: BorrowedFd<'_>, path: &CStr, name: &CStr, value: &mut [u8]) -> rustix::io::Result<usize> {
    /// The same number on all architectures that rustix knows.
    const SYS_GETXATTRAT: libc::c_long = 464;
    /// struct xattr_args.
    #[repr(C, align(8))]
    struct Arguments {
        value: u64,
        size: u32,
        flags: u32,
    }
    let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let mut arguments = Arguments {
        value: value.as_mut_ptr() as u64,
        size,
        flags: 0,
    };
    // SAFETY: path and name are strings with a NUL at the end. The kernel writes at most `size` bytes, of which there
    // are as many, to `value`, which is ours for the time of the call.
    let length = unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            dir.as_raw_fd(),
            path.as_ptr(),
            0,
            name.as_ptr(),
            std::ptr::from_mut(&mut arguments),
            size_of::<Arguments>(),
        )
    };
    usize::try_from(length)
        .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// The path under which calls without an `at` form reach what `fd` refers to.
pub(super) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passthrough::sys;

    #[test]
    fn xattrs_are_read_with_the_new_call_and_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let file = sys::open_path(&fd, c"file").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(proc_path(&file), c"user.test", b"value", flags).unwrap();
        let proc = ProcFd::open().unwrap();
        for old in [false, true] {
            proc.no_getxattrat.fetch_or(old, Ordering::Relaxed);
            let mut value = [0; 10];
            assert_eq!(proc.get_xattr(&file, false, c"user.test", &mut value), Ok(5));
            assert_eq!(&value, b"value\0\0\0\0\0");
            assert_eq!(
                proc.get_xattr(&file, false, c"user.test", &mut value[..3]),
                Err(Errno::RANGE)
            );
            assert_eq!(
                proc.get_xattr(&file, false, c"user.none", &mut value),
                Err(Errno::NODATA)
            );
            assert_eq!(
                proc.get_xattr(&fd, true, c"user.none", &mut []),
                Err(Errno::NODATA)
            );
        }
    }
}
