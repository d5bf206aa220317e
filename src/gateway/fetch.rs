//! One call to upstream: from asking to everything that its answer changes. Who else is given the
//! answer is another step.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{self, DATE};
use http::{HeaderValue, Response, StatusCode};

use super::{Gateway, LookUp, Question};
use crate::cache::admission::{self, Unstorable, Verdict};
use crate::cache::entry::Entry;
use crate::cache::flights::Pilot;
use crate::cache::freshness::Life;
use crate::cache::grants::{Departure, Proof};
use crate::cache::store::{Epoch, Kept, Slot};
use crate::cache::tripwire::View;
use crate::request::caller::Caller;
use crate::upstream::UpstreamError;
use crate::upstream::client::{self, Errand};

/// How a flight ended, for everyone aboard.
#[derive(Clone)]
pub(super) enum Landing {
    /// It was not flown: what was wanted has become known between the look-up and the boarding.
    NotFlown,
    /// Upstream answered, or failed to.
    Flown {
        /// Whose request was sent.
        leader: Caller,
        /// Whether nothing was sent but the key, the credential and constants.
        is_plain: bool,
        /// Between which purges it was sent.
        asked: Epoch,
        /// What came of it.
        answer: Result<Arc<Answer>, UpstreamError>,
    },
}

/// A whole answer, and what was made of it.
pub(super) struct Answer {
    pub(super) response: Response<Bytes>,
    pub(super) life: Life,
    /// Whether upstream has told the answer's age in a way that can be read.
    pub(super) age_is_known: bool,
    pub(super) verdict: Verdict,
    /// What the answer has proved, if it is a proof.
    pub(super) proof: Option<Proof>,
    /// Why it was not kept, if it wasn't.
    pub(super) not_kept: Option<&'static str>,
}

/// When a request was sent, and when its answer had come.
#[derive(Clone, Copy)]
struct Times {
    sent: Instant,
    received: Instant,
}

impl Gateway {
    /// Asks upstream, draws the consequences, and lets everyone aboard know.
    pub(super) async fn fly(
        self: Arc<Self>,
        pilot: Pilot<Slot, Landing>,
        question: Question,
        slot: Slot,
        errand: Errand,
    ) {
        let sent = self.clock.now();
        if !matches!(self.look_up(&question, sent), LookUp::Ask(..)) {
            return pilot.land(Landing::NotFlown);
        }
        let asked = self.store.epoch();
        let is_plain = self.via.is_own(&errand.via) && errand.forwarded.is_empty();
        let departure = self.grants.depart(question.grantee.clone(), sent);
        let service = question.key.operation().service;
        let call = self.metrics.upstream_call(service);
        let request_id = errand.request_id.clone();
        let answer = self.upstream.ask(&question.key, errand).await;
        let times = Times { sent, received: self.clock.now() };
        let status = answer.as_ref().map(Response::status).map_err(UpstreamError::as_str);
        call.ended(status, times.received.saturating_duration_since(sent));

        let answer = match answer {
            Ok(response) => {
                let mut answer = self.settle(&question, &slot, departure, response, times, asked);
                // It may be about what was sent besides, of which the others have sent nothing.
                if answer.verdict == Verdict::Negative && !(is_plain && self.is_trusted(&question, &slot, times)) {
                    answer.verdict = Verdict::Personal;
                }
                Ok(Arc::new(answer))
            }
            Err(UpstreamError::TooLarge(status)) => {
                self.settle_too_large(&question, &slot, departure, status, times);
                Err(UpstreamError::TooLarge(status))
            }
            Err(error) => {
                tracing::warn!(request_id, service = service.as_str(), %error, "upstream gave no whole answer");
                Err(error)
            }
        };
        pilot.land(Landing::Flown { leader: question.grantee.caller, is_plain, asked, answer });
    }

    /// Whether what a caller is answered may change what the others meet who boarded for a slot: it is
    /// its own, or the caller holds a grant to this moment.
    fn is_trusted(&self, question: &Question, slot: &Slot, times: Times) -> bool {
        slot.owner.is_some() || self.grants.stands(&question.grantee, times.received)
    }

    /// Everything that an answer changes: who has a grant, and what is kept.
    fn settle(
        &self,
        question: &Question,
        slot: &Slot,
        departure: Departure<'_>,
        mut response: Response<Bytes>,
        times: Times,
        asked: Epoch,
    ) -> Answer {
        // RFC 9110 §6.6.1: without one, an answer is dated when it comes, and not each time it is given.
        if let header::Entry::Vacant(date) = response.headers_mut().entry(DATE)
            && let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(self.clock.date()))
        {
            date.insert(now);
        }
        let operation = question.key.operation();
        let is_fixed = |name: &_| client::is_constant(name) || operation.keyed_headers.contains(name);
        let verdict = admission::judge(&response, &operation.body, is_fixed);
        let age = admission::age(response.headers());
        let life = Life {
            sent: times.sent,
            initial_age: age.unwrap_or_default(),
            ttl: operation.ttl,
            stale_if_error: operation.stale_if_error,
        };
        let mut proof = None;
        let not_kept = match verdict {
            Verdict::Proof(storable) => {
                let proved = departure.proved(times.received);
                self.metrics.proof(proved);
                proof = Some(proved);
                match (proved, storable) {
                    (Proof::Late, _) => Some("late"),
                    (_, Ok(())) => self.keep(question, slot, Entry::new(&response, life), times, asked),
                    (_, Err(reason)) => {
                        let kept_in = self.store.slot(&question.key, question.grantee.caller);
                        self.store.mark_uncacheable(kept_in, reason, times.received);
                        Some(self.mark_uncacheable(question, slot, reason, times))
                    }
                }
            }
            Verdict::NoList(reason) => Some(self.mark_uncacheable(question, slot, reason, times)),
            Verdict::Denial => {
                self.metrics.denial("upstream");
                departure.denied(Some(Entry::new(&response, life)), times.received);
                Some("denied")
            }
            Verdict::Negative | Verdict::Personal | Verdict::Throttled | Verdict::Failure => {
                self.metrics.unstored(Unstorable::Status);
                Some(Unstorable::Status.as_str())
            }
        };
        Answer { response, life, age_is_known: age.is_some(), verdict, proof, not_kept }
    }

    /// Keeps an answer, for as many as may see it. Says why, if it wasn't kept.
    fn keep(&self, question: &Question, slot: &Slot, entry: Entry, times: Times, asked: Epoch) -> Option<&'static str> {
        let caller = question.grantee.caller;
        self.store.unmark(slot);
        self.store.unmark(&self.store.slot(&question.key, caller));
        let digest = *blake3::hash(entry.body()).as_bytes();
        let view = View { digest, caller, sent: times.sent, received: times.received };
        match self.store.keep(&question.key, entry, view, asked) {
            Kept::Stored => None,
            Kept::Outdated => Some("outdated"),
            Kept::Purged => Some("purged"),
            Kept::Tripped => {
                let scope = question.key.scope();
                tracing::error!(
                    operation = &*scope.operation().name,
                    project_id = scope.project_id(),
                    "callers are given different answers to one question: from now on nothing is shared between \
                     callers here, until this is purged or the gateway restarted. Set sharing = \"caller\" for the \
                     operation if that is how it is meant to be"
                );
                None
            }
        }
    }

    /// What changes though the answer could not be read whole.
    fn settle_too_large(
        &self,
        question: &Question,
        slot: &Slot,
        departure: Departure<'_>,
        status: StatusCode,
        times: Times,
    ) {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.metrics.denial("upstream");
                departure.denied(None, times.received);
            }
            StatusCode::OK => {
                self.mark_uncacheable(question, slot, Unstorable::TooLarge, times);
            }
            _ => self.metrics.unstored(Unstorable::Status),
        }
    }

    /// Lets nobody wait any more for answers that can't be kept.
    fn mark_uncacheable(&self, question: &Question, slot: &Slot, reason: Unstorable, times: Times) -> &'static str {
        self.metrics.unstored(reason);
        if self.is_trusted(question, slot, times) {
            self.store.mark_uncacheable(slot.clone(), reason, times.received);
        }
        reason.as_str()
    }
}
