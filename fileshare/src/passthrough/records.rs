//! Where ownership records are kept: in an xattr of the file, or in memory for what cannot have one.
//!
//! Symbolic links, FIFOs and sockets have no user xattrs, and some file systems have none at all: records of those last
//! as long as the session.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use rustix::fs::{Statx, XattrFlags};
use rustix::io::Errno as HostErrno;

use super::Passthrough;
use super::contents;
use super::discovery::kind;
use super::mounts::Mount;
use super::node::{Identity, Node, Privileges};
use super::ownership::{self, RECORD_MAX, RECORD_XATTR, Record, View};
use super::proc_fd::proc_path;
use super::shares::Share;
use super::sys;
use super::xattr_map::HOST_CAPABILITY;
use crate::filesystem::{Errno, Result};

/// As many records are kept in memory.
const MOST_IN_MEMORY: usize = 65_536;

/// Records that are in no xattr.
#[derive(Debug, Default)]
pub(super) struct MemoryRecords {
    records: RwLock<HashMap<Identity, Record>>,
    /// To see without the lock that there are none.
    count: AtomicUsize,
}

impl MemoryRecords {
    fn get(&self, identity: &Identity) -> Option<Record> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.records
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(identity)
            .copied()
    }

    /// ENOSPC when there are too many.
    fn put(&self, identity: &Identity, record: &Record) -> Result<()> {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        if record.is_empty() {
            records.remove(identity);
        } else if records.len() < MOST_IN_MEMORY || records.contains_key(identity) {
            records.insert(*identity, *record);
        } else {
            return Err(Errno(libc::ENOSPC));
        }
        self.count.store(records.len(), Ordering::Release);
        Ok(())
    }

    /// Of a node that is gone for good.
    pub(super) fn remove(&self, identity: &Identity) {
        if self.count.load(Ordering::Acquire) > 0 {
            // Removing cannot fail.
            let _ = self.put(identity, &Record::default());
        }
    }

    /// All of a share's.
    pub(super) fn remove_share(&self, share: u32) {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        records.retain(|identity, _| identity.share != share);
        self.count.store(records.len(), Ordering::Release);
    }
}

/// An inode of the host that a record is about.
#[derive(Clone, Copy)]
pub(super) struct Inode<'a> {
    pub(super) share: &'a Share,
    pub(super) identity: &'a Identity,
    pub(super) mount: &'a Mount,
    pub(super) fd: BorrowedFd<'a>,
    pub(super) st: &'a Statx,
}

impl Passthrough {
    /// The record of a node whose attributes are `st`; an empty one where there is none, or none that makes sense.
    pub(super) fn record(&self, node: &Node, mount: &Mount, st: &Statx, fd: impl AsFd) -> Record {
        let in_memory = || self.memory.get(&node.identity).unwrap_or_default();
        if (!node.is_file() && !node.is_dir()) || mount.lacks_xattrs() {
            return in_memory();
        }
        let last_changed = contents::change_stamp(st);
        if last_changed != contents::UNKNOWN && node.unrecorded.load(Ordering::Acquire) == last_changed {
            return Record::default();
        }
        let mut text = [0; RECORD_MAX];
        let read = self
            .proc()
            .and_then(|proc| proc.get_xattr(fd, node.is_dir(), RECORD_XATTR, &mut text));
        match read {
            Ok(length) => Record::parse(&text[..length]).unwrap_or_default(),
            Err(HostErrno::OPNOTSUPP) => {
                mount.no_xattrs.store(true, Ordering::Relaxed);
                in_memory()
            }
            Err(error) => {
                if error == HostErrno::NODATA {
                    node.unrecorded.store(last_changed, Ordering::Release);
                }
                // Absent, too long to be one, or a file that its owner may not read.
                Record::default()
            }
        }
    }

    /// The mount a node is on.
    pub(super) fn mount_of(&self, node: &Node) -> Result<std::sync::Arc<Mount>> {
        self.mounts.get(node.identity.mount).ok_or(Errno(libc::ESTALE))
    }

    /// Keeps a record of an inode. `had` says whether there may be another already.
    pub(super) fn put_record(&self, inode: &Inode<'_>, record: &Record, had: bool) -> Result<()> {
        if record.is_empty() && !had {
            return Ok(());
        }
        let Inode {
            share,
            identity,
            mount,
            fd,
            st,
        } = *inode;
        let kind = kind(st);
        if kind != libc::S_IFREG && kind != libc::S_IFDIR {
            return self.memory.put(identity, record);
        }
        if !mount.lacks_xattrs() {
            match self.write_record(fd, st, record) {
                Ok(()) => return Ok(()),
                Err(HostErrno::OPNOTSUPP) => mount.no_xattrs.store(true, Ordering::Relaxed),
                Err(error) => return Err(error.into()),
            }
        }
        self.warn(format!(
            "no user xattrs on a file system in {}: ownership set in containers there is forgotten when the machine stops",
            share.path.display()
        ));
        self.memory.put(identity, record)
    }

    fn write_record(&self, fd: BorrowedFd<'_>, st: &Statx, record: &Record) -> rustix::io::Result<()> {
        let write = || {
            if record.is_empty() {
                match rustix::fs::removexattr(proc_path(fd), RECORD_XATTR) {
                    Err(HostErrno::NODATA) => Ok(()),
                    result => result,
                }
            } else {
                let text = record.format();
                rustix::fs::setxattr(proc_path(fd), RECORD_XATTR, text.as_bytes(), XattrFlags::empty())
            }
        };
        // User xattrs need write permission, which the owner of a read-only file gives itself for the moment.
        match write() {
            Err(HostErrno::ACCESS) if st.stx_uid == rustix::process::geteuid().as_raw() => {
                let mode = u32::from(st.stx_mode) & 0o7777;
                self.proc()?.chmod(fd, mode | 0o200)?;
                let result = write();
                self.proc()?.chmod(fd, mode)?;
                result
            }
            result => result,
        }
    }

    /// Whose view attributes are shown for.
    pub(super) fn view(&self, asker: (u32, u32), st: &Statx) -> View {
        View {
            asker,
            host: (st.stx_uid, st.stx_gid),
            unowned: self.config.unowned,
        }
    }

    /// Takes setuid, setgid and capabilities from a file that is being changed; `all` says that setuid and setgid go
    /// too, which a privileged process in the guest does not lose.
    pub(super) fn drop_privileges(&self, node: &Node, fd: BorrowedFd<'_>, all: bool) -> Result<()> {
        if !node.is_file() || node.privileges() == Privileges::None {
            return Ok(());
        }
        // First: what is granted from now on is not lost sight of.
        node.set_privileges(Privileges::None);
        let result = self.drop_privileges_of(node, fd, all);
        match result {
            Ok(true) => {}
            Ok(false) => node.set_privileges(Privileges::Some),
            Err(_) => node.set_privileges(Privileges::Unknown),
        }
        result.map(|_| ())
    }

    /// Returns whether nothing is left.
    fn drop_privileges_of(&self, node: &Node, fd: BorrowedFd<'_>, all: bool) -> Result<bool> {
        let mount = self.mount_of(node)?;
        if !mount.lacks_xattrs() {
            // Asked first: removing what is not there needs permissions all the same.
            if self
                .proc()?
                .get_xattr(fd, false, HOST_CAPABILITY, &mut [])
                .is_ok()
            {
                rustix::fs::removexattr(proc_path(fd), HOST_CAPABILITY)?;
            }
        }
        let st = sys::stat(fd)?;
        let mut record = self.record(node, &mount, &st, fd);
        let Some(mode) = record.mode.filter(|mode| ownership::is_privileged(mode.shown)) else {
            return Ok(true);
        };
        if !all {
            return Ok(false);
        }
        record.set_mode(node.kind, ownership::without_privileges(mode.shown), mode.host);
        let inode = Inode {
            share: &node.share,
            identity: &node.identity,
            mount: &mount,
            fd,
            st: &st,
        };
        self.put_record(&inode, &record, true)?;
        node.unrecorded.store(contents::UNKNOWN, Ordering::Release);
        Ok(!record
            .mode
            .is_some_and(|mode| ownership::is_privileged(mode.shown)))
    }
}
