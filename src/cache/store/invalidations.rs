//! The times at which scopes were invalidated by an unsafe method on their path (RFC 9111 §4.4). Pure.
//!
//! The time of a scope is removed only when a later time applies to its whole operation. A purge removes nothing here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::catalogue::Operation;
use crate::request::key::Scope;

/// The maximum number of scopes of one operation that have a time of their own. At this bound, the latest time of the
/// older half replaces that half, and applies to the whole operation. So more entries have to be validated, never
/// fewer. If these times are older than all entries, this costs nothing.
const MAX_SCOPES: usize = 256;

#[derive(Default)]
pub(super) struct Invalidations(HashMap<Arc<Operation>, ScopeTimes>);

#[derive(Default)]
struct ScopeTimes {
    /// Applies to every scope.
    operation: Option<Instant>,
    /// Later times of single scopes.
    scopes: HashMap<Scope, Instant>,
}

impl Invalidations {
    /// Whether the scope was invalidated after a request had been sent. If both times are equal, it was.
    pub(super) fn covers(&self, scope: &Scope, sent: Instant) -> bool {
        self.0.get(scope.operation()).is_some_and(|times| {
            let at = times.operation.max(times.scopes.get(scope).copied());
            at.is_some_and(|at| sent <= at)
        })
    }

    /// Invalidates entries of a scope whose request was sent no later than `at`.
    pub(super) fn add(&mut self, scope: &Scope, at: Instant) {
        let times = self.0.entry(Arc::clone(scope.operation())).or_default();
        let before = times.scopes.get(scope).copied();
        if times.scopes.len() >= MAX_SCOPES && before.is_none() {
            times.merge_older_half();
        }
        times.scopes.insert(scope.clone(), before.map_or(at, |before| before.max(at)));
    }
}

impl ScopeTimes {
    fn merge_older_half(&mut self) {
        let mut all: Vec<Instant> = self.scopes.values().copied().collect();
        let middle = all.len() / 2;
        let latest = *all.select_nth_unstable(middle).1;
        self.scopes.retain(|_, at| *at > latest);
        self.operation = self.operation.max(Some(latest));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalogue::Catalogue;
    use crate::clock::Clock;

    fn scope(catalogue: &Catalogue, path: &str) -> Scope {
        let (operation, captured) = catalogue.operation(path).unwrap();
        Scope::read(catalogue, operation, captured).unwrap()
    }

    #[test]
    fn requests_that_were_sent_before_an_invalidation_are_covered_in_its_scope() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let [one, other] = ["/v2/p/products", "/v2/q/products"].map(|path| scope(&catalogue, path));
        let (at, moment) = (Clock::System.now(), Duration::from_nanos(1));
        let mut times = Invalidations::default();
        times.add(&one, at);
        times.add(&one, at - moment);
        assert!(times.covers(&one, at - moment) && times.covers(&one, at) && !times.covers(&one, at + moment));
        assert!(!times.covers(&other, at - moment));
    }

    #[test]
    fn at_the_bound_the_older_times_apply_to_the_whole_operation() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let in_project = |number: usize| scope(&catalogue, &format!("/v2/{number}/products"));
        let start = Clock::System.now();
        let at = |number: usize| start + Duration::from_secs(number as u64);
        let mut times = Invalidations::default();
        for number in 0..10 * MAX_SCOPES {
            times.add(&in_project(number), at(number));
            assert!(times.0.values().all(|times| times.scopes.len() <= MAX_SCOPES));
        }
        for number in 0..10 * MAX_SCOPES {
            assert!(times.covers(&in_project(number), at(number)), "{number} is still covered");
        }
        let another = in_project(usize::MAX);
        assert!(times.covers(&another, at(0)) && !times.covers(&another, at(10 * MAX_SCOPES - MAX_SCOPES / 2)));
        assert!(!times.covers(&scope(&catalogue, "/v2/0/products/sharer"), start), "another operation is not affected");
    }
}
