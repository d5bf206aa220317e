//! Starts the fetches that no request waits for: refreshes of stale entries, and renewals of grants. `fetch.rs`
//! and `settle.rs` apply their results, as for other fetches.

use std::sync::Arc;

use http::HeaderMap;

use super::fetch::NewFetch;
use super::fetch_result::FetchPurpose;
use super::prove::LoneCall;
use super::{CacheRequest, Gateway, prove};
use crate::cache::flights::FlightCaller;
use crate::cache::store::CacheKey;
use crate::telemetry::record::RequestRecord;
use crate::upstream::gate::Class;

impl Gateway {
    /// Refreshes a stale entry, unless a call for it is in flight. A caller that would have to wait leads nobody, so it starts
    /// no refresh of a shared entry.
    pub(super) fn revalidate_in_background(
        self: &Arc<Self>,
        request: &CacheRequest,
        cache_key: CacheKey,
        headers: &HeaderMap,
        record: &mut RequestRecord,
    ) {
        // It holds a grant.
        let caller = FlightCaller { caller: request.lookup.caller_scope.caller, is_known: true };
        // Not after a flight has begun: another request could join it, and would not get a response.
        if cache_key.owner.is_none() && self.fetcher.has_to_wait(request, Class::Refresh) {
            return;
        }
        if let Some(leader) = self.fetcher.flights(&cache_key).begin(&cache_key, caller) {
            self.observer.metrics.refreshes.inc();
            let fetch = NewFetch { leader, cache_key, purpose: FetchPurpose::Refresh, proof: None, throttled: None };
            self.start_fetch(fetch, request, headers, record);
        }
    }

    /// Renews the grant of a caller whose request is a hit, unless that must not be done now.
    pub(super) fn renew_in_background(
        self: &Arc<Self>,
        request: &CacheRequest,
        headers: &HeaderMap,
        record: &mut RequestRecord,
    ) {
        let (lookup, now) = (&request.lookup, self.clock.now());
        if lookup.directives.only_if_cached {
            return;
        }
        // Whether or not it begins: until then, hits take the fast path again.
        self.memory.grants.postpone_renewal(&lookup.caller_scope, now);
        let caller = lookup.caller_scope.caller;
        let shared_key = self.memory.store.cache_key(&lookup.key, caller);
        if self.fetcher.is_suspended(request)
            || self.memory.backoffs.is_active_for(&shared_key, &lookup.caller_scope, now)
        {
            return;
        }
        let cache_key = shared_key.of(caller);
        if let Some(LoneCall { leader, proof, .. }) = prove::begin_alone(&self.fetcher, request, &cache_key) {
            let fetch =
                NewFetch { leader, cache_key, purpose: FetchPurpose::Renewal, proof: Some(proof), throttled: None };
            self.start_fetch(fetch, request, headers, record);
        }
    }
}
