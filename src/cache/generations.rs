//! A map of bounded size that forgets what has not been used for longest, roughly.
//!
//! Two generations: what is used is in the young one, or moves there. When the young one has filled
//! its half, it becomes the old one, and what was still old then has not been used since and goes.
//! That costs no list of who was used when, and no step takes long but the one that frees a half.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};

/// The map.
pub(super) struct Generations<K, V, S = RandomState> {
    young: HashMap<K, V, S>,
    old: HashMap<K, V, S>,
    half: usize,
}

impl<K: Eq + Hash, V, S: BuildHasher + Default> Generations<K, V, S> {
    /// For at most `capacity` keys, and for one at least.
    pub(super) fn new(capacity: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), half: capacity.div_ceil(2).max(1) }
    }

    /// For another number of keys from now on. Where there are more, some go, whichever.
    pub(super) fn resize(&mut self, capacity: usize) {
        self.half = capacity.div_ceil(2).max(1);
        for keys in [&mut self.young, &mut self.old] {
            let mut room = self.half;
            keys.retain(|_, _| {
                let stays = room > 0;
                room = room.saturating_sub(1);
                stays
            });
        }
    }

    /// The value of a key, which is thereby used.
    pub(super) fn get(&mut self, key: &K) -> Option<&mut V> {
        // Hashing takes longer than looking whether there is anything.
        if !self.old.is_empty()
            && let Some((key, value)) = self.old.remove_entry(key)
        {
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }

    /// The value of a key, which is thereby used; a new one if there is none.
    pub(super) fn get_or_insert_with(&mut self, key: &K, new: impl FnOnce() -> V) -> &mut V
    where
        K: Clone,
    {
        let value = self.remove(key).unwrap_or_else(new);
        self.insert(key.clone(), value)
    }

    /// Sets the value of a key.
    pub(super) fn insert(&mut self, key: K, value: V) -> &mut V {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.entry(key).insert_entry(value).into_mut()
    }

    /// Forgets a key.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }

    /// Forgets the keys for which the condition doesn't hold.
    pub(super) fn retain(&mut self, condition: impl Fn(&K) -> bool) {
        self.young.retain(|key, _| condition(key));
        self.old.retain(|key, _| condition(key));
    }

    /// All values.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.young.values().chain(self.old.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_is_used_and_never_more_than_it_may() {
        let mut map = Generations::<_, _>::new(10);
        map.insert("used", 0);
        let keys: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        for key in &keys {
            map.insert(key, 1);
            assert_eq!(map.get(&"used"), Some(&mut 0));
            assert!(map.values().count() <= 10);
        }
        assert_eq!(map.get(&"0"), None);
        assert_eq!(map.get(&"999"), Some(&mut 1));
    }

    #[test]
    fn it_is_resized_at_once() {
        let mut map = Generations::<_, _>::new(10);
        (0..10).for_each(|key| _ = map.insert(key, ()));
        map.resize(4);
        assert_eq!(map.values().count(), 4);
        map.resize(100);
        (10..50).for_each(|key| _ = map.insert(key, ()));
        assert_eq!(map.values().count(), 44);
    }

    #[test]
    fn a_key_has_one_value() {
        let mut map = Generations::<_, _>::new(2);
        map.insert("a", 1);
        map.insert("b", 1);
        // Old by now, and new again.
        map.insert("a", 2);
        assert_eq!(map.values().sum::<i32>(), 3);
        assert_eq!((map.remove(&"a"), map.get(&"a")), (Some(2), None));
        assert_eq!(map.remove(&"b"), Some(1));
    }
}
