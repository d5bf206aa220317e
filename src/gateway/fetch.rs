//! One call to upstream: from asking to letting everyone aboard know. What its answer changes, and who
//! else is given it, are steps of their own.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};

use super::look_up::LookUp;
use super::settle::{Answer, Call};
use super::{Gateway, Question};
use crate::cache::admission::Verdict;
use crate::cache::entry::Entry;
use crate::cache::flights::Pilot;
use crate::cache::grants::Standing;
use crate::cache::lifetime::Times;
use crate::cache::store::{Epoch, Slot};
use crate::request::caller::Caller;
use crate::request::condition::Validator;
use crate::signing::ring::Signed;
use crate::upstream::UpstreamError;
use crate::upstream::client::Errand;
use crate::upstream::probation::{Held, Reception};

/// A question that is going to be asked.
pub(super) struct Flight {
    pub(super) question: Question,
    /// What others may have boarded for.
    pub(super) slot: Slot,
    pub(super) errand: Errand,
}

/// How a flight ended, for everyone aboard.
#[derive(Clone)]
pub(super) enum Landing {
    /// It was not flown: what was wanted has become known between the look-up and the departure.
    NotFlown,
    /// It was not flown: the leader's access key is held.
    Held {
        /// Whose request was to be sent.
        leader: Caller,
    },
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

impl Gateway {
    /// Asks upstream, draws the consequences, and lets everyone aboard know.
    pub(super) async fn fly(self: Arc<Self>, pilot: Pilot<Slot, Landing>, flight: Flight) {
        let Flight { question, slot, mut errand } = flight;
        let leader = question.asked.grantee.caller;
        let service = question.asked.key.operation().service;
        let is_plain = self.via.is_own(&errand.via) && errand.forwarded.is_empty();
        let standing = self.grants.standing(&question.asked.grantee, self.clock.now());
        let is_known = matches!(standing, Standing::Granted | Standing::Lapsed) || self.acquaintances.includes(&leader);
        // Who has to wait behind itself leads nobody.
        let has_to_wait = || {
            let is_busy = |signed: &Signed| self.probation.is_busy(&signed.key, service);
            self.gate.is_full_for(service, leader) || errand.credential.signed().is_some_and(is_busy)
        };
        if pilot.takes_others() && slot.owner.is_none() && has_to_wait() {
            return pilot.land(Landing::NotFlown);
        }
        let turn = async {
            let leave = self.leave(errand.credential.signed(), service).await?;
            Ok((leave, self.gate.enter(service, leader, is_known).await))
        };
        let (leave, _permit) = tokio::select! {
            biased;
            turn = tokio::time::timeout(question.live.answer_timeout, turn) => match turn {
                Ok(Ok(turn)) => turn,
                Ok(Err(Held)) => return pilot.land(Landing::Held { leader }),
                Err(_) => {
                    let (asked, answer) = (self.store.epoch(), Err(UpstreamError::Busy));
                    return pilot.land(Landing::Flown { leader, is_plain, asked, answer });
                }
            },
            // Nothing has been sent, and nobody is left who wants it.
            () = pilot.deserted() => return,
        };
        pilot.depart();
        let sent = self.clock.now();
        let before = match self.look_up(&question, sent) {
            LookUp::Given(..) => return pilot.land(Landing::NotFlown),
            LookUp::Refresh(entry, _) => Some(entry),
            LookUp::Ask { before, .. } => before,
        };
        let asked_about = before.and_then(|entry| entry.validator().cloned().map(|validator| (entry, validator)));
        errand.validator = asked_about.as_ref().map(|(_, validator)| validator.clone());
        let asked = self.store.epoch();
        let departure = self.grants.depart(question.asked.grantee.clone(), sent);
        let counted = self.metrics.upstream_call(service);
        self.fetches.count(question.asked.key.operation());
        let request_id = errand.request_id.clone();
        errand.date = self.clock.date();
        let answer = question.live.upstream.ask(&question.asked.key, errand).await;
        let times = Times { sent, received: self.clock.now(), date: self.clock.date() };
        let status = answer.as_ref().map(Response::status).map_err(UpstreamError::as_str);
        counted.ended(status, times.received.saturating_duration_since(sent));
        if let Some(leave) = leave {
            leave.ended(match &answer {
                Ok(response) => Reception::of(response.status(), response.body()),
                Err(UpstreamError::TooLarge(status)) => Reception::of(*status, b""),
                Err(_) => Reception::Unknown,
            });
        }

        let call = Call { question: &question, slot: &slot, is_plain, asked, times };
        let answer = match answer.and_then(|response| whole(response, asked_about.as_ref())) {
            Ok((response, said)) => {
                let mut answer = self.settle(&call, departure, response, said);
                // It may be about what was sent besides, of which the others have sent nothing.
                if answer.verdict == Verdict::Negative && !(is_plain && self.is_trusted(&call)) {
                    answer.verdict = Verdict::Personal;
                }
                Ok(Arc::new(answer))
            }
            Err(error) => {
                if !matches!(error, UpstreamError::TooLarge(_)) {
                    tracing::warn!(request_id, service = service.as_str(), %error, "upstream gave no whole answer");
                }
                self.settle_failure(&call, departure, &error);
                Err(error)
            }
        };
        let is_proved = answer.as_ref().is_ok_and(|answer| answer.proof.is_some());
        self.heard(service, status, is_known || is_proved);
        pilot.land(Landing::Flown { leader, is_plain, asked, answer });
    }
}

/// The answer and the status that upstream gave: a 304 stands for the answer that it was asked about. One
/// that wasn't asked for is no answer; to some clients it would be an empty list.
fn whole(
    response: Response<Bytes>,
    asked_about: Option<&(Arc<Entry>, Validator)>,
) -> Result<(Response<Bytes>, StatusCode), UpstreamError> {
    let said = response.status();
    match asked_about {
        _ if said != StatusCode::NOT_MODIFIED => Ok((response, said)),
        Some((entry, validator)) if validator.is_meant_by(response.headers()) => {
            Ok((entry.revalidated(&response), said))
        }
        other => {
            if let Some((entry, _)) = other {
                entry.misunderstood();
            }
            Err(UpstreamError::Broken("a 304 that was not asked for".to_owned()))
        }
    }
}
