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
use super::event::Key;
use super::fanotify::{Group, Refusal, key_of};
use super::inotify::{Instance, is_key};
use crate::filesystem::NodeId;

/// The watched directories.
#[derive(Debug)]
pub(super) struct Watches {
    /// What it cannot watch, inotify may.
    pub(super) fanotify: Option<Group>,
    pub(super) inotify: Option<Instance>,
    table: RwLock<Table>,
    by_inotify: AtomicU64,
    unwatched: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    by_key: HashMap<Key, Vec<NodeId>>,
    by_node: HashMap<NodeId, Key>,
}

impl Watches {
    pub(super) fn new(fanotify: Option<Group>, inotify: Option<Instance>) -> Watches {
        Watches {
            fanotify,
            inotify,
            table: RwLock::default(),
            by_inotify: AtomicU64::new(0),
            unwatched: AtomicU64::new(0),
        }
    }

    /// The nodes of a directory that an event names: one for each share that has it.
    pub(super) fn nodes(&self, key: &Key) -> Vec<NodeId> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_key.get(key).cloned().unwrap_or_default()
    }

    /// How many directories are watched, how many of them by inotify, and how many cannot be.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (
            table.by_node.len() as u64,
            get(&self.by_inotify),
            get(&self.unwatched),
        )
    }

    /// Whether anything is watched by inotify.
    pub(super) fn uses_inotify(&self) -> bool {
        self.by_inotify.load(Ordering::Relaxed) > 0
    }

    /// What inotify calls a directory, if it watches it.
    pub(super) fn inotify_key(&self, node: NodeId) -> Option<Key> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_node.get(&node).filter(|key| is_key(key)).cloned()
    }

    /// Returns how it is watched by now, and why not as well as it could be.
    fn begin(&self, node: &Node, dir: &impl AsFd) -> (Watch, Option<Refusal>) {
        // Under the lock, so that nobody else ends the watch of the same directory meanwhile.
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = table.by_node.get(&node.id) {
            let watch = if is_key(key) {
                Watch::ByInotify
            } else {
                Watch::Watched
            };
            return (watch, None);
        }
        let by_fanotify = match &self.fanotify {
            Some(group) => group.watch(dir.as_fd()),
            None => Err(Refusal::Kernel),
        };
        let (key, watch, refusal) = match (by_fanotify, &self.inotify) {
            (Ok(key), _) => (key, Watch::Watched, None),
            (Err(refusal), None) => return (Watch::Refused, Some(refusal)),
            (Err(refusal), Some(instance)) => match instance.watch(dir.as_fd()) {
                Ok(key) => {
                    self.by_inotify.fetch_add(1, Ordering::Relaxed);
                    (key, Watch::ByInotify, Some(refusal))
                }
                Err(Refusal::Limit) => return (Watch::Refused, Some(Refusal::Limit)),
                Err(_) => return (Watch::Refused, Some(refusal)),
            },
        };
        table.by_key.entry(key.clone()).or_default().push(node.id);
        table.by_node.insert(node.id, key);
        (watch, refusal)
    }

    /// Forgets a node, and ends the watch of its directory when no other node is the same one; `open` finds the directory.
    fn end(&self, node: NodeId, open: impl FnOnce() -> Option<Arc<OwnedFd>>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = table.by_node.remove(&node) else {
            return;
        };
        if is_key(&key) {
            self.by_inotify.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(nodes) = table.by_key.get_mut(&key) {
            nodes.retain(|other| *other != node);
            if !nodes.is_empty() {
                return;
            }
            table.by_key.remove(&key);
        }
        let ended = if is_key(&key) {
            self.inotify.as_ref().map(|instance| instance.unwatch(&key))
        } else {
            // What is no longer found there takes its mark with it when it ends.
            let dir = open().filter(|dir| key_of(dir.as_fd()).is_ok_and(|now| now == key));
            let both = self.fanotify.as_ref().zip(dir);
            both.map(|(group, dir)| group.unwatch(dir.as_fd()))
        };
        if let Some(Err(error)) = ended {
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
        let (watch, refusal) = if node.identity.mount == node.share.mount {
            watcher.watches.begin(node, &dir)
        } else {
            (Watch::Refused, Some(Refusal::FileSystem))
        };
        if node.set_watch(watch) == Watch::Unasked {
            if watch == Watch::Refused {
                watcher.watches.unwatched.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(refusal) = refusal {
                self.tell_refusal(node, watch, refusal);
            }
        }
        watch != Watch::Refused
    }

    fn tell_refusal(&self, node: &Node, watch: Watch, refusal: Refusal) {
        let share = node.share.path.display();
        let told = match watch {
            Watch::ByInotify => "programs that watch are told",
            _ => "programs that watch are not told",
        };
        match refusal {
            Refusal::Limit => self.warn(format!(
                "not all directories of {share} can be watched well: a limit of this user is reached. What changes in the \
                 others on the host is seen within a second, and {told}. Raise fs.fanotify.max_user_marks{}",
                if watch == Watch::Refused { " and fs.inotify.max_user_watches" } else { "" }
            )),
            Refusal::FileSystem if node.permanent => self.warn(format!(
                "the file system of {share} does not tell of all changes: what changes on the host is seen within a second, and \
                 {told}"
            )),
            // Said once for all of them.
            Refusal::FileSystem | Refusal::Kernel => {}
            Refusal::Other(error) => tracing::debug!(
                error,
                node = node.id,
                "a directory cannot be watched well; what changes there is seen within a second, and {told}"
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
            Watch::Watched | Watch::ByInotify => watcher.watches.end(dead.id, || {
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
