//! Kernel settings that containers need and a default kernel does not have.

use std::path::Path;
use std::{fs, io};

use crate::console::warning;

/// Name (under `/proc/sys`), value, and why in the comment above each.
const SETTINGS: &[(&str, &str)] = &[
    // Containers are routed to eth0.
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    // Traffic between containers of one bridge passes the firewall, which is what makes published ports and network
    // isolation work within a bridge. Only there when the kernel has bridge netfilter.
    ("net/bridge/bridge-nf-call-iptables", "1"),
    ("net/bridge/bridge-nf-call-ip6tables", "1"),
    // Containers with the host's network that do not run as root bind port 80 and send pings as those with their own
    // network do (dockerd sets both in those).
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // Every container is a neighbour; the default table is full at 1024.
    ("net/ipv4/neigh/default/gc_thresh1", "8192"),
    ("net/ipv4/neigh/default/gc_thresh2", "32768"),
    ("net/ipv4/neigh/default/gc_thresh3", "65536"),
    ("net/ipv6/neigh/default/gc_thresh1", "8192"),
    ("net/ipv6/neigh/default/gc_thresh2", "32768"),
    ("net/ipv6/neigh/default/gc_thresh3", "65536"),
    // File watchers of development servers and editors in containers share one user's limits.
    ("fs/inotify/max_user_watches", "1048576"),
    ("fs/inotify/max_user_instances", "8192"),
    // Databases with asynchronous I/O, several of them.
    ("fs/aio-max-nr", "1048576"),
    // Open files are limited per process and by memory cgroups; the default sum goes by memory and is small in small
    // guests.
    ("fs/file-max", "9223372036854775807"),
    // Search engines and JVMs map many files and refuse to start with the default of 65530.
    ("vm/max_map_count", "1048576"),
    // Redis and whatever forks with a large heap: fork must not fail for memory that is never written.
    ("vm/overcommit_memory", "1"),
    // runc makes a session keyring per container; the default of 200 keys per user is used up by as many containers.
    ("kernel/keys/maxkeys", "20000"),
    ("kernel/keys/maxbytes", "2000000"),
    // The default of 32768 process ids goes by the number of CPUs and wraps soon with many short containers.
    ("kernel/pid_max", "4194304"),
    // An oops leaves a kernel that works by chance. Restarted is better, and the host is told (panic=-1).
    ("kernel/panic_on_oops", "1"),
];

/// Applies all settings. What the running kernel does not have is passed over; what it refuses is reported.
pub(crate) fn apply_all() {
    for (name, value) in SETTINGS {
        if let Err(e) = apply(Path::new("/proc/sys"), name, value) {
            warning!("cannot set {} to {value}: {e}", name.replace('/', "."));
        }
    }
}

/// Sets one, given with slashes; one that does not exist is not an error.
pub(crate) fn apply(root: &Path, name: &str, value: &str) -> io::Result<()> {
    // Not `fs::write`: it would create the file where there is none.
    let opened = fs::OpenOptions::new().write(true).open(root.join(name));
    match opened {
        Ok(mut file) => io::Write::write_all(&mut file, value.as_bytes()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_setting_is_passed_over_and_not_made() {
        let root = tempfile::tempdir().unwrap();
        apply(root.path(), "net/missing", "1").unwrap();
        assert!(!root.path().join("net").exists());
    }

    #[test]
    fn an_existing_setting_is_written() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("x"), "").unwrap();
        apply(root.path(), "x", "7").unwrap();
        assert_eq!(fs::read_to_string(root.path().join("x")).unwrap(), "7");
    }

    #[test]
    fn no_setting_is_named_twice() {
        let mut names: Vec<_> = SETTINGS.iter().map(|s| s.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
    }
}
