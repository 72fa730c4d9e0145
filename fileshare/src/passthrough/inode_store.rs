//! The nodes that the guest knows, by id and by identity.
//!
//! A node lives for as long as the guest holds lookups of it or a known node has its place in it, so the way from a
//! node to its share's root does not break. Both maps are in shards with a lock each; what changes of a node is under
//! its own. Locks are taken in the order identity shard, id shard or node; never two nodes at once.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use super::node::{Identity, Node, Pins, Place, Seed};
use crate::filesystem::{Errno, NodeId, Result};
use crate::wire::ROOT_ID;

const SHARDS: usize = 64;

/// A node in the map by id. The maps hold nothing but the nodes: with a million of them, keys would count.
#[derive(Debug)]
struct ById(Arc<Node>);

/// A node in the map by identity.
#[derive(Debug)]
struct ByIdentity(Arc<Node>);

macro_rules! keyed {
    ($wrapper:ident, $key:ty, $field:ident) => {
        impl Borrow<$key> for $wrapper {
            fn borrow(&self) -> &$key {
                &self.0.$field
            }
        }
        impl Hash for $wrapper {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.$field.hash(state);
            }
        }
        impl PartialEq for $wrapper {
            fn eq(&self, other: &Self) -> bool {
                self.0.$field == other.0.$field
            }
        }
        impl Eq for $wrapper {}
    };
}
keyed!(ById, NodeId, id);
keyed!(ByIdentity, Identity, identity);

/// Nodes by hashes of their names.
type NameShard = HashMap<u64, NodeId>;

/// All nodes.
#[derive(Debug)]
pub(super) struct InodeStore {
    by_id: Box<[RwLock<HashSet<ById>>]>,
    by_identity: Box<[Mutex<HashSet<ByIdentity>>]>,
    hasher: RandomState,
    next: AtomicU64,
    pins: Pins,
    /// Nodes by a hash of directory and name, once somebody wants to know. What it says counts only when the node says so too.
    by_name: OnceLock<Box<[Mutex<NameShard>]>>,
}

impl InodeStore {
    /// None, and at most `pinned` descriptors of removed nodes later.
    pub(super) fn new(pinned: usize) -> InodeStore {
        InodeStore {
            by_id: (0..SHARDS).map(|_| RwLock::default()).collect(),
            by_identity: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            next: AtomicU64::new(ROOT_ID + 1),
            pins: Pins::new(pinned),
            by_name: OnceLock::new(),
        }
    }

    /// From now on, nodes are found by their names too. To be called before there are any but permanent ones.
    pub(super) fn index_names(&self) {
        self.by_name
            .get_or_init(|| (0..SHARDS).map(|_| Mutex::default()).collect());
    }

    /// Whether nodes are found by their names.
    pub(super) fn names_are_indexed(&self) -> bool {
        self.by_name.get().is_some()
    }

    /// The part of the index that has a name, and its key there.
    fn name_slot(&self, parent: NodeId, name: &[u8]) -> Option<(MutexGuard<'_, NameShard>, u64)> {
        let key = self.hasher.hash_one((parent, name));
        let shard = &self.by_name.get()?[key as usize % SHARDS];
        Some((shard.lock().unwrap_or_else(PoisonError::into_inner), key))
    }

    /// The node that the guest knows by a name, as far as names are indexed.
    pub(super) fn named(&self, parent: NodeId, name: &[u8]) -> Option<Arc<Node>> {
        let id = {
            let (shard, key) = self.name_slot(parent, name)?;
            *shard.get(&key)?
        };
        self.get(id).filter(|node| node.has_place(parent, name))
    }

    /// Takes a name out of the index, unless another node has it by now.
    fn unname(&self, place: &Place) {
        if self.named(place.parent.id, &place.name).is_some() {
            return;
        }
        if let Some((mut shard, key)) = self.name_slot(place.parent.id, &place.name) {
            shard.remove(&key);
        }
    }

    /// Bounds on descriptors of removed nodes.
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    fn ids(&self, id: NodeId) -> &RwLock<HashSet<ById>> {
        &self.by_id[id as usize % SHARDS]
    }

    fn identities(&self, identity: &Identity) -> MutexGuard<'_, HashSet<ByIdentity>> {
        let shard = self.hasher.hash_one(identity) as usize % SHARDS;
        self.by_identity[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of that id.
    pub(super) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        let shard = self.ids(id).read().unwrap_or_else(PoisonError::into_inner);
        shard.get(&id).map(|entry| entry.0.clone())
    }

    /// The node of that identity.
    pub(super) fn find(&self, identity: &Identity) -> Option<Arc<Node>> {
        self.identities(identity)
            .get(identity)
            .map(|entry| entry.0.clone())
    }

    /// The node of an identity, made when there is none, with one more lookup.
    pub(super) fn enter(&self, identity: &Identity, seed: impl FnOnce() -> Seed) -> Arc<Node> {
        let mut shard = self.identities(identity);
        if let Some(ByIdentity(node)) = shard.get(identity) {
            let mut state = node.state();
            if !state.dead {
                state.lookups += 1;
                drop(state);
                return node.clone();
            }
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let node = Arc::new(Node::new(id, seed(), false));
        shard.replace(ByIdentity(node.clone()));
        self.publish(&node);
        node
    }

    /// Adds the root of a share. `id` is given for the root of all.
    pub(super) fn add_root(&self, id: Option<NodeId>, seed: Seed) -> Arc<Node> {
        let id = id.unwrap_or_else(|| self.next.fetch_add(1, Ordering::Relaxed));
        let node = Arc::new(Node::new(id, seed, true));
        self.identities(&node.identity).replace(ByIdentity(node.clone()));
        self.publish(&node);
        node
    }

    fn publish(&self, node: &Arc<Node>) {
        let mut shard = self.ids(node.id).write().unwrap_or_else(PoisonError::into_inner);
        shard.insert(ById(node.clone()));
    }

    /// One more lookup of a node that may be going away.
    pub(super) fn count(&self, node: &Node) -> Result<()> {
        let mut state = node.state();
        if state.dead {
            return Err(Errno(libc::ESTALE));
        }
        state.lookups += 1;
        Ok(())
    }

    /// Notes where a node was seen; `only` when that is its only place. ESTALE when the directory has been forgotten.
    pub(super) fn put_place(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
        only: bool,
    ) -> Result<()> {
        if node.permanent || Arc::ptr_eq(node, parent) {
            return Ok(());
        }
        {
            let mut state = parent.state();
            if state.dead {
                return Err(Errno(libc::ESTALE));
            }
            state.children += 1;
        }
        let place = Place {
            parent: parent.clone(),
            name: name.into(),
        };
        if let Some((mut shard, key)) = self.name_slot(parent.id, name) {
            shard.insert(key, node.id);
        }
        let gone = {
            let mut state = node.state();
            // Dead: forgotten meanwhile, and nobody would take the place back.
            if state.dead {
                vec![place]
            } else {
                state.removed = false;
                state.put_place(place, only)
            }
        };
        self.release(gone, &mut |_, _| {});
        Ok(())
    }

    /// Forgets that a node is there.
    pub(super) fn take_place(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &[u8]) {
        let gone = node.state().take_place(parent, name);
        self.release(gone.into_iter().collect(), &mut |_, _| {});
    }

    /// The guest drops `count` lookups. `dead` is told of each node that this was the end of.
    pub(super) fn forget(&self, id: NodeId, count: u64, dead: &mut dyn FnMut(&Node, &[Place])) {
        let Some(node) = self.get(id) else { return };
        let mut state = node.state();
        state.lookups = state.lookups.saturating_sub(count);
        drop(state);
        let gone = self.reap(&node, dead);
        self.release(gone, dead);
    }

    /// Takes a node out when nothing needs it any more. Returns the places it had.
    fn reap(&self, node: &Arc<Node>, dead: &mut dyn FnMut(&Node, &[Place])) -> Vec<Place> {
        let mut state = node.state();
        if node.permanent || state.dead || state.lookups > 0 || state.children > 0 {
            return Vec::new();
        }
        state.dead = true;
        let places = state.take_places();
        let pinned = state.unpin(&self.pins);
        drop(state);
        drop(pinned);
        self.take_out(node);
        dead(node, &places);
        places
    }

    fn take_out(&self, node: &Arc<Node>) {
        let mut shard = self.identities(&node.identity);
        // A successor of the same identity may have taken the place already.
        if shard
            .get(&node.identity)
            .is_some_and(|entry| Arc::ptr_eq(&entry.0, node))
        {
            shard.remove(&node.identity);
        }
        drop(shard);
        let mut shard = self.ids(node.id).write().unwrap_or_else(PoisonError::into_inner);
        shard.remove(&node.id);
    }

    /// Lets go of the parents of places that are no longer known, and of theirs if that was all that kept them.
    fn release(&self, mut places: Vec<Place>, dead: &mut dyn FnMut(&Node, &[Place])) {
        while let Some(place) = places.pop() {
            self.unname(&place);
            let mut state = place.parent.state();
            state.children = state.children.saturating_sub(1);
            drop(state);
            places.extend(self.reap(&place.parent, dead));
        }
    }

    /// Forgets every node that `doomed` picks, whatever the guest holds.
    pub(super) fn remove_all(&self, doomed: impl Fn(&Node) -> bool, dead: &mut dyn FnMut(&Node, &[Place])) {
        for shard in &self.by_id {
            let picked: Vec<Arc<Node>> = {
                let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
                shard
                    .iter()
                    .filter(|entry| doomed(&entry.0))
                    .map(|entry| entry.0.clone())
                    .collect()
            };
            for node in picked {
                let mut state = node.state();
                if std::mem::replace(&mut state.dead, true) {
                    continue;
                }
                let places = state.take_places();
                let pinned = state.unpin(&self.pins);
                drop(state);
                drop(pinned);
                self.take_out(&node);
                dead(&node, &places);
                self.release(places, dead);
            }
        }
    }

    /// The ids of all nodes.
    pub(super) fn all_ids(&self) -> Vec<NodeId> {
        let ids = |shard: &RwLock<HashSet<ById>>| {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            shard.iter().map(|entry| entry.0.id).collect::<Vec<_>>()
        };
        self.by_id.iter().flat_map(ids).collect()
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        let count =
            |shard: &RwLock<HashSet<ById>>| shard.read().unwrap_or_else(PoisonError::into_inner).len();
        self.by_id.iter().map(count).sum()
    }
}

impl Drop for InodeStore {
    /// One by one: dropped as they are, a node would drop its parent, and that its own, as deep as directories are
    /// nested.
    fn drop(&mut self) {
        self.remove_all(|_| true, &mut |_, _| {});
    }
}
