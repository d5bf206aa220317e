//! The role of a request in a flight: leader or waiter. It has no rules of its own about who gets what.

use crate::cache::miss::Miss;
use crate::cache::store::CacheKey;
use crate::reply::compose::Forward;
use crate::telemetry::outcome::Outcome;

pub(super) struct Role {
    /// Whether this request is sent. After the wait: whether it got the result of its own call.
    pub(super) leads: bool,
    /// Whether it leads because the previous leader was refused or throttled.
    pub(super) elected: bool,
    /// Whether the request must not join another flight after this one.
    pub(super) is_last: bool,
    /// Whether it has already looked up again to retry after a 5xx. That happens once.
    pub(super) has_retried: bool,
    pub(super) cache_key: CacheKey,
    /// Why it is not answered from memory.
    pub(super) miss: Miss,
    /// Whether it can get a stale entry if upstream is slow.
    pub(super) has_stale: bool,
}

impl Role {
    pub(super) fn outcome(&self) -> Outcome {
        match (self.leads, Forward::of(self.miss)) {
            (false, _) => Outcome::Coalesced,
            (true, Forward::Stale | Forward::Request) => Outcome::Expired,
            (true, Forward::Miss | Forward::Bypass) => Outcome::Miss,
        }
    }
}
