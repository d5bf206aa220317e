//! Backoff: for a while after a failed call, the gateway does not call upstream for requests that it can answer with a
//! stale entry. `Retry-After` sets the time, if upstream sends it. Pure: the time is an argument.
//!
//! The cause of a failure may be the caller itself: its token, or the number of its requests. So a first failure stops
//! only the refreshes of its own caller. If a call of a second caller fails during that time, the refreshes of all
//! callers stop.

use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;
use strum::{IntoStaticStr, VariantArray};

use super::grants::CallerScope;
use super::lru_map::LruMap;
use super::store::{CacheKey, PurgeSelection};
use crate::request::caller::Caller;
use crate::request::directives;
use crate::request::key::Scope;
use crate::sync::{Mutex, MutexGuard};

/// The longest `Retry-After` that the gateway follows. A longer one is shortened to this.
const LONGEST: Duration = Duration::from_secs(60);

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
    /// The end of the backoff for each caller whose calls failed. The latest two are enough, because the second failure
    /// starts the backoff for all callers.
    failed: Vec<(Caller, Instant)>,
    /// The same for failures that the caller itself may have caused. They say nothing about other callers.
    own: Vec<(Caller, Instant)>,
}

impl Backoff {
    fn is_active_for(&self, caller: Caller, now: Instant) -> bool {
        let of_caller = |(failed, until): &(Caller, Instant)| *failed == caller && now < *until;
        self.all_callers.is_some_and(|until| now < until) || self.failed.iter().chain(&self.own).any(of_caller)
    }

    fn add_failure(&mut self, caller: Caller, until: Instant, now: Instant) {
        // If the calls of two callers fail at the same time, neither caller is the cause.
        if self.failed.iter().any(|(failed, until)| *failed != caller && now < *until) {
            self.all_callers = self.all_callers.max(Some(until));
        }
        extend(&mut self.failed, caller, until, 2);
    }
}

/// Adds the backoff of a caller, or extends it. The list keeps the `max_callers` that end last.
fn extend(backoffs: &mut Vec<(Caller, Instant)>, caller: Caller, until: Instant, max_callers: usize) {
    match backoffs.iter_mut().find(|(other, _)| *other == caller) {
        Some((_, before)) => *before = until.max(*before),
        None => backoffs.push((caller, until)),
    }
    backoffs.sort_by_key(|(_, until)| std::cmp::Reverse(*until));
    backoffs.truncate(max_callers);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
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
pub(crate) fn retry_after(headers: &HeaderMap, date: SystemTime) -> Option<Duration> {
    unbounded_retry_after(headers, date).map(|span| span.min(LONGEST))
}

/// The time that `Retry-After` asks for, which may be very long. `None` if the field is absent, repeated or cannot be
/// parsed. `date` is the current time of the wall clock.
pub(crate) fn unbounded_retry_after(headers: &HeaderMap, date: SystemTime) -> Option<Duration> {
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
    /// whole scope, unless the entry belongs to one caller.
    pub(crate) fn begin(
        &self,
        cache_key: &CacheKey,
        caller_scope: &CallerScope,
        cause: BackoffCause,
        span: Duration,
        now: Instant,
    ) {
        let mut tables = self.tables();
        let backoff = if cache_key.owner.is_some() || cause == BackoffCause::Failure {
            tables.keys.get_or_insert_with(cache_key, Backoff::default)
        } else {
            tables.scopes.get_or_insert_with(&caller_scope.scope, Backoff::default)
        };
        backoff.add_failure(caller_scope.caller, now + span, now);
    }

    /// Starts a backoff in the scope after a failure that the caller itself may have caused. It never stops the
    /// refreshes of other callers.
    pub(crate) fn begin_for_caller(&self, caller_scope: &CallerScope, span: Duration, now: Instant) {
        let mut tables = self.tables();
        let backoff = tables.scopes.get_or_insert_with(&caller_scope.scope, Backoff::default);
        extend(&mut backoff.own, caller_scope.caller, now + span, MAX_OWN);
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
