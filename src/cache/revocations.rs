//! Counts the events after which older state must not be shown any more: purges, invalidations, scopes that become
//! private, and denials of callers that have a grant, or whose grant was removed for lack of room. A snapshot from before
//! such an event must not be read by a later process.
//! A remembered look-up ends with such an event, too.

use std::sync::atomic::Ordering;

use tokio::sync::Notify;

use crate::sync::AtomicU64;

#[derive(Default)]
pub(crate) struct Revocations {
    count: AtomicU64,
    /// The number of changes after which a remembered look-up must not be used, but a snapshot stays valid.
    other_changes: AtomicU64,
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

    /// After this change a remembered look-up must not be used. A snapshot stays valid.
    pub(super) fn add_for_process(&self) {
        self.other_changes.fetch_add(1, Ordering::AcqRel);
    }

    /// A result is valid while this number is unchanged. It must be read before the look-up.
    pub(crate) fn revision(&self) -> u64 {
        self.count().wrapping_add(self.other_changes.load(Ordering::Acquire))
    }

    /// Waits until the number has changed since the last call. For one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
