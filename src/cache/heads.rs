//! What heads have been found to ask, so that the same head, byte for byte, need not be read again.
//!
//! Nothing else is remembered of a head but its fingerprint, and nothing here says what may be answered. Losing one for
//! want of room costs reading it once more. A head that has come once is not remembered yet: many clients put something
//! into each that never comes again, and would drive out those that repeat themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::generations::Generations;
use crate::request::head::{BuildFingerprintHasher, Fingerprint};

/// How many heads are known. The most recently used half of them stay for sure.
const MAX_HEADS: usize = 24 * 1024;

/// Among how many heads one is noticed when it comes again, roughly.
const SEEN: usize = 32 * 1024;

/// The heads that are known, with what each asks.
pub struct Heads<T> {
    known: Mutex<Generations<Fingerprint, T, BuildFingerprintHasher>>,
    /// Marks of heads that have come, each in a place of its own. Where one is mistaken for another, it is remembered
    /// too early.
    seen: Box<[AtomicU64]>,
    coin: AtomicU64,
}

impl<T: Clone> Heads<T> {
    /// What a head asks, if it is known.
    pub fn get(&self, head: &Fingerprint) -> Option<T> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(head).map(|asked| asked.clone())
    }

    /// Remembers what a head asks.
    pub fn insert(&self, head: Fingerprint, asked: T) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(head, asked);
    }

    /// Whether a head is known to have come before. If not, that may be known from now on.
    pub fn have_seen(&self, head: &Fingerprint) -> bool {
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

impl<T> Default for Heads<T> {
    fn default() -> Self {
        let seen = (0..SEEN).map(|_| AtomicU64::new(0)).collect();
        Self { known: Mutex::new(Generations::new(MAX_HEADS)), seen, coin: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::head::Fingerprints;

    #[test]
    fn a_head_has_been_seen_from_its_second_time_on() {
        let (heads, fingerprints) = (Heads::<()>::default(), Fingerprints::new([1; 4]));
        let head = |number: u32| fingerprints.of(&number.to_be_bytes());
        let again = (0..1_000).filter(|&number| heads.have_seen(&head(number))).count();
        assert_eq!(again, 0);
        let again = (0..1_000).filter(|&number| heads.have_seen(&head(number))).count();
        assert!(again > 950, "{again}");
    }

    #[test]
    fn heads_that_share_a_place_are_seen_all_the_same() {
        let (heads, fingerprints) = (Heads::<()>::default(), Fingerprints::new([1; 4]));
        let all: Vec<_> = (0..10_000_u32).map(|number| fingerprints.of(&number.to_be_bytes())).collect();
        let mut unseen: Vec<_> = all.iter().collect();
        // Who has been seen is known, and doesn't come here any more.
        for _ in 0..12 {
            unseen.retain(|head| !heads.have_seen(head));
        }
        assert!(unseen.len() < 50, "{}", unseen.len());
    }
}
