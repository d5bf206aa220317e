//! The log lines of upstream calls that fail. The first failure of a service and cause is logged at `warn`. Further
//! ones are counted, and logged at most once a minute with the number since the previous line, so that an outage is a
//! few lines and not one for each request. At level `debug` each failure has a line.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Instant;

use super::events::REPEAT_INTERVAL;
use crate::catalogue::Service;
use crate::sync::{Mutex, MutexGuard};
use crate::upstream::Failure;

/// Both are from fixed sets, which bounds the map.
type FailureKind = (Service, Failure);

#[derive(Default)]
struct FailureCount {
    logged_at: Option<Instant>,
    /// Failures since then.
    unlogged: u64,
}

impl FailureCount {
    /// Counts a failure. Returns the number to log, if a line is due.
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.unlogged += 1;
        self.due(now)
    }

    fn due(&mut self, now: Instant) -> Option<u64> {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < REPEAT_INTERVAL;
        if self.unlogged == 0 || self.logged_at.is_some_and(is_recent) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[derive(Default)]
pub(crate) struct Failures(Mutex<HashMap<FailureKind, FailureCount>>);

impl Failures {
    /// Logs or counts a failed call for this request. `error` has the details.
    pub(crate) fn note(&self, kind: FailureKind, request_id: &str, error: &dyn Display, now: Instant) {
        let (service, cause) = (kind.0.as_str(), kind.1.into_str());
        let due = self.counted().entry(kind).or_default().add(now);
        match due {
            Some(count) => tracing::warn!(request_id, service, cause, count, %error, "upstream request failed"),
            None => tracing::debug!(request_id, service, cause, %error, "upstream request failed"),
        }
    }

    /// Logs the failures that have been counted for [`REPEAT_INTERVAL`].
    pub(crate) fn log_due(&self, now: Instant) {
        self.log(|counted| counted.due(now));
    }

    /// Logs all counted failures, at the end of the process.
    pub(crate) fn log_rest(&self) {
        self.log(|counted| Some(std::mem::take(&mut counted.unlogged)).filter(|unlogged| *unlogged > 0));
    }

    fn log(&self, due: impl Fn(&mut FailureCount) -> Option<u64>) {
        for ((service, cause), counted) in self.counted().iter_mut() {
            if let Some(count) = due(counted) {
                tracing::warn!(service = service.as_str(), cause = cause.into_str(), count, "upstream request failed");
            }
        }
    }

    fn counted(&self) -> MutexGuard<'_, HashMap<FailureKind, FailureCount>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn the_first_failure_is_logged_and_then_their_number_once_a_minute() {
        let (began, mut counted) = (Clock::System.now(), FailureCount::default());
        let mut at = |second| counted.add(began + Duration::from_secs(second));
        assert_eq!([0, 1, 30, 59].map(&mut at), [Some(1), None, None, None]);
        assert_eq!([60, 61, 300, 310].map(&mut at), [Some(4), None, Some(2), None]);
        let mut due = |second| counted.due(began + Duration::from_secs(second));
        assert_eq!([359, 360, 420].map(&mut due), [None, Some(1), None], "nothing has failed since");
    }
}
