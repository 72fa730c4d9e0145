//! A bounded cache of descriptors, so that they do not grow with what the guest has looked up.
//!
//! The clock algorithm: an entry that was used since the hand last came by gets another round. Whoever uses an entry
//! while it is evicted keeps it open; what is open beyond the bound is therefore at most what is in use.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

/// A cache of `V` by `K`, in shards with a lock each.
#[derive(Debug)]
pub(super) struct FdCache<K, V> {
    shards: Box<[Mutex<Clock<K, V>>]>,
    hasher: RandomState,
    per_shard: usize,
}

#[derive(Debug)]
struct Clock<K, V> {
    index: HashMap<K, usize>,
    slots: Vec<Slot<K, V>>,
    hand: usize,
}

#[derive(Debug)]
struct Slot<K, V> {
    key: K,
    value: Arc<V>,
    used: bool,
}

impl<K: Hash + Eq + Copy, V> FdCache<K, V> {
    /// Holds at most `capacity` entries, one at least.
    pub(super) fn new(capacity: usize) -> FdCache<K, V> {
        let shards = (capacity / 4).clamp(1, 16);
        let shard = || {
            Mutex::new(Clock {
                index: HashMap::new(),
                slots: Vec::new(),
                hand: 0,
            })
        };
        FdCache {
            shards: (0..shards).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            per_shard: (capacity / shards).max(1),
        }
    }

    fn shard(&self, key: &K) -> std::sync::MutexGuard<'_, Clock<K, V>> {
        let index = self.hasher.hash_one(key) as usize % self.shards.len();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry, which stays open for as long as the caller holds it.
    pub(super) fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut clock = self.shard(key);
        let slot = *clock.index.get(key)?;
        let slot = &mut clock.slots[slot];
        slot.used = true;
        Some(slot.value.clone())
    }

    /// Puts an entry in the place of the one under the same key or, when there is no room, of one that has not been
    /// used.
    pub(super) fn insert(&self, key: K, value: Arc<V>) {
        let mut clock = self.shard(&key);
        // Closed only after the lock has been let go: closing can take time.
        let _evicted = clock.insert(key, value, self.per_shard);
        drop(clock);
    }

    /// Forgets an entry.
    pub(super) fn remove(&self, key: &K) {
        let mut clock = self.shard(key);
        let _removed = clock.remove(key);
        drop(clock);
    }

    /// Forgets everything. Returns whether there was anything.
    pub(super) fn clear(&self) -> bool {
        let mut any = false;
        for shard in &self.shards {
            let mut clock = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let slots = std::mem::take(&mut clock.slots);
            clock.index.clear();
            clock.hand = 0;
            drop(clock);
            any |= !slots.is_empty();
        }
        any
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap().slots.len())
            .sum()
    }
}

impl<K: Hash + Eq + Copy, V> Clock<K, V> {
    fn insert(&mut self, key: K, value: Arc<V>, capacity: usize) -> Option<Arc<V>> {
        if let Some(&slot) = self.index.get(&key) {
            self.slots[slot].used = true;
            return Some(std::mem::replace(&mut self.slots[slot].value, value));
        }
        let slot = Slot {
            key,
            value,
            used: true,
        };
        if self.slots.len() < capacity {
            self.index.insert(key, self.slots.len());
            self.slots.push(slot);
            return None;
        }
        // Ends after a round at the latest: the hand takes the mark from all it passes.
        while std::mem::take(&mut self.slots[self.hand].used) {
            self.hand = (self.hand + 1) % self.slots.len();
        }
        let evicted = std::mem::replace(&mut self.slots[self.hand], slot);
        self.index.remove(&evicted.key);
        self.index.insert(key, self.hand);
        self.hand = (self.hand + 1) % self.slots.len();
        Some(evicted.value)
    }

    fn remove(&mut self, key: &K) -> Option<Arc<V>> {
        let slot = self.index.remove(key)?;
        let removed = self.slots.swap_remove(slot);
        if let Some(moved) = self.slots.get(slot) {
            self.index.insert(moved.key, slot);
        }
        if self.hand >= self.slots.len() {
            self.hand = 0;
        }
        Some(removed.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_used_outlives_what_is_not() {
        let cache = FdCache::new(3);
        for key in 0..3 {
            cache.insert(key, Arc::new(key));
        }
        cache.insert(3, Arc::new(3)); // takes all marks, and 0's place
        assert!(cache.get(&0).is_none());
        assert!(cache.get(&1).is_some());
        cache.insert(4, Arc::new(4));
        assert!(cache.get(&2).is_none(), "unused since the hand came by");
        assert!(cache.get(&1).is_some());
    }

    #[test]
    fn an_entry_in_use_survives_its_eviction() {
        let cache = FdCache::new(1);
        cache.insert(1, Arc::new("one"));
        let held = cache.get(&1).unwrap();
        cache.insert(2, Arc::new("two"));
        assert!(cache.get(&1).is_none());
        assert_eq!(*held, "one");
        assert!(cache.clear());
        assert!(!cache.clear());
    }

    proptest! {
        /// Against a plain map: never more than the bound, never a wrong value.
        #[test]
        fn holds_what_was_put_and_no_more_than_its_bound(
            capacity in 1usize..40,
            steps in prop::collection::vec((0u8..3, 0u64..60), 1..400),
        ) {
            let cache = FdCache::new(capacity);
            let mut last = HashMap::new();
            for (at, (what, key)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        cache.insert(key, Arc::new(at));
                        last.insert(key, at);
                        prop_assert_eq!(cache.get(&key), Some(Arc::new(at)));
                    }
                    1 => {
                        cache.remove(&key);
                        last.remove(&key);
                        prop_assert!(cache.get(&key).is_none());
                    }
                    _ => {
                        if let Some(value) = cache.get(&key) {
                            prop_assert_eq!(Some(&*value), last.get(&key));
                        }
                    }
                }
                prop_assert!(cache.len() <= capacity);
            }
        }
    }
}
