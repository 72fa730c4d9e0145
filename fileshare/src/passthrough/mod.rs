//! The file system on directories of the host, for a server without privileges.
//!
//! # Confinement
//!
//! Nothing outside the shares can be reached, whatever the guest sends. Everything starts at a node the guest has
//! looked up and goes at most one name further, against an O_PATH descriptor, never following a symbolic link
//! (`resolve`); `..` does not exist. Only regular files and directories are ever opened. Mount points below a share are
//! entered, as users expect, unless what is mounted is an interface of the kernel (proc, sysfs, …: `mounts`). What is a
//! hard link to something outside is an ordinary file of the share: the host's user has put it there. A directory that
//! the host moves out of a share stays reachable for a guest that has it open, as on the host itself.
//!
//! Exclusions are names: what is excluded cannot be seen, made or moved, nor can what leads to it be moved, but a hard
//! link to it elsewhere, or the same thing after the host has given it another name, is not excluded (`exclusions`).
//!
//! # Ownership
//!
//! On the host everything belongs to the host's user. What the guest sets is kept in the xattr `user.berth.owner` of
//! files and directories and shown back, and in memory for what can have no such xattr (`records`). The rules, in full:
//!
//! 1. Owner and group are those that a chown of a guest's has set. Where none has, they are those of whoever asks
//!    ([`Unowned::Asker`]), so that root in one container and a user in another both find their own files, and programs
//!    that check (git's `safe.directory`, ssh) are content.
//! 2. What a user other than root makes, and what anybody makes in a directory that has an owner by rule 1, gets its
//!    maker as owner. So PostgreSQL's files in a data directory chowned to it are PostgreSQL's, root looking or not.
//! 3. Group and setgid are inherited from a setgid directory.
//! 4. A chmod also changes the mode on the host, but never takes the host's user its access (u+rw, and u+x on
//!    directories) and never makes anything setuid or setgid there. Where the host's mode cannot say what the guest
//!    set, the record does, together with the host's mode of that moment; when the host's is another one later,
//!    somebody has changed it on the host since, and the host's permissions are shown (without setuid and setgid).
//! 5. setuid and setgid of a file on the host are not shown: they are meant for the host's user, not for whoever asks.
//!    Setting them in the guest gives the file an owner, if it has none.
//! 6. Writing, truncating and chown take setuid and setgid away when the guest's kernel says so
//!    (FUSE_HANDLE_KILLPRIV_V2), and file capabilities (kept as `user.berth.security.capability`) always.
//! 7. Device nodes are refused (EPERM). FIFOs and sockets are made on the host, and never opened here.
//!
//! Who checks permissions? Linux mounts virtio-fs with `default_permissions`, always: the guest's kernel decides from
//! the attributes it has cached, and refreshes them once, on behalf of whoever asks, before it refuses. So any process
//! may do what the owner may with a file that has no owner, and to a file that has one what its mode says. Then the
//! host decides what the server's own user may do. For guests that do not check themselves there is
//! [`access`](crate::filesystem::FileSystem::access).
//!
//! The guest's kernel keeps one set of attributes for each inode, whoever asked: what rule 1 shows to one it would show
//! to the next. So what has no owner is cached only while one uid looks at a share, and a user's first request after
//! another's waits, a second at most, until what the other was shown has expired (`viewers`). What is left: a process
//! that is served from the guest's caches alone, and root after a user, may see the other's uid for one attribute
//! timeout.
//!
//! # Descriptors and memory
//!
//! Descriptors do not grow with what the guest has looked up: O_PATH ones are a bounded cache (`fd_cache`), and the rest
//! is what the guest has open, bounded as well (`config`). What does grow is a node of less than 300 bytes for each
//! inode.

mod attributes;
mod calls;
pub mod coherence;
mod config;
mod contents;
mod directory;
mod discovery;
mod exclusions;
mod fd_cache;
mod handles;
mod inode_store;
mod locks;
mod mounts;
mod node;
mod ownership;
mod proc_fd;
mod records;
mod resolve;
mod shares;
mod sys;
mod viewers;
mod xattr_map;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Resource;

pub use config::{CachePolicy, PassthroughConfig, ShareConfig, Unowned};

use crate::filesystem::{Errno, NodeId};
use crate::wire::ROOT_ID;
use coherence::Watcher;
use config::Budget;
use directory::OpenDir;
use fd_cache::FdCache;
use handles::{Handles, OpenFile};
use inode_store::InodeStore;
use locks::Locks;
use mounts::Mounts;
use node::{Node, Seed};
use proc_fd::ProcFd;
use records::MemoryRecords;
use shares::{Listed, Share, Shares};

/// Directories of the host as one file system of the guest.
///
/// Belongs to the process that added its first share: a process that forks adds shares afterwards.
#[derive(Debug)]
pub struct Passthrough {
    config: PassthroughConfig,
    /// From the first share on.
    proc: OnceLock<ProcFd>,
    store: InodeStore,
    shares: Shares,
    mounts: Mounts,
    memory: MemoryRecords,
    paths: FdCache<NodeId, OwnedFd>,
    files: Handles<OpenFile>,
    dirs: Handles<OpenDir>,
    /// Files opened for requests without a handle; true for writing.
    transient_files: FdCache<(NodeId, bool), OpenFile>,
    /// Directories opened for requests without a handle.
    transient_dirs: FdCache<NodeId, OpenDir>,
    locks: Locks,
    warnings: Mutex<BTreeSet<String>>,
    /// Watches what the guest knows, when that is wanted.
    watcher: OnceLock<Arc<Watcher>>,
    /// The guest's kernel understands [`crate::wire::BERTH_ATTRS`].
    marks: AtomicBool,
    /// The guest understands submounts.
    submounts: AtomicBool,
    /// Attributes depend on who asks, and are cached.
    asker_matters: bool,
    /// When time began, for [`Passthrough::now`].
    start: Instant,
}

impl Passthrough {
    /// One share, whose root is the root of the file system.
    ///
    /// Fails when the directory cannot be opened, when `exclude` makes no sense, or when there is no `/proc`.
    pub fn single(share: ShareConfig, config: PassthroughConfig) -> io::Result<Passthrough> {
        let passthrough = Passthrough::new(config, false);
        passthrough.add(Some(ROOT_ID), "", share)?;
        Ok(passthrough)
    }

    /// Any number of shares, each a directory of the root under its id. None at first.
    pub fn multiple(config: PassthroughConfig) -> Passthrough {
        Passthrough::new(config, true)
    }

    fn new(config: PassthroughConfig, several: bool) -> Passthrough {
        let limit = rustix::process::getrlimit(Resource::Nofile).current;
        let budget = Budget::of(config.descriptors.or(limit).unwrap_or(u64::MAX));
        let open = Arc::new(AtomicUsize::new(0));
        Passthrough {
            config,
            proc: OnceLock::new(),
            store: InodeStore::new(budget.pinned),
            shares: Shares::new(several),
            mounts: Mounts::default(),
            memory: MemoryRecords::default(),
            paths: FdCache::new(budget.paths),
            files: Handles::new(budget.handles, open.clone()),
            dirs: Handles::new(budget.handles, open),
            transient_files: FdCache::new(budget.transient),
            transient_dirs: FdCache::new(budget.transient),
            locks: Locks::new(budget.locks),
            warnings: Mutex::default(),
            watcher: OnceLock::new(),
            marks: AtomicBool::new(false),
            submounts: AtomicBool::new(false),
            asker_matters: config.unowned == Unowned::Asker && !config.attr_timeout.is_zero(),
            start: Instant::now(),
        }
    }

    /// Adds a share under `id`, which is a name: no slash, not empty, not `.` or `..`.
    ///
    /// Fails when the id is taken or no name, when the directory cannot be opened, when `exclude` makes no sense, or
    /// when there is no `/proc`; always on a file system made with [`Passthrough::single`].
    pub fn add_share(&self, id: &str, share: ShareConfig) -> io::Result<()> {
        let name = std::ffi::CString::new(id)
            .ok()
            .filter(|name| resolve::check_name(name).is_ok());
        if name.is_none() || !self.shares.several {
            let why = format!("cannot share {} under the id \"{id}\"", share.root.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.add(None, id, share)
    }

    fn add(&self, node: Option<NodeId>, id: &str, share: ShareConfig) -> io::Result<()> {
        if self.proc.get().is_none() {
            let proc = ProcFd::open().map_err(|error| {
                let why = format!(
                    "cannot share {} without /proc/self/fd: {error}",
                    share.root.display()
                );
                io::Error::new(error.kind(), why)
            })?;
            // Should another thread have been quicker, its descriptor is as good.
            let _ = self.proc.set(proc);
        }
        let number = self.shares.next_number();
        let share = Arc::new(Share::open(number, share, &self.config, &self.mounts)?);
        let st = sys::stat(&share.root)?;
        let stale = |Errno(number)| io::Error::from_raw_os_error(number);
        let mount = self.mounts.enter(&st, share.root.as_fd()).map_err(stale)?;
        let root = self.store.add_root(
            node,
            Seed {
                identity: discovery::identify(&share, &mount, &st, share.root.as_fd(), c""),
                share: share.clone(),
                kind: discovery::kind(&st),
                submount: false,
                exclusion: share.exclusions.root(),
                handle: None,
            },
        );
        self.start_watching(&root, &share.root);
        let path = share.path.clone();
        self.shares
            .add(id, Listed { share, root: root.id })
            .map_err(|listed| {
                self.forget_share(&listed.share);
                let why = format!(
                    "cannot share {} under the id \"{id}\", which is taken",
                    path.display()
                );
                io::Error::new(io::ErrorKind::AlreadyExists, why)
            })
    }

    /// Removes a share. Whatever the guest knows of it answers ESTALE from now on; what it has open there is closed, so
    /// that the host can unmount the file system. Returns whether there was a share of that id.
    pub fn remove_share(&self, id: &str) -> bool {
        let removed = self.shares.remove(id);
        if let Some(Listed { share, .. }) = &removed {
            self.forget_share(share);
        }
        removed.is_some()
    }

    fn forget_share(&self, share: &Share) {
        share.remove();
        self.forget_nodes(|node| node.share.number == share.number);
        self.memory.remove_share(share.number);
        if let Some(watcher) = self.watcher.get() {
            watcher.forget();
        }
    }

    /// Forgets nodes that are picked, with all that belongs to them.
    fn forget_nodes(&self, doomed: impl Fn(&Node) -> bool) {
        self.files.remove_all(&doomed);
        self.dirs.remove_all(&doomed);
        self.locks
            .remove_all(|id| self.store.get(id).is_none_or(|node| doomed(&node)));
        self.store
            .remove_all(&doomed, &mut |dead, places| self.node_died(dead, places));
    }

    /// Watches the roots of the shares that are there.
    fn watch_roots(&self) {
        for (_, listed) in self.shares.all() {
            if let Some(root) = self.store.get(listed.root) {
                self.start_watching(&root, &listed.share.root);
            }
        }
    }

    /// What the user should know, such as that ownership cannot be kept somewhere. Each line once, in no particular
    /// order.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    /// The directories shared, as they were given: what a process that restricts itself must leave open.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.shares
            .all()
            .into_iter()
            .map(|(_, listed)| listed.share.path.clone())
            .collect()
    }

    /// How many nodes the guest knows, or that lead to ones it knows.
    pub fn node_count(&self) -> usize {
        self.store.len()
    }

    fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&warning) {
            tracing::warn!("{warning}");
            warnings.insert(warning);
        }
    }

    /// `/proc/self/fd`, which is there whenever a node is.
    fn proc(&self) -> rustix::io::Result<&ProcFd> {
        self.proc.get().ok_or(rustix::io::Errno::IO)
    }

    /// Milliseconds since this was made.
    fn now(&self) -> u64 {
        let elapsed: Duration = self.start.elapsed();
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX / 2)
    }

    /// Closes all descriptors that are kept just in case. Returns whether there were any.
    fn close_cached(&self) -> bool {
        let paths = self.paths.clear();
        let files = self.transient_files.clear();
        let dirs = self.transient_dirs.clear();
        paths || files || dirs
    }
}
