//! The kernel's file systems, mounted before anything else runs.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::console::{error, warning};
use crate::root::Root;

/// One line of the table.
struct Mount {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
    /// Whether the directory is made when it is missing (only possible in file systems mounted before).
    make: bool,
    /// Whether a kernel without it is a normal thing.
    optional: bool,
}

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
const DATA: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

const TABLE: &[Mount] = &[
    entry("/proc", "proc", SAFE, None),
    entry("/sys", "sysfs", SAFE, None),
    // The kernel mounts it itself with CONFIG_DEVTMPFS_MOUNT; a second mount of the same one is refused as busy.
    entry("/dev", "devtmpfs", MountFlags::NOSUID, Some(c"mode=0755")),
    // gid 5 is Debian's tty group.
    made(entry(
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        Some(c"gid=5,mode=0620,ptmxmode=0666"),
    )),
    made(entry("/dev/shm", "tmpfs", DATA, Some(c"mode=1777"))),
    optional(made(entry("/dev/mqueue", "mqueue", SAFE, None))),
    entry("/run", "tmpfs", DATA, Some(c"mode=0755")),
    entry("/tmp", "tmpfs", DATA, Some(c"mode=1777")),
    // nsdelegate: a container with its own cgroup namespace may not leave its subtree.
    // memory_recursiveprot: memory.low of a parent protects its children, as every container runtime expects today.
    entry(
        "/sys/fs/cgroup",
        "cgroup2",
        SAFE,
        Some(c"nsdelegate,memory_recursiveprot"),
    ),
    optional(entry("/sys/fs/bpf", "bpf", SAFE, Some(c"mode=0700"))),
    optional(entry("/sys/kernel/security", "securityfs", SAFE, None)),
    optional(entry("/proc/sys/fs/binfmt_misc", "binfmt_misc", SAFE, None)),
];

const fn entry(
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
) -> Mount {
    Mount {
        target,
        kind,
        flags,
        data,
        make: false,
        optional: false,
    }
}

const fn made(entry: Mount) -> Mount {
    Mount { make: true, ..entry }
}

const fn optional(entry: Mount) -> Mount {
    Mount {
        optional: true,
        ..entry
    }
}

/// What udev would have made: shells and scripts rely on them.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts everything, on a root of its own. A failure is reported and passed over: with whatever is there, the machine may
/// still get as far as telling the host.
pub(crate) fn mount_all() -> Root {
    let root = Root::overlay().unwrap_or_else(|e| {
        error!("shares can be mounted only where the image has a directory: {e:#}");
        Root::default()
    });
    for entry in TABLE {
        if entry.make
            && let Err(e) = fs::create_dir_all(entry.target)
        {
            error!("cannot make the directory {}: {e}", entry.target);
        }
        match mount(entry.kind, entry.target, entry.kind, entry.flags, entry.data) {
            // Busy: it is mounted already.
            Ok(()) | Err(Errno::BUSY) => {}
            // No such file system in this kernel, or no place for it.
            Err(Errno::NODEV | Errno::NOENT) if entry.optional => {}
            Err(e) => error!("cannot mount {} on {}: {e}", entry.kind, entry.target),
        }
    }
    for (target, link) in LINKS {
        if !Path::new(link).is_symlink()
            && let Err(e) = symlink(target, link)
        {
            warning!("cannot make the link {link}: {e}");
        }
    }
    // Shared, as systemd has it: without it no container can use `rshared` volumes, and mounts made for containers do
    // not reach the ones that asked for them.
    if let Err(e) = mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC) {
        warning!("cannot make mounts shared, rshared volumes will not work: {e}");
    }
    root
}
