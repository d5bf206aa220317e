//! The role of a request in a flight, leader or waiter, and its waits for its caller's proof. There are no rules here about
//! who gets what.

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
    /// See [`NewFetch`](super::fetch::NewFetch).
    pub(super) throttled: Option<tokio::time::Instant>,
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

/// How many calls of its caller a request waits for. After that it makes its own call.
const MAX_PROOFS: u32 = 3;

/// The calls of its caller that a request has waited for.
#[derive(Default)]
pub(super) struct ProofWaits {
    number: u32,
    /// Whether it has waited for `stale_if_slow`.
    has_timed_out: bool,
}

impl ProofWaits {
    pub(super) fn has_waited(&self) -> bool {
        self.number > 0 || self.has_timed_out
    }

    /// Whether the request must make its own call.
    pub(super) fn are_over(&self) -> bool {
        self.number >= MAX_PROOFS || self.has_timed_out
    }

    pub(super) fn count(&mut self) {
        self.number += 1;
    }

    pub(super) fn time_out(&mut self) {
        self.has_timed_out = true;
    }
}
