//! A map of bounded size that removes, approximately, the least recently used entries.
//!
//! It has two generations. An entry that is used moves to the young generation. When that is full (half of the
//! capacity), it becomes the old generation, and the entries of the previous old generation are removed: they have not
//! been used since. This needs no list in the order of use. Only the step that removes a generation takes long.
//!
//! All entries can be visited in steps ([`LruMap::visit_some`]), so that the caller can release its lock after each
//! step.
//!
//! A map can track which keys it has removed for lack of room ([`LruMap::tracking_removals`]).

use std::hash::{BuildHasher, Hash, RandomState};

use indexmap::IndexMap;

use crate::random::HashMap;

pub(crate) struct LruMap<K, V, S = RandomState> {
    young: IndexMap<K, V, S>,
    old: IndexMap<K, V, S>,
    half: usize,
    /// The number of times that the young generation has become the old one.
    turns: u64,
    /// `None` if removals are not tracked.
    removed: Option<RemovedKeys>,
}

/// The keys that were removed for lack of room. Keys that the owner of the map removes do not count.
#[derive(Default)]
struct RemovedKeys {
    /// Hashes of the keys. At most as many as the map may have keys.
    hashes: HashMap<u64, ()>,
    /// Whether there were more, so that any key may be one of them.
    are_too_many: bool,
}

impl RemovedKeys {
    fn hash(&self, key: &impl Hash) -> u64 {
        self.hashes.hasher().hash_one(key)
    }

    fn add<'k, K: Hash + 'k>(&mut self, keys: impl ExactSizeIterator<Item = &'k K>, capacity: usize) {
        if self.are_too_many || self.hashes.len() + keys.len() > capacity {
            *self = Self { hashes: HashMap::default(), are_too_many: true };
            return;
        }
        for key in keys {
            self.hashes.insert(self.hash(key), ());
        }
    }
}

/// What remains to be visited: the entries below these positions in each generation.
pub(super) struct Remaining {
    young: usize,
    old: usize,
    turns: u64,
}

impl<K: Eq + Hash, V, S: BuildHasher + Default> LruMap<K, V, S> {
    /// A map for at most `capacity` keys. The capacity is rounded up to an even number, and is at least 2.
    pub(crate) fn new(capacity: usize) -> Self {
        let half = capacity.div_ceil(2).max(1);
        Self { young: IndexMap::default(), old: IndexMap::default(), half, turns: 0, removed: None }
    }

    /// From now on, [`Self::may_have_removed`] knows which keys are removed.
    pub(super) fn tracking_removals(self) -> Self {
        Self { removed: Some(RemovedKeys::default()), ..self }
    }

    /// Changes the capacity. If there are more keys, arbitrary ones are removed.
    pub(super) fn resize(&mut self, capacity: usize)
    where
        S: Clone,
    {
        let old_capacity = 2 * self.half;
        self.half = capacity.div_ceil(2).max(1);
        for keys in [&mut self.young, &mut self.old] {
            let excess = keys.split_off(self.half.min(keys.len()));
            self.removed.iter_mut().for_each(|removed| removed.add(excess.keys(), old_capacity));
        }
    }

    /// The value of a key. This is a use of the key.
    pub(crate) fn get(&mut self, key: &K) -> Option<&mut V> {
        // The check for an empty map takes less time than a hash.
        if !self.old.is_empty()
            && let Some((key, value)) = self.old.swap_remove_entry(key)
        {
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }

    /// The value of a key, or a new one. This is a use of the key.
    pub(super) fn get_or_insert_with(&mut self, key: &K, new: impl FnOnce() -> V) -> &mut V
    where
        K: Clone,
    {
        let value = self.remove(key).unwrap_or_else(new);
        self.insert(key.clone(), value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> &mut V {
        self.old.swap_remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            let oldest = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.removed.iter_mut().for_each(|removed| removed.add(oldest.keys(), 2 * self.half));
            self.turns += 1;
        }
        self.young.entry(key).insert_entry(value).into_mut()
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.young.swap_remove(key).or_else(|| self.old.swap_remove(key))
    }

    pub(super) fn retain(&mut self, condition: impl Fn(&K) -> bool) {
        self.young.retain(|key, _| condition(key));
        self.old.retain(|key, _| condition(key));
    }

    /// The value of a key. This is not a use of the key.
    pub(super) fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.young.values_mut().chain(self.old.values_mut())
    }

    /// Whether the key may have been removed because there was no room, since [`Self::forget_removals`].
    pub(super) fn may_have_removed(&self, key: &K) -> bool {
        let is_one = |removed: &RemovedKeys| removed.are_too_many || removed.hashes.contains_key(&removed.hash(key));
        self.removed.as_ref().is_some_and(is_one)
    }

    /// From now on, any key may have been removed.
    pub(super) fn lose_track(&mut self) {
        self.removed = Some(RemovedKeys { hashes: HashMap::default(), are_too_many: true });
    }

    pub(super) fn forget_removals(&mut self) {
        self.removed.iter_mut().for_each(|removed| *removed = RemovedKeys::default());
    }

    /// All entries that are present now, for [`Self::visit_some`].
    pub(super) fn remaining(&self) -> Remaining {
        Remaining { young: self.young.len(), old: self.old.len(), turns: self.turns }
    }

    /// Visits at most `limit` of the remaining entries. Returns whether there are more. The map may change between two
    /// steps. An entry that was used or removed since the first step may be visited twice or not at all. New entries
    /// are not visited.
    pub(super) fn visit_some(&self, remaining: &mut Remaining, limit: usize, mut visit: impl FnMut(&K, &V)) -> bool {
        if remaining.turns != self.turns {
            // After one turn, the remaining young entries are in the old generation. After more turns, they were
            // removed.
            remaining.old = if remaining.turns + 1 == self.turns { remaining.young } else { 0 };
            (remaining.young, remaining.turns) = (0, self.turns);
        }
        let mut left = limit;
        for (generation, unvisited) in [(&self.young, &mut remaining.young), (&self.old, &mut remaining.old)] {
            let end = generation.len().min(*unvisited);
            let begin = end.saturating_sub(left);
            generation.get_range(begin..end).into_iter().flatten().for_each(|(key, value)| visit(key, value));
            left -= end - begin;
            *unvisited = begin;
        }
        remaining.young + remaining.old > 0
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.young.iter().chain(self.old.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn used_keys_stay_and_the_capacity_is_never_exceeded() {
        let mut map = LruMap::<_, _>::new(10);
        map.insert("used", 0);
        let keys: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        for key in &keys {
            map.insert(key, 1);
            assert_eq!(map.get(&"used"), Some(&mut 0));
            assert!(map.iter().count() <= 10);
        }
        assert_eq!(map.get(&"0"), None);
        assert_eq!(map.get(&"999"), Some(&mut 1));
    }

    #[test]
    fn a_new_capacity_applies_immediately() {
        let mut map = LruMap::<_, _>::new(10);
        (0..10).for_each(|key| _ = map.insert(key, ()));
        map.resize(4);
        assert_eq!(map.iter().count(), 4);
        map.resize(100);
        (10..50).for_each(|key| _ = map.insert(key, ()));
        assert_eq!(map.iter().count(), 44);
    }

    #[test]
    fn keys_that_were_removed_for_lack_of_room_are_tracked_until_they_are_forgotten() {
        let mut map = LruMap::<_, _>::new(10).tracking_removals();
        let removed = |map: &LruMap<i32, ()>| (-5..100).filter(|key| map.may_have_removed(key)).collect::<Vec<_>>();
        (0..11).for_each(|key| _ = map.insert(key, ()));
        assert_eq!(removed(&map), (0..5).collect::<Vec<_>>());
        map.remove(&6);
        map.resize(4);
        assert_eq!(map.iter().map(|(key, ())| *key).chain(removed(&map)).chain([6]).collect::<HashSet<_>>().len(), 11);
        assert!(!map.may_have_removed(&6), "the owner has removed it");
        map.forget_removals();
        assert!(removed(&map).is_empty());
        (20..32).for_each(|key| _ = map.insert(key, ()));
        assert!(map.may_have_removed(&-5), "they are too many to be tracked");
        map.forget_removals();
        assert!(removed(&map).is_empty());
        map.lose_track();
        assert!(map.may_have_removed(&-5));
    }

    /// The keys that are visited in steps of three, sorted. `change` is called after each step.
    fn visited(map: &mut LruMap<i32, ()>, change: fn(&mut LruMap<i32, ()>)) -> Vec<i32> {
        let (mut remaining, mut visited) = (map.remaining(), Vec::new());
        loop {
            let before = visited.len();
            let are_more = map.visit_some(&mut remaining, 3, |&key, ()| visited.push(key));
            assert!(visited.len() <= before + 3);
            if !are_more {
                visited.sort_unstable();
                return visited;
            }
            change(map);
        }
    }

    #[test]
    fn steps_visit_each_key_once_if_nothing_changes() {
        for count in 0..14 {
            let mut map = LruMap::<_, _>::new(14);
            (0..count).for_each(|key| _ = map.insert(key, ()));
            assert_eq!(visited(&mut map, |_| ()), (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn steps_visit_each_key_that_stays_once_while_others_are_added() {
        let mut map = LruMap::<_, _>::new(14);
        (0..7).for_each(|key| _ = map.insert(key, ()));
        // The first of these keys makes the young generation the old one.
        let add = |map: &mut LruMap<i32, ()>| _ = map.insert(100 + i32::try_from(map.iter().count()).unwrap(), ());
        assert_eq!(visited(&mut map, add), (0..7).collect::<Vec<_>>());
        // Some keys are old now. They are removed while the others are visited.
        let remove_old = |map: &mut LruMap<i32, ()>| (200..220).for_each(|key| _ = map.insert(key, ()));
        let seen = visited(&mut map, remove_old);
        assert!(seen.len() < 9 && seen.iter().all(|&key| key < 200), "{seen:?}");
    }

    #[test]
    fn steps_end_when_the_map_becomes_smaller() {
        let mut map = LruMap::<_, _>::new(100);
        (0..100).for_each(|key| _ = map.insert(key, ()));
        assert!(visited(&mut map, |map| map.resize(4)).len() <= 3 + 4);
    }

    #[test]
    fn a_key_has_one_value() {
        let mut map = LruMap::<_, _>::new(2);
        map.insert("a", 1);
        map.insert("b", 1);
        // "a" is in the old generation now, and moves back to the young one.
        map.insert("a", 2);
        assert_eq!(map.iter().map(|(_, value)| value).sum::<i32>(), 3);
        assert_eq!((map.remove(&"a"), map.get(&"a")), (Some(2), None));
        assert_eq!(map.remove(&"b"), Some(1));
    }
}
