//! What the end of a call changes: who has a grant, what is kept, what is remembered of upstream.
//!
//! Only a caller that is proved or holds a grant changes what others meet.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, DATE, ETAG, Entry as Field};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::CacheRequest;
use super::fetch_result::FetchedResponse;
use super::memory::Memory;
use super::observer::Observer;
use crate::cache::admission::{self, Audience, CallerRole, Verdict};
use crate::cache::backoffs::{self, BackoffCause};
use crate::cache::divergence::{Digest, Observation};
use crate::cache::entry::{Draft, Entry};
use crate::cache::freshness::{Freshness, Life, Lifetime};
use crate::cache::grants::{GrantState, PendingGrant, Proof, RefusedBy};
use crate::cache::lifetime::{self, ResponseTimes};
use crate::cache::store::{CacheKey, Epoch, PrivateExtent};
use crate::cache::unstorable::Unstorable;
use crate::catalogue::Operation;
use crate::request::caller::X_AUTH_TOKEN;
use crate::request::condition::Validator;
use crate::request::key::Scope;
use crate::telemetry::events::{Event, NewEvent};
use crate::upstream::{UpstreamError, client};

/// One call, as it was made, and what its end may change.
pub(super) struct EndedCall<'f> {
    pub(super) memory: &'f Memory,
    pub(super) observer: &'f Observer,
    pub(super) request: &'f CacheRequest,
    /// What others may have boarded for.
    pub(super) cache_key: &'f CacheKey,
    /// Whether nothing was sent but the key, the credential and constants.
    pub(super) is_plain: bool,
    /// Between which purges it was sent.
    pub(super) epoch: Epoch,
    pub(super) times: ResponseTimes,
}

impl EndedCall<'_> {
    /// Whether what a caller is answered may change what the others meet who boarded for a slot: it is
    /// its own, or the caller holds a grant to this moment.
    pub(super) fn is_trusted(&self) -> bool {
        self.cache_key.owner.is_some()
            || self.memory.grants.is_granted(&self.request.lookup.caller_scope, self.times.received)
    }

    /// Everything that an answer changes.
    pub(super) fn settle(
        &self,
        pending_grant: PendingGrant,
        mut response: Response<Bytes>,
        said: StatusCode,
    ) -> FetchedResponse {
        let times = self.times;
        // RFC 9110 §6.6.1: without one, an answer is dated when it comes, and not each time it is given.
        if let Field::Vacant(date) = response.headers_mut().entry(DATE)
            && let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(times.date))
        {
            date.insert(now);
        }
        let operation = self.request.lookup.key.operation();
        let is_alone = self.kept_in().owner.is_some();
        let verdict = admission::judge(&response, &operation.body, is_alone, |name| role(operation, name));
        let age_is_known = lifetime::age(response.headers()).is_some();
        let configured = self.request.active.lifetime(operation);
        let life = lifetime::life(response.headers(), times, configured);
        let mut proof = None;
        let not_kept = match verdict {
            Verdict::Proof(storable) => {
                let proved = pending_grant.proved(times.received);
                self.observer.metrics.proof(proved);
                proof = Some(proved);
                if proved != Proof::Late {
                    self.memory.known_callers.proved(self.request.lookup.caller_scope.caller, times.sent);
                }
                match (proved, storable) {
                    (Proof::Late, _) => Some(Unstorable::Late),
                    (_, Ok(audience)) => self.keep(&mut response, life, audience),
                    (_, Err(reason)) => {
                        let scope = self.request.lookup.key.scope();
                        if admission::varies_on_credential(response.headers(), |name| role(operation, name))
                            && let Some(reach) = self.memory.store.make_private(scope)
                        {
                            self.turned_private(scope, reach, Audience::Caller);
                        }
                        // It is proof, though its grant may have lapsed by now.
                        self.mark(&self.kept_in(), reason);
                        Some(self.mark_uncacheable(reason))
                    }
                }
            }
            Verdict::NoList(reason) => Some(self.mark_uncacheable(reason)),
            // The denial itself has counted since its head was read.
            Verdict::Denial => {
                let may_be_said_again = !lifetime::forbids_keeping(response.headers());
                let refusal = may_be_said_again.then(|| Entry::of_one(&response, life));
                pending_grant.refused(RefusedBy::of(response.body()), refusal, times.received);
                Some(Unstorable::Denied)
            }
            Verdict::Negative => self.keep_negative(&response),
            Verdict::Throttled | Verdict::Failure => {
                self.pause(Some((response.status(), response.headers())));
                Some(Unstorable::Status)
            }
            // A no that is not to be kept is upstream's latest word all the same.
            Verdict::Personal if self.is_plain && admission::is_negative(response.status()) => {
                Some(self.mark_uncacheable(Unstorable::CacheDirectives))
            }
            Verdict::Personal => Some(Unstorable::Status),
        };
        if let Some(reason) = not_kept {
            self.observer.metrics.unstored(reason);
        }
        FetchedResponse { response, said, life, age_is_known, verdict, proof, not_kept }
    }

    /// Keeps an answer, for as many as may see it. Says why, if it wasn't kept.
    fn keep(&self, response: &mut Response<Bytes>, life: Life, audience: Audience) -> Option<Unstorable> {
        let EndedCall { request, cache_key, epoch, times, .. } = self;
        let caller = request.lookup.caller_scope.caller;
        let kept_in = self.kept_in();
        for cache_key in [cache_key, &kept_in] {
            self.memory.store.unmark(cache_key);
            self.memory.backoffs.end(cache_key);
        }
        self.memory.store.unmark(&cache_key.of(caller));
        let digest = *blake3::hash(response.body()).as_bytes();
        let validator = Validator::of(response.headers());
        if let Field::Vacant(tag) = response.headers_mut().entry(ETAG) {
            tag.insert(entity_tag(&digest));
        }
        let draft = Draft::new(response, life, validator).under(self.observer.digests.of_key(&request.lookup.key));
        let observation = Observation { digest, caller, sent: times.sent, received: times.received };
        let (kept, turned) = self.memory.store.keep(&request.lookup.key, draft, audience, observation, *epoch);
        if let Some(reach) = turned {
            self.turned_private(request.lookup.key.scope(), reach, audience);
        }
        kept.reason()
    }

    /// Tells that callers share nothing any more.
    fn turned_private(&self, scope: &Scope, reach: PrivateExtent, audience: Audience) {
        let why = match audience {
            Audience::All => "callers are given different answers to one question",
            Audience::Caller => "upstream says that its answers vary on the credential",
        };
        let what = match reach {
            PrivateExtent::Scope => {
                "from now on nothing is shared between callers here, until this is purged or the gateway restarted"
            }
            PrivateExtent::Operation => {
                "from now on nothing of this operation is shared between callers, in any project, until all of the \
                 operation is purged or the gateway restarted"
            }
        };
        let what = format!("{why}: {what}. Set sharing = \"caller\" for the operation if this is intended");
        self.observer.record_event(NewEvent::new(Event::PrivateScope, what).in_scope(Some(scope)));
    }

    /// Keeps upstream's no for a while, if it can be about nothing but the question. Says why, if it
    /// wasn't kept.
    fn keep_negative(&self, response: &Response<Bytes>) -> Option<Unstorable> {
        let EndedCall { request, is_plain, epoch, times, .. } = self;
        let negative_ttl = request.active.negative_ttl;
        let configured = Lifetime { ttl: negative_ttl, ..Lifetime::default() };
        let mut life = lifetime::life(response.headers(), *times, configured);
        life.lifetime = Lifetime { ttl: life.lifetime.ttl.min(negative_ttl), ..Lifetime::default() };
        let is_granted = self.memory.grants.is_granted(&request.lookup.caller_scope, times.received);
        if !is_plain || !is_granted || life.lifetime.ttl.is_zero() {
            return Some(Unstorable::Status);
        }
        let kept_in = self.kept_in();
        let no = Draft::new(response, life, None).under(self.observer.digests.of_key(&request.lookup.key));
        let no = no.into_entry(kept_in.owner.is_some());
        self.memory.store.keep_negative(&kept_in, no, *epoch).reason()
    }

    /// What changes though there is no whole answer.
    pub(super) fn settle_failure(&self, pending_grant: PendingGrant, error: &UpstreamError, is_outside: bool) {
        match error {
            UpstreamError::RefusalIncomplete(_) => {
                pending_grant.refused(RefusedBy::ApiGateway, None, self.times.received)
            }
            UpstreamError::TooLarge(StatusCode::OK) => {
                self.observer.metrics.unstored(self.mark_uncacheable(Unstorable::TooLarge));
            }
            UpstreamError::TooLarge(_) => self.observer.metrics.unstored(Unstorable::Status),
            UpstreamError::NoMemory(_) => self.observer.metrics.unstored(Unstorable::Memory),
            // A lapsed grant goes by the backoff of its caller's own slot: a failure inside the gateway begins none there.
            _ if !is_outside && self.cache_key.owner.is_some() => {}
            _ => self.pause(None),
        }
    }

    /// Has the caller back off for a while, where there is something stale to give; and everybody, if another caller's
    /// call has failed as well.
    fn pause(&self, said: Option<(StatusCode, &HeaderMap)>) {
        let EndedCall { request, cache_key, times, .. } = self;
        let is_for_caller_alone = cache_key.owner.is_some();
        let is_known = match self.memory.grants.grant_state(&request.lookup.caller_scope, times.received) {
            GrantState::Granted => true,
            GrantState::Grace { .. } => is_for_caller_alone,
            GrantState::Unknown | GrantState::Denied { .. } => false,
        };
        if !is_known {
            return;
        }
        let scope = request.lookup.key.scope();
        let wished = said.and_then(|(_, headers)| backoffs::retry_after(headers, times.date));
        let backoff = request.active.backoff;
        let (cause, span) = match (said.map(|(status, _)| status), wished) {
            (Some(StatusCode::TOO_MANY_REQUESTS), wished) => (BackoffCause::Throttled, wished.unwrap_or(backoff)),
            (Some(StatusCode::SERVICE_UNAVAILABLE), Some(wished)) => (BackoffCause::Unavailable, wished),
            _ => (BackoffCause::Failure, backoff),
        };
        self.observer.metrics.pause(cause);
        if let (BackoffCause::Throttled | BackoffCause::Unavailable, Some((status, _))) = (cause, said) {
            self.observer.throttled(scope.operation().service, status, Some(scope));
        }
        // What a client has sent besides may be what made its call fail: that says nothing of the others' calls.
        if self.is_plain || is_for_caller_alone {
            self.memory.backoffs.begin(cache_key, &request.lookup.caller_scope, cause, span, times.received);
        } else {
            self.memory.backoffs.begin_for_caller(&request.lookup.caller_scope, span, times.received);
        }
    }

    /// Lets nobody wait any more for answers that can't be kept.
    fn mark_uncacheable(&self, reason: Unstorable) -> Unstorable {
        if self.is_trusted() {
            self.mark(self.cache_key, reason);
        }
        reason
    }

    /// Marks a slot. Beside an answer that is fresh the mark is the caller's alone: for the others the fresh one still
    /// stands, and what this caller is answered may be of its own making.
    fn mark(&self, cache_key: &CacheKey, reason: Unstorable) {
        let now = self.times.received;
        let is_fresh = |entry: &Arc<Entry>| matches!(entry.life().freshness(now), Freshness::Fresh { .. });
        let marked = match self.memory.store.get(cache_key) {
            Some(entry) if is_fresh(&entry) => cache_key.of(self.request.lookup.caller_scope.caller),
            _ => cache_key.clone(),
        };
        self.memory.store.mark_uncacheable(marked, reason, now);
    }

    /// Where the answer to a call is kept, as things stand.
    fn kept_in(&self) -> CacheKey {
        self.memory.store.cache_key(&self.request.lookup.key, self.request.lookup.caller_scope.caller)
    }
}

/// What changes as soon as the head of a refusal, 401 or 403, has been read.
pub(super) fn denied(memory: &Memory, observer: &Observer, pending_grant: &mut PendingGrant, status: StatusCode) {
    observer.metrics.denial("upstream");
    observer
        .record_event(NewEvent::new(Event::Denial, "upstream has refused a caller").in_scope(pending_grant.scope()));
    if status == StatusCode::UNAUTHORIZED {
        memory.known_callers.refused(&pending_grant.caller());
    }
    pending_grant.denied(status);
}

/// What a request header is to an answer that varies on it.
fn role(operation: &Operation, name: &HeaderName) -> CallerRole {
    if client::is_constant(name) || operation.keyed_headers.contains(name) {
        CallerRole::Fixed
    } else if *name == X_AUTH_TOKEN || *name == AUTHORIZATION {
        CallerRole::Credential
    } else {
        CallerRole::Free
    }
}

/// An entity tag for an answer to which upstream has given none: the same for the same bytes.
fn entity_tag(digest: &Digest) -> HeaderValue {
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    // Hex digits in quotes are a header's value.
    HeaderValue::try_from(format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}
