//! What reading a head has told, by the head's fingerprint, so that the same head, byte for byte, need not be read again.
//!
//! Nothing else is remembered of a head but its fingerprint, and nothing here says what may be answered. A head that is lost
//! for want of room is read once more. A head is remembered only from its second time on: many clients put something into
//! each head that never comes again, and would drive out those that repeat themselves.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::generations::Generations;
use crate::request::fingerprint::{BuildFingerprintHasher, Fingerprint};
use crate::sync::Mutex;

/// How many heads are known. The most recently used half of them stay for sure.
pub const MAX_HEADS: usize = 20 * 1024;

/// Among how many heads one is noticed when it comes again, roughly.
const SEEN: usize = 32 * 1024;

/// The heads that are known, with what reading each has told.
pub(super) struct HeadCache<T> {
    known: Mutex<Generations<Fingerprint, T, BuildFingerprintHasher>>,
    /// Marks of heads that have come, each in a place of its own. Where one is mistaken for another, it is remembered
    /// too early.
    seen: Box<[AtomicU64]>,
    coin: AtomicU64,
}

impl<T: Clone> HeadCache<T> {
    /// What reading a head has told, if it is known.
    pub(super) fn get(&self, head: &Fingerprint) -> Option<T> {
        self.known.lock().get(head).cloned()
    }

    /// Remembers what reading a head has told.
    pub(super) fn insert(&self, head: Fingerprint, told: T) {
        self.known.lock().insert(head, told);
    }

    /// Forgets all heads.
    pub(super) fn clear(&self) {
        let forgotten = mem::replace(&mut *self.known.lock(), Generations::new(MAX_HEADS));
        // That takes a while, and nobody waits for it.
        drop(forgotten);
    }

    /// Whether a head is known to have come before. If not, that may be known from now on.
    pub(super) fn was_seen(&self, head: &Fingerprint) -> bool {
        let (place, mark) = head.mark(SEEN);
        let there = self.seen[place].load(Ordering::Relaxed);
        if there == mark {
            return true;
        }
        // Heads that share a place and come by turns would drive out each other for ever. So a coin is tossed.
        let tosses = self.coin.fetch_add(1, Ordering::Relaxed);
        if there == 0 || tosses.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0 {
            self.seen[place].store(mark, Ordering::Relaxed);
        }
        false
    }
}

impl<T> Default for HeadCache<T> {
    fn default() -> Self {
        let seen = (0..SEEN).map(|_| AtomicU64::new(0)).collect();
        Self { known: Mutex::new(Generations::new(MAX_HEADS)), seen, coin: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::fingerprint::Fingerprints;

    #[test]
    fn heads_that_were_forgotten_are_not_known() {
        let (heads, head) = (HeadCache::default(), Fingerprints::new([1; 32]).of(b"head"));
        heads.insert(head, ());
        assert_eq!(heads.get(&head), Some(()));
        heads.clear();
        assert_eq!(heads.get(&head), None);
    }

    #[test]
    fn a_head_has_been_seen_from_its_second_time_on() {
        let (heads, fingerprints) = (HeadCache::<()>::default(), Fingerprints::new([1; 32]));
        let head = |number: u32| fingerprints.of(&number.to_be_bytes());
        let again = (0..1_000).filter(|&number| heads.was_seen(&head(number))).count();
        assert_eq!(again, 0);
        let again = (0..1_000).filter(|&number| heads.was_seen(&head(number))).count();
        assert!(again > 950, "{again}");
    }

    #[test]
    fn heads_that_share_a_place_are_seen_all_the_same() {
        let (heads, fingerprints) = (HeadCache::<()>::default(), Fingerprints::new([1; 32]));
        let all: Vec<_> = (0..10_000_u32).map(|number| fingerprints.of(&number.to_be_bytes())).collect();
        let mut unseen: Vec<_> = all.iter().collect();
        // Who has been seen is known, and doesn't come here any more.
        for _ in 0..12 {
            unseen.retain(|head| !heads.was_seen(head));
        }
        assert!(unseen.len() < 50, "{}", unseen.len());
    }
}
