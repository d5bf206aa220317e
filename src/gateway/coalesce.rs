//! Coalescing: a request joins the flight for its cache key, or begins one. It does not wait here (`wait.rs`).

use super::CacheRequest;
use super::fetch_result::{AdditionalCallReason, FetchResult};
use super::fetcher::Fetcher;
use super::look_up::HitKind;
use super::role::{ProofWaits, Role};
use crate::cache::flights::{FlightCaller, FlightOutcome, Leader, Waiter};
use crate::cache::miss::Miss;
use crate::cache::store::CacheKey;
use crate::upstream::gate::Class;

/// How often a request joins another flight, after the result of the previous one was not for it. After that it makes
/// a call of its own.
pub(super) const MAX_ELECTIONS: u32 = 3;

/// The flights that a request has waited for so far.
#[derive(Default)]
pub(super) struct Attempts {
    pub(super) number: u32,
    /// Whether a leader was refused or throttled.
    pub(super) leader_was_refused: bool,
    /// Whether the request has looked up again to retry after a 5xx.
    pub(super) has_retried: bool,
    /// Set if its next call is that retry.
    pub(super) additional: Option<AdditionalCallReason>,
    /// When its fetch began, if upstream has throttled its call. It is sent only once more, in the time that is left.
    pub(super) throttled: Option<tokio::time::Instant>,
    /// Whether the second tier had the entry.
    pub(super) is_in_second_tier: bool,
    pub(super) proof_waits: ProofWaits,
}

impl Attempts {
    /// Counts a flight whose result was not for the request.
    pub(super) fn count(&mut self, outcome: &FlightOutcome<FetchResult>) {
        self.number += 1;
        if let FetchResult::NotSent { throttled: Some(begun) } = outcome.result
            && outcome.is_own
        {
            self.throttled = Some(begun);
        }
        self.is_in_second_tier |= matches!(outcome.result, FetchResult::InSecondTier);
    }

    /// Where a fresh entry comes from.
    pub(super) fn kind_of_hit(&self) -> HitKind {
        match (self.is_in_second_tier, self.proof_waits.has_waited()) {
            (true, _) => HitKind::Fleet,
            (false, true) => HitKind::AfterProof,
            (false, false) => HitKind::Fresh,
        }
    }

    /// The role of a request that waits for its caller's proof and is in no flight.
    pub(super) fn waiting_role(&self, cache_key: CacheKey, miss: Miss) -> Role {
        let is_last = self.number >= MAX_ELECTIONS;
        let (leads, elected, has_stale) = (false, false, false);
        let (has_retried, throttled) = (self.has_retried, self.throttled);
        Role { leads, elected, is_last, has_retried, cache_key, miss, has_stale, throttled }
    }
}

/// Joins the flight for a cache key, or begins one. Nobody else can join a solo flight. If a leader is returned, the
/// caller must start its fetch.
pub(super) fn join(
    fetcher: &Fetcher,
    request: &CacheRequest,
    class: Class,
    cache_key: CacheKey,
    miss: Miss,
    is_solo: bool,
    attempts: &Attempts,
) -> (Waiter<CacheKey, FetchResult>, Role, Option<Leader<CacheKey, FetchResult>>) {
    let (flights, caller) = (fetcher.flights(&cache_key), request.lookup.caller_scope.caller);
    let flight_caller = FlightCaller { caller, is_known: class != Class::Unknown };
    let (waiter, leader) = match is_solo {
        true => flights.solo(caller),
        // The calls of half-closed connections have the lowest priority, so nobody else must wait for such a call.
        false if request.half_close.is_closed() => flights.wait_or_solo(&cache_key, caller),
        // Nor for one that waits for its own caller's other calls, for a limit of its caller, or for one that does not hold
        // back proved callers: it would be elected again and again. The caller's own requests share its call.
        false if cache_key.owner.is_none() && fetcher.has_to_wait(request, class) => {
            match flights.is_in_flight(&cache_key) {
                true => flights.wait_or_solo(&cache_key, caller),
                false => fetcher.lone_flights.join(&cache_key.of(caller), flight_caller),
            }
        }
        false => flights.join(&cache_key, flight_caller),
    };
    let elected = attempts.leader_was_refused && leader.is_some() && cache_key.owner.is_none();
    let role = Role { leads: leader.is_some(), elected, ..attempts.waiting_role(cache_key, miss) };
    (waiter, role, leader)
}
