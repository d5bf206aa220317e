//! When upstream is not asked again for what can be given stale: for a while after it has failed, and
//! for as long as it wishes (`Retry-After`). Pure: now is an argument.
//!
//! A caller that is throttled may have asked too often all by itself, so that at first only its own
//! refreshes pause.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

use super::generations::Generations;
use super::grants::Grantee;
use super::store::{Selection, Slot};
use crate::request::caller::Caller;
use crate::request::directives;
use crate::request::key::Scope;

/// What upstream may wish for at most.
const LONGEST: Duration = Duration::from_secs(60);

/// How many pauses are remembered of each kind. Forgetting one costs an upstream call.
const MAX_PAUSES: usize = 4_096;

/// All pauses.
pub struct Pauses(Mutex<Books>);

struct Books {
    scopes: Generations<Scope, ScopePause>,
    slots: Generations<Slot, Instant>,
}

struct ScopePause {
    until: Instant,
    /// Whose refreshes pause; `None`: everybody's.
    of: Option<Caller>,
}

/// What makes a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Upstream has failed to answer.
    Failure,
    /// A 429.
    Throttled,
    /// A 503 that says when to ask again.
    Unavailable,
}

impl Cause {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 3] = [Self::Failure, Self::Throttled, Self::Unavailable];

    /// The name used as metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
        }
    }
}

/// For how long upstream wishes not to be asked, within reason; `None` if it doesn't say, or in a way
/// that can't be read. `date`: the present moment by the calendar.
pub fn retry_after(headers: &HeaderMap, date: SystemTime) -> Option<Duration> {
    let mut values = headers.get_all(RETRY_AFTER).iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let until = || httpdate::parse_http_date(text).ok();
    let span = directives::seconds(text).or_else(|| Some(until()?.duration_since(date).unwrap_or_default()));
    span.map(|span| span.min(LONGEST))
}

impl Pauses {
    /// None so far.
    pub fn new() -> Self {
        Self(Mutex::new(Books { scopes: Generations::new(MAX_PAUSES), slots: Generations::new(MAX_PAUSES) }))
    }

    /// Whether a caller's refreshes of a slot pause at a moment.
    pub fn hold(&self, slot: &Slot, grantee: &Grantee, now: Instant) -> bool {
        let mut books = self.books();
        let of_scope = books.scopes.get(&grantee.scope);
        of_scope.is_some_and(|pause| now < pause.until && pause.of.is_none_or(|caller| caller == grantee.caller))
            || books.slots.get(slot).is_some_and(|until| now < *until)
    }

    /// Whether the refreshes of a slot pause, whatever holds for its scope.
    pub fn hold_slot(&self, slot: &Slot, now: Instant) -> bool {
        self.books().slots.get(slot).is_some_and(|until| now < *until)
    }

    /// A caller's call for a slot has failed: refreshes pause for so long.
    pub fn begin(&self, slot: &Slot, grantee: &Grantee, cause: Cause, span: Duration, now: Instant) {
        let until = now + span;
        let mut books = self.books();
        if slot.owner.is_some() || cause == Cause::Failure {
            books.slots.insert(slot.clone(), until);
            return;
        }
        // Two callers that are throttled at the same time have not both asked too often.
        let is_alone = |pause: &mut ScopePause| now >= pause.until || pause.of == Some(grantee.caller);
        let is_own = cause == Cause::Throttled && books.scopes.get(&grantee.scope).is_none_or(is_alone);
        let of = is_own.then_some(grantee.caller);
        books.scopes.insert(grantee.scope.clone(), ScopePause { until, of });
    }

    /// A caller's call has failed in a way that may be of its own making: its refreshes in the scope
    /// pause, and nobody else's.
    pub fn begin_own(&self, grantee: &Grantee, span: Duration, now: Instant) {
        let mut books = self.books();
        // What holds for another, or for all, is not changed by that.
        let is_free = |pause: &mut ScopePause| now >= pause.until || pause.of == Some(grantee.caller);
        if books.scopes.get(&grantee.scope).is_none_or(is_free) {
            let pause = ScopePause { until: now + span, of: Some(grantee.caller) };
            books.scopes.insert(grantee.scope.clone(), pause);
        }
    }

    /// A call for a slot has succeeded.
    pub fn end(&self, slot: &Slot) {
        self.books().slots.remove(slot);
    }

    /// Forgets the pauses of what is purged.
    pub fn purge(&self, selection: &Selection) {
        let mut books = self.books();
        books.scopes.retain(|scope| !selection.holds(scope));
        books.slots.retain(|slot| !selection.holds(slot.key.scope()));
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Pauses {
    fn default() -> Self {
        Self::new()
    }
}
