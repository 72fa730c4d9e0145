//! The file systems that are met below the shares: which may be entered, and inode numbers that do not collide.
//!
//! A node belongs to a mount, not just to a device: a directory that is mounted again below itself would otherwise be
//! its own ancestor. Mounts are numbered in the order in which they are met.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::Statx;

use super::sys;
use crate::filesystem::{Errno, Result};

/// More mounts than this below all shares together are refused.
const MOST_MOUNTS: usize = 32_768;

/// File systems that are interfaces of the kernel rather than files, by their magic numbers (`linux/magic.h`). What
/// looks like a regular file there can be this very process's memory (`/proc/PID/mem`), so no guest gets in.
const KERNEL_INTERFACES: [(u64, &str); 14] = [
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0xcafe_4a11, "bpf"),
    (0x6265_6570, "configfs"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x4249_4e4d, "binfmt_misc"),
];

/// One mount.
#[derive(Debug)]
pub(super) struct Mount {
    /// In the order of appearance.
    pub(super) number: u32,
    /// Its device, in the order of appearance of devices.
    device: u32,
    /// It has turned out to have no user xattrs.
    pub(super) no_xattrs: AtomicBool,
}

impl Mount {
    /// The inode number that the guest sees in place of the host's: the host's own on the first device, elsewhere one
    /// that is no other device's.
    pub(super) fn ino(&self, ino: u64) -> u64 {
        const BITS: u32 = 48;
        if ino >> BITS == 0 && self.device < 1 << (63 - BITS) {
            return u64::from(self.device) << BITS | ino;
        }
        // Of 63 bits, in a range of their own: not certain to be unique, but as good as.
        let mut hasher = DefaultHasher::new();
        hasher.write_u32(self.device);
        hasher.write_u64(ino);
        1 << 63 | hasher.finish() >> 1
    }

    /// Whether ownership cannot be kept in xattrs there.
    pub(super) fn lacks_xattrs(&self) -> bool {
        self.no_xattrs.load(Ordering::Relaxed)
    }

    /// Whether the other is on the same device.
    pub(super) fn same_device(&self, other: &Mount) -> bool {
        self.device == other.device
    }
}

/// All mounts met so far.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<(u64, u64), Arc<Mount>>,
    by_number: Vec<Arc<Mount>>,
    devices: HashMap<u64, u32>,
}

impl Mounts {
    /// The mount that `st` is of, when it has been met.
    pub(super) fn find(&self, st: &Statx) -> Option<Arc<Mount>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_id.get(&key(st)).cloned()
    }

    /// The same by number.
    pub(super) fn get(&self, number: u32) -> Option<Arc<Mount>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_number.get(number as usize).cloned()
    }

    /// The mount that `st`, the attributes of `fd`, is of. EACCES for an interface of the kernel.
    pub(super) fn enter(&self, st: &Statx, fd: BorrowedFd<'_>) -> Result<Arc<Mount>> {
        if let Some(mount) = self.find(st) {
            return Ok(mount);
        }
        if kernel_interface(fd)?.is_some() {
            return Err(Errno(libc::EACCES));
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Table {
            by_id,
            by_number,
            devices,
        } = &mut *table;
        if by_number.len() >= MOST_MOUNTS {
            return Err(Errno(libc::ENFILE));
        }
        let mount = by_id.entry(key(st)).or_insert_with(|| {
            let next = devices.len() as u32;
            let device = *devices.entry(sys::device(st)).or_insert(next);
            let no_xattrs = AtomicBool::new(false);
            let mount = Arc::new(Mount {
                number: by_number.len() as u32,
                device,
                no_xattrs,
            });
            by_number.push(mount.clone());
            mount
        });
        Ok(mount.clone())
    }
}

/// Device and mount id; the latter is 0 before Linux 5.8.
fn key(st: &Statx) -> (u64, u64) {
    (sys::device(st), st.stx_mnt_id)
}

/// The name of the file system that `fd` is on when it is an interface of the kernel.
pub(super) fn kernel_interface(fd: impl AsFd) -> rustix::io::Result<Option<&'static str>> {
    let magic = rustix::fs::fstatfs(fd)?.f_type as u64;
    // The number is signed on some architectures; the magic ones have 32 bits.
    let magic = magic & 0xffff_ffff;
    Ok(KERNEL_INTERFACES
        .iter()
        .find(|(number, _)| *number == magic)
        .map(|(_, name)| *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(device: u32) -> Mount {
        Mount {
            number: 0,
            device,
            no_xattrs: AtomicBool::new(false),
        }
    }

    #[test]
    fn numbers_of_devices_do_not_collide() {
        assert_eq!(mount(0).ino(5), 5);
        assert_ne!(mount(1).ino(5), 5);
        assert_ne!(mount(1).ino(5), mount(2).ino(5));
        assert_ne!(mount(0).ino(1 << 48 | 5), mount(1).ino(5));
        assert_ne!(mount(0).ino(u64::MAX), mount(1).ino(u64::MAX));
        assert_eq!(mount(1).ino(u64::MAX), mount(1).ino(u64::MAX));
    }

    #[test]
    fn the_kernels_interfaces_are_not_entered() {
        let flags = rustix::fs::OFlags::PATH;
        let open = |path: &str| rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
        let proc = open("/proc/self");
        let mounts = Mounts::default();
        let st = sys::stat(&proc).unwrap();
        assert_eq!(mounts.enter(&st, proc.as_fd()).unwrap_err(), Errno(libc::EACCES));
        let dir = tempfile::tempdir().unwrap();
        let fine = open(dir.path().to_str().unwrap());
        let st = sys::stat(&fine).unwrap();
        assert_eq!(mounts.enter(&st, fine.as_fd()).unwrap().number, 0);
        assert_eq!(
            mounts.enter(&st, fine.as_fd()).unwrap().number,
            0,
            "the same again"
        );
        assert!(mounts.get(1).is_none());
    }
}
