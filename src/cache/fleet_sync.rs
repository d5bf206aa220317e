//! Until when this process is in sync with its fleet: what other gateways have told by then is known here. The task
//! that reads the fleet's log is the only writer. A hit reads it without a lock, and only for a borrowed grant.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(crate) struct FleetSync {
    base: Instant,
    /// Nanoseconds after `base`. They are enough for 584 years.
    until: AtomicU64,
}

impl FleetSync {
    /// Not in sync. `base` is a time of [`crate::clock::Clock::now`] before all others that are passed here.
    pub(crate) fn new(base: Instant) -> Self {
        Self { base, until: AtomicU64::new(0) }
    }

    /// In sync until this time, or longer if that is known.
    pub(crate) fn extend(&self, until: Instant) {
        self.until.fetch_max(self.nanos(until), Ordering::AcqRel);
    }

    /// Not in sync any more, until [`Self::extend`].
    pub(crate) fn end(&self, now: Instant) {
        self.until.fetch_min(self.nanos(now), Ordering::AcqRel);
    }

    pub(crate) fn is_in_sync(&self, now: Instant) -> bool {
        self.nanos(now) < self.until.load(Ordering::Acquire)
    }

    /// When being in sync has ended, or will end if it is not extended. `base` if it has never begun.
    pub(crate) fn ended(&self) -> Instant {
        self.base + Duration::from_nanos(self.until.load(Ordering::Acquire))
    }

    /// Until when this process knows what others have told. `None` if it has never been in sync.
    pub(crate) fn knows_until(&self) -> Option<Instant> {
        Some(self.ended()).filter(|ended| *ended > self.base)
    }

    fn nanos(&self, time: Instant) -> u64 {
        u64::try_from(time.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_process_is_in_sync_until_the_latest_of_its_ends() {
        let base = Clock::System.now();
        let at = |second| base + Duration::from_secs(second);
        let sync = FleetSync::new(base);
        assert!(!sync.is_in_sync(base) && sync.knows_until().is_none());
        sync.extend(at(5));
        sync.extend(at(3));
        assert!(sync.is_in_sync(base) && sync.is_in_sync(at(4)) && !sync.is_in_sync(at(5)));
        assert_eq!((sync.ended(), sync.knows_until()), (at(5), Some(at(5))), "an earlier end shortens nothing");
        sync.extend(at(9));
        assert!(sync.is_in_sync(at(8)));
    }

    #[test]
    fn the_end_of_being_in_sync_counts_at_once_and_never_lengthens_it() {
        let base = Clock::System.now();
        let at = |second| base + Duration::from_secs(second);
        let sync = FleetSync::new(base);
        sync.extend(at(5));
        sync.end(at(2));
        assert!(!sync.is_in_sync(at(2)) && sync.ended() == at(2));
        sync.end(at(4));
        assert_eq!(sync.ended(), at(2));
        sync.extend(at(6));
        assert!(sync.is_in_sync(at(5)));
    }
}
