//! One proof for concurrent requests: while a caller's call may prove it in a scope, its other requests in that scope
//! wait for that call. They do so whether or not there is an entry, so that the wait does not show what is stored.
//!
//! If the call does not prove the caller, one of the waiting requests makes the next call. Nothing is called here.

use super::CacheRequest;
use super::fetch_result::FetchResult;
use super::fetcher::{Fetcher, ProofLeader};
use super::role::ProofWaits;
use crate::cache::flights::{FlightCaller, Leader, Waiter};
use crate::cache::grants::CallerScope;
use crate::cache::store::CacheKey;
use crate::upstream::gate::Class;

/// What a request of a caller without a grant does first.
pub(super) enum ProofRole {
    /// It makes a call. Other requests of its caller wait for that, if there is a leader.
    Call(Option<ProofLeader>),
    /// It waits for a call of its caller.
    Wait(Waiter<CallerScope, ()>),
}

/// Decides whether a request of a caller without a grant waits for another call of the caller.
pub(super) fn join(
    fetcher: &Fetcher,
    request: &CacheRequest,
    class: Class,
    cache_key: &CacheKey,
    waits: &ProofWaits,
) -> ProofRole {
    // The caller's call for the same key is joined, because its response may be one that cannot be stored.
    if waits.are_over() || fetcher.lone_flights.is_in_flight(cache_key) {
        return ProofRole::Call(None);
    }
    let caller_scope = &request.lookup.caller_scope;
    let (waiter, leader) = match request.half_close.is_closed() {
        // The calls of half-closed connections have the lowest priority, so nobody else must wait for such a call.
        true => fetcher.proofs.wait_or_solo(caller_scope, caller_scope.caller),
        false => fetcher
            .proofs
            .join(caller_scope, FlightCaller { caller: caller_scope.caller, is_known: class != Class::Unknown }),
    };
    match leader {
        Some(leader) => ProofRole::Call(Some(leader)),
        None => ProofRole::Wait(waiter),
    }
}

/// A call that is made for its caller alone, and may prove it.
pub(super) struct LoneCall {
    pub(super) waiter: Waiter<CacheKey, FetchResult>,
    pub(super) leader: Leader<CacheKey, FetchResult>,
    pub(super) proof: ProofLeader,
}

/// Begins a call that is made for its caller alone. `None` if a call of the caller in the scope is in flight, or if
/// there are too many flights.
pub(super) fn begin_alone(fetcher: &Fetcher, request: &CacheRequest, cache_key: &CacheKey) -> Option<LoneCall> {
    let caller_scope = &request.lookup.caller_scope;
    // It holds a grant, or is a configured access key.
    let caller = FlightCaller { caller: caller_scope.caller, is_known: true };
    let proof = fetcher.proofs.begin(caller_scope, caller)?;
    let (waiter, leader) = fetcher.lone_flights.begin_with_waiter(cache_key, caller)?;
    Some(LoneCall { waiter, leader, proof })
}
