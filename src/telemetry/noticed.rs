//! What must be remembered to say what is wrong and since when: the errors of calls and reloads, and when a condition
//! without a time of its own was first seen.

use std::collections::HashMap;
use std::time::Instant;

use super::conditions::{Cause, Condition};
use crate::catalogue::Service;
use crate::sync::Mutex;

/// An error, and when it happened.
type Timed = (Instant, String);

#[derive(Default)]
pub(crate) struct Noticed(Mutex<State>);

#[derive(Default)]
struct State {
    refused_reload: Option<Timed>,
    call_errors: HashMap<Service, String>,
    local_failures: HashMap<Service, Timed>,
    seen: Vec<(Cause, Option<&'static str>, Instant)>,
}

impl Noticed {
    /// The latest configuration was refused, or is valid. Returns whether the one before was refused.
    pub(crate) fn reload(&self, refused: Option<String>, now: Instant) -> bool {
        let mut state = self.0.lock();
        // A mistake that stays in the file lasts since it was first refused.
        let before = state.refused_reload.take();
        let since = before.as_ref().map_or(now, |(since, _)| *since);
        state.refused_reload = refused.map(|error| (since, error));
        before.is_some()
    }

    /// A call has failed outside the gateway.
    pub(crate) fn call_failed(&self, service: Service, error: String) {
        self.0.lock().call_errors.insert(service, error);
    }

    /// A call has failed in the gateway or its host.
    pub(crate) fn failed_here(&self, service: Service, error: String, now: Instant) {
        self.0.lock().local_failures.insert(service, (now, error));
    }

    pub(crate) fn refused_reload(&self) -> Option<Timed> {
        self.0.lock().refused_reload.clone()
    }

    pub(crate) fn call_error(&self, service: Service) -> Option<String> {
        self.0.lock().call_errors.get(&service).cloned()
    }

    pub(crate) fn local_failure(&self, service: Service) -> Option<Timed> {
        self.0.lock().local_failures.get(&service).cloned()
    }

    /// Adds to each condition without a time since when it has been seen here. Forgets those that have ended.
    pub(crate) fn complete(&self, conditions: &mut [Condition], now: Instant) {
        let mut state = self.0.lock();
        let before = std::mem::take(&mut state.seen);
        for condition in conditions.iter_mut().filter(|condition| condition.since.is_none()) {
            let name = (condition.cause, condition.service);
            let known = before.iter().find(|(cause, service, _)| (*cause, *service) == name);
            let since = known.map_or(now, |(_, _, since)| *since);
            condition.since = Some(since);
            state.seen.push((condition.cause, condition.service, since));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::telemetry::conditions::Severity;

    #[test]
    fn a_condition_lasts_since_it_was_first_seen_without_a_break() {
        let (noticed, begun) = (Noticed::default(), Clock::System.now());
        let at = |second| begun + Duration::from_secs(second);
        let condition = |cause, since| {
            let severity = Severity::Warning;
            Condition { cause, severity, service: None, what: String::new(), advice: "", since, until: None }
        };
        let seen = |second, mut conditions: Vec<Condition>| {
            noticed.complete(&mut conditions, at(second));
            conditions.into_iter().map(|condition| condition.since.unwrap()).collect::<Vec<_>>()
        };
        let (full, stalled) = (condition(Cause::CacheFull, None), condition(Cause::LogStalled, None));
        assert_eq!(seen(1, vec![full.clone()]), [at(1)]);
        assert_eq!(seen(5, vec![full.clone(), stalled.clone()]), [at(1), at(5)]);
        assert_eq!(seen(7, vec![stalled.clone()]), [at(5)]);
        assert_eq!(seen(9, vec![full, stalled]), [at(9), at(5)]);
        assert_eq!(seen(9, vec![condition(Cause::Bypassed, Some(at(3)))]), [at(3)], "it has a time of its own");
    }

    #[test]
    fn a_refused_reload_lasts_until_a_configuration_is_valid() {
        let (noticed, begun) = (Noticed::default(), Clock::System.now());
        let later = begun + Duration::from_secs(9);
        assert!(!noticed.reload(Some("one".to_owned()), begun));
        assert!(noticed.reload(Some("other".to_owned()), later));
        assert_eq!(noticed.refused_reload(), Some((begun, "other".to_owned())));
        assert!(noticed.reload(None, later));
        assert!(!noticed.reload(None, later));
        assert_eq!(noticed.refused_reload(), None);
    }
}
