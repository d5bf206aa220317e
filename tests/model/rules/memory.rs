//! Reads what is stored, as of now.

use super::super::domain::{CallerId, KeyId, Ms, RequestDirectives, SCOPES, Scope, ScopeId, scope_of};
use super::super::settings::Settings;
use super::{BackoffTarget, CacheKey, Call, CallerScope, Entry, FlightId, Grant, Mark, Rules, Waiter};

impl Rules {
    /// Whether callers see only their own entries in a scope.
    pub fn is_private(&self, scope: ScopeId) -> bool {
        let Scope { operation, is_shared, .. } = SCOPES[scope];
        !is_shared || self.private.contains(&scope) || self.private_operations.contains(&operation)
    }

    /// Whether a response may be stored and given: not if its scope was invalidated after it was sent for.
    pub(super) fn is_valid(&self, key: KeyId, sent: Ms) -> bool {
        self.invalidated[scope_of(key)].is_none_or(|at| sent > at)
    }

    /// When the latest proof of a grant was sent. A suspended grant does not count.
    pub(super) fn proved(&self, caller_scope: CallerScope) -> Option<Ms> {
        let counts = |grant: &&Grant| grant.caller_scope == caller_scope && grant.suspended_by.is_empty();
        self.grants.iter().find(counts).map(|grant| grant.proved)
    }

    pub(super) fn is_granted(&self, caller_scope: CallerScope) -> bool {
        self.proved(caller_scope).is_some_and(|proved| self.now < proved + self.settings.grant_ttl)
    }

    /// Whether a caller is granted, or has a lapsed grant that can be extended.
    pub(super) fn is_known(&self, caller_scope: CallerScope) -> bool {
        self.is_granted(caller_scope) || self.lapsed(caller_scope).is_some()
    }

    /// The regular end of a lapsed grant that can be extended.
    pub(super) fn lapsed(&self, caller_scope: CallerScope) -> Option<Ms> {
        let proved = self.proved(caller_scope).filter(|proved| self.now < proved + Settings::OUTAGE_GRACE)?;
        (self.settings.serves_on_outage && !self.is_granted(caller_scope)).then_some(proved + self.settings.grant_ttl)
    }

    /// What the response to a key is stored under for a caller at present.
    pub(super) fn cache_key(&self, caller: CallerId, key: KeyId) -> CacheKey {
        CacheKey { key, owner: self.is_private(scope_of(key)).then_some(caller) }
    }

    pub(super) fn entry(&self, cache_key: CacheKey) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.cache_key == cache_key)
    }

    pub(super) fn age(&self, entry: &Entry) -> Ms {
        self.now - entry.sent
    }

    /// The remaining freshness; negative if it is stale.
    pub(super) fn left(&self, entry: &Entry) -> i64 {
        Settings::ttl(scope_of(entry.cache_key.key)).cast_signed() - self.age(entry).cast_signed()
    }

    /// An entry that may be given, perhaps stale.
    pub(super) fn usable(&self, cache_key: CacheKey) -> Option<&Entry> {
        let ttl = Settings::ttl(scope_of(cache_key.key));
        let may_be_given = |entry: &&Entry| self.age(entry) < ttl + self.settings.stale();
        self.entry(cache_key).filter(may_be_given).filter(|entry| self.is_valid(cache_key.key, entry.sent))
    }

    /// Whether a caller may get an entry stale although nothing has failed: not if there is a newer negative response
    /// or an uncacheable mark.
    pub(super) fn may_be_stale(&self, entry: &Entry, caller: CallerId) -> bool {
        let has_newer_negative =
            self.negatives.iter().any(|negative| negative.cache_key == entry.cache_key && negative.sent > entry.sent);
        !has_newer_negative && self.mark(entry.cache_key, caller).is_none()
    }

    /// The uncacheable mark for a caller: the shared one, or else the caller's own.
    pub(super) fn mark(&self, cache_key: CacheKey, caller: CallerId) -> Option<&Mark> {
        let mark = |cache_key| self.marks.iter().find(|mark| mark.cache_key == cache_key && mark.until > self.now);
        mark(cache_key).or_else(|| mark(CacheKey { owner: Some(caller), ..cache_key }))
    }

    pub(super) fn is_backing_off(&self, target: &BackoffTarget) -> bool {
        self.backoffs.iter().any(|backoff| backoff.target == *target && backoff.until > self.now)
    }

    /// Whether a caller must not call upstream for a cache key.
    pub(super) fn is_backing_off_for(&self, caller: CallerId, cache_key: CacheKey) -> bool {
        let scope = scope_of(cache_key.key);
        let failed = BackoffTarget::CallerKey(caller, cache_key);
        let caller = (caller, scope);
        let all = [
            failed,
            BackoffTarget::CacheKey(cache_key),
            BackoffTarget::Caller(caller),
            BackoffTarget::NotKeyOnly(caller),
            BackoffTarget::Scope(scope),
        ];
        all.iter().any(|of| self.is_backing_off(of))
    }

    /// How many requests wait for another's call, of shared flights or of flights of a single caller.
    pub(super) fn followers(&self, are_shared: bool) -> usize {
        let follows = |waiter: &&Waiter| !waiter.awaits_proof && !self.calls.iter().any(|call| waiter.leads(call));
        let calls = self.waiters.iter().filter(follows).map(|waiter| self.call(waiter.flight));
        calls.filter(|call| call.fetch_key.owner.is_none() == are_shared).count()
    }

    pub(super) fn call(&self, flight: FlightId) -> &Call {
        self.calls.iter().find(|call| call.flight == flight).expect("a waiter waits for a call in flight")
    }
}

/// Whether the request directives accept a response of this age and remaining freshness.
pub(super) fn accepts(directives: RequestDirectives, age: Ms, left: i64) -> bool {
    match directives {
        RequestDirectives::NoCache | RequestDirectives::NoStore => false,
        RequestDirectives::MaxAge(most) => age <= most,
        RequestDirectives::MinFresh(least) => left >= least.cast_signed(),
        RequestDirectives::None | RequestDirectives::OnlyIfCached => true,
    }
}

/// Whether the request directives accept a stale response although nothing has failed.
pub(super) fn takes_stale(directives: RequestDirectives) -> bool {
    matches!(directives, RequestDirectives::None | RequestDirectives::OnlyIfCached)
}
