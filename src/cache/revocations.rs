//! Counts the events after which older state must not be shown any more: purges, invalidations, scopes that become
//! private, and denials of callers with a grant. A snapshot from before such an event must not be read by a later process.
//! What is remembered of a look-up ends with it ([`Revocations::generation`]).

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Revocations {
    count: AtomicU64,
    /// The number of times that grants ended together, without a revocation.
    lapses: AtomicU64,
    changed: Notify,
}

impl Revocations {
    pub(super) fn add(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// The number so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Grants that were not revoked do not count any more, or were removed.
    pub(super) fn add_lapse(&self) {
        self.lapses.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes after each event by which a live grant ends early, or an entry must not be shown any more to those who have
    /// seen it. A result that was found in one generation stands in the same generation. Read it before the result is
    /// looked up.
    pub(crate) fn generation(&self) -> u64 {
        self.count().wrapping_add(self.lapses.load(Ordering::Acquire))
    }

    /// Waits until the number has changed since the last call. For one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
