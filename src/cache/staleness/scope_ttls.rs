//! The chosen ttl of each scope. Pure: the time is an argument.
//!
//! Each scope has a choice of its own: its answers and looks move no other ttl. So a caller can only influence the ttl
//! of scopes in which it has a grant.

use std::collections::HashMap;

use super::MAX_SCOPES;
use super::measure::ScopeMeasurement;
use super::ttl_control::TtlControl;
use crate::catalogue::Operation;
use crate::request::key::Scope;

/// The half-life of the number of answers by which scopes are compared, in hours.
const ACTIVITY_HALF_LIFE: f64 = 24.0;

#[derive(Debug, Default)]
struct ScopeTtl {
    control: TtlControl,
    /// Whether the last estimate had enough evidence.
    is_measured: bool,
    /// The answers of the last hour, or what is left of those of an earlier hour. At this time in hours.
    activity: (f64, f64),
}

impl ScopeTtl {
    fn activity(&self, now: f64) -> f64 {
        let (answers, at) = self.activity;
        answers * (-(now - at).max(0.0) / ACTIVITY_HALF_LIFE).exp2()
    }
}

/// What is known about some scopes. Scopes count by their recent answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct MeanOfScopes {
    /// The mean ttl in seconds.
    pub(super) ttl: f64,
    /// The mean rate of changes of a list. `None` before the first hour of evidence.
    pub(super) changes_per_hour: Option<f64>,
}

/// The scopes that have had enough evidence.
#[derive(Debug, Default)]
pub(super) struct ScopeTtls(HashMap<Scope, ScopeTtl>);

impl ScopeTtls {
    /// Adds the measurements of all scopes of an operation. `now` is in seconds.
    pub(super) fn add(&mut self, operation: &Operation, now: f64, measurements: &[ScopeMeasurement]) {
        let of_operation = self.0.iter_mut().filter(|(scope, _)| **scope.operation() == *operation);
        of_operation.for_each(|(_, known)| known.is_measured = false);
        for ScopeMeasurement { scope, answers, hour } in measurements {
            if hour.is_some() && !self.0.contains_key(scope) && !self.make_room(*answers, now) {
                continue;
            }
            if hour.is_some() {
                self.0.entry(scope.clone()).or_default();
            }
            let Some(known) = self.0.get_mut(scope) else { continue };
            known.is_measured = hour.is_some();
            known.activity = (known.activity(now / 3600.0).max(*answers), now / 3600.0);
            if let Some(hour) = hour {
                known.control.add(now, hour);
            }
        }
    }

    /// Makes room for a scope with so many answers. Returns whether there is room: not if all others have more.
    fn make_room(&mut self, answers: f64, now: f64) -> bool {
        if self.0.len() < MAX_SCOPES {
            return true;
        }
        let activities = self.0.iter().map(|(scope, known)| (scope, known.activity(now / 3600.0)));
        let least = activities.min_by(|one, other| one.1.total_cmp(&other.1));
        let Some(least) = least.filter(|least| least.1 < answers).map(|(scope, _)| scope.clone()) else {
            return false;
        };
        self.0.remove(&least);
        true
    }

    /// The ttl of a scope in force from now on, in seconds. `operation` has the settings in force.
    pub(super) fn ttl(&mut self, scope: &Scope, operation: &Operation, now: f64) -> f64 {
        self.0.get_mut(scope).map_or_else(|| fallback(operation), |known| known.ttl(operation, now))
    }

    /// The mean over the scopes of an operation, of one of its projects if it is given.
    pub(super) fn mean(&mut self, operation: &Operation, project_id: Option<&str>, now: f64) -> MeanOfScopes {
        let (mut answers, mut ttl) = (0.0, 0.0);
        let (mut answers_of_changes, mut changes) = (0.0, 0.0);
        for (scope, known) in &mut self.0 {
            if **scope.operation() != *operation || project_id.is_some_and(|id| scope.project_id() != id) {
                continue;
            }
            let weight = known.activity(now / 3600.0);
            answers += weight;
            ttl += weight * known.ttl(operation, now);
            if let Some(rate) = known.control.changes_per_hour() {
                answers_of_changes += weight;
                changes += weight * rate;
            }
        }
        MeanOfScopes {
            ttl: if answers > 0.0 { ttl / answers } else { fallback(operation) },
            changes_per_hour: (answers_of_changes > 0.0).then(|| changes / answers_of_changes),
        }
    }
}

impl ScopeTtl {
    fn ttl(&mut self, operation: &Operation, now: f64) -> f64 {
        match &operation.adaptive_ttl {
            Some(adaptive) => self.control.ttl(now, adaptive, operation.ttl.as_secs_f64(), self.is_measured),
            None => operation.ttl.as_secs_f64(),
        }
    }
}

/// The ttl of a scope about which nothing is known, in seconds.
fn fallback(operation: &Operation) -> f64 {
    let ttl = operation.ttl.as_secs_f64();
    operation.adaptive_ttl.map_or(ttl, |adaptive| {
        let min = adaptive.min.as_secs_f64();
        ttl.clamp(min, adaptive.max.as_secs_f64().max(min))
    })
}
