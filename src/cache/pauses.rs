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

/// How many callers of a scope are remembered by failures that may be of their own making.
const MAX_FOUL: usize = 16;

/// All pauses.
pub struct Pauses(Mutex<Books>);

struct Books {
    scopes: Generations<Scope, ScopePause>,
    slots: Generations<Slot, Instant>,
}

impl Books {
    fn scope(&mut self, scope: &Scope) -> &mut ScopePause {
        self.scopes.get_or_insert_with(scope, ScopePause::default)
    }
}

/// The pauses of a scope. None of them is cut short by another.
#[derive(Default)]
struct ScopePause {
    /// Until when everybody's refreshes pause.
    everybody: Option<Instant>,
    /// Until when those of throttled callers do. The two that last longest will do: who is throttled while
    /// another is has everybody pause for as long.
    throttled: Vec<(Caller, Instant)>,
    /// Until when those of callers do whose calls have failed in a way that may be of their own making. That
    /// says nothing of the others.
    foul: Vec<(Caller, Instant)>,
}

impl ScopePause {
    fn holds(&self, caller: Caller, now: Instant) -> bool {
        let of_caller = |(throttled, until): &(Caller, Instant)| *throttled == caller && now < *until;
        self.everybody.is_some_and(|until| now < until) || self.throttled.iter().chain(&self.foul).any(of_caller)
    }

    fn stop_everybody(&mut self, until: Instant) {
        self.everybody = self.everybody.max(Some(until));
    }

    fn stop(&mut self, caller: Caller, until: Instant, now: Instant) {
        // Two callers that are throttled at the same time have not both asked too often.
        if self.throttled.iter().any(|(throttled, until)| *throttled != caller && now < *until) {
            self.stop_everybody(until);
        }
        remember(&mut self.throttled, caller, until, 2);
    }
}

/// Adds a caller's pause to a list that is ordered by length and has so many places.
fn remember(pauses: &mut Vec<(Caller, Instant)>, caller: Caller, until: Instant, places: usize) {
    match pauses.iter_mut().find(|(paused, _)| *paused == caller) {
        Some((_, before)) => *before = until.max(*before),
        None => pauses.push((caller, until)),
    }
    pauses.sort_by_key(|(_, until)| std::cmp::Reverse(*until));
    pauses.truncate(places);
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
        books.scopes.get(&grantee.scope).is_some_and(|pause| pause.holds(grantee.caller, now))
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
            let before = books.slots.get(slot).copied();
            books.slots.insert(slot.clone(), before.map_or(until, |before| until.max(before)));
            return;
        }
        let pause = books.scope(&grantee.scope);
        match cause {
            Cause::Throttled => pause.stop(grantee.caller, until, now),
            Cause::Failure | Cause::Unavailable => pause.stop_everybody(until),
        }
    }

    /// A caller's call has failed in a way that may be of its own making: its refreshes in the scope
    /// pause, and nobody else's.
    pub fn begin_own(&self, grantee: &Grantee, span: Duration, now: Instant) {
        let mut books = self.books();
        remember(&mut books.scope(&grantee.scope).foul, grantee.caller, now + span, MAX_FOUL);
    }

    /// A call for a slot has succeeded.
    pub fn end(&self, slot: &Slot) {
        self.books().slots.remove(slot);
    }

    /// Forgets the pauses of what is purged.
    pub fn purge(&self, selection: &Selection) {
        let mut books = self.books();
        books.scopes.retain(|scope| !selection.holds_all_of(scope));
        books.slots.retain(|slot| !selection.holds(&slot.key));
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
