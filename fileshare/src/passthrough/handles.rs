//! What the guest has open.
//!
//! A handle is a number that is never used again, and is good for the node it was given for only: a forged one names
//! nothing, or the wrong node, and is EBADF.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::coherence::OwnFd;
use super::node::Node;
use crate::filesystem::{Errno, Handle, NodeId, Result};

const SHARDS: usize = 16;

/// Something open that belongs to a node.
pub(super) trait OfNode {
    /// The node.
    fn node(&self) -> &Arc<Node>;
}

/// A regular file that is open.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) node: Arc<Node>,
    pub(super) fd: OwnFd,
    /// Written to since the last flush.
    pub(super) written: AtomicBool,
}

impl OpenFile {
    /// As it was opened.
    pub(super) fn new(node: Arc<Node>, fd: OwnFd) -> OpenFile {
        OpenFile {
            node,
            fd,
            written: AtomicBool::new(false),
        }
    }
}

impl OfNode for OpenFile {
    fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

type Shard<T> = RwLock<HashMap<Handle, Arc<T>>>;

/// Open files, or open directories.
#[derive(Debug)]
pub(super) struct Handles<T> {
    shards: Box<[Shard<T>]>,
    next: AtomicU64,
    count: Arc<AtomicUsize>,
    most: usize,
}

impl<T: OfNode> Handles<T> {
    /// At most `most` together with whatever else counts in `count`.
    pub(super) fn new(most: usize, count: Arc<AtomicUsize>) -> Handles<T> {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Handles {
            shards,
            next: AtomicU64::new(1),
            count,
            most,
        }
    }

    fn shard(&self, handle: Handle) -> &Shard<T> {
        &self.shards[handle as usize % SHARDS]
    }

    /// Whether one more would be too many. Asked before anything is opened or created for it.
    pub(super) fn check_room(&self) -> Result<()> {
        if self.count.load(Ordering::Relaxed) < self.most {
            Ok(())
        } else {
            Err(Errno(libc::EMFILE))
        }
    }

    /// Gives out a handle. EMFILE when there are too many.
    pub(super) fn add(&self, open: T) -> Result<Handle> {
        let more = |count| (count < self.most).then_some(count + 1);
        if self
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_err()
        {
            return Err(Errno(libc::EMFILE));
        }
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(handle)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(handle, Arc::new(open));
        Ok(handle)
    }

    /// What `handle` stands for. EBADF when it is not open, or open on another node.
    pub(super) fn get(&self, node: NodeId, handle: Handle) -> Result<Arc<T>> {
        let shard = self.shard(handle).read().unwrap_or_else(PoisonError::into_inner);
        let open = shard
            .get(&handle)
            .filter(|open| open.node().id == node)
            .cloned()
            .ok_or(Errno(libc::EBADF))?;
        if open.node().share.is_removed() {
            return Err(Errno(libc::ESTALE));
        }
        Ok(open)
    }

    /// Anything open on the node. Looks at everything: for when all else has failed.
    pub(super) fn any_of(&self, node: &Arc<Node>) -> Option<Arc<T>> {
        self.shards.iter().find_map(|shard| {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            shard
                .values()
                .find(|open| Arc::ptr_eq(open.node(), node))
                .cloned()
        })
    }

    /// Closes a handle.
    pub(super) fn remove(&self, node: NodeId, handle: Handle) -> Result<()> {
        let mut shard = self.shard(handle).write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&handle).is_none_or(|open| open.node().id != node) {
            return Err(Errno(libc::EBADF));
        }
        let open = shard.remove(&handle);
        self.count.fetch_sub(1, Ordering::Relaxed);
        // Closing can take long; not under the lock.
        drop(shard);
        drop(open);
        Ok(())
    }

    /// Closes every handle whose node `doomed` picks.
    pub(super) fn remove_all(&self, doomed: impl Fn(&Node) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            let closed: Vec<_> = shard.extract_if(|_, open| doomed(open.node())).collect();
            self.count.fetch_sub(closed.len(), Ordering::Relaxed);
            drop(shard);
        }
    }
}
