//! The agent's thread on the shared file system: a mount namespace with nothing else in it, credentials by which the
//! host's file server knows its requests, and objects by their node id.

use std::ffi::{c_int, c_long};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use anyhow::{Context, ensure};
use protocol::replay::{AGENT_UID, STAGING};
use rustix::fs::{CWD, Mode, OFlags, openat, statfs};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount, unmount};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{
    CapabilitiesSecureBits, UnshareFlags, capabilities_secure_bits, set_capabilities_secure_bits,
    unshare_unsafe,
};

use super::agent::System;
use crate::shares::FLAGS;

/// What statfs(2) says of a FUSE file system, of which virtio-fs is a kind (`FUSE_SUPER_MAGIC`).
pub(super) const FUSE: u32 = 0x6573_5546;

/// The file system, which is the root directory of this thread.
#[derive(Debug)]
pub(super) struct Mount {
    /// Its root, open for reading: Linux takes no other for opening by handle.
    root: OwnedFd,
}

impl Mount {
    /// Makes this thread the agent's, on the file system of the kind `kind` that is mounted on `mount_point`. Nothing else
    /// is mounted where the thread is from then on, and no other path leads anywhere. A thread for which this failed is
    /// good for nothing.
    ///
    /// # Errors
    /// When no such file system is mounted there, or the thread may not do this.
    pub(super) fn enter(mount_point: &Path, kind: u32) -> anyhow::Result<Mount> {
        let shown = mount_point.display();
        let there = statfs(mount_point).with_context(|| format!("cannot look at {shown}"))?;
        ensure!(
            there.f_type == i64::from(kind),
            "the host's shared file system is not mounted on {shown}"
        );
        block_signals();
        leave_all_but(mount_point)
            .with_context(|| format!("cannot have {shown} in a mount namespace alone"))?;
        // As root still: this is not one of the agent's requests.
        let root = open_root().with_context(|| format!("cannot open {shown}"))?;
        take_identity().context("cannot take on the agent's credentials")?;
        Ok(Mount { root })
    }
}

impl System for Mount {
    fn carry(&self, number: u32) -> Result<(), Errno> {
        set_id(libc::SYS_setfsgid, number)
    }

    fn open(&self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        let handle = Handle::of(node);
        // SAFETY: the call reads a handle of the length it has, which outlives the call, and takes two numbers.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                c_long::from(self.root.as_raw_fd()),
                &raw const handle,
                c_long::from(flags.bits()),
            )
        };
        match RawFd::try_from(fd) {
            // SAFETY: the call has just opened it, and nobody else knows it.
            Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(last_error()),
        }
    }

    fn staging(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.root, STAGING, flags, Mode::empty())
    }

    fn drop_caches(&self) -> Result<(), Errno> {
        // A remount that changes nothing: Linux drops the names of the file system before it looks at what is to change.
        // The root stays open, because opening it again would be seen by its watchers; Linux keeps its name in any case.
        mount_remount("/", FLAGS, c"")
    }
}

/// A file handle as FUSE file systems have it (`struct file_handle` of open_by_handle_at(2), `fuse_encode_fh` in Linux).
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: c_int,
    node_high: u32,
    node_low: u32,
    generation: u32,
}

impl Handle {
    /// `FILEID_INO64_GEN`.
    const KIND: c_int = 0x81;

    fn of(node: u64) -> Handle {
        Handle {
            bytes: 12,
            kind: Handle::KIND,
            node_high: (node >> 32) as u32,
            node_low: node as u32,
            // The file server gives a node id only once.
            generation: 0,
        }
    }
}

/// Keeps signals from this thread. One would not end it, but Linux tells the file server of a request whose process has
/// got one.
fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset fills the set in, before pthread_sigmask reads it; neither keeps it, and the old mask is not wanted.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut());
    }
}

/// Gives this thread a mount namespace in which only `mount_point` is mounted, as the root.
///
/// What is mounted on a directory of a share, by a container for example, would be in the agent's way: it could not remove
/// or rename that directory. And a copy of all the guest's mounts would keep containers' file systems and the data disk
/// from ever being unmounted.
fn leave_all_but(mount_point: &Path) -> Result<(), Errno> {
    // SAFETY: the table of descriptors stays shared. (What else is not: root and working directory.)
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    // Nothing that is mounted or unmounted here may be so elsewhere, nor the other way round.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // Once more, without what may be mounted in it.
    mount_bind(mount_point, mount_point)?;
    chdir(mount_point)?;
    // With both arguments the same, the old root lands on top of the new one (pivot_root(2)).
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}

/// Opens the root of what [`leave_all_but`] left.
fn open_root() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, "/", flags, Mode::empty())
}

/// Makes this thread's requests to file systems those of [`AGENT_UID`], with all its capabilities.
fn take_identity() -> Result<(), Errno> {
    // Without this, a change of the user takes the capabilities that concern files away.
    set_capabilities_secure_bits(capabilities_secure_bits()? | CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    set_id(libc::SYS_setfsuid, AGENT_UID)
}

/// Sets the user or the group by which file systems know this thread, with the system call `call` itself: it concerns
/// this thread only.
fn set_id(call: c_long, id: u32) -> Result<(), Errno> {
    // SAFETY: setfsuid and setfsgid take a number and return the one before.
    let set = |id: u32| unsafe { libc::syscall(call, c_long::from(id)) } as u32;
    set(id);
    // They do not say whether they did. -1 is nobody's id, so this only asks.
    if set(u32::MAX) == id {
        Ok(())
    } else {
        Err(Errno::PERM)
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::thread;

    use rustix::fs::{FileType, mknodat};
    use rustix::mount::{MountFlags, mount};

    use super::*;

    const TMPFS: u32 = 0x0102_1994;

    /// Runs `test` on a thread that has a tmpfs on the path it is given. Who may not mount gets a line that says so instead.
    fn with_tmpfs(test: impl FnOnce(&Path) + Send + 'static) {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().to_owned();
        let ran = thread::spawn(move || {
            // SAFETY: the table of descriptors stays shared.
            match unsafe { unshare_unsafe(UnshareFlags::NEWNS) } {
                Err(Errno::PERM) => return false,
                unshared => unshared.unwrap(),
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount("tmpfs", &path, "tmpfs", FLAGS, None).unwrap();
            test(&path);
            true
        });
        if !ran.join().unwrap() {
            eprintln!("not tried: it takes a process that may mount file systems");
        }
    }

    fn enter(mount_point: &Path) -> Mount {
        Mount::enter(mount_point, TMPFS).unwrap()
    }

    #[test]
    fn what_it_makes_carries_the_agents_user_and_the_number() {
        with_tmpfs(|mount_point| {
            fs::create_dir(mount_point.join(STAGING)).unwrap();
            // Closed to everybody but root.
            let closed = fs::Permissions::from_mode(0o700);
            fs::set_permissions(mount_point.join(STAGING), closed).unwrap();
            let mount = enter(mount_point);
            for number in [1, 0x7fff_ffff] {
                mount.carry(number).unwrap();
                let staging = mount.staging().unwrap();
                let name = number.to_string();
                mknodat(&staging, &name, FileType::RegularFile, Mode::RUSR, 0).unwrap();
                let made = fs::metadata(Path::new("/").join(STAGING).join(name)).unwrap();
                assert_eq!((made.uid(), made.gid()), (AGENT_UID, number));
            }
        });
    }

    #[test]
    fn nothing_but_the_file_system_is_there() {
        with_tmpfs(|mount_point| {
            let covered = mount_point.join("covered");
            fs::create_dir(&covered).unwrap();
            mount("tmpfs", &covered, "tmpfs", MountFlags::empty(), None).unwrap();
            fs::create_dir(covered.join("x")).unwrap();
            let mount = enter(mount_point);
            assert!(!Path::new("/proc/self").exists());
            assert!(!Path::new("/covered/x").exists());
            // It would be busy with something mounted on it.
            fs::remove_dir("/covered").unwrap();
            mount.drop_caches().unwrap();
            assert_eq!(mount.staging().unwrap_err(), Errno::NOENT);
        });
    }

    #[test]
    fn a_node_that_is_not_known_is_stale() {
        with_tmpfs(|mount_point| {
            let mount = enter(mount_point);
            let error = mount.open(0x1234_5678_9abc_def0, OFlags::PATH).unwrap_err();
            assert_eq!(error, Errno::STALE);
        });
    }

    #[test]
    fn another_file_system_or_none_is_refused_in_words() {
        let here = tempfile::tempdir().unwrap();
        let error = Mount::enter(here.path(), FUSE).unwrap_err();
        assert!(format!("{error:#}").contains("is not mounted on"), "{error:#}");
        let error = Mount::enter(&here.path().join("missing"), FUSE).unwrap_err();
        assert!(format!("{error:#}").contains("missing"), "{error:#}");
    }

    #[test]
    fn a_handle_is_as_linux_encodes_it() {
        let handle = Handle::of(0x0123_4567_89ab_cdef);
        assert_eq!(
            (
                handle.bytes,
                handle.kind,
                handle.node_high,
                handle.node_low,
                handle.generation
            ),
            (12, 0x81, 0x0123_4567, 0x89ab_cdef, 0)
        );
        assert_eq!(size_of::<Handle>(), 8 + 12);
    }
}
