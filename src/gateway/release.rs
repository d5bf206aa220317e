//! Letting those aboard a flight go: with the answer, with a stale one, or to go again.
//!
//! Everything is checked as it is now, not as it was when they boarded: whether the grant still
//! stands, whether the cache was purged, whether the scope has become private.

use std::sync::Arc;
use std::time::Instant;

use http::{Response, StatusCode};

use super::fetch::{Answer, Landing};
use super::{Gateway, Question};
use crate::cache::admission::{Unstorable, Verdict};
use crate::cache::entry::Entry;
use crate::cache::freshness::Freshness;
use crate::cache::grants::{Proof, Standing};
use crate::cache::store::{Epoch, Slot};
use crate::reply::body::Content;
use crate::reply::compose::{self, CacheStatus, Forward};
use crate::reply::error::Problem;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::Record;
use crate::upstream::UpstreamError;

/// How a request is aboard.
pub(super) struct Seat {
    /// Whether it is this very request that is sent.
    pub(super) leads: bool,
    /// Whether it leads because the leader before was refused.
    pub(super) elected: bool,
    /// What it has boarded for.
    pub(super) slot: Slot,
    /// Why it isn't answered from memory.
    pub(super) why: Forward,
}

/// What becomes of a request when its flight has landed.
pub(super) enum Release {
    /// It is answered.
    Answer(Response<Content>),
    /// It is forwarded as it is: the answer is too large to hold.
    Stream,
    /// What has landed is not for this caller.
    GoAgain,
}

impl Seat {
    /// How the request is being answered.
    pub(super) fn outcome(&self) -> Outcome {
        match (self.leads, self.why) {
            (false, _) => Outcome::Coalesced,
            (true, Forward::Stale) => Outcome::Expired,
            (true, _) => Outcome::Miss,
        }
    }
}

impl Gateway {
    /// Gives a request what its flight has brought, if it may have it.
    pub(super) fn release(&self, question: &Question, seat: &Seat, landing: &Landing, record: &mut Record) -> Release {
        let Landing::Flown { leader, slot, asked, answer } = landing else { return Release::GoAgain };
        let now = self.clock.now();
        let is_own = *leader == question.grantee.caller;
        match answer {
            Err(UpstreamError::TooLarge) if seat.leads => Release::Stream,
            Err(UpstreamError::TooLarge) => Release::GoAgain,
            Err(error) if is_own || self.grants.stands(&question.grantee, now) => {
                Release::Answer(self.failed(question, seat, error, is_own, record))
            }
            Err(_) => Release::GoAgain,
            Ok(answer) if seat.leads || self.may_have(question, answer, is_own, slot, *asked, now) => {
                let stale = (answer.verdict == Verdict::Failure).then(|| self.excusable(question, is_own, now));
                Release::Answer(match stale.flatten() {
                    Some(entry) => {
                        stale_answer(&entry, now, Some(answer.response.status()), Unstorable::Status.as_str(), record)
                    }
                    None => self.fetched(question, answer, seat, record),
                })
            }
            Ok(_) => Release::GoAgain,
        }
    }

    /// Whether a caller who didn't lead may have the answer.
    fn may_have(
        &self,
        question: &Question,
        answer: &Answer,
        is_own: bool,
        slot: &Slot,
        asked: Epoch,
        now: Instant,
    ) -> bool {
        let stands = || self.grants.stands(&question.grantee, now);
        let may_share = || stands() && self.store.may_share(slot, asked);
        match answer.verdict {
            Verdict::Proof(Ok(())) => answer.proof != Some(Proof::Late) && may_share(),
            Verdict::Proof(Err(_)) | Verdict::NoList(_) => false,
            Verdict::Denial | Verdict::Personal => is_own,
            Verdict::Negative => is_own || may_share(),
            Verdict::Failure => is_own || stands(),
        }
    }

    /// An answer that a flight has brought.
    fn fetched(&self, question: &Question, answer: &Answer, seat: &Seat, record: &mut Record) -> Response<Content> {
        let is_private = || self.store.slot(&question.key, question.grantee.caller).owner.is_some();
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
            status: Some(response.status()),
            stored: answer.not_kept.is_none(),
            collapsed: !seat.leads,
            detail,
        };
        status.add_to(response.headers_mut());
        response
    }

    /// The answer to one whose time is up.
    pub(super) fn timed_out(&self, question: &Question, seat: &Seat, record: &mut Record) -> Response<Content> {
        let is_own = seat.leads || seat.slot.owner.is_some();
        self.failed(question, seat, &UpstreamError::Timeout, is_own, record)
    }

    /// The answer where upstream gave none: a stale one, or the failure.
    fn failed(
        &self,
        question: &Question,
        seat: &Seat,
        error: &UpstreamError,
        is_own: bool,
        record: &mut Record,
    ) -> Response<Content> {
        let (now, detail) = (self.clock.now(), error.as_str());
        if let Some(entry) = self.excusable(question, is_own, now) {
            return stale_answer(&entry, now, None, detail, record);
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
        match self.grants.standing(&question.grantee, now) {
            Standing::Granted => {}
            Standing::Lapsed if is_own => {}
            Standing::Lapsed | Standing::Unproved | Standing::Denied { .. } => return None,
        }
        let slot = self.store.slot(&question.key, question.grantee.caller);
        self.store.get(&slot).filter(|entry| entry.life().freshness(now) != Freshness::Gone)
    }
}

/// A stale answer in place of a failure.
fn stale_answer(
    entry: &Entry,
    now: Instant,
    status: Option<StatusCode>,
    detail: &'static str,
    record: &mut Record,
) -> Response<Content> {
    record.answered(Outcome::Stale, detail);
    let mut response = compose::from_entry(entry, now);
    let status =
        CacheStatus::Forwarded { why: Forward::Stale, status, stored: false, collapsed: false, detail: Some(detail) };
    status.add_to(response.headers_mut());
    response
}
