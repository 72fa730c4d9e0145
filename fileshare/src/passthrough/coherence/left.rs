//! Names that the guest has moved something away from, while the host's events of before may still be unread.
//!
//! An event says what happened at a name, and the guest is told by that name. When the guest itself has renamed the thing by
//! the time the event is read, it no longer has it there, and what it has cached of it under the new name would stay. The
//! event of the guest's own rename comes behind all of those: until it has been read, the node is found here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::filesystem::NodeId;

/// When so many renames wait for their events, something has gone wrong with these, and all are given up.
const MANY: usize = 65_536;

/// A directory and a name in it.
type Spot = (NodeId, Box<[u8]>);

/// What has left which name, oldest first.
#[derive(Debug, Default)]
pub(super) struct Left(Mutex<HashMap<Spot, Vec<NodeId>>>);

impl Left {
    fn spots(&self) -> MutexGuard<'_, HashMap<Spot, Vec<NodeId>>> {
        // Nothing in here panics halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest is about to rename what it has there.
    pub(super) fn note(&self, dir: NodeId, name: &[u8], node: NodeId) {
        let mut spots = self.spots();
        if spots.len() >= MANY {
            tracing::warn!("renames of the guest are waiting for their events in vain");
            spots.clear();
        }
        spots.entry((dir, name.into())).or_default().push(node);
    }

    /// It has not, after all.
    pub(super) fn take_back(&self, dir: NodeId, name: &[u8], node: NodeId) {
        self.take(dir, name, |nodes| nodes.iter().rposition(|other| *other == node));
    }

    /// The event of the oldest rename from there has been read.
    pub(super) fn settle(&self, dir: NodeId, name: &[u8]) {
        self.take(dir, name, |nodes| (!nodes.is_empty()).then_some(0));
    }

    fn take(&self, dir: NodeId, name: &[u8], which: impl FnOnce(&[NodeId]) -> Option<usize>) {
        let mut spots = self.spots();
        if spots.is_empty() {
            return;
        }
        let spot = (dir, name.into());
        if let Some(nodes) = spots.get_mut(&spot) {
            if let Some(at) = which(nodes) {
                nodes.remove(at);
            }
            if nodes.is_empty() {
                spots.remove(&spot);
            }
        }
    }

    /// What an event of that name may be of, besides what is there now.
    pub(super) fn of(&self, dir: NodeId, name: &[u8]) -> Vec<NodeId> {
        let spots = self.spots();
        if spots.is_empty() {
            return Vec::new();
        }
        spots.get(&(dir, name.into())).cloned().unwrap_or_default()
    }

    /// The guest is going to forget all it has.
    pub(super) fn clear(&self) {
        self.spots().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renames_are_settled_in_their_order() {
        let left = Left::default();
        for node in [7, 8, 9] {
            left.note(1, b"a", node);
        }
        left.take_back(1, b"a", 8);
        left.take_back(1, b"b", 7);
        assert_eq!(left.of(1, b"a"), [7, 9]);
        assert_eq!(left.of(2, b"a"), []);
        left.settle(1, b"a");
        assert_eq!(left.of(1, b"a"), [9]);
        left.settle(1, b"a");
        left.settle(1, b"a");
        assert!(left.spots().is_empty());
        left.note(1, b"a", 7);
        left.clear();
        assert_eq!(left.of(1, b"a"), []);
    }
}
