//! How each service is at present, by what came of the latest call to it: whether it answers, since when, and what was
//! wrong last.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use http::StatusCode;

use crate::catalogue::Service;

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether its latest call has failed.
    pub is_failing: bool,
    /// Since when that is so.
    pub since: Instant,
    /// When it has answered well last.
    pub last_answer: Option<Instant>,
    /// What was wrong last.
    pub last_failure: Option<&'static str>,
}

/// What a call has brought to light.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It fails, which it did not before.
    Fails(&'static str),
    /// It answers, which it did not before.
    Recovers,
}

/// Of all services that have been asked.
#[derive(Default)]
pub struct Healths(Mutex<HashMap<Service, Health>>);

impl Healths {
    /// Notes what came of a call: its status, or how it failed. What a caller is answered whom upstream does not know counts
    /// for nothing, for it may be of that one's making; that there is no way to upstream, or is again, is nobody's.
    pub fn heard(
        &self,
        service: Service,
        result: Result<StatusCode, &'static str>,
        is_known: bool,
        now: Instant,
    ) -> Option<Turn> {
        let failure = match result {
            // Perhaps the client's doing, or the gateway's own: that tells nothing of the service.
            Err("idle" | "busy" | "upload") => return None,
            result => failure(result),
        };
        let mut healths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let had_no_way =
            || healths.get(&service).is_some_and(|health| health.is_failing && has_no_way(health.last_failure));
        let counts = is_known || has_no_way(failure) || (failure.is_none() && had_no_way());
        if !counts {
            return None;
        }
        let before = healths.get(&service).copied();
        let was_failing = before.is_some_and(|before| before.is_failing);
        let since = before.filter(|_| was_failing == failure.is_some()).map_or(now, |before| before.since);
        let health = Health {
            is_failing: failure.is_some(),
            since,
            last_answer: if failure.is_none() { Some(now) } else { before.and_then(|before| before.last_answer) },
            last_failure: failure.or_else(|| before.and_then(|before| before.last_failure)),
        };
        healths.insert(service, health);
        match (was_failing, failure) {
            (false, Some(failure)) => Some(Turn::Fails(failure)),
            (true, None) => Some(Turn::Recovers),
            _ => None,
        }
    }

    /// How a service is, if it has been asked.
    pub fn of(&self, service: Service) -> Option<Health> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&service).copied()
    }
}

/// What is wrong with a service that answers so, or fails so. That an answer is too large to be kept is nothing against it.
fn failure(result: Result<StatusCode, &'static str>) -> Option<&'static str> {
    match result {
        Ok(status) if status.is_server_error() => Some(super::status::status_label(status)),
        Ok(_) | Err("too-large") => None,
        Err(failure) => Some(failure),
    }
}

/// Whether a service could not even be reached.
fn has_no_way(failure: Option<&str>) -> bool {
    matches!(failure, Some("connect" | "tls"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert_eq!(heard(3, Err("connect")), Some(Turn::Fails("connect")));
        assert_eq!(heard(4, Err("idle")), None);
        assert_eq!(heard(4, Ok(StatusCode::BAD_GATEWAY)), None);
        let health = healths.of(Service::Workspace).unwrap();
        let at = |second| began + Duration::from_secs(second);
        assert_eq!((health.is_failing, health.since, health.last_answer), (true, at(3), Some(at(2))));
        assert_eq!(health.last_failure, Some("502"));
        assert_eq!(heard(5, Err("too-large")), Some(Turn::Recovers));
        let health = healths.of(Service::Workspace).unwrap();
        assert_eq!((health.is_failing, health.since, health.last_failure), (false, at(5), Some("502")));
        assert_eq!(healths.of(Service::AppStream), None);
    }

    #[test]
    fn who_is_not_known_tells_only_whether_there_is_a_way() {
        let (healths, now) = (Healths::default(), Clock::System.now());
        let heard = |result, is_known| healths.heard(Service::Workspace, result, is_known, now);
        for told in [Ok(StatusCode::OK), Ok(StatusCode::BAD_GATEWAY), Err("broken"), Err("first-byte")] {
            assert_eq!((heard(told, false), healths.of(Service::Workspace)), (None, None), "{told:?}");
        }
        assert_eq!(heard(Err("connect"), false), Some(Turn::Fails("connect")));
        assert_eq!(heard(Ok(StatusCode::UNAUTHORIZED), false), Some(Turn::Recovers));
        assert_eq!(heard(Err("broken"), true), Some(Turn::Fails("broken")));
        assert_eq!(heard(Ok(StatusCode::UNAUTHORIZED), false), None);
        assert_eq!(heard(Ok(StatusCode::NOT_FOUND), true), Some(Turn::Recovers));
    }
}
