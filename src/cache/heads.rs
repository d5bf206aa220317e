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
    /// Marks of the heads that came last, each in a place of its own choice. One may be mistaken for another
    /// or overwritten by it: then it is remembered too early, or late.
    seen: Box<[AtomicU64]>,
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

    /// Whether a head has come before. From now on it has.
    pub fn have_seen(&self, head: &Fingerprint) -> bool {
        let (place, mark) = head.mark(SEEN);
        self.seen[place].swap(mark, Ordering::Relaxed) == mark
    }
}

impl<T> Default for Heads<T> {
    fn default() -> Self {
        let seen = (0..SEEN).map(|_| AtomicU64::new(0)).collect();
        Self { known: Mutex::new(Generations::new(MAX_HEADS)), seen }
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
}
