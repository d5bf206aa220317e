//! What heads have been found to ask, so that the same head, byte for byte, need not be read again.
//!
//! Nothing else is remembered of a head but its fingerprint, and nothing here says what may be answered. Losing one for
//! want of room costs reading it once more.

use std::sync::{Mutex, PoisonError};

use super::generations::Generations;
use crate::request::head::{BuildFingerprintHasher, Fingerprint};

/// How many heads are known. The most recently used half of them stay for sure.
const MAX_HEADS: usize = 24 * 1024;

/// The heads that are known, with what each asks.
pub struct Heads<T>(Mutex<Generations<Fingerprint, T, BuildFingerprintHasher>>);

impl<T: Clone> Heads<T> {
    /// What a head asks, if it is known.
    pub fn get(&self, head: &Fingerprint) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(head).map(|asked| asked.clone())
    }

    /// Remembers what a head asks.
    pub fn insert(&self, head: Fingerprint, asked: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(head, asked);
    }
}

impl<T> Default for Heads<T> {
    fn default() -> Self {
        Self(Mutex::new(Generations::new(MAX_HEADS)))
    }
}
