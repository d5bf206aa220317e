//! The log line of calls to upstream that fail. The first of a service and cause is a warning; the same again is counted, and
//! warned of at most once a minute with the number since the previous warning. So an outage is some lines, not one for each
//! request. At level `debug` each is a line.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Instant;

use super::events::REPEAT_INTERVAL;
use crate::catalogue::Service;
use crate::sync::{Mutex, MutexGuard};
use crate::upstream::Failure;

/// A service, and why its call has failed: both are of fixed sets.
type FailureKind = (Service, Failure);

#[derive(Default)]
struct FailureCount {
    warned_at: Option<Instant>,
    /// How often it has happened since.
    since: u64,
}

impl FailureCount {
    /// Counts another. How many to warn of, if that is due.
    fn another(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        self.due(now)
    }

    fn due(&mut self, now: Instant) -> Option<u64> {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < REPEAT_INTERVAL;
        if self.since == 0 || self.warned_at.is_some_and(is_recent) {
            return None;
        }
        self.warned_at = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

/// Which failures were warned of lately.
#[derive(Default)]
pub(crate) struct Failures(Mutex<HashMap<FailureKind, FailureCount>>);

impl Failures {
    /// Logs a failure of a call for this request. `error` has the particulars.
    pub(crate) fn note(&self, kind: FailureKind, request_id: &str, error: &dyn Display, now: Instant) {
        let (service, cause) = (kind.0.as_str(), kind.1.into_str());
        let due = self.counted().entry(kind).or_default().another(now);
        match due {
            Some(count) => tracing::warn!(request_id, service, cause, count, %error, "upstream request failed"),
            None => tracing::debug!(request_id, service, cause, %error, "upstream request failed"),
        }
    }

    /// Warns of those that have only been counted for [`REPEAT_INTERVAL`].
    pub(crate) fn log_due(&self, now: Instant) {
        self.warn(|counted| counted.due(now));
    }

    /// Warns of all that were only counted, at the end of the process.
    pub(crate) fn log_rest(&self) {
        self.warn(|counted| Some(std::mem::take(&mut counted.since)).filter(|since| *since > 0));
    }

    fn warn(&self, due: impl Fn(&mut FailureCount) -> Option<u64>) {
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
    fn the_first_is_warned_of_and_then_one_a_minute_with_their_number() {
        let (began, mut counted) = (Clock::System.now(), FailureCount::default());
        let mut at = |second| counted.another(began + Duration::from_secs(second));
        assert_eq!([0, 1, 30, 59].map(&mut at), [Some(1), None, None, None]);
        assert_eq!([60, 61, 300, 310].map(&mut at), [Some(4), None, Some(2), None]);
        let mut due = |second| counted.due(began + Duration::from_secs(second));
        assert_eq!([359, 360, 420].map(&mut due), [None, Some(1), None], "nothing has failed since");
    }
}
