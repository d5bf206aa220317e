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
        slot: CacheKey,
        /// Why that is so, as far as this caller may know.
        why: Miss,
        /// The old one, to ask whether it still holds.
        before: Option<Arc<Entry>>,
        /// Whether the old one will do if upstream is slow.
        is_patient: bool,
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
    Paused,
}

impl HitKind {
    fn outcome(self) -> Outcome {
        match self {
            Self::Fresh => Outcome::Hit,
            Self::Negative => Outcome::Negative,
            Self::Denied(_) => Outcome::Denied,
            Self::Revalidating => Outcome::Revalidating,
            Self::Paused => Outcome::Paused,
        }
    }
}

impl Lookup {
    /// Whether an answer is fresh, and fresh enough for who asks.
    fn accepts(&self, entry: &Entry, now: Instant) -> bool {
        match entry.life().freshness(now) {
            Freshness::Fresh { left } => self.wish.accepts(entry.life().age(now), left),
            Freshness::WhileRevalidate | Freshness::IfError | Freshness::Gone => false,
        }
    }

    /// Why an answer is not accepted.
    fn refuses(&self, entry: &Entry, now: Instant) -> Miss {
        match entry.life().freshness(now) {
            Freshness::Fresh { .. } if self.wish.no_cache => Miss::ClientNoCache,
            Freshness::Fresh { .. } if !self.wish.accepts_age(entry.life().age(now)) => Miss::ClientMaxAge,
            Freshness::Fresh { .. } => Miss::ClientMinFresh,
            Freshness::WhileRevalidate | Freshness::IfError | Freshness::Gone => Miss::Expired,
        }
    }
}

impl Memory {
    /// Looks up what may be given to this caller without asking upstream.
    pub(super) fn look_up(&self, question: &CacheRequest, now: Instant) -> LookupResult {
        let caller = question.asked.grantee.caller;
        let standing = self.grants.standing(&question.asked.grantee, now);
        match standing {
            GrantState::Denied { refusal, left } => return LookupResult::FlightOutcome(refusal, HitKind::Denied(left)),
            GrantState::Granted => {
                return self.look_into(question, self.store.slot(&question.asked.key, caller), now);
            }
            GrantState::Grace { .. } | GrantState::Unknown => {}
        }
        // Alone, and without a word on what there is: upstream has to answer first. Where it has just failed to, that
        // extends a lapsed grant for a while.
        let slot = CacheKey { owner: Some(caller), key: Arc::clone(&question.asked.key) };
        if let GrantState::Grace { ended } = standing
            && question.asked.wish.takes_stale()
            && self.pauses.hold_own(&slot, now)
            && let Some(entry) = self.usable(question, ended, now)
        {
            return LookupResult::FlightOutcome(entry, HitKind::Paused);
        }
        let why = if matches!(standing, GrantState::Grace { .. }) { Miss::GrantLapsed } else { Miss::NoGrant };
        LookupResult::Ask { slot, why, before: None, is_patient: false }
    }

    /// What is kept for this caller, be it stale, if it was sent no later than a moment.
    pub(super) fn usable(&self, question: &CacheRequest, sent_until: Instant, now: Instant) -> Option<Arc<Entry>> {
        let entry = self.store.get(&self.store.slot(&question.asked.key, question.asked.grantee.caller))?;
        let life = entry.life();
        (life.sent <= sent_until && life.freshness(now) != Freshness::Gone).then_some(entry)
    }

    /// The fresh answer to what is asked, for a caller who may be given it at once.
    pub(super) fn fresh(&self, asked: &Lookup, now: Instant) -> Option<Arc<Entry>> {
        if !self.grants.stands(&asked.grantee, now) {
            return None;
        }
        let entry = self.store.get(&self.store.slot(&asked.key, asked.grantee.caller))?;
        asked.accepts(&entry, now).then_some(entry)
    }

    /// Looks into a slot, for a caller who may see what is there.
    fn look_into(&self, question: &CacheRequest, slot: CacheKey, now: Instant) -> LookupResult {
        let wish = question.asked.wish;
        let accepted = |entry: &Entry| question.asked.accepts(entry, now);
        let caller = question.asked.grantee.caller;
        let entry = match self.store.get(&slot) {
            Some(entry) if accepted(&entry) => return LookupResult::FlightOutcome(entry, HitKind::Fresh),
            entry => entry,
        };
        // Nothing displaces what is fresh. But of what is not, upstream's latest word counts: where that
        // was no, or an answer that can't be kept, nothing older is given unless upstream fails.
        let is_later = |no: &Arc<Entry>| entry.as_ref().is_none_or(|entry| entry.life().sent < no.life().sent);
        let no = self.store.negative(&slot).filter(is_later);
        if let Some(no) = no.as_ref().filter(|no| accepted(no)) {
            return LookupResult::FlightOutcome(Arc::clone(no), HitKind::Negative);
        }
        let is_uncacheable = || self.store.uncacheable(&slot, caller, now).is_some();
        let takes_stale = wish.takes_stale() && no.is_none() && !is_uncacheable();
        let mut is_patient = false;
        if takes_stale && let Some(entry) = &entry {
            match entry.life().freshness(now) {
                Freshness::Gone => {}
                _ if self.pauses.hold(&slot, &question.asked.grantee, now) => {
                    return LookupResult::FlightOutcome(Arc::clone(entry), HitKind::Paused);
                }
                Freshness::WhileRevalidate => return LookupResult::Refresh(Arc::clone(entry), slot),
                Freshness::Fresh { .. } | Freshness::IfError => is_patient = true,
            }
        }
        // An invalidated entry counts as stale, however old it is, and upstream may be asked about it.
        let before = entry.clone().or_else(|| self.store.get_to_confirm(&slot));
        let why = match &entry {
            Some(entry) => question.asked.refuses(entry, now),
            None if before.is_some() => Miss::NeedsConfirmation,
            None if is_uncacheable() => Miss::Uncacheable,
            None if slot.owner.is_some() => Miss::Private,
            None => Miss::NoEntry,
        };
        LookupResult::Ask { slot, why, before, is_patient }
    }
}

/// An answer from memory.
pub(super) fn remembered(
    observer: &Observer,
    question: &CacheRequest,
    entry: &Entry,
    kind: HitKind,
    now: Instant,
    record: &mut RequestRecord,
) -> Response<Content> {
    let outcome = kind.outcome();
    entry.hit();
    record.answered(outcome, "");
    // A refusal is said again to whatever is asked.
    let key = entry.key().unwrap_or_else(|| observer.digests.of_key(&question.asked.key));
    record.is_kept_under(key);
    let ttl = match kind {
        HitKind::Denied(left) => {
            observer.metrics.denial("memory");
            i64::try_from(left.as_secs()).unwrap_or(i64::MAX)
        }
        _ => entry.life().seconds_left(now),
    };
    let mut response = compose::from_entry(entry, now);
    let detail = (outcome != Outcome::Hit).then_some(outcome.as_str());
    CacheStatus::Hit { ttl, key: Some(key), detail }.add_to(response.headers_mut());
    response
}
