//! Request ids: 32 hex digits, unique within a process and very likely beyond it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Hands out request ids.
#[derive(Debug)]
pub struct RequestIds {
    process: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// With a number that tells this process from others.
    pub fn new(process: u64) -> Self {
        Self { process, next: AtomicU64::new(0) }
    }

    /// The next id.
    pub fn next(&self) -> String {
        format!("{:016x}{:016x}", self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}
