//! The shared directories, and the virtual root that shows several of them as directories of its own.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{Mode, OFlags};

use super::config::{PassthroughConfig, ShareConfig};
use super::exclusions::Exclusions;
use super::mounts::{self, Mounts};
use super::sys;
use super::viewers::Viewers;
use crate::filesystem::{Errno, NodeId};

/// One shared directory.
#[derive(Debug)]
pub(super) struct Share {
    /// Never used again.
    pub(super) number: u32,
    /// Where it is on the host.
    pub(super) path: PathBuf,
    /// O_PATH.
    pub(super) root: Arc<OwnedFd>,
    /// The same, opened for reading where that is permitted: for calls that do not take O_PATH descriptors.
    pub(super) readable: Option<OwnedFd>,
    /// Number of the mount it is on.
    pub(super) mount: u32,
    /// Nodes can be opened by their file handles.
    pub(super) by_handle: bool,
    pub(super) read_only: bool,
    pub(super) exclusions: Exclusions,
    pub(super) viewers: Viewers,
    removed: AtomicBool,
}

impl Share {
    /// Opens the directory.
    pub(super) fn open(
        number: u32,
        config: ShareConfig,
        passthrough: &PassthroughConfig,
        mounts: &Mounts,
    ) -> io::Result<Share> {
        let ShareConfig {
            root: path,
            read_only,
            exclude,
        } = config;
        let fail = |error: rustix::io::Errno| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("cannot share {}: {error}", path.display()))
        };
        let refuse = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let exclusions = Exclusions::new(&exclude).map_err(|bad| {
            refuse(format!(
                "cannot exclude \"{}\" from {}: give a path below it, without \"..\"",
                bad.display(),
                path.display()
            ))
        })?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags | OFlags::PATH, Mode::empty()).map_err(fail)?;
        if let Some(name) = mounts::kernel_interface(&root).map_err(fail)? {
            let why = format!(
                "cannot share {}: {name} is an interface of the kernel",
                path.display()
            );
            return Err(refuse(why));
        }
        let mount = sys::stat(&root).map_err(fail)?;
        let mount = mounts
            .enter(&mount, root.as_fd())
            .map_err(|Errno(number)| io::Error::from_raw_os_error(number))?;
        let readable = rustix::fs::openat(&root, ".", flags | OFlags::RDONLY, Mode::empty()).ok();
        let permitted = |readable: &OwnedFd| {
            let handle = sys::file_handle(readable.as_fd(), c"");
            handle
                .and_then(|handle| sys::open_file_handle(readable.as_fd(), &handle))
                .is_ok()
        };
        let by_handle = passthrough.file_handles && readable.as_ref().is_some_and(permitted);
        Ok(Share {
            number,
            path,
            root: Arc::new(root),
            readable,
            mount: mount.number,
            by_handle,
            read_only,
            exclusions,
            viewers: Viewers::new(passthrough.attr_timeout),
            removed: AtomicBool::new(false),
        })
    }

    /// Whether the share is gone.
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// From now on its nodes answer ESTALE.
    pub(super) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
    }
}

/// A share and its root's node.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) share: Arc<Share>,
    pub(super) root: NodeId,
}

/// The shares by their ids.
#[derive(Debug)]
pub(super) struct Shares {
    /// Node 1 is the virtual root, not the root of the one share.
    pub(super) several: bool,
    table: RwLock<BTreeMap<String, Listed>>,
    next: AtomicU32,
}

impl Shares {
    pub(super) fn new(several: bool) -> Shares {
        Shares {
            several,
            table: RwLock::default(),
            next: AtomicU32::new(0),
        }
    }

    /// A number for another share.
    pub(super) fn next_number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a share, unless there is one of that id: then `listed` comes back.
    pub(super) fn add(&self, id: &str, listed: Listed) -> Result<(), Listed> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.contains_key(id) {
            return Err(listed);
        }
        table.insert(id.to_owned(), listed);
        Ok(())
    }

    /// Takes a share off the list.
    pub(super) fn remove(&self, id: &str) -> Option<Listed> {
        self.table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id)
    }

    /// The share of that id.
    pub(super) fn get(&self, id: &[u8]) -> Option<Listed> {
        let id = std::str::from_utf8(id).ok()?;
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// All of them in the order of their numbers, with their ids.
    pub(super) fn all(&self) -> Vec<(String, Listed)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = table
            .iter()
            .map(|(id, listed)| (id.clone(), listed.clone()))
            .collect();
        all.sort_by_key(|(_, listed)| listed.share.number);
        all
    }
}
