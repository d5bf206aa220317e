//! The look-up: finds what the gateway may answer to a request from memory, without a call to upstream.
//!
//! The result must not tell a caller without a grant whether anything is stored. Grants and entries are not
//! changed here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Response;

use super::memory::Memory;
use super::observer::Observer;
use super::{CacheRequest, Lookup};
use crate::cache::entry::Entry;
use crate::cache::freshness::Freshness;
use crate::cache::grants::{GrantState, GrantUse};
use crate::cache::miss::Miss;
use crate::cache::store::CacheKey;
use crate::reply::body::Content;
use crate::reply::compose::{self, CacheStatus};
use crate::request::request_directives::RequestDirectives;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::RequestRecord;

pub(super) enum LookupResult {
    /// Serve the entry.
    Hit(Arc<Entry>, HitKind),
    /// Serve the stale entry, and revalidate it in the background (RFC 5861 §3).
    StaleWhileRevalidate(Arc<Entry>, CacheKey),
    /// Call upstream first.
    Fetch {
        /// The key of the flight, under which the response is stored.
        cache_key: CacheKey,
        /// Why nothing is served from memory, as far as this caller may know.
        miss: Miss,
        /// The entry to revalidate.
        stored: Option<Arc<Entry>>,
        /// Whether `stored` may be served if upstream is slow.
        has_stale: bool,
    },
}

/// Why an entry is served.
#[derive(Clone, Copy)]
pub(super) enum HitKind {
    Fresh,
    /// It is a fresh 400, 404 or 405.
    Negative,
    /// It is a 401 or 403 to this caller. The gateway repeats it for this remaining time.
    Denied(Duration),
    /// It is stale, and is being revalidated.
    Revalidating,
    /// It is stale, and the gateway backs off, or a call would wait for upstream's quota.
    Backoff,
    /// It is fresh, and the request has waited for a call that proved its caller.
    AfterProof,
    /// It is fresh, and the second tier had it when this request asked.
    Fleet,
}

impl HitKind {
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Fresh => Outcome::Hit,
            Self::Negative => Outcome::Negative,
            Self::Denied(_) => Outcome::Denied,
            Self::Revalidating => Outcome::Revalidating,
            Self::Backoff => Outcome::Backoff,
            Self::AfterProof => Outcome::Coalesced,
            Self::Fleet => Outcome::Fleet,
        }
    }
}

/// Whether an entry is fresh, and satisfies the request directives.
pub(super) fn accepts(directives: RequestDirectives, entry: &Entry, now: Instant) -> bool {
    match entry.freshness_info().freshness(now) {
        Freshness::Fresh { left } => directives.accepts(entry.freshness_info().age(now), left),
        Freshness::WhileRevalidate | Freshness::IfError | Freshness::Gone => false,
    }
}

impl Lookup {
    /// Why an entry is not accepted.
    fn miss_reason(&self, entry: &Entry, now: Instant) -> Miss {
        match entry.freshness_info().freshness(now) {
            Freshness::Fresh { .. } if self.directives.no_cache => Miss::ClientNoCache,
            Freshness::Fresh { .. } if !self.directives.accepts_age(entry.freshness_info().age(now)) => {
                Miss::ClientMaxAge
            }
            Freshness::Fresh { .. } => Miss::ClientMinFresh,
            Freshness::WhileRevalidate | Freshness::IfError | Freshness::Gone => Miss::Expired,
        }
    }
}

impl Memory {
    pub(super) fn look_up(&self, lookup: &Lookup, now: Instant) -> LookupResult {
        let caller = lookup.caller_scope.caller;
        let grant_state = self.grants.grant_state(&lookup.caller_scope, now);
        match grant_state {
            GrantState::Denied { refusal, left } => return LookupResult::Hit(refusal, HitKind::Denied(left)),
            GrantState::Granted => {
                return self.look_up_granted(lookup, self.store.cache_key(&lookup.key, caller), now);
            }
            GrantState::Lapsed { .. } | GrantState::Unknown => {}
        }
        // Without a grant, the caller gets a private flight and learns nothing about stored entries. If its own call
        // has just failed outside the gateway, its lapsed grant is extended during the backoff.
        let cache_key = CacheKey { owner: Some(caller), key: Arc::clone(&lookup.key) };
        if let GrantState::Lapsed { ended } = grant_state
            && lookup.directives.takes_stale()
            && self.backoffs.is_active_for_owner(&cache_key, now)
            && let Some(entry) = self.usable_entry(lookup, ended, now)
        {
            return LookupResult::Hit(entry, HitKind::Backoff);
        }
        let miss = if matches!(grant_state, GrantState::Lapsed { .. }) { Miss::GrantLapsed } else { Miss::NoGrant };
        LookupResult::Fetch { cache_key, miss, stored: None, has_stale: false }
    }

    /// Whether the caller gets a stored response if its own call fails outside the gateway.
    pub(super) fn has_for_failure(&self, request: &CacheRequest, now: Instant) -> bool {
        let latest_sent = match self.grants.grant_state(&request.lookup.caller_scope, now) {
            GrantState::Granted => now,
            GrantState::Lapsed { ended } => ended,
            GrantState::Denied { .. } | GrantState::Unknown => return false,
        };
        self.usable_entry(&request.lookup, latest_sent, now).is_some()
    }

    /// The entry for this caller, fresh or stale, if the request that fetched it was sent no later than `latest_sent`.
    pub(super) fn usable_entry(&self, lookup: &Lookup, latest_sent: Instant, now: Instant) -> Option<Arc<Entry>> {
        let entry = self.store.get(&self.store.cache_key(&lookup.key, lookup.caller_scope.caller))?;
        let freshness_info = entry.freshness_info();
        (entry.sent_by() <= latest_sent && freshness_info.freshness(now) != Freshness::Gone).then_some(entry)
    }

    /// The fresh entry for a caller that has a grant, and until when the grant needs no renewal. For the fast path.
    pub(super) fn fresh(&self, lookup: &Lookup, now: Instant) -> Option<(Arc<Entry>, Instant)> {
        // A renewal needs the credential, which the fast path does not have.
        let GrantUse::Granted { until } = self.grants.use_grant(&lookup.caller_scope, now) else { return None };
        let entry = self.store.get(&self.store.cache_key(&lookup.key, lookup.caller_scope.caller))?;
        accepts(lookup.directives, &entry, now).then_some((entry, until))
    }

    /// The look-up for a caller that has a grant.
    fn look_up_granted(&self, lookup: &Lookup, cache_key: CacheKey, now: Instant) -> LookupResult {
        let directives = lookup.directives;
        let accepted = |entry: &Entry| accepts(directives, entry, now);
        let caller = lookup.caller_scope.caller;
        let entry = match self.store.get(&cache_key) {
            Some(entry) if accepted(&entry) => return LookupResult::Hit(entry, HitKind::Fresh),
            entry => entry,
        };
        // A fresh entry is served in any case. A stale one is not served if upstream has answered later with a 400,
        // 404 or 405, or with a response that cannot be stored, unless upstream fails.
        let is_later = |negative: &Arc<Entry>| {
            entry.as_ref().is_none_or(|entry| entry.freshness_info().sent < negative.freshness_info().sent)
        };
        let negative = self.store.negative(&cache_key).filter(is_later);
        if let Some(negative) = negative.as_ref().filter(|negative| accepted(negative)) {
            return LookupResult::Hit(Arc::clone(negative), HitKind::Negative);
        }
        let is_uncacheable = || self.store.uncacheable_reason(&cache_key, caller, now).is_some();
        let takes_stale = directives.takes_stale() && negative.is_none() && !is_uncacheable();
        let mut has_stale = false;
        if takes_stale && let Some(entry) = &entry {
            match entry.freshness_info().freshness(now) {
                Freshness::Gone => {}
                _ if self.backoffs.is_active_for(&cache_key, &lookup.caller_scope, now) => {
                    return LookupResult::Hit(Arc::clone(entry), HitKind::Backoff);
                }
                Freshness::WhileRevalidate => return LookupResult::StaleWhileRevalidate(Arc::clone(entry), cache_key),
                Freshness::Fresh { .. } | Freshness::IfError => has_stale = true,
            }
        }
        // An invalidated entry counts as stale, however old it is, and is revalidated.
        let stored = entry.clone().or_else(|| self.store.get_for_validation(&cache_key));
        let miss = match &entry {
            Some(entry) => lookup.miss_reason(entry, now),
            None if stored.is_some() => Miss::NeedsConfirmation,
            None if is_uncacheable() => Miss::Uncacheable,
            None if cache_key.owner.is_some() => Miss::Private,
            None => Miss::NoEntry,
        };
        LookupResult::Fetch { cache_key, miss, stored, has_stale }
    }
}

/// Makes the response from an entry, and records it.
pub(super) fn respond_from_memory(
    observer: &Observer,
    request: &CacheRequest,
    entry: &Entry,
    kind: HitKind,
    now: Instant,
    record: &mut RequestRecord,
) -> Response<Content> {
    let outcome = kind.outcome();
    entry.hit(now);
    record.set_outcome(outcome, "");
    // A stored 401 or 403 has no key: it is repeated to all requests of its caller in the scope.
    let key = entry.key().unwrap_or_else(|| observer.digests.of_key(&request.lookup.key));
    record.set_stored_key(key);
    let ttl = match kind {
        HitKind::Denied(left) => {
            observer.metrics.denial("memory");
            i64::try_from(left.as_secs()).unwrap_or(i64::MAX)
        }
        _ => entry.freshness_info().seconds_left(now),
    };
    let mut response = compose::from_entry(entry, now);
    let detail = (outcome != Outcome::Hit).then_some(outcome.into_str());
    CacheStatus::Hit { ttl, key: Some(key), detail }.add_to(response.headers_mut());
    response
}
