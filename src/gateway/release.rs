//! Releasing those who wait for a flight: with the answer, with a stale one, or to go again.
//!
//! Everything is checked as it is now, not as it was when they joined: whether the grant still
//! stands, whether the cache was purged, whether the scope has become private.

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
use crate::reply::error::Problem;
use crate::signing::ring::SignatureRejection;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::RequestRecord;
use crate::upstream::UpstreamError;

/// A request that is released now, and what decides about that.
pub(super) struct Releasing<'g> {
    pub(super) memory: &'g Memory,
    pub(super) observer: &'g Observer,
    pub(super) request: &'g CacheRequest,
    pub(super) role: &'g Role,
    pub(super) now: Instant,
}

/// What becomes of a request when its flight has a result.
pub(super) enum Release {
    /// It is answered.
    Answer(Response<Content>),
    /// It is answered with something that is no answer to what it asked.
    AsItIs(Response<Content>),
    /// It is forwarded as it is: the answer is too large to hold.
    Stream,
    /// It is refused here.
    Refuse(Problem),
    /// It goes again: the leader was refused, or met something that is its own.
    Elect,
    /// It goes again: upstream has failed the leader's call, and meanwhile answered another's well.
    Repeat,
    /// It goes again: the result is not for this caller, or not any more.
    GoAgain,
}

impl Releasing<'_> {
    /// Gives a request what its flight has brought, if it may have it.
    pub(super) fn release(&self, result: &FetchResult, record: &mut RequestRecord) -> Release {
        let Self { request, role, now, .. } = *self;
        let caller = request.lookup.caller_scope.caller;
        let (leader, epoch, answer, is_outside, may_repeat) = match result {
            FetchResult::NotSent => return Release::GoAgain,
            FetchResult::Suspended { leader } if *leader == caller => {
                self.observer.metrics.signature(SignatureRejection::Suspended.into_str());
                return Release::Refuse(Problem::Signature(SignatureRejection::Suspended));
            }
            FetchResult::Suspended { .. } | FetchResult::Refused { .. } => return Release::Elect,
            FetchResult::Sent { leader, epoch, answer, took, is_outside, may_repeat } => {
                record.upstream_took(*took);
                (leader, epoch, answer, *is_outside, *may_repeat)
            }
        };
        let is_own = *leader == caller;
        let is_granted = || self.memory.grants.is_granted(&request.lookup.caller_scope, now);
        let stale = || self.stale_on_error(is_own && is_outside);
        let answer = match answer {
            Ok(answer) => answer,
            // Each waiter has its own streamed: another shared call would find no room either.
            Err(UpstreamError::NoMemory(_)) => return Release::Stream,
            Err(UpstreamError::TooLarge(_)) => return if role.leads { Release::Stream } else { Release::GoAgain },
            Err(error @ UpstreamError::RefusalIncomplete(_)) if is_own => {
                return Release::Answer(self.failed(error, None, record));
            }
            Err(UpstreamError::RefusalIncomplete(_)) => return Release::Elect,
            Err(error) if is_own || is_granted() => return Release::Answer(self.failed(error, stale(), record)),
            Err(_) => return Release::GoAgain,
        };
        let may_share = || is_granted() && self.memory.store.may_share(&role.cache_key, *epoch, answer.life.sent);
        let is_valid = || !self.memory.store.is_invalidated(role.cache_key.key.scope(), answer.life.sent);
        let may_have = role.leads
            || match answer.verdict {
                Verdict::Proof(Ok(Audience::Caller)) if !is_own => false,
                Verdict::Proof(Ok(_)) => answer.proof != Some(Proof::Late) && may_share(),
                Verdict::Proof(Err(_)) | Verdict::NoList(_) => false,
                Verdict::Denial => is_own,
                Verdict::Personal => is_own && is_valid(),
                Verdict::Negative => is_own && is_valid() || may_share(),
                Verdict::Throttled | Verdict::Failure => is_own || is_granted(),
            };
        match answer.verdict {
            Verdict::Denial | Verdict::Personal if !may_have => Release::Elect,
            _ if !may_have => Release::GoAgain,
            Verdict::Throttled | Verdict::Failure => match stale() {
                Some(entry) => {
                    let why = (Outcome::Stale, Unstorable::Status.into_str());
                    Release::Answer(stale_answer(&entry, now, Some(answer.said), why, role, record))
                }
                None if may_repeat && !is_own && !role.has_repeated && !role.is_last => Release::Repeat,
                // It may be the leader alone who has asked too often. But not everyone tries in turn.
                None if answer.verdict == Verdict::Throttled && !is_own && !role.is_last => Release::Elect,
                None => Release::Answer(self.fetched(answer, record)),
            },
            Verdict::NoList(_) => Release::AsItIs(self.fetched(answer, record)),
            _ => Release::Answer(self.fetched(answer, record)),
        }
    }

    /// An answer that a flight has brought.
    fn fetched(&self, answer: &FetchedResponse, record: &mut RequestRecord) -> Response<Content> {
        let Self { request, role, now, .. } = *self;
        let is_private =
            || self.memory.store.cache_key(&request.lookup.key, request.lookup.caller_scope.caller).owner.is_some();
        let detail = match answer.not_kept {
            Some(reason) => reason.into_str(),
            None if role.leads && answer.proof == Some(Proof::Granted) => "proved",
            None if role.elected => "elected",
            None if is_private() => "private",
            None => role.why.into_str(),
        };
        record.because(detail);
        let age = answer.age_is_known.then(|| answer.life.age(now));
        let mut response = compose::from_answer(&answer.response, age, !role.leads);
        let status = CacheStatus::Forwarded {
            why: Forward::of(role.why),
            status: Some(answer.said),
            stored: answer.not_kept.is_none(),
            collapsed: !role.leads,
            key: record.key(),
            detail: Some(detail),
            failure: None,
        };
        status.add_to(response.headers_mut());
        response
    }

    /// A stale answer for one who has waited long enough, if there still is one. Upstream hasn't failed,
    /// so that only a grant that stands will do.
    pub(super) fn stale_if_slow_answer(&self, record: &mut RequestRecord) -> Option<Response<Content>> {
        let Self { request, role, now, .. } = *self;
        if !self.memory.grants.is_granted(&request.lookup.caller_scope, now) {
            return None;
        }
        // It may have become known meanwhile that there is no such thing any more, or nothing to keep.
        let entry = match self.memory.look_up(request, now) {
            LookupResult::FlightOutcome(entry, HitKind::Fresh | HitKind::Backoff) | LookupResult::Refresh(entry, _) => {
                entry
            }
            LookupResult::Ask { before: Some(entry), has_stale: true, .. } => entry,
            LookupResult::FlightOutcome(..) | LookupResult::Ask { .. } => return None,
        };
        let why = (Outcome::StaleIfSlow, Outcome::StaleIfSlow.into_str());
        Some(stale_answer(&entry, now, None, why, role, record))
    }

    /// The answer to a request whose own deadline has come. That says nothing of upstream, which may not have had its
    /// whole time: it extends no grant.
    pub(super) fn out_of_time(&self, was_asked: bool, record: &mut RequestRecord) -> Response<Content> {
        let error = if was_asked { UpstreamError::Deadline } else { UpstreamError::Busy };
        self.failed(&error, self.stale_on_error(false), record)
    }

    /// The answer where upstream gave none: a stale one, or the failure.
    fn failed(
        &self,
        error: &UpstreamError,
        stale: Option<Arc<Entry>>,
        record: &mut RequestRecord,
    ) -> Response<Content> {
        let Self { role, now, .. } = *self;
        let detail = error.failure().into_str();
        record.failed(detail);
        if let Some(entry) = stale {
            return stale_answer(&entry, now, None, (Outcome::Stale, detail), role, record);
        }
        let mut response = Problem::Upstream(error.clone()).response(record.request_id());
        let status = CacheStatus::Forwarded {
            why: Forward::of(role.why),
            status: None,
            stored: false,
            collapsed: !role.leads,
            key: record.key(),
            detail: Some(detail),
            failure: None,
        };
        status.add_to(response.headers_mut());
        response
    }

    /// What this caller may be given in place of a failure. A lapsed grant shows something only if the caller's own call
    /// has failed for a reason outside the gateway, and then nothing that was sent later than its regular end.
    fn stale_on_error(&self, extends_grant: bool) -> Option<Arc<Entry>> {
        let Self { request, now, .. } = *self;
        let shown_until = match self.memory.grants.grant_state(&request.lookup.caller_scope, now) {
            GrantState::Granted => now,
            GrantState::Grace { ended } if extends_grant => ended,
            GrantState::Grace { .. } | GrantState::Unknown | GrantState::Denied { .. } => return None,
        };
        self.memory.usable(request, shown_until, now)
    }
}

/// A stale answer in place of a failure, or of waiting.
fn stale_answer(
    entry: &Entry,
    now: Instant,
    status: Option<StatusCode>,
    (outcome, detail): (Outcome, &'static str),
    role: &Role,
    record: &mut RequestRecord,
) -> Response<Content> {
    record.answered(outcome, detail);
    let mut response = compose::from_entry(entry, now);
    // With a fresh one, it is the wish that had it asked for.
    let why = if Forward::of(role.why) == Forward::Request { Forward::Request } else { Forward::Stale };
    let status = CacheStatus::Forwarded {
        why,
        status,
        stored: false,
        collapsed: !role.leads,
        key: record.key(),
        detail: Some(detail),
        failure: None,
    };
    status.add_to(response.headers_mut());
    response
}
