//! What the end of a call changes: grants, entries, marks of uncacheable keys, and backoffs.
//!
//! A caller that is not proved and has no grant must not change what other callers get.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, DATE, ETAG, Entry as Field};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::CacheRequest;
use super::denial::UnreadRefusal;
use super::fetch_result::FetchedResponse;
use super::hint::Hint;
use super::memory::Memory;
use super::observer::Observer;
use crate::cache::admission::{self, Audience, VaryRole, Verdict};
use crate::cache::backoffs::{self, BackoffCause};
use crate::cache::divergence::{Digest, Observation};
use crate::cache::entry::{Entry, EntryBuilder};
use crate::cache::freshness::{Freshness, FreshnessInfo, Lifetime};
use crate::cache::grants::{CallerScope, GrantState, PendingGrant, Proof, RefusedBy, RenewalResult};
use crate::cache::lifetime::{self, ResponseTimes};
use crate::cache::store::{CacheKey, Epoch, PrivateExtent, PrivateName};
use crate::cache::unstorable::Unstorable;
use crate::catalogue::Operation;
use crate::request::caller::X_AUTH_TOKEN;
use crate::request::key::Scope;
use crate::request::precondition::Validator;
use crate::telemetry::events::{Event, NewEvent};
use crate::upstream::{UpstreamError, client};

/// A call that has ended, and the parts that it may change.
pub(super) struct EndedCall<'f> {
    pub(super) memory: &'f Memory,
    pub(super) observer: &'f Observer,
    pub(super) request: &'f CacheRequest,
    /// The key of the flight. Other requests may have joined it.
    pub(super) cache_key: &'f CacheKey,
    /// Whether the call is made for its caller alone. Then only a response that can be stored changes what other callers
    /// get.
    pub(super) is_for_caller_alone: bool,
    /// Whether the request was built only from the key, the credential and constants.
    pub(super) is_key_only: bool,
    /// The purge epoch in which it was sent.
    pub(super) epoch: Epoch,
    pub(super) times: ResponseTimes,
}

/// Why a call begins a backoff.
#[derive(Clone, Copy)]
enum CallFailure<'a> {
    /// Upstream's response says so.
    Response(StatusCode, &'a HeaderMap),
    /// There is no complete response.
    Outside,
    /// The same, because of a limit, a deadline or a resource of this gateway.
    Inside,
}

impl EndedCall<'_> {
    /// Whether the result may change what the other requests of the flight get. The caller must own the key, or hold a
    /// grant when the response has been received.
    pub(super) fn is_trusted(&self) -> bool {
        self.cache_key.owner.is_some()
            || self.memory.grants.is_granted(&self.request.lookup.caller_scope, self.times.received)
    }

    /// Applies everything that a complete response changes.
    pub(super) fn settle(
        &self,
        pending_grant: PendingGrant,
        mut response: Response<Bytes>,
        upstream_status: StatusCode,
        refusal: Option<UnreadRefusal<'_>>,
    ) -> FetchedResponse {
        let times = self.times;
        // RFC 9110 §6.6.1: a response without `Date` gets the time at which it was received.
        if let Field::Vacant(date) = response.headers_mut().entry(DATE)
            && let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(times.date))
        {
            date.insert(now);
        }
        let operation = self.request.lookup.key.operation();
        let is_private = self.current_cache_key().owner.is_some();
        let verdict = admission::classify(&response, &operation.body, is_private, |name| header_role(operation, name));
        let age_is_known = lifetime::age(response.headers()).is_some();
        let configured = self.request.active.lifetime(
            self.request.lookup.key.scope(),
            self.memory.store.staleness(),
            times.received,
        );
        let freshness_info = lifetime::freshness_info(response.headers(), times, configured);
        let mut proof = None;
        let not_stored = match verdict {
            Verdict::Proof(storable) => {
                let proved = pending_grant.proved(times.received);
                self.observer.metrics.proof(proved);
                proof = Some(proved);
                if proved != Proof::Late {
                    self.memory.known_callers.proved(self.request.lookup.caller_scope.caller, times.sent);
                }
                match (proved, storable) {
                    (Proof::Late, _) => Some(Unstorable::Late),
                    (_, Ok(audience)) => self.store_response(&mut response, freshness_info, audience),
                    (_, Err(reason)) => {
                        let scope = self.request.lookup.key.scope();
                        if admission::varies_on_credential(response.headers(), |name| header_role(operation, name))
                            && let Some(extent) = self.memory.store.make_private(scope)
                        {
                            self.record_private(scope, extent, Audience::Caller);
                        }
                        // A proof is enough for this mark: the grant itself may have lapsed by now.
                        self.mark(&self.current_cache_key(), reason);
                        Some(self.mark_uncacheable(reason))
                    }
                }
            }
            Verdict::InvalidBody(reason) => Some(self.mark_uncacheable(reason)),
            // The grant ended when the head was read (`apply_denial`).
            Verdict::Denial => {
                let by = RefusedBy::of(response.body());
                refusal.into_iter().for_each(|refusal| refusal.decide(by));
                let may_store = !lifetime::forbids_storing(response.headers());
                let refusal = may_store.then(|| Entry::new_private(&response, freshness_info));
                pending_grant.refused(by, refusal, times.received);
                Some(Unstorable::Denied)
            }
            Verdict::Negative => self.store_negative(&response),
            Verdict::Throttled | Verdict::Failure => {
                self.begin_backoff(CallFailure::Response(response.status(), response.headers()));
                Some(Unstorable::Status)
            }
            // A 400, 404 or 405 that must not be stored still prevents the use of a stale entry.
            Verdict::Personal if self.is_key_only && admission::is_negative(response.status()) => {
                Some(self.mark_uncacheable(Unstorable::CacheDirectives))
            }
            Verdict::Personal => Some(Unstorable::Status),
        };
        if let Some(reason) = not_stored {
            self.observer.metrics.unstored(reason);
        }
        FetchedResponse { response, upstream_status, freshness_info, age_is_known, verdict, proof, not_stored }
    }

    /// Stores a response for its audience. Returns why it was not stored.
    fn store_response(
        &self,
        response: &mut Response<Bytes>,
        freshness_info: FreshnessInfo,
        audience: Audience,
    ) -> Option<Unstorable> {
        let EndedCall { request, cache_key, epoch, times, .. } = self;
        let caller = request.lookup.caller_scope.caller;
        let current_cache_key = self.current_cache_key();
        for cache_key in [cache_key, &current_cache_key] {
            self.memory.store.clear_uncacheable(cache_key);
            self.memory.backoffs.end(cache_key);
        }
        self.memory.store.clear_uncacheable(&cache_key.of(caller));
        let digest = *blake3::hash(response.body()).as_bytes();
        let validator = Validator::of(response.headers());
        if let Field::Vacant(tag) = response.headers_mut().entry(ETAG) {
            tag.insert(entity_tag(&digest));
        }
        let builder = EntryBuilder::new(response, freshness_info, validator)
            .with_key_digest(self.observer.digests.of_key(&request.lookup.key));
        let observation = Observation { digest, caller, sent: times.sent, received: times.received };
        let (stored, newly_private) =
            self.memory.store.insert(&request.lookup.key, builder, audience, observation, *epoch);
        if let Some(extent) = newly_private {
            self.record_private(request.lookup.key.scope(), extent, audience);
        }
        stored.reason()
    }

    /// Records that entries are no longer shared between callers.
    fn record_private(&self, scope: &Scope, extent: PrivateExtent, audience: Audience) {
        let why = match audience {
            Audience::All => "callers get different responses to the same request",
            Audience::Caller => "upstream says that responses vary on the credential",
        };
        let what = match extent {
            PrivateExtent::Scope => {
                "responses in this scope are no longer shared between callers until it is purged or the gateway restarts"
            }
            PrivateExtent::Operation => {
                "responses of this operation are no longer shared between callers, in any project, until the whole \
                 operation is purged or the gateway restarts"
            }
        };
        let what = format!("{why}: {what}. Set sharing = \"caller\" for the operation if this is intended");
        self.observer.record_event(NewEvent::new(Event::PrivateScope, what).in_scope(Some(scope)));
        self.memory.second_tier.iter().for_each(|tier| match extent {
            PrivateExtent::Scope => tier.private(&PrivateName::Scope(scope.clone())),
            PrivateExtent::Operation => tier.private(&PrivateName::Operation(Arc::clone(scope.operation()))),
        });
    }

    /// Stores a 400, 404 or 405 for at most `negative_ttl`, if its only cause can be the key. Returns why it was not
    /// stored.
    fn store_negative(&self, response: &Response<Bytes>) -> Option<Unstorable> {
        let EndedCall { request, is_key_only, epoch, times, .. } = self;
        let negative_ttl = request.active.negative_ttl;
        let configured = Lifetime { ttl: negative_ttl, ..Lifetime::default() };
        let mut freshness_info = lifetime::freshness_info(response.headers(), *times, configured);
        freshness_info.lifetime =
            Lifetime { ttl: freshness_info.lifetime.ttl.min(negative_ttl), ..Lifetime::default() };
        let is_granted = self.memory.grants.is_granted(&request.lookup.caller_scope, times.received);
        if self.is_for_caller_alone || !is_key_only || !is_granted || freshness_info.lifetime.ttl.is_zero() {
            return Some(Unstorable::Status);
        }
        let cache_key = self.current_cache_key();
        let builder = EntryBuilder::new(response, freshness_info, None)
            .with_key_digest(self.observer.digests.of_key(&request.lookup.key));
        let negative = builder.build(cache_key.owner.is_some());
        self.memory.store.insert_negative(&cache_key, negative, *epoch).reason()
    }

    /// Applies what a failed call changes. It has no complete response.
    pub(super) fn settle_failure(
        &self,
        pending_grant: PendingGrant,
        error: &UpstreamError,
        is_external: bool,
        refusal: Option<UnreadRefusal<'_>>,
    ) {
        // Without a body it counts as a refusal of the credential.
        drop(refusal);
        match error {
            UpstreamError::RefusalIncomplete(_) => {
                pending_grant.refused(RefusedBy::ApiGateway, None, self.times.received);
            }
            UpstreamError::TooLarge(StatusCode::OK) => {
                self.observer.metrics.unstored(self.mark_uncacheable(Unstorable::TooLarge));
            }
            UpstreamError::TooLarge(_) => self.observer.metrics.unstored(Unstorable::Status),
            UpstreamError::NoMemory(_) => self.observer.metrics.unstored(Unstorable::Memory),
            // A backoff of the caller's own key extends its lapsed grant, so a failure inside the gateway must not
            // begin one.
            _ if !is_external && self.cache_key.owner.is_some() => {}
            _ => self.begin_backoff(if is_external { CallFailure::Outside } else { CallFailure::Inside }),
        }
    }

    /// Begins a backoff: stale entries are served without a call, to the caller, and to all callers if another caller's
    /// call has failed, too. The fleet does not hear of a failure inside this gateway: the others have limits, deadlines
    /// and resources of their own.
    fn begin_backoff(&self, failure: CallFailure<'_>) {
        let EndedCall { request, cache_key, times, .. } = self;
        let is_private = cache_key.owner.is_some();
        let is_granted = match self.memory.grants.grant_state(&request.lookup.caller_scope, times.received) {
            GrantState::Granted => true,
            GrantState::Lapsed { .. } if is_private => false,
            GrantState::Lapsed { .. } | GrantState::Unknown | GrantState::Denied { .. } => return,
        };
        let scope = request.lookup.key.scope();
        let backoff = request.active.backoff;
        let (cause, span) = match failure {
            CallFailure::Response(status, headers) => match (status, backoffs::retry_after(headers, times.date)) {
                (StatusCode::TOO_MANY_REQUESTS, after) => (BackoffCause::Throttled, after.unwrap_or(backoff)),
                (StatusCode::SERVICE_UNAVAILABLE, Some(after)) => (BackoffCause::Unavailable, after),
                _ => (BackoffCause::Failure, backoff),
            },
            CallFailure::Outside | CallFailure::Inside => (BackoffCause::Failure, backoff),
        };
        let tells = !matches!(failure, CallFailure::Inside);
        self.observer.metrics.backoff(cause);
        // The fetch has recorded a 429.
        if let (BackoffCause::Unavailable, CallFailure::Response(status, _)) = (cause, failure) {
            self.observer.throttled(scope.operation().service, status, Some(scope));
        }
        let (Memory { backoffs, hints, .. }, caller_scope) = (self.memory, &request.lookup.caller_scope);
        // If other headers than those of the key were sent, they may have caused the failure. Then it must not affect
        // other callers.
        let concerns_key = self.is_key_only || is_private;
        if self.is_for_caller_alone || !concerns_key {
            backoffs.begin_for_caller(caller_scope, span, times.received);
            if is_granted && tells {
                hints.tell(|| Hint::caller_backoff(caller_scope, span));
            }
        }
        if concerns_key {
            backoffs.begin(cache_key, caller_scope, cause, span, times.received);
            // That of a caller's own key extends its lapsed grant. Only the caller's own call at the same gateway may do so.
            if !is_private && tells {
                hints.tell(|| Hint::shared_backoff(caller_scope, cause, &cache_key.key, span));
            }
        }
    }

    /// Marks the key of the flight, if the caller is trusted, so that requests no longer wait for one another.
    fn mark_uncacheable(&self, reason: Unstorable) -> Unstorable {
        if self.is_trusted() {
            self.mark(self.cache_key, reason);
        }
        reason
    }

    /// Marks a key uncacheable. While the entry is fresh, and after a call for this caller alone, the mark is only for
    /// it: the others still get the entry, and this caller may have caused its response itself.
    fn mark(&self, cache_key: &CacheKey, reason: Unstorable) {
        let now = self.times.received;
        let is_fresh = |entry: &Arc<Entry>| matches!(entry.freshness_info().freshness(now), Freshness::Fresh { .. });
        let marked = match self.memory.store.get(cache_key) {
            _ if self.is_for_caller_alone => cache_key.of(self.request.lookup.caller_scope.caller),
            Some(entry) if is_fresh(&entry) => cache_key.of(self.request.lookup.caller_scope.caller),
            _ => cache_key.clone(),
        };
        self.memory.store.mark_uncacheable(marked, reason, now);
    }

    /// The key under which a response is stored now. It changes when the scope becomes private during the call.
    fn current_cache_key(&self) -> CacheKey {
        self.memory.store.cache_key(&self.request.lookup.key, self.request.lookup.caller_scope.caller)
    }
}

/// Applies what the end of a renewal changes. `retry_after` is what upstream asks for.
pub(super) fn end_renewal(
    memory: &Memory,
    observer: &Observer,
    caller_scope: &CallerScope,
    is_proved: bool,
    retry_after: Option<Duration>,
    now: Instant,
) {
    observer.metrics.renewal(if is_proved { RenewalResult::Proved } else { RenewalResult::Failed });
    if !is_proved {
        memory.grants.renewal_failed(caller_scope, retry_after, now);
    }
}

/// The role of a request header that is named in `Vary`.
fn header_role(operation: &Operation, name: &HeaderName) -> VaryRole {
    if client::is_constant(name) || operation.keyed_headers.contains(name) {
        VaryRole::Fixed
    } else if *name == X_AUTH_TOKEN || *name == AUTHORIZATION {
        VaryRole::Credential
    } else {
        VaryRole::Free
    }
}

/// An entity tag for a response without one. Equal bodies get equal tags.
fn entity_tag(digest: &Digest) -> HeaderValue {
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    // Hex digits in quotes are always a valid header value.
    HeaderValue::try_from(format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}
