//! What is remembered, as it is to be read at a moment.

use super::super::settings::Settings;
use super::super::world::{CallerId, KeyId, Ms, RequestDirectives, SCOPES, Scope, ScopeId, scope_of};
use super::{CacheKey, Call, CallerScope, Entry, FailedScope, FlightId, Grant, Mark, Rules, Waiting};

impl Rules {
    /// Whether callers are shown nothing in a scope but what is their own.
    pub fn is_private(&self, scope: ScopeId) -> bool {
        let Scope { operation, is_shared, .. } = SCOPES[scope];
        !is_shared || self.private.contains(&scope) || self.private_operations.contains(&operation)
    }

    /// Whether what was sent for may be given, and is to be kept: not if its scope was invalidated since.
    pub(super) fn is_valid(&self, key: KeyId, sent: Ms) -> bool {
        self.invalidated[scope_of(key)].is_none_or(|at| sent > at)
    }

    /// When the latest proof of a grant was sent. A suspended grant does not count.
    pub(super) fn proved(&self, to: CallerScope) -> Option<Ms> {
        let counts = |grant: &&Grant| grant.to == to && grant.suspended_by.is_empty();
        self.grants.iter().find(counts).map(|grant| grant.proved)
    }

    pub(super) fn is_granted(&self, to: CallerScope) -> bool {
        self.proved(to).is_some_and(|proved| self.now < proved + self.settings.grant_ttl)
    }

    /// Whether a caller is granted, or its grant has lapsed and can be extended.
    pub(super) fn is_known(&self, to: CallerScope) -> bool {
        self.is_granted(to) || self.lapsed(to).is_some()
    }

    /// The regular end of a grant that has lapsed and can be extended.
    pub(super) fn lapsed(&self, to: CallerScope) -> Option<Ms> {
        let proved = self.proved(to).filter(|proved| self.now < proved + Settings::OUTAGE_GRACE)?;
        (self.settings.serves_in_outage && !self.is_granted(to)).then_some(proved + self.settings.grant_ttl)
    }

    /// Where the answer to a key is kept for a caller, as things stand.
    pub(super) fn slot(&self, caller: CallerId, key: KeyId) -> CacheKey {
        CacheKey { key, owner: self.is_private(scope_of(key)).then_some(caller) }
    }

    pub(super) fn entry(&self, slot: CacheKey) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.slot == slot)
    }

    /// How old an entry is.
    pub(super) fn age(&self, entry: &Entry) -> Ms {
        self.now - entry.sent
    }

    /// How long an entry stays fresh; less than nothing if it isn't any more.
    pub(super) fn left(&self, entry: &Entry) -> i64 {
        Settings::ttl(scope_of(entry.slot.key)).cast_signed() - self.age(entry).cast_signed()
    }

    /// An entry that may be given, be it stale.
    pub(super) fn usable(&self, slot: CacheKey) -> Option<&Entry> {
        let ttl = Settings::ttl(scope_of(slot.key));
        let may_be_given = |entry: &&Entry| self.age(entry) < ttl + self.settings.stale();
        self.entry(slot).filter(may_be_given).filter(|entry| self.is_valid(slot.key, entry.sent))
    }

    /// Whether an entry may be given stale to a caller though nothing has failed: not if there is known to be
    /// no such thing any more, or nothing that can be kept.
    pub(super) fn may_be_stale(&self, entry: &Entry, caller: CallerId) -> bool {
        let is_outspoken =
            self.negatives.iter().any(|negative| negative.slot == entry.slot && negative.sent > entry.sent);
        !is_outspoken && self.mark(entry.slot, caller).is_none()
    }

    /// The mark that a caller meets in a slot: everybody's, or else its own.
    pub(super) fn mark(&self, slot: CacheKey, caller: CallerId) -> Option<&Mark> {
        let mark = |slot| self.marks.iter().find(|mark| mark.slot == slot && mark.until > self.now);
        mark(slot).or_else(|| mark(CacheKey { owner: Some(caller), ..slot }))
    }

    /// Whether something is paused.
    pub(super) fn is_backing_off(&self, of: &FailedScope) -> bool {
        self.backoffs.iter().any(|pause| pause.of == *of && pause.until > self.now)
    }

    /// Whether upstream is not to be asked by a caller for a slot.
    pub(super) fn is_paused_for(&self, caller: CallerId, slot: CacheKey) -> bool {
        let scope = scope_of(slot.key);
        let failed = FailedScope::Failed(caller, slot);
        let caller = (caller, scope);
        let all = [
            failed,
            FailedScope::CacheKey(slot),
            FailedScope::Caller(caller),
            FailedScope::Foul(caller),
            FailedScope::Scope(scope),
        ];
        all.iter().any(|of| self.is_backing_off(of))
    }

    /// How many wait for another's call: those of shared flights, or of lone ones.
    pub(super) fn followers(&self, are_shared: bool) -> usize {
        let follows = |request: &&Waiting| !self.calls.iter().any(|call| request.leads(call));
        let calls = self.waiting.iter().filter(follows).map(|request| self.call(request.aboard));
        calls.filter(|call| call.boarding.owner.is_none() == are_shared).count()
    }

    /// A call of a flight.
    pub(super) fn call(&self, flight: FlightId) -> &Call {
        self.calls.iter().find(|call| call.flight == flight).expect("who waits, waits for a call in the air")
    }
}

/// Whether something so old, fresh for so long, is what a client wishes for.
pub(super) fn meets(wish: RequestDirectives, age: Ms, left: i64) -> bool {
    match wish {
        RequestDirectives::NoCache | RequestDirectives::NoStore => false,
        RequestDirectives::MaxAge(most) => age <= most,
        RequestDirectives::MinFresh(least) => left >= least.cast_signed(),
        RequestDirectives::Nothing | RequestDirectives::OnlyIfCached => true,
    }
}

/// Whether a client takes something stale though nothing has failed.
pub(super) fn takes_stale(wish: RequestDirectives) -> bool {
    matches!(wish, RequestDirectives::Nothing | RequestDirectives::OnlyIfCached)
}
