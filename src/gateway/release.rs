//! Letting those aboard a flight go: with the answer, with a stale one, or to go again.
//!
//! Everything is checked as it is now, not as it was when they boarded: whether the grant still
//! stands, whether the cache was purged, whether the scope has become private.

use std::sync::Arc;
use std::time::Instant;

use http::{Response, StatusCode};

use super::fetch::Landing;
use super::look_up::{LookUp, Memory};
use super::settle::Answer;
use super::{Gateway, Question};
use crate::cache::admission::{Audience, Unstorable, Verdict};
use crate::cache::entry::Entry;
use crate::cache::freshness::Freshness;
use crate::cache::grants::{Proof, Standing};
use crate::cache::store::Slot;
use crate::reply::body::Content;
use crate::reply::compose::{self, CacheStatus, Forward};
use crate::reply::error::Problem;
use crate::signing::ring::Refusal;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::Record;
use crate::upstream::UpstreamError;

/// How a request is aboard.
pub(super) struct Seat {
    /// Whether it is this very request that is sent.
    pub(super) leads: bool,
    /// Whether it leads because the leader before was refused.
    pub(super) elected: bool,
    /// Whether it won't wait for another leader after this one.
    pub(super) is_last: bool,
    /// What it has boarded for.
    pub(super) slot: Slot,
    /// Why it isn't answered from memory.
    pub(super) why: Forward,
}

/// What becomes of a request when its flight has landed.
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
    /// It goes again: what has landed is not for this caller, or not any more.
    GoAgain,
}

impl Seat {
    /// How the request is being answered.
    pub(super) fn outcome(&self) -> Outcome {
        match (self.leads, self.why) {
            (false, _) => Outcome::Coalesced,
            (true, Forward::Stale | Forward::Request) => Outcome::Expired,
            (true, _) => Outcome::Miss,
        }
    }
}

impl Gateway {
    /// Gives a request what its flight has brought, if it may have it.
    pub(super) fn release(&self, question: &Question, seat: &Seat, landing: &Landing, record: &mut Record) -> Release {
        let (leader, is_plain, asked, answer) = match landing {
            Landing::NotFlown => return Release::GoAgain,
            Landing::Held { leader } if *leader == question.asked.grantee.caller => {
                self.metrics.signature(Refusal::Held.as_str());
                return Release::Refuse(Problem::Signature(Refusal::Held));
            }
            Landing::Held { .. } => return Release::Elect,
            Landing::Flown { leader, is_plain, asked, answer } => (leader, is_plain, asked, answer),
        };
        let now = self.clock.now();
        let is_own = *leader == question.asked.grantee.caller;
        let stands = || self.grants.stands(&question.asked.grantee, now);
        // With something of the client's own sent along, a failure may be of its own making.
        let stale = || self.excusable(question, is_own && *is_plain, now);
        let answer = match answer {
            Ok(answer) => answer,
            Err(UpstreamError::TooLarge(_)) => return if seat.leads { Release::Stream } else { Release::GoAgain },
            Err(error) if is_own || stands() => return Release::Answer(self.failed(error, stale(), seat, now, record)),
            Err(_) => return Release::GoAgain,
        };
        let may_share = || stands() && self.store.may_share(&seat.slot, *asked);
        let may_have = seat.leads
            || match answer.verdict {
                Verdict::Proof(Ok(Audience::Caller)) if !is_own => false,
                Verdict::Proof(Ok(_)) => answer.proof != Some(Proof::Late) && may_share(),
                Verdict::Proof(Err(_)) | Verdict::NoList(_) => false,
                Verdict::Denial | Verdict::Personal => is_own,
                Verdict::Negative => is_own || may_share(),
                Verdict::Throttled | Verdict::Failure => is_own || stands(),
            };
        match answer.verdict {
            Verdict::Denial | Verdict::Personal if !may_have => Release::Elect,
            _ if !may_have => Release::GoAgain,
            Verdict::Throttled | Verdict::Failure => match stale() {
                Some(entry) => {
                    let why = (Outcome::Stale, Unstorable::Status.as_str());
                    Release::Answer(stale_answer(&entry, now, Some(answer.said), why, seat, record))
                }
                // It may be the leader alone who has asked too often. But not everyone tries in turn.
                None if answer.verdict == Verdict::Throttled && !is_own && !seat.is_last => Release::Elect,
                None => Release::Answer(self.fetched(question, answer, seat, record)),
            },
            Verdict::NoList(_) => Release::AsItIs(self.fetched(question, answer, seat, record)),
            _ => Release::Answer(self.fetched(question, answer, seat, record)),
        }
    }

    /// An answer that a flight has brought.
    fn fetched(&self, question: &Question, answer: &Answer, seat: &Seat, record: &mut Record) -> Response<Content> {
        let is_private = || self.store.slot(&question.asked.key, question.asked.grantee.caller).owner.is_some();
        let detail = match answer.not_kept {
            Some(reason) => Some(reason),
            None if seat.leads && answer.proof == Some(Proof::Granted) => Some("proved"),
            None if seat.elected => Some("elected"),
            None => is_private().then_some("private"),
        };
        record.because(detail.unwrap_or_default());
        let age = answer.age_is_known.then(|| answer.life.age(self.clock.now()));
        let mut response = compose::from_answer(&answer.response, age, !seat.leads);
        let status = CacheStatus::Forwarded {
            why: seat.why,
            status: Some(answer.said),
            stored: answer.not_kept.is_none(),
            collapsed: !seat.leads,
            detail,
        };
        status.add_to(response.headers_mut());
        response
    }

    /// A stale answer for one who has waited long enough, if there still is one. Upstream hasn't failed,
    /// so that only a grant that stands will do.
    pub(super) fn out_of_patience(
        &self,
        question: &Question,
        seat: &Seat,
        record: &mut Record,
    ) -> Option<Response<Content>> {
        let now = self.clock.now();
        if !self.grants.stands(&question.asked.grantee, now) {
            return None;
        }
        // It may have become known meanwhile that there is no such thing any more, or nothing to keep.
        let entry = match self.look_up(question, now) {
            LookUp::Given(entry, Memory::Fresh | Memory::Paused) | LookUp::Refresh(entry, _) => entry,
            LookUp::Ask { before: Some(entry), is_patient: true, .. } => entry,
            LookUp::Given(..) | LookUp::Ask { .. } => return None,
        };
        let why = (Outcome::Patience, Outcome::Patience.as_str());
        Some(stale_answer(&entry, now, None, why, seat, record))
    }

    /// The answer to one whose time is up. Who leads the shared flight of another isn't known here,
    /// so that the failure counts as another's.
    pub(super) fn out_of_time(
        &self,
        question: &Question,
        seat: &Seat,
        was_asked: bool,
        record: &mut Record,
    ) -> Response<Content> {
        let now = self.clock.now();
        let is_own = seat.leads || seat.slot.owner.is_some();
        let error = if was_asked { UpstreamError::Timeout } else { UpstreamError::Busy };
        self.failed(&error, self.excusable(question, is_own, now), seat, now, record)
    }

    /// The answer where upstream gave none: a stale one, or the failure.
    fn failed(
        &self,
        error: &UpstreamError,
        stale: Option<Arc<Entry>>,
        seat: &Seat,
        now: Instant,
        record: &mut Record,
    ) -> Response<Content> {
        let detail = error.as_str();
        if let Some(entry) = stale {
            return stale_answer(&entry, now, None, (Outcome::Stale, detail), seat, record);
        }
        record.because(detail);
        let mut response = Problem::Upstream(error.clone()).response(record.request_id());
        let status = CacheStatus::Forwarded {
            why: seat.why,
            status: None,
            stored: false,
            collapsed: !seat.leads,
            detail: Some(detail),
        };
        status.add_to(response.headers_mut());
        response
    }

    /// What this caller may be given though upstream has failed, by a call of its own or another's.
    fn excusable(&self, question: &Question, is_own: bool, now: Instant) -> Option<Arc<Entry>> {
        match self.grants.standing(&question.asked.grantee, now) {
            Standing::Granted => {}
            Standing::Lapsed if is_own => {}
            Standing::Lapsed | Standing::Unproved | Standing::Denied { .. } => return None,
        }
        let slot = self.store.slot(&question.asked.key, question.asked.grantee.caller);
        self.store.get(&slot).filter(|entry| entry.life().freshness(now) != Freshness::Gone)
    }
}

/// A stale answer in place of a failure, or of waiting.
fn stale_answer(
    entry: &Entry,
    now: Instant,
    status: Option<StatusCode>,
    (outcome, detail): (Outcome, &'static str),
    seat: &Seat,
    record: &mut Record,
) -> Response<Content> {
    record.answered(outcome, detail);
    let mut response = compose::from_entry(entry, now);
    // With a fresh one, it is the wish that had it asked for.
    let why = if seat.why == Forward::Request { Forward::Request } else { Forward::Stale };
    let status = CacheStatus::Forwarded { why, status, stored: false, collapsed: !seat.leads, detail: Some(detail) };
    status.add_to(response.headers_mut());
    response
}
