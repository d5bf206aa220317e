//! When upstream is not asked again for what can be given stale: for a while after it has failed, and
//! for as long as it wishes (`Retry-After`). Pure: now is an argument.
//!
//! What makes a caller's call fail may be its own: its token, or that it has asked too often. So at first only its own
//! refreshes pause. When a second caller's call fails as well, everybody's do.

use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;
use strum::{IntoStaticStr, VariantArray};

use super::generations::Generations;
use super::grants::CallerScope;
use super::store::{CacheKey, PurgeSelection};
use crate::request::caller::Caller;
use crate::request::directives;
use crate::request::key::Scope;
use crate::sync::{Mutex, MutexGuard};

/// What upstream may wish for at most.
const LONGEST: Duration = Duration::from_secs(60);

/// How many pauses are remembered of each kind. Forgetting one costs an upstream call.
const MAX_BACKOFFS: usize = 4_096;

/// How many callers of a scope are remembered by failures that may be of their own making.
const MAX_OWN: usize = 16;

/// All pauses.
pub(crate) struct Backoffs(Mutex<BackoffTables>);

struct BackoffTables {
    scopes: Generations<Scope, Backoff>,
    keys: Generations<CacheKey, Backoff>,
}

/// The pauses of a scope or of a slot. None of them is cut short by another.
#[derive(Default)]
struct Backoff {
    /// Until when everybody's refreshes pause.
    everybody: Option<Instant>,
    /// Until when those of callers do whose calls have failed. The two that last longest will do: a second failure has
    /// everybody pause for as long.
    failed: Vec<(Caller, Instant)>,
    /// Until when those of callers do whose calls have failed in a way that may be of their own making. That
    /// says nothing of the others.
    own: Vec<(Caller, Instant)>,
}

impl Backoff {
    fn holds(&self, caller: Caller, now: Instant) -> bool {
        let of_caller = |(failed, until): &(Caller, Instant)| *failed == caller && now < *until;
        self.everybody.is_some_and(|until| now < until) || self.failed.iter().chain(&self.own).any(of_caller)
    }

    fn stop(&mut self, caller: Caller, until: Instant, now: Instant) {
        // What two callers meet at the same time is not of one's own making.
        if self.failed.iter().any(|(failed, until)| *failed != caller && now < *until) {
            self.everybody = self.everybody.max(Some(until));
        }
        remember(&mut self.failed, caller, until, 2);
    }
}

/// Adds a caller's pause to a list that is ordered by length and has so many places.
fn remember(backoffs: &mut Vec<(Caller, Instant)>, caller: Caller, until: Instant, places: usize) {
    match backoffs.iter_mut().find(|(paused, _)| *paused == caller) {
        Some((_, before)) => *before = until.max(*before),
        None => backoffs.push((caller, until)),
    }
    backoffs.sort_by_key(|(_, until)| std::cmp::Reverse(*until));
    backoffs.truncate(places);
}

/// What makes a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum BackoffCause {
    /// Upstream has failed to answer.
    Failure,
    /// A 429.
    Throttled,
    /// A 503 that says when to ask again.
    Unavailable,
}

/// For how long upstream wishes not to be asked, within reason; `None` if it doesn't say, or in a way
/// that can't be read. `date`: the present moment by the calendar.
pub(crate) fn retry_after(headers: &HeaderMap, date: SystemTime) -> Option<Duration> {
    let mut values = headers.get_all(RETRY_AFTER).iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let until = || httpdate::parse_http_date(text).ok();
    let span = directives::seconds(text).or_else(|| Some(until()?.duration_since(date).unwrap_or_default()));
    span.map(|span| span.min(LONGEST))
}

impl Backoffs {
    /// None so far.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(BackoffTables { scopes: Generations::new(MAX_BACKOFFS), keys: Generations::new(MAX_BACKOFFS) }))
    }

    /// Whether a caller's refreshes of a slot pause at a moment.
    pub(crate) fn hold(&self, cache_key: &CacheKey, caller_scope: &CallerScope, now: Instant) -> bool {
        let mut tables = self.tables();
        tables.scopes.get(&caller_scope.scope).is_some_and(|backoff| backoff.holds(caller_scope.caller, now))
            || tables.keys.get(cache_key).is_some_and(|backoff| backoff.holds(caller_scope.caller, now))
    }

    /// Whether the refreshes of one caller's own slot pause, whatever holds for its scope.
    pub(crate) fn active_for_owner(&self, cache_key: &CacheKey, now: Instant) -> bool {
        let Some(owner) = cache_key.owner else { return false };
        self.tables().keys.get(cache_key).is_some_and(|backoff| backoff.holds(owner, now))
    }

    /// A caller's call for a slot has failed: its refreshes pause for so long, and everybody's if another's has failed as
    /// well. A failure concerns the slot; a 429, or a 503 that says when to ask again, the whole scope.
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
        backoff.stop(caller_scope.caller, now + span, now);
    }

    /// A caller's call has failed in a way that may be of its own making: its refreshes in the scope
    /// pause, and nobody else's.
    pub(crate) fn begin_for_caller(&self, caller_scope: &CallerScope, span: Duration, now: Instant) {
        let mut tables = self.tables();
        let backoff = tables.scopes.get_or_insert_with(&caller_scope.scope, Backoff::default);
        remember(&mut backoff.own, caller_scope.caller, now + span, MAX_OWN);
    }

    /// A call for a slot has succeeded.
    pub(crate) fn end(&self, cache_key: &CacheKey) {
        self.tables().keys.remove(cache_key);
    }

    /// Forgets the pauses of what is purged.
    pub(crate) fn purge(&self, selection: &PurgeSelection) {
        let mut tables = self.tables();
        tables.scopes.retain(|scope| !selection.holds_all_of(scope));
        tables.keys.retain(|cache_key| !selection.holds(&cache_key.key));
    }

    fn tables(&self) -> MutexGuard<'_, BackoffTables> {
        self.0.lock()
    }
}

impl Default for Backoffs {
    fn default() -> Self {
        Self::new()
    }
}
