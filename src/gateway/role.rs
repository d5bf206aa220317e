//! How a request takes part in a flight.

use crate::cache::miss::Miss;
use crate::cache::store::CacheKey;
use crate::reply::compose::Forward;
use crate::telemetry::outcome::Outcome;

/// A request's part in a flight.
pub(super) struct Role {
    /// Whether it is this very request that is sent, and in the end whether it is given its own call's result.
    pub(super) leads: bool,
    /// Whether it leads because the leader before was refused.
    pub(super) elected: bool,
    /// Whether it won't wait for another leader after this one.
    pub(super) is_last: bool,
    /// Whether it has gone again already because upstream failed another's call. That happens once.
    pub(super) has_repeated: bool,
    /// What it waits for.
    pub(super) cache_key: CacheKey,
    /// Why it isn't answered from memory.
    pub(super) why: Miss,
}

impl Role {
    /// How the request is being answered.
    pub(super) fn outcome(&self) -> Outcome {
        match (self.leads, Forward::of(self.why)) {
            (false, _) => Outcome::Coalesced,
            (true, Forward::Stale | Forward::Request) => Outcome::Expired,
            (true, Forward::Miss | Forward::Bypass) => Outcome::Miss,
        }
    }
}
