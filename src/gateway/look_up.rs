//! What memory has for a question, as far as the one who asks may know: an answer to give at once, one
//! to give while it is asked for again, or nothing before upstream has been asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Response;

use super::memory::Memory;
use super::observer::Observer;
use super::{CacheRequest, Lookup};
use crate::cache::entry::Entry;
use crate::cache::freshness::Freshness;
use crate::cache::grants::GrantState;
use crate::cache::miss::Miss;
use crate::cache::store::CacheKey;
use crate::reply::body::Content;
use crate::reply::compose::{self, CacheStatus};
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::RequestRecord;

/// What memory has for a question.
pub(super) enum LookupResult {
    /// An answer to give at once, and why that may be.
    FlightOutcome(Arc<Entry>, HitKind),
    /// A stale answer to give at once, while what is in the slot is asked for again.
    Refresh(Arc<Entry>, CacheKey),
    /// Nothing to be given before upstream has been asked.
    Ask {
        /// Where the answer is going to be kept.
        cache_key: CacheKey,
        /// Why that is so, as far as this caller may know.
        why: Miss,
        /// The old one, to ask whether it still holds.
        before: Option<Arc<Entry>>,
        /// Whether the old one will do if upstream is slow.
        has_stale: bool,
    },
}

/// Why an answer is given from memory.
#[derive(Clone, Copy)]
pub(super) enum HitKind {
    /// It is fresh.
    Fresh,
    /// It is upstream's no from just now.
    Negative,
    /// It is a refusal from just now, which is said again for so long.
    Denied(Duration),
    /// It is stale, and is being asked for again.
    Revalidating,
    /// It is stale, and upstream is left alone for a while.
    Backoff,
}

impl HitKind {
    fn outcome(self) -> Outcome {
        match self {
            Self::Fresh => Outcome::Hit,
            Self::Negative => Outcome::Negative,
            Self::Denied(_) => Outcome::Denied,
            Self::Revalidating => Outcome::Revalidating,
            Self::Backoff => Outcome::Backoff,
        }
    }
}

impl Lookup {
    /// Whether an answer is fresh, and fresh enough for who asks.
    fn accepts(&self, entry: &Entry, now: Instant) -> bool {
        match entry.life().freshness(now) {
            Freshness::Fresh { left } => self.directives.accepts(entry.life().age(now), left),
            Freshness::WhileRevalidate | Freshness::IfError | Freshness::Gone => false,
        }
    }

    /// Why an answer is not accepted.
    fn refuses(&self, entry: &Entry, now: Instant) -> Miss {
        match entry.life().freshness(now) {
            Freshness::Fresh { .. } if self.directives.no_cache => Miss::ClientNoCache,
            Freshness::Fresh { .. } if !self.directives.accepts_age(entry.life().age(now)) => Miss::ClientMaxAge,
            Freshness::Fresh { .. } => Miss::ClientMinFresh,
            Freshness::WhileRevalidate | Freshness::IfError | Freshness::Gone => Miss::Expired,
        }
    }
}

impl Memory {
    /// Looks up what may be given to this caller without asking upstream.
    pub(super) fn look_up(&self, request: &CacheRequest, now: Instant) -> LookupResult {
        let caller = request.lookup.caller_scope.caller;
        let grant_state = self.grants.grant_state(&request.lookup.caller_scope, now);
        match grant_state {
            GrantState::Denied { refusal, left } => return LookupResult::FlightOutcome(refusal, HitKind::Denied(left)),
            GrantState::Granted => {
                return self.look_into(request, self.store.cache_key(&request.lookup.key, caller), now);
            }
            GrantState::Grace { .. } | GrantState::Unknown => {}
        }
        // Alone, and without a word on what there is: upstream has to answer first. Where it has just failed to, that
        // extends a lapsed grant for a while.
        let cache_key = CacheKey { owner: Some(caller), key: Arc::clone(&request.lookup.key) };
        if let GrantState::Grace { ended } = grant_state
            && request.lookup.directives.takes_stale()
            && self.backoffs.active_for_owner(&cache_key, now)
            && let Some(entry) = self.usable(request, ended, now)
        {
            return LookupResult::FlightOutcome(entry, HitKind::Backoff);
        }
        let why = if matches!(grant_state, GrantState::Grace { .. }) { Miss::GrantLapsed } else { Miss::NoGrant };
        LookupResult::Ask { cache_key, why, before: None, has_stale: false }
    }

    /// What is kept for this caller, be it stale, if it was sent no later than a moment.
    pub(super) fn usable(&self, request: &CacheRequest, sent_until: Instant, now: Instant) -> Option<Arc<Entry>> {
        let entry = self.store.get(&self.store.cache_key(&request.lookup.key, request.lookup.caller_scope.caller))?;
        let life = entry.life();
        (life.sent <= sent_until && life.freshness(now) != Freshness::Gone).then_some(entry)
    }

    /// The fresh answer to what is asked, for a caller who may be given it at once.
    pub(super) fn fresh(&self, lookup: &Lookup, now: Instant) -> Option<Arc<Entry>> {
        if !self.grants.is_granted(&lookup.caller_scope, now) {
            return None;
        }
        let entry = self.store.get(&self.store.cache_key(&lookup.key, lookup.caller_scope.caller))?;
        lookup.accepts(&entry, now).then_some(entry)
    }

    /// Looks into a slot, for a caller who may see what is there.
    fn look_into(&self, request: &CacheRequest, cache_key: CacheKey, now: Instant) -> LookupResult {
        let directives = request.lookup.directives;
        let accepted = |entry: &Entry| request.lookup.accepts(entry, now);
        let caller = request.lookup.caller_scope.caller;
        let entry = match self.store.get(&cache_key) {
            Some(entry) if accepted(&entry) => return LookupResult::FlightOutcome(entry, HitKind::Fresh),
            entry => entry,
        };
        // Nothing displaces what is fresh. But of what is not, upstream's latest word counts: where that
        // was no, or an answer that can't be kept, nothing older is given unless upstream fails.
        let is_later = |no: &Arc<Entry>| entry.as_ref().is_none_or(|entry| entry.life().sent < no.life().sent);
        let no = self.store.negative(&cache_key).filter(is_later);
        if let Some(no) = no.as_ref().filter(|no| accepted(no)) {
            return LookupResult::FlightOutcome(Arc::clone(no), HitKind::Negative);
        }
        let is_uncacheable = || self.store.uncacheable(&cache_key, caller, now).is_some();
        let takes_stale = directives.takes_stale() && no.is_none() && !is_uncacheable();
        let mut has_stale = false;
        if takes_stale && let Some(entry) = &entry {
            match entry.life().freshness(now) {
                Freshness::Gone => {}
                _ if self.backoffs.hold(&cache_key, &request.lookup.caller_scope, now) => {
                    return LookupResult::FlightOutcome(Arc::clone(entry), HitKind::Backoff);
                }
                Freshness::WhileRevalidate => return LookupResult::Refresh(Arc::clone(entry), cache_key),
                Freshness::Fresh { .. } | Freshness::IfError => has_stale = true,
            }
        }
        // An invalidated entry counts as stale, however old it is, and upstream may be asked about it.
        let before = entry.clone().or_else(|| self.store.get_to_confirm(&cache_key));
        let why = match &entry {
            Some(entry) => request.lookup.refuses(entry, now),
            None if before.is_some() => Miss::NeedsConfirmation,
            None if is_uncacheable() => Miss::Uncacheable,
            None if cache_key.owner.is_some() => Miss::Private,
            None => Miss::NoEntry,
        };
        LookupResult::Ask { cache_key, why, before, has_stale }
    }
}

/// An answer from memory.
pub(super) fn remembered(
    observer: &Observer,
    request: &CacheRequest,
    entry: &Entry,
    kind: HitKind,
    now: Instant,
    record: &mut RequestRecord,
) -> Response<Content> {
    let outcome = kind.outcome();
    entry.hit();
    record.answered(outcome, "");
    // A refusal is said again to whatever is asked.
    let key = entry.key().unwrap_or_else(|| observer.digests.of_key(&request.lookup.key));
    record.is_kept_under(key);
    let ttl = match kind {
        HitKind::Denied(left) => {
            observer.metrics.denial("memory");
            i64::try_from(left.as_secs()).unwrap_or(i64::MAX)
        }
        _ => entry.life().seconds_left(now),
    };
    let mut response = compose::from_entry(entry, now);
    let detail = (outcome != Outcome::Hit).then_some(outcome.into_str());
    CacheStatus::Hit { ttl, key: Some(key), detail }.add_to(response.headers_mut());
    response
}
