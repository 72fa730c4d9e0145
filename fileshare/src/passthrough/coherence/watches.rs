//! Which directories are watched, and by what events call them.
//!
//! A directory is watched from the moment the guest first knows it until the guest has forgotten it. What is told of it is
//! read before that from the host, so nothing falls between; whoever begins to watch looks at it once more.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::super::Passthrough;
use super::super::node::{Node, Place, Watch};
use super::fanotify::{Group, Key, Refusal, key_of};
use crate::filesystem::NodeId;

/// The watched directories of a group.
#[derive(Debug)]
pub(super) struct Watches {
    pub(super) group: Group,
    table: RwLock<Table>,
    unwatched: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    by_key: HashMap<Key, Vec<NodeId>>,
    by_node: HashMap<NodeId, Key>,
}

impl Watches {
    pub(super) fn new(group: Group) -> Watches {
        Watches {
            group,
            table: RwLock::default(),
            unwatched: AtomicU64::new(0),
        }
    }

    /// The nodes of a directory that an event names: one for each share that has it.
    pub(super) fn nodes(&self, key: &Key) -> Vec<NodeId> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_key.get(key).cloned().unwrap_or_default()
    }

    /// How many directories are watched, and how many cannot be.
    pub(super) fn counts(&self) -> (u64, u64) {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        (table.by_node.len() as u64, self.unwatched.load(Ordering::Relaxed))
    }

    fn begin(&self, node: &Node, dir: &impl AsFd) -> Result<(), Refusal> {
        // Under the lock, so that nobody else ends the watch of the same directory meanwhile.
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.by_node.contains_key(&node.id) {
            return Ok(());
        }
        let key = self.group.watch(dir.as_fd())?;
        table.by_key.entry(key.clone()).or_default().push(node.id);
        table.by_node.insert(node.id, key);
        Ok(())
    }

    /// Forgets a node, and ends the watch of its directory when no other node is the same one; `open` finds the directory.
    fn end(&self, node: NodeId, open: impl FnOnce() -> Option<Arc<OwnedFd>>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = table.by_node.remove(&node) else {
            return;
        };
        if let Some(nodes) = table.by_key.get_mut(&key) {
            nodes.retain(|other| *other != node);
            if !nodes.is_empty() {
                return;
            }
            table.by_key.remove(&key);
        }
        // What is no longer found there takes its mark with it when it ends.
        let Some(dir) = open().filter(|dir| key_of(dir.as_fd()).is_ok_and(|now| now == key)) else {
            return;
        };
        if let Err(error) = self.group.unwatch(dir.as_fd()) {
            tracing::debug!(%error, "a directory that the guest has forgotten is still watched");
        }
    }
}

impl Passthrough {
    /// Begins to watch a directory that the guest comes to know, if that is to be and can be. Returns whether it has begun
    /// just now: then what has been read of it before does not count.
    pub(in super::super) fn start_watching(&self, node: &Arc<Node>, dir: impl AsFd) -> bool {
        let Some(watcher) = self.watcher.get() else {
            return false;
        };
        if !node.is_dir() || node.watch() != Watch::Unasked {
            return false;
        }
        // What is mounted below a share is another file system in the guest, which the agent has no way into.
        let begun = if node.identity.mount == node.share.mount {
            watcher.watches.begin(node, &dir)
        } else {
            Err(Refusal::FileSystem)
        };
        match begun {
            Ok(()) => {
                node.set_watch(Watch::Watched);
                true
            }
            Err(refusal) => {
                if node.set_watch(Watch::Refused) != Watch::Refused {
                    watcher.watches.unwatched.fetch_add(1, Ordering::Relaxed);
                    self.tell_refusal(node, refusal);
                }
                false
            }
        }
    }

    fn tell_refusal(&self, node: &Node, refusal: Refusal) {
        let share = node.share.path.display();
        match refusal {
            Refusal::Limit => self.warn(format!(
                "not all directories of {share} can be watched: the limit of this user is reached. What changes in the \
                 others on the host is seen after a second, and programs that watch are not told. Raise \
                 fs.fanotify.max_user_marks"
            )),
            Refusal::FileSystem if node.permanent => self.warn(format!(
                "the file system of {share} does not tell of changes: what changes on the host is seen after a second, and \
                 programs that watch are not told"
            )),
            Refusal::FileSystem => {}
            Refusal::Other(error) => tracing::debug!(
                error,
                node = node.id,
                "a directory cannot be watched; what changes there is seen after a second"
            ),
        }
    }

    /// Ends the watch of a directory that the guest has forgotten; `places` are where it was.
    pub(in super::super) fn stop_watching(&self, dead: &Node, places: &[Place]) {
        let Some(watcher) = self.watcher.get() else {
            return;
        };
        match dead.watch() {
            Watch::Unasked => {}
            Watch::Refused => {
                watcher.watches.unwatched.fetch_sub(1, Ordering::Relaxed);
            }
            Watch::Watched => watcher.watches.end(dead.id, || {
                if dead.permanent {
                    return Some(dead.share.root.clone());
                }
                self.paths.get(&dead.id).or_else(|| {
                    let open = |place: &Place| self.open_place(place.clone()).ok();
                    places.iter().find_map(open).map(Arc::new)
                })
            }),
        }
    }
}
