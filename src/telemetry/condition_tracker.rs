//! What must be remembered to say what is wrong and since when: the errors of calls and reloads, when upstream has
//! throttled a call, when a condition without a time of its own was first seen, and which conditions were logged.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::conditions::{Cause, Condition};
use crate::catalogue::Service;
use crate::sync::Mutex;

/// An error, and when it happened.
type Timed = (Instant, String);

/// A service has each condition once, in whatever words.
type ConditionId = (Cause, Option<Service>);

/// What the log has to say.
#[derive(Debug, PartialEq)]
pub(crate) enum ConditionChange<'c> {
    Begun(&'c Condition),
    Ended {
        cause: Cause,
        service: Option<Service>,
        /// How long it lasted.
        after: Duration,
    },
}

#[derive(Default)]
pub(crate) struct ConditionTracker(Mutex<State>);

#[derive(Default)]
struct State {
    refused_reload: Option<Timed>,
    call_errors: HashMap<Service, String>,
    local_failures: HashMap<Service, Timed>,
    throttled: HashMap<Service, Instant>,
    seen: Vec<(ConditionId, Instant)>,
    /// Since when those conditions last whose beginning was logged.
    logged: Vec<(ConditionId, Instant)>,
}

impl ConditionTracker {
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

    /// Upstream has throttled a call.
    pub(crate) fn throttled(&self, service: Service, now: Instant) {
        self.0.lock().throttled.insert(service, now);
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

    pub(crate) fn last_throttled(&self, service: Service) -> Option<Instant> {
        self.0.lock().throttled.get(&service).copied()
    }

    /// Adds to each condition without a time since when it has been seen here. Forgets those that have ended.
    pub(crate) fn complete(&self, conditions: &mut [Condition], now: Instant) {
        let mut state = self.0.lock();
        let before = std::mem::take(&mut state.seen);
        for condition in conditions.iter_mut().filter(|condition| condition.since.is_none()) {
            let known = before.iter().find(|(id, _)| *id == condition.id());
            let since = known.map_or(now, |(_, since)| *since);
            condition.since = Some(since);
            state.seen.push((condition.id(), since));
        }
    }

    /// What has begun and what has ended since the previous call of this function.
    pub(crate) fn changes<'c>(&self, conditions: &'c [Condition], now: Instant) -> Vec<ConditionChange<'c>> {
        let logged = &mut self.0.lock().logged;
        let mut changes = Vec::new();
        logged.retain(|&((cause, service), since)| {
            let lasts = conditions.iter().any(|condition| condition.id() == (cause, service));
            if !lasts {
                let after = now.saturating_duration_since(since);
                changes.push(ConditionChange::Ended { cause, service, after });
            }
            lasts
        });
        for condition in conditions {
            if !logged.iter().any(|(id, _)| *id == condition.id()) {
                logged.push((condition.id(), condition.since.unwrap_or(now)));
                changes.push(ConditionChange::Begun(condition));
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::telemetry::conditions::Severity;

    fn condition(cause: Cause, since: Option<Instant>) -> Condition {
        let severity = Severity::Warning;
        Condition { cause, severity, service: None, what: String::new(), advice: "", since, until: None }
    }

    #[test]
    fn a_condition_lasts_since_it_was_first_seen_without_a_break() {
        let (tracker, begun) = (ConditionTracker::default(), Clock::System.now());
        let at = |second| begun + Duration::from_secs(second);
        let seen = |second, mut conditions: Vec<Condition>| {
            tracker.complete(&mut conditions, at(second));
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
    fn a_beginning_and_an_end_are_logged_once() {
        use ConditionChange::{Begun, Ended};
        let (tracker, begun) = (ConditionTracker::default(), Clock::System.now());
        let later = begun + Duration::from_secs(10);
        let at_one = Condition { service: Some(Service::Workspace), ..condition(Cause::Throttled, Some(begun)) };
        let at_other = Condition { service: Some(Service::AppStream), ..at_one.clone() };
        let in_other_words = Condition { what: "another limit".to_owned(), since: Some(later), ..at_one.clone() };
        assert_eq!(tracker.changes(&[], begun), []);
        assert_eq!(tracker.changes(std::slice::from_ref(&at_one), begun), [Begun(&at_one)]);
        let both = [at_one, in_other_words, at_other];
        assert_eq!(tracker.changes(&both, later), [Begun(&both[2])]);
        let after = Duration::from_secs(10);
        let ended = |service, after| Ended { cause: Cause::Throttled, service: Some(service), after };
        assert_eq!(tracker.changes(&both[2..], later), [ended(Service::Workspace, after)]);
        assert_eq!(tracker.changes(&[], later), [ended(Service::AppStream, after)]);
        assert_eq!(tracker.changes(&[], later), []);
    }

    #[test]
    fn a_refused_reload_lasts_until_a_configuration_is_valid() {
        let (tracker, begun) = (ConditionTracker::default(), Clock::System.now());
        let later = begun + Duration::from_secs(9);
        assert!(!tracker.reload(Some("one".to_owned()), begun));
        assert!(tracker.reload(Some("other".to_owned()), later));
        assert_eq!(tracker.refused_reload(), Some((begun, "other".to_owned())));
        assert!(tracker.reload(None, later));
        assert!(!tracker.reload(None, later));
        assert_eq!(tracker.refused_reload(), None);
    }
}
