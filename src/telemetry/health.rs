//! The health of each upstream service, from the result of the latest call to it: whether it fails, since when, and the
//! last failure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::catalogue::Service;
use crate::sync::Mutex;
use crate::upstream::Failure;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the latest call has failed.
    pub is_failing: bool,
    /// Whether that call did not reach the service.
    pub is_unreached: bool,
    /// When `is_failing` last changed.
    pub since: Instant,
    /// When the service last answered successfully.
    pub last_answer: Option<Instant>,
    pub last_failure: Option<&'static str>,
    /// How many calls have failed in the latest outage.
    pub failures: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthChange {
    /// The call has failed. The calls before may have failed, too.
    Fails(&'static str),
    /// The call has succeeded, and the call before had failed.
    Recovers {
        /// How long the service has failed.
        after: Duration,
        /// How many calls have failed in this time.
        failures: u64,
    },
}

/// The health of each service that has been called.
#[derive(Default)]
pub(crate) struct Healths(Mutex<HashMap<Service, Health>>);

impl Healths {
    /// Records the status of a call, or how it failed. The call of an unknown caller counts only if it shows that the
    /// service cannot be reached, or can be reached again: any other result may be of the caller's own making.
    pub(crate) fn record(
        &self,
        service: Service,
        result: Result<StatusCode, Failure>,
        is_known: bool,
        now: Instant,
    ) -> Option<HealthChange> {
        if result.is_err_and(Failure::is_inside) {
            return None;
        }
        let failure = failure(result);
        let is_unreached = result.is_err_and(Failure::is_unreached);
        let mut healths = self.0.lock();
        let was_unreached = || healths.get(&service).is_some_and(|health| health.is_failing && health.is_unreached);
        let counts = is_known || is_unreached || (failure.is_none() && was_unreached());
        if !counts {
            return None;
        }
        let before = healths.get(&service).copied();
        let was_failing = before.is_some_and(|before| before.is_failing);
        let since = before.filter(|_| was_failing == failure.is_some()).map_or(now, |before| before.since);
        let failures = before.map_or(0, |before| before.failures);
        let health = Health {
            failures: match failure {
                Some(_) if was_failing => failures + 1,
                Some(_) => 1,
                None => failures,
            },
            is_failing: failure.is_some(),
            is_unreached,
            since,
            last_answer: if failure.is_none() { Some(now) } else { before.and_then(|before| before.last_answer) },
            last_failure: failure.or_else(|| before.and_then(|before| before.last_failure)),
        };
        healths.insert(service, health);
        match (before, failure) {
            (_, Some(failure)) => Some(HealthChange::Fails(failure)),
            (Some(before), None) if was_failing => {
                Some(HealthChange::Recovers { after: now.saturating_duration_since(before.since), failures })
            }
            _ => None,
        }
    }

    /// `None` until a call counts.
    pub(crate) fn of(&self, service: Service) -> Option<Health> {
        self.0.lock().get(&service).copied()
    }
}

/// The failure that a result is for the health of the service. A response that is too large to be stored is none.
fn failure(result: Result<StatusCode, Failure>) -> Option<&'static str> {
    match result {
        Ok(status) if status.is_server_error() => Some(super::status::status_label(status)),
        Ok(_) | Err(Failure::TooLarge) => None,
        Err(failure) => Some(failure.into_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn health_changes_when_a_call_ends_differently_from_the_one_before() {
        let (healths, began) = (Healths::default(), Clock::System.now());
        let record =
            |second, result| healths.record(Service::Workspace, result, true, began + Duration::from_secs(second));
        assert_eq!(healths.of(Service::Workspace), None);
        assert_eq!(record(1, Ok(StatusCode::OK)), None);
        assert_eq!(record(2, Ok(StatusCode::TOO_MANY_REQUESTS)), None);
        assert_eq!(record(3, Err(Failure::Connect)), Some(HealthChange::Fails("connect")));
        assert_eq!(record(4, Err(Failure::Idle)), None);
        assert_eq!(record(4, Err(Failure::Local)), None);
        assert_eq!(record(4, Ok(StatusCode::BAD_GATEWAY)), Some(HealthChange::Fails("502")));
        let health = healths.of(Service::Workspace).unwrap();
        let at = |second| began + Duration::from_secs(second);
        assert_eq!((health.is_failing, health.since, health.last_answer), (true, at(3), Some(at(2))));
        assert_eq!(health.last_failure, Some("502"));
        let recovers = HealthChange::Recovers { after: Duration::from_secs(2), failures: 2 };
        assert_eq!(record(5, Err(Failure::TooLarge)), Some(recovers));
        assert_eq!(record(5, Ok(StatusCode::OK)), None);
        let health = healths.of(Service::Workspace).unwrap();
        assert_eq!((health.is_failing, health.since, health.last_failure), (false, at(5), Some("502")));
        assert_eq!(healths.of(Service::AppStream), None);
    }

    #[test]
    fn the_call_of_an_unknown_caller_only_shows_whether_upstream_can_be_reached() {
        let recovers = Some(HealthChange::Recovers { after: Duration::ZERO, failures: 1 });
        let (healths, now) = (Healths::default(), Clock::System.now());
        let record = |result, is_known| healths.record(Service::Workspace, result, is_known, now);
        for result in [Ok(StatusCode::OK), Ok(StatusCode::BAD_GATEWAY), Err(Failure::Broken), Err(Failure::FirstByte)] {
            assert_eq!((record(result, false), healths.of(Service::Workspace)), (None, None), "{result:?}");
        }
        assert_eq!(record(Err(Failure::Connect), false), Some(HealthChange::Fails("connect")));
        assert_eq!(record(Ok(StatusCode::UNAUTHORIZED), false), recovers);
        assert_eq!(record(Err(Failure::Broken), true), Some(HealthChange::Fails("broken")));
        assert_eq!(record(Ok(StatusCode::UNAUTHORIZED), false), None);
        assert_eq!(record(Ok(StatusCode::NOT_FOUND), true), recovers);
    }
}
