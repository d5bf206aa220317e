//! A cache of the results of reading heads, by the fingerprint of the head.
//!
//! Only the fingerprint of a head is stored, never the head. Nothing here decides what may be answered. A head that was
//! evicted is read again. A head is stored only when it comes the second time: many clients send heads that never come
//! again, and these would evict the heads that are repeated.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::lru_map::LruMap;
use crate::request::fingerprint::{BuildFingerprintHasher, Fingerprint};
use crate::sync::Mutex;

/// The capacity. The most recently used half is never evicted.
pub const MAX_HEADS: usize = 20_000;

/// The number of marks of heads that have come once.
const MARKS: usize = 32 * 1024;

pub(super) struct HeadCache<T> {
    results: Mutex<LruMap<Fingerprint, T, BuildFingerprintHasher>>,
    /// Marks of heads that have come once, indexed by their fingerprints. If two heads have the same mark, one of them
    /// is stored too early, which does no harm.
    marks: Box<[AtomicU64]>,
    /// A counter that decides pseudo-randomly whether a mark is replaced.
    replacements: AtomicU64,
}

impl<T: Clone> HeadCache<T> {
    pub(super) fn get(&self, head: &Fingerprint) -> Option<T> {
        self.results.lock().get(head).cloned()
    }

    pub(super) fn insert(&self, head: Fingerprint, result: T) {
        self.results.lock().insert(head, result);
    }

    pub(super) fn clear(&self) {
        let old = mem::replace(&mut *self.results.lock(), LruMap::new(MAX_HEADS));
        // Dropping many results takes a while, so it happens without the lock.
        drop(old);
    }

    /// Whether a head has come before. If not, it is marked, unless another head keeps its place.
    pub(super) fn was_seen(&self, head: &Fingerprint) -> bool {
        let (index, mark) = head.mark(MARKS);
        let current = self.marks[index].load(Ordering::Relaxed);
        if current == mark {
            return true;
        }
        // Two heads with the same index that alternate would replace each other's marks forever. So only about half of
        // the heads replace a mark.
        let count = self.replacements.fetch_add(1, Ordering::Relaxed);
        if current == 0 || count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0 {
            self.marks[index].store(mark, Ordering::Relaxed);
        }
        false
    }
}

impl<T> Default for HeadCache<T> {
    fn default() -> Self {
        let marks = (0..MARKS).map(|_| AtomicU64::new(0)).collect();
        Self { results: Mutex::new(LruMap::new(MAX_HEADS)), marks, replacements: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::fingerprint::Fingerprints;

    #[test]
    fn a_cleared_cache_has_no_heads() {
        let (heads, head) = (HeadCache::default(), Fingerprints::new([1; 32]).of(b"head"));
        heads.insert(head, ());
        assert_eq!(heads.get(&head), Some(()));
        heads.clear();
        assert_eq!(heads.get(&head), None);
    }

    #[test]
    fn a_head_counts_as_seen_when_it_comes_the_second_time() {
        let (heads, fingerprints) = (HeadCache::<()>::default(), Fingerprints::new([1; 32]));
        let head = |number: u32| fingerprints.of(&number.to_be_bytes());
        let again = (0..1_000).filter(|&number| heads.was_seen(&head(number))).count();
        assert_eq!(again, 0);
        let again = (0..1_000).filter(|&number| heads.was_seen(&head(number))).count();
        assert!(again > 950, "{again}");
    }

    #[test]
    fn heads_that_share_a_mark_are_seen_after_a_few_times() {
        let (heads, fingerprints) = (HeadCache::<()>::default(), Fingerprints::new([1; 32]));
        let all: Vec<_> = (0..10_000_u32).map(|number| fingerprints.of(&number.to_be_bytes())).collect();
        let mut unseen: Vec<_> = all.iter().collect();
        // A head that has been seen is stored, and is not checked again.
        for _ in 0..12 {
            unseen.retain(|head| !heads.was_seen(head));
        }
        assert!(unseen.len() < 50, "{}", unseen.len());
    }
}
