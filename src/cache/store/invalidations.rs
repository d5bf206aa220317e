//! When what is known of a scope was invalidated last (RFC 9111 §4.4): by a response to an unsafe method on its path. Pure.
//!
//! A time is forgotten only by folding it into its operation's. A purge changes nothing here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::catalogue::Operation;
use crate::request::key::Scope;

/// How many scopes of one operation have a time of their own. At this bound the older half of the times is replaced by the
/// latest of them, which then counts for the whole operation: more has to be confirmed, and nothing less. Where they are
/// older than any entry, that costs nothing.
const MAX_SCOPES: usize = 256;

/// The times, by operation.
#[derive(Default)]
pub(super) struct Invalidations(HashMap<Arc<Operation>, ScopeTimes>);

#[derive(Default)]
struct ScopeTimes {
    /// Of every scope.
    whole: Option<Instant>,
    /// Of single ones, where that is later.
    scopes: HashMap<Scope, Instant>,
}

impl Invalidations {
    /// Whether what was sent for at a moment, in a scope, was invalidated since. At the very moment counts as before it.
    pub(super) fn cover(&self, scope: &Scope, sent: Instant) -> bool {
        self.0.get(scope.operation()).is_some_and(|times| {
            let at = times.whole.max(times.scopes.get(scope).copied());
            at.is_some_and(|at| sent <= at)
        })
    }

    /// Invalidates what was sent for in a scope until a moment.
    pub(super) fn add(&mut self, scope: &Scope, at: Instant) {
        let times = self.0.entry(Arc::clone(scope.operation())).or_default();
        let before = times.scopes.get(scope).copied();
        if times.scopes.len() >= MAX_SCOPES && before.is_none() {
            times.fold();
        }
        times.scopes.insert(scope.clone(), before.map_or(at, |before| before.max(at)));
    }
}

impl ScopeTimes {
    /// Makes room: the older half goes.
    fn fold(&mut self) {
        let mut all: Vec<Instant> = self.scopes.values().copied().collect();
        let middle = all.len() / 2;
        let latest = *all.select_nth_unstable(middle).1;
        self.scopes.retain(|_, at| *at > latest);
        self.whole = self.whole.max(Some(latest));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalogue::Catalogue;
    use crate::clock::Clock;

    fn scope(catalogue: &Catalogue, path: &str) -> Scope {
        let (operation, place) = catalogue.operation(path).unwrap();
        Scope::read(catalogue, operation, place).unwrap()
    }

    #[test]
    fn what_was_sent_until_then_is_covered_in_its_scope() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let [one, other] = ["/v2/p/products", "/v2/q/products"].map(|path| scope(&catalogue, path));
        let (at, moment) = (Clock::System.now(), Duration::from_nanos(1));
        let mut times = Invalidations::default();
        times.add(&one, at);
        times.add(&one, at - moment);
        assert!(times.cover(&one, at - moment) && times.cover(&one, at) && !times.cover(&one, at + moment));
        assert!(!times.cover(&other, at - moment));
    }

    #[test]
    fn where_there_are_too_many_the_older_ones_count_for_the_whole_operation() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let in_project = |number: usize| scope(&catalogue, &format!("/v2/{number}/products"));
        let begun = Clock::System.now();
        let at = |number: usize| begun + Duration::from_secs(number as u64);
        let mut times = Invalidations::default();
        for number in 0..10 * MAX_SCOPES {
            times.add(&in_project(number), at(number));
            assert!(times.0.values().all(|times| times.scopes.len() <= MAX_SCOPES));
        }
        for number in 0..10 * MAX_SCOPES {
            assert!(times.cover(&in_project(number), at(number)), "{number} is still covered");
        }
        let stranger = in_project(usize::MAX);
        assert!(times.cover(&stranger, at(0)) && !times.cover(&stranger, at(10 * MAX_SCOPES - MAX_SCOPES / 2)));
        assert!(!times.cover(&scope(&catalogue, "/v2/0/products/sharer"), begun), "another operation's are its own");
    }
}
