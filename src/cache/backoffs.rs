//! Backoff: for a while after a failed call, the gateway does not call upstream for requests that it can answer with a
//! stale entry. `Retry-After` sets the time, if upstream sends it. Pure: the time is an argument.
//!
//! The cause of a failure may be the caller itself: its token, or the number of its requests. So a first failure stops
//! only the refreshes of its own caller. If a call of a second caller fails during that time, the refreshes of all
//! callers stop.

use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::grants::CallerScope;
use super::lru_map::LruMap;
use super::store::{CacheKey, PurgeSelection};
use crate::request::caller::Caller;
use crate::request::directives;
use crate::request::key::Scope;
use crate::sync::{Mutex, MutexGuard};

/// The longest `Retry-After` that the gateway follows. A longer one is shortened to this.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// How many scopes, and how many cache keys, may have a backoff. Each one that is dropped costs an upstream call.
const MAX_BACKOFFS: usize = 4_096;

/// How many callers of one scope may have a backoff of their own.
const MAX_OWN: usize = 16;

pub(crate) struct Backoffs(Mutex<BackoffTables>);

struct BackoffTables {
    scopes: LruMap<Scope, Backoff>,
    keys: LruMap<CacheKey, Backoff>,
}

/// The backoffs of a scope or of a cache key. None of them shortens another.
#[derive(Default)]
struct Backoff {
    /// The end of the backoff for all callers.
    all_callers: Option<Instant>,
    /// The backoff of each caller whose calls failed. The latest two are enough, because the second failure starts the
    /// backoff for all callers.
    failed: Vec<CallerBackoff>,
    /// The same for failures that the caller itself may have caused. They say nothing about other callers.
    own: Vec<CallerBackoff>,
}

#[derive(Clone, Copy)]
struct CallerBackoff {
    caller: Caller,
    /// When the latest call failed.
    began: Instant,
    until: Instant,
}

impl CallerBackoff {
    fn new(caller: Caller, began: Instant, span: Duration) -> Self {
        Self { caller, began, until: began + span }
    }
}

impl Backoff {
    fn is_active_for(&self, caller: Caller, now: Instant) -> bool {
        let of_caller = |failed: &CallerBackoff| failed.caller == caller && now < failed.until;
        self.all_callers.is_some_and(|until| now < until) || self.failed.iter().chain(&self.own).any(of_caller)
    }

    /// A failure at another gateway is known late, and perhaps after a later one of this gateway. So it does not matter
    /// which of two failures is added first.
    fn add_failure(&mut self, added: CallerBackoff) {
        // If the calls of two callers fail at the same time, neither caller is the cause.
        for other in self.failed.iter().filter(|other| other.caller != added.caller) {
            let (first, second) = if other.began <= added.began { (*other, added) } else { (added, *other) };
            if second.began < first.until {
                self.all_callers = self.all_callers.max(Some(second.until));
            }
        }
        extend(&mut self.failed, added, 2);
    }
}

/// Adds the backoff of a caller, or extends it. The list keeps the `max_callers` that end last.
fn extend(backoffs: &mut Vec<CallerBackoff>, added: CallerBackoff, max_callers: usize) {
    match backoffs.iter_mut().find(|other| other.caller == added.caller) {
        Some(before) => {
            before.began = before.began.max(added.began);
            before.until = before.until.max(added.until);
        }
        None => backoffs.push(added),
    }
    backoffs.sort_by_key(|backoff| std::cmp::Reverse(backoff.until));
    backoffs.truncate(max_callers);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray, Serialize, Deserialize)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum BackoffCause {
    /// The call failed, or upstream sent another 5xx.
    Failure,
    /// A 429.
    Throttled,
    /// A 503 with `Retry-After`.
    Unavailable,
}

/// The time that `Retry-After` asks for, at most 60 s: longer than that, no backoff lasts.
pub fn retry_after(headers: &HeaderMap, date: SystemTime) -> Option<Duration> {
    unbounded_retry_after(headers, date).map(|span| span.min(LONGEST))
}

/// The time that `Retry-After` asks for, which may be very long. `None` if the field is absent, repeated or cannot be
/// parsed. `date` is the current time of the wall clock.
pub fn unbounded_retry_after(headers: &HeaderMap, date: SystemTime) -> Option<Duration> {
    let mut values = headers.get_all(RETRY_AFTER).iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let until = || httpdate::parse_http_date(text).ok();
    directives::seconds(text).or_else(|| Some(until()?.duration_since(date).unwrap_or_default()))
}

impl Backoffs {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(BackoffTables { scopes: LruMap::new(MAX_BACKOFFS), keys: LruMap::new(MAX_BACKOFFS) }))
    }

    /// Whether a caller's refreshes of an entry must wait, because of the scope or of the cache key.
    pub(crate) fn is_active_for(&self, cache_key: &CacheKey, caller_scope: &CallerScope, now: Instant) -> bool {
        let mut tables = self.tables();
        tables.scopes.get(&caller_scope.scope).is_some_and(|backoff| backoff.is_active_for(caller_scope.caller, now))
            || tables.keys.get(cache_key).is_some_and(|backoff| backoff.is_active_for(caller_scope.caller, now))
    }

    /// Whether the refreshes of an entry that belongs to one caller must wait. The backoffs of the scope do not count.
    /// False for a shared cache key.
    pub(crate) fn is_active_for_owner(&self, cache_key: &CacheKey, now: Instant) -> bool {
        let Some(owner) = cache_key.owner else { return false };
        self.tables().keys.get(cache_key).is_some_and(|backoff| backoff.is_active_for(owner, now))
    }

    /// Starts a backoff of `span` after a caller's call has failed: for this caller, and for all callers if a call of
    /// another caller has failed, too. It covers the cache key. After a 429, or a 503 with `Retry-After`, it covers the
    /// whole scope, unless the entry belongs to one caller. `failed` is the time of the failure.
    pub(crate) fn begin(
        &self,
        cache_key: &CacheKey,
        caller_scope: &CallerScope,
        cause: BackoffCause,
        span: Duration,
        failed: Instant,
    ) {
        let mut tables = self.tables();
        let backoff = if cache_key.owner.is_some() || cause == BackoffCause::Failure {
            tables.keys.get_or_insert_with(cache_key, Backoff::default)
        } else {
            tables.scopes.get_or_insert_with(&caller_scope.scope, Backoff::default)
        };
        backoff.add_failure(CallerBackoff::new(caller_scope.caller, failed, span));
    }

    /// Starts a backoff in the scope after a failure that the caller itself may have caused. It never stops the
    /// refreshes of other callers.
    pub(crate) fn begin_for_caller(&self, caller_scope: &CallerScope, span: Duration, failed: Instant) {
        let mut tables = self.tables();
        let backoff = tables.scopes.get_or_insert_with(&caller_scope.scope, Backoff::default);
        extend(&mut backoff.own, CallerBackoff::new(caller_scope.caller, failed, span), MAX_OWN);
    }

    /// Ends the backoff of a cache key after a successful call.
    pub(crate) fn end(&self, cache_key: &CacheKey) {
        self.tables().keys.remove(cache_key);
    }

    /// Ends the backoffs of the scopes and cache keys that a purge selects.
    pub(crate) fn purge(&self, selection: &PurgeSelection) {
        let mut tables = self.tables();
        tables.scopes.retain(|scope| !selection.covers_scope(scope));
        tables.keys.retain(|cache_key| !selection.matches(&cache_key.key));
    }

    fn tables(&self) -> MutexGuard<'_, BackoffTables> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Clock;
    use crate::request::caller::Callers;

    proptest! {
        /// Failures of two callers, known in any order and more than once, some of them late.
        #[test]
        fn the_order_in_which_failures_are_known_does_not_matter(
            failures in prop::array::uniform2((0..20u64, 0..20u64)),
            order in prop::collection::vec(0..2usize, 0..4),
            passed in 20..40u64,
        ) {
            // At the same time, the one that is known last counts as the second one.
            prop_assume!(failures[0].0 != failures[1].0);
            let start = Clock::System.now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let callers = [0, 1, 2].map(|number: u32| Callers::new([1; 32]).of_token(&HeaderValue::from(number)));
            let add = |backoff: &mut Backoff, index: usize| {
                let (began, span) = failures[index];
                backoff.add_failure(CallerBackoff::new(callers[index], at(began), Duration::from_secs(span)));
            };
            let (mut in_order, mut otherwise) = (Backoff::default(), Backoff::default());
            let first = usize::from(failures[1].0 < failures[0].0);
            [first, 1 - first].into_iter().for_each(|index| add(&mut in_order, index));
            order.into_iter().chain([1, 0]).for_each(|index| add(&mut otherwise, index));
            for caller in callers {
                for seconds in passed..60 {
                    let is_active = [&in_order, &otherwise].map(|backoff| backoff.is_active_for(caller, at(seconds)));
                    prop_assert_eq!(is_active[0], is_active[1], "{}", seconds);
                }
            }
        }
    }
}
