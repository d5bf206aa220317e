//! Releasing a waiter when its flight has a result: the waiter gets the response, a stale entry, or an error, or it
//! looks up again.
//!
//! Everything is checked again at this moment: the caller's grant, purges, and whether the scope is private. What was
//! true when the waiter joined must not be used. A waiter must not get another caller's refusal.

use std::sync::Arc;
use std::time::Instant;

use http::{Response, StatusCode};

use super::CacheRequest;
use super::fetch_result::{FetchResult, FetchedResponse};
use super::look_up::{HitKind, LookupResult};
use super::memory::Memory;
use super::observer::Observer;
use super::role::Role;
use crate::cache::admission::{Audience, Verdict};
use crate::cache::entry::Entry;
use crate::cache::grants::{GrantState, Proof};
use crate::cache::unstorable::Unstorable;
use crate::reply::body::Content;
use crate::reply::compose::{self, CacheStatus, Forward};
use crate::reply::error::RequestError;
use crate::signing::ring::SignatureRejection;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::RequestRecord;
use crate::upstream::UpstreamError;

/// A waiter, and the parts that its release depends on.
pub(super) struct Releaser<'g> {
    pub(super) memory: &'g Memory,
    pub(super) observer: &'g Observer,
    pub(super) request: &'g CacheRequest,
    pub(super) role: &'g Role,
    pub(super) now: Instant,
}

/// What happens to a request when its flight has a result.
pub(super) enum Release {
    /// Send the response, or a 304 if the client has the current version.
    Respond(Response<Content>),
    /// Send the response, never a 304: it is a 200 whose body is not a valid response of the operation.
    RespondUnconditionally(Response<Content>),
    /// Relay the request: the response is too large to buffer.
    Relay,
    /// Answer with an error of the gateway.
    Fail(RequestError),
    /// Look up again. The leader was refused or throttled, so another waiter becomes the leader.
    ElectLeader,
    /// Look up again. Upstream answered the leader with a 5xx, and another caller's call successfully. So a waiter
    /// repeats the call.
    Retry,
    /// Look up again: the result is not for this caller.
    LookUpAgain,
}

impl Releaser<'_> {
    /// Decides what a waiter gets of the result of its flight.
    pub(super) fn release(&self, result: &FetchResult, record: &mut RequestRecord) -> Release {
        let Self { request, role, now, .. } = *self;
        let caller = request.lookup.caller_scope.caller;
        let (leader, epoch, response, is_external, may_retry) = match result {
            FetchResult::NotSent { .. } | FetchResult::InSecondTier => return Release::LookUpAgain,
            FetchResult::Suspended { leader } if *leader == caller => {
                self.observer.metrics.signature(SignatureRejection::Suspended.into_str());
                return Release::Fail(RequestError::Signature(SignatureRejection::Suspended));
            }
            FetchResult::Suspended { .. } | FetchResult::Refused { .. } => return Release::ElectLeader,
            FetchResult::Sent { leader, epoch, response, duration, is_external, may_retry, span } => {
                record.set_upstream_time(*duration);
                if let Some(span) = span.filter(|_| !role.leads) {
                    record.link_to(span);
                }
                (leader, epoch, response, *is_external, *may_retry)
            }
        };
        let is_own = *leader == caller;
        let is_granted = || self.memory.grants.is_granted(&request.lookup.caller_scope, now);
        let stale = || self.stale_on_error(is_own && is_external);
        let fetched = match response {
            Ok(fetched) => fetched,
            // Each waiter relays its own request: another shared call would not get memory either.
            Err(UpstreamError::NoMemory(_)) => return Release::Relay,
            Err(UpstreamError::TooLarge(_)) => return if role.leads { Release::Relay } else { Release::LookUpAgain },
            Err(error @ UpstreamError::RefusalIncomplete(_)) if is_own => {
                return Release::Respond(self.error_response(error, None, record));
            }
            Err(UpstreamError::RefusalIncomplete(_)) => return Release::ElectLeader,
            // The turn has come too late for the request that leads. It may have come earlier than this one, and the limit
            // may be its own.
            Err(UpstreamError::Throttled { .. } | UpstreamError::Busy) if !role.leads && !role.is_last => {
                return Release::ElectLeader;
            }
            Err(error) if is_own || is_granted() => {
                return Release::Respond(self.error_response(error, stale(), record));
            }
            Err(_) => return Release::LookUpAgain,
        };
        let may_share =
            || is_granted() && self.memory.store.may_share(&role.cache_key, *epoch, fetched.freshness_info.sent);
        let is_valid = || !self.memory.store.is_invalidated(role.cache_key.key.scope(), fetched.freshness_info.sent);
        let may_have = role.leads
            || match fetched.verdict {
                Verdict::Proof(Ok(Audience::Caller)) if !is_own => false,
                Verdict::Proof(Ok(_)) => fetched.proof != Some(Proof::Late) && may_share(),
                Verdict::Proof(Err(_)) | Verdict::InvalidBody(_) => false,
                Verdict::Denial => is_own,
                Verdict::Personal => is_own && is_valid(),
                Verdict::Negative => is_own && is_valid() || may_share(),
                Verdict::Throttled | Verdict::Failure => is_own || is_granted(),
            };
        match fetched.verdict {
            Verdict::Denial | Verdict::Personal if !may_have => Release::ElectLeader,
            _ if !may_have => Release::LookUpAgain,
            Verdict::Throttled | Verdict::Failure => match stale() {
                Some(entry) => {
                    let (status, detail) = (Some(fetched.upstream_status), Unstorable::Status.into_str());
                    Release::Respond(stale_response(&entry, now, status, Outcome::Stale, detail, role, record))
                }
                None if may_retry && !is_own && !role.has_retried && !role.is_last => Release::Retry,
                // Upstream may throttle only the leader's caller. `is_last` limits how many waiters try.
                None if fetched.verdict == Verdict::Throttled && !is_own && !role.is_last => Release::ElectLeader,
                None => Release::Respond(self.response(fetched, record)),
            },
            Verdict::InvalidBody(_) => Release::RespondUnconditionally(self.response(fetched, record)),
            _ => Release::Respond(self.response(fetched, record)),
        }
    }

    /// The response to send for a fetched one.
    fn response(&self, fetched: &FetchedResponse, record: &mut RequestRecord) -> Response<Content> {
        let Self { request, role, now, .. } = *self;
        let is_private =
            || self.memory.store.cache_key(&request.lookup.key, request.lookup.caller_scope.caller).owner.is_some();
        let detail = match fetched.not_stored {
            Some(reason) => reason.into_str(),
            None if role.leads && fetched.proof == Some(Proof::Granted) => "proved",
            None if role.elected => "elected",
            None if is_private() => "private",
            None => role.miss.into_str(),
        };
        record.set_detail(detail);
        let age = fetched.age_is_known.then(|| fetched.freshness_info.age(now));
        let mut response = compose::from_response(&fetched.response, age, !role.leads);
        let (why, status) = (Forward::of(role.miss), Some(fetched.upstream_status));
        cache_status(role, record, why, status, fetched.not_stored.is_none()).add_to(response.headers_mut());
        response
    }

    /// A stale response for a request that has waited for `stale_if_slow`. Upstream has not failed, so a lapsed grant
    /// is not extended. `None` if there is no such entry any more.
    pub(super) fn stale_if_slow_response(&self, record: &mut RequestRecord) -> Option<Response<Content>> {
        let Self { request, role, now, .. } = *self;
        if !self.memory.grants.is_granted(&request.lookup.caller_scope, now) {
            return None;
        }
        // The entry may have been invalidated, or its key marked uncacheable, since the first look-up.
        let entry = match self.memory.look_up(&request.lookup, now) {
            LookupResult::Hit(entry, HitKind::Fresh | HitKind::Backoff)
            | LookupResult::StaleWhileRevalidate(entry, _) => entry,
            LookupResult::Fetch { stored: Some(entry), has_stale: true, .. } => entry,
            LookupResult::Hit(..) | LookupResult::Fetch { .. } => return None,
        };
        let outcome = Outcome::StaleIfSlow;
        Some(stale_response(&entry, now, None, outcome, outcome.into_str(), role, record))
    }

    /// The response to a request whose own deadline is reached. This extends no grant, because upstream may not have
    /// had all of `answer_timeout`.
    pub(super) fn deadline_response(&self, error: &UpstreamError, record: &mut RequestRecord) -> Response<Content> {
        self.error_response(error, self.stale_on_error(false), record)
    }

    /// The response to a failed call: a stale one, or the error.
    fn error_response(
        &self,
        error: &UpstreamError,
        stale: Option<Arc<Entry>>,
        record: &mut RequestRecord,
    ) -> Response<Content> {
        let Self { role, now, .. } = *self;
        let detail = error.failure().into_str();
        record.set_failure(detail);
        if let Some(entry) = stale {
            return stale_response(&entry, now, None, Outcome::Stale, detail, role, record);
        }
        let mut response = RequestError::Upstream(error.clone()).response(record.request_id());
        cache_status(role, record, Forward::of(role.miss), None, false).add_to(response.headers_mut());
        response
    }

    /// The stale entry that this caller may get instead of an error. A lapsed grant is extended only if the caller's
    /// own call failed for a cause outside the gateway. It then shows no entry that was sent after the regular end of
    /// the grant.
    fn stale_on_error(&self, extends_grant: bool) -> Option<Arc<Entry>> {
        let Self { request, now, .. } = *self;
        let latest_sent = match self.memory.grants.grant_state(&request.lookup.caller_scope, now) {
            GrantState::Granted => now,
            GrantState::Lapsed { ended } if extends_grant => ended,
            GrantState::Lapsed { .. } | GrantState::Unknown | GrantState::Denied { .. } => return None,
        };
        self.memory.usable_entry(&request.lookup, latest_sent, now)
    }
}

/// A response from an entry that is not fresh, because upstream failed or is slow. `status` is upstream's.
fn stale_response(
    entry: &Entry,
    now: Instant,
    status: Option<StatusCode>,
    outcome: Outcome,
    detail: &'static str,
    role: &Role,
    record: &mut RequestRecord,
) -> Response<Content> {
    entry.hit(now);
    record.set_outcome(outcome, detail);
    let mut response = compose::from_entry(entry, now);
    // If the entry is fresh, the request directives were the reason for the call.
    let why = if Forward::of(role.miss) == Forward::Request { Forward::Request } else { Forward::Stale };
    cache_status(role, record, why, status, false).add_to(response.headers_mut());
    response
}

/// The `Cache-Status` of a response that a flight has brought. The key and the detail are those of the record.
fn cache_status(
    role: &Role,
    record: &RequestRecord,
    why: Forward,
    status: Option<StatusCode>,
    stored: bool,
) -> CacheStatus {
    let (key, detail) = (record.key(), Some(record.detail()));
    CacheStatus::Forwarded { why, status, stored, collapsed: !role.leads, key, detail, failure: None }
}
