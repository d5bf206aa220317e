//! How each service is at present, by what came of the latest call to it: whether it answers, since when, and what was
//! wrong last.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::catalogue::Service;
use crate::sync::Mutex;
use crate::upstream::Failure;

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether its latest call has failed.
    pub is_failing: bool,
    /// Whether that call has not even reached it.
    pub is_unreached: bool,
    /// Since when that is so.
    pub since: Instant,
    /// When it has answered well last.
    pub last_answer: Option<Instant>,
    /// What was wrong last.
    pub last_failure: Option<&'static str>,
    /// How many calls have failed since it began to fail last.
    pub failures: u64,
}

/// What a call has brought to light.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthChange {
    /// It fails, perhaps again.
    Fails(&'static str),
    /// It answers, which it did not before.
    Recovers {
        /// For how long it has failed.
        after: Duration,
        /// How many calls have failed in that time.
        failures: u64,
    },
}

/// Of all services that have been asked.
#[derive(Default)]
pub(crate) struct Healths(Mutex<HashMap<Service, Health>>);

impl Healths {
    /// Notes what came of a call: its status, or how it failed. What a caller is answered whom upstream does not know counts
    /// for nothing, for it may be of that one's making; that there is no way to upstream, or is again, is nobody's.
    pub(crate) fn heard(
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

    /// How a service is, if it has been asked.
    pub(crate) fn of(&self, service: Service) -> Option<Health> {
        self.0.lock().get(&service).copied()
    }
}

/// What is wrong with a service that answers so, or fails so. That an answer is too large to be kept is nothing against it.
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
    fn it_turns_when_a_call_ends_otherwise_than_the_one_before() {
        let (healths, began) = (Healths::default(), Clock::System.now());
        let heard =
            |second, result| healths.heard(Service::Workspace, result, true, began + Duration::from_secs(second));
        assert_eq!(healths.of(Service::Workspace), None);
        assert_eq!(heard(1, Ok(StatusCode::OK)), None);
        assert_eq!(heard(2, Ok(StatusCode::TOO_MANY_REQUESTS)), None);
        assert_eq!(heard(3, Err(Failure::Connect)), Some(HealthChange::Fails("connect")));
        assert_eq!(heard(4, Err(Failure::Idle)), None);
        assert_eq!(heard(4, Err(Failure::Local)), None);
        assert_eq!(heard(4, Ok(StatusCode::BAD_GATEWAY)), Some(HealthChange::Fails("502")));
        let health = healths.of(Service::Workspace).unwrap();
        let at = |second| began + Duration::from_secs(second);
        assert_eq!((health.is_failing, health.since, health.last_answer), (true, at(3), Some(at(2))));
        assert_eq!(health.last_failure, Some("502"));
        let recovers = HealthChange::Recovers { after: Duration::from_secs(2), failures: 2 };
        assert_eq!(heard(5, Err(Failure::TooLarge)), Some(recovers));
        assert_eq!(heard(5, Ok(StatusCode::OK)), None);
        let health = healths.of(Service::Workspace).unwrap();
        assert_eq!((health.is_failing, health.since, health.last_failure), (false, at(5), Some("502")));
        assert_eq!(healths.of(Service::AppStream), None);
    }

    #[test]
    fn who_is_not_known_tells_only_whether_there_is_a_way() {
        let recovers = Some(HealthChange::Recovers { after: Duration::ZERO, failures: 1 });
        let (healths, now) = (Healths::default(), Clock::System.now());
        let heard = |result, is_known| healths.heard(Service::Workspace, result, is_known, now);
        for told in [Ok(StatusCode::OK), Ok(StatusCode::BAD_GATEWAY), Err(Failure::Broken), Err(Failure::FirstByte)] {
            assert_eq!((heard(told, false), healths.of(Service::Workspace)), (None, None), "{told:?}");
        }
        assert_eq!(heard(Err(Failure::Connect), false), Some(HealthChange::Fails("connect")));
        assert_eq!(heard(Ok(StatusCode::UNAUTHORIZED), false), recovers);
        assert_eq!(heard(Err(Failure::Broken), true), Some(HealthChange::Fails("broken")));
        assert_eq!(heard(Ok(StatusCode::UNAUTHORIZED), false), None);
        assert_eq!(heard(Ok(StatusCode::NOT_FOUND), true), recovers);
    }
}
