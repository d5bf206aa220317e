//! A map of bounded size that forgets what has not been used for longest, roughly.
//!
//! Two generations: what is used is in the young one, or moves there. When the young one has filled
//! its half, it becomes the old one, and what was still old then has not been used since and goes.
//! That costs no list of who was used when, and no step takes long but the one that frees a half.
//!
//! All keys can be visited in steps ([`Generations::visit_some`]), so that a lock around the map can be released after
//! each step.

use std::hash::{BuildHasher, Hash, RandomState};

use indexmap::IndexMap;

/// The map.
pub(crate) struct Generations<K, V, S = RandomState> {
    young: IndexMap<K, V, S>,
    old: IndexMap<K, V, S>,
    half: usize,
    /// How often the young generation has become the old one.
    turns: u64,
}

/// How much of a map has still to be visited: the entries at lower positions than these.
pub(super) struct Remaining {
    young: usize,
    old: usize,
    turns: u64,
}

impl<K: Eq + Hash, V, S: BuildHasher + Default> Generations<K, V, S> {
    /// For at most `capacity` keys, and for one at least.
    pub(crate) fn new(capacity: usize) -> Self {
        let half = capacity.div_ceil(2).max(1);
        Self { young: IndexMap::default(), old: IndexMap::default(), half, turns: 0 }
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
    pub(crate) fn get(&mut self, key: &K) -> Option<&mut V> {
        // Hashing takes longer than looking whether there is anything.
        if !self.old.is_empty()
            && let Some((key, value)) = self.old.swap_remove_entry(key)
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
    pub(crate) fn insert(&mut self, key: K, value: V) -> &mut V {
        self.old.swap_remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
            self.turns += 1;
        }
        self.young.entry(key).insert_entry(value).into_mut()
    }

    /// Forgets a key.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.young.swap_remove(key).or_else(|| self.old.swap_remove(key))
    }

    /// Forgets the keys for which the condition doesn't hold.
    pub(super) fn retain(&mut self, condition: impl Fn(&K) -> bool) {
        self.young.retain(|key, _| condition(key));
        self.old.retain(|key, _| condition(key));
    }

    /// The value of a key, which does not count as a use of it.
    pub(super) fn peek(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// All that there is to visit now.
    pub(super) fn remaining(&self) -> Remaining {
        Remaining { young: self.young.len(), old: self.old.len(), turns: self.turns }
    }

    /// Visits at most `most` of the remaining entries. Says whether there are more. Between two steps the map may change:
    /// an entry that is used or removed meanwhile may be visited twice or not at all, and one that is new is not visited.
    pub(super) fn visit_some(&self, remaining: &mut Remaining, most: usize, mut visit: impl FnMut(&K, &V)) -> bool {
        if remaining.turns != self.turns {
            // What remained of the young generation is old now, or gone if there has been more than one turn.
            remaining.old = if remaining.turns + 1 == self.turns { remaining.young } else { 0 };
            (remaining.young, remaining.turns) = (0, self.turns);
        }
        let mut left = most;
        for (generation, rest) in [(&self.young, &mut remaining.young), (&self.old, &mut remaining.old)] {
            let end = generation.len().min(*rest);
            let begin = end.saturating_sub(left);
            generation.get_range(begin..end).into_iter().flatten().for_each(|(key, value)| visit(key, value));
            left -= end - begin;
            *rest = begin;
        }
        remaining.young + remaining.old > 0
    }

    /// All keys and values.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.young.iter().chain(self.old.iter())
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
            assert!(map.iter().count() <= 10);
        }
        assert_eq!(map.get(&"0"), None);
        assert_eq!(map.get(&"999"), Some(&mut 1));
    }

    #[test]
    fn it_is_resized_at_once() {
        let mut map = Generations::<_, _>::new(10);
        (0..10).for_each(|key| _ = map.insert(key, ()));
        map.resize(4);
        assert_eq!(map.iter().count(), 4);
        map.resize(100);
        (10..50).for_each(|key| _ = map.insert(key, ()));
        assert_eq!(map.iter().count(), 44);
    }

    /// The keys that are visited in steps of three, where the map may change after each step. They are sorted.
    fn visited(map: &mut Generations<i32, ()>, change: fn(&mut Generations<i32, ()>)) -> Vec<i32> {
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
    fn steps_visit_each_key_once_while_nothing_changes() {
        for count in 0..14 {
            let mut map = Generations::<_, _>::new(14);
            (0..count).for_each(|key| _ = map.insert(key, ()));
            assert_eq!(visited(&mut map, |_| ()), (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn steps_visit_each_key_that_stays_once_while_others_are_added() {
        let mut map = Generations::<_, _>::new(14);
        (0..7).for_each(|key| _ = map.insert(key, ()));
        // With the first of these keys the young generation becomes the old one.
        let add = |map: &mut Generations<i32, ()>| _ = map.insert(100 + i32::try_from(map.iter().count()).unwrap(), ());
        assert_eq!(visited(&mut map, add), (0..7).collect::<Vec<_>>());
        // By now some are old, and go while the others are visited.
        let forget = |map: &mut Generations<i32, ()>| (200..220).for_each(|key| _ = map.insert(key, ()));
        let kept = visited(&mut map, forget);
        assert!(kept.len() < 9 && kept.iter().all(|&key| key < 200), "{kept:?}");
    }

    #[test]
    fn steps_end_when_the_map_becomes_smaller() {
        let mut map = Generations::<_, _>::new(100);
        (0..100).for_each(|key| _ = map.insert(key, ()));
        assert!(visited(&mut map, |map| map.resize(4)).len() <= 3 + 4);
    }

    #[test]
    fn a_key_has_one_value() {
        let mut map = Generations::<_, _>::new(2);
        map.insert("a", 1);
        map.insert("b", 1);
        // Old by now, and new again.
        map.insert("a", 2);
        assert_eq!(map.iter().map(|(_, value)| value).sum::<i32>(), 3);
        assert_eq!((map.remove(&"a"), map.get(&"a")), (Some(2), None));
        assert_eq!(map.remove(&"b"), Some(1));
    }
}
