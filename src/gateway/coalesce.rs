//! Coalescing: a request joins the flight for its question, or begins one.

use super::CacheRequest;
use super::fetch_result::{Additional, FetchResult};
use super::fetcher::Fetcher;
use super::role::Role;
use crate::cache::flights::{Leader, Waiter};
use crate::cache::miss::Miss;
use crate::cache::store::CacheKey;

/// How often a request waits for another leader after the one before was refused. Then it asks alone.
pub(super) const MAX_ELECTIONS: u32 = 3;

/// How often a request has waited for a flight, and what has come of that.
#[derive(Default)]
pub(super) struct Attempts {
    pub(super) number: u32,
    /// Whether a leader was refused or throttled, so that another takes its place.
    pub(super) refused: bool,
    /// Whether a call was repeated for it because upstream failed another's.
    pub(super) has_repeated: bool,
    /// Why its next call is made, if that is such a repetition.
    pub(super) additional: Option<Additional>,
}

/// Joins the flight for a slot, or begins one. A solo flight is nobody else's. The leader, if there is one, has to be sent.
pub(super) fn join(
    fetcher: &Fetcher,
    request: &CacheRequest,
    (cache_key, why, solo): (CacheKey, Miss, bool),
    rounds: &Attempts,
) -> (Waiter<CacheKey, FetchResult>, Role, Option<Leader<CacheKey, FetchResult>>) {
    let (flights, caller) = (fetcher.flights(&cache_key), request.lookup.caller_scope.caller);
    let (waiter, leader) = match solo {
        true => flights.solo(caller),
        // Nobody is to wait for a call that comes after all others.
        false if request.half_close.is_closed() => flights.wait_or_solo(&cache_key, caller),
        false => flights.join(&cache_key, caller),
    };
    let elected = rounds.refused && leader.is_some() && cache_key.owner.is_none();
    let is_last = rounds.number >= MAX_ELECTIONS;
    let role = Role { leads: leader.is_some(), elected, is_last, has_repeated: rounds.has_repeated, cache_key, why };
    (waiter, role, leader)
}
