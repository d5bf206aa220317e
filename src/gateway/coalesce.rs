//! Coalescing: a request joins the flight for its question or begins one, and waits for what comes of it.
//!
//! What a call does is told in `fetch.rs`, and who is given its result in `release.rs`.

use std::sync::Arc;

use http::{HeaderMap, Response};

use super::fetch::Fetch;
use super::fetch_result::{Additional, FetchResult};
use super::look_up::LookUp;
use super::release::Seat;
use super::wait::{AnotherCall, Timers, Waited};
use super::{Gateway, MAX_ELECTIONS, Question};
use crate::cache::flights::{Given, Leader, Waiter};
use crate::cache::miss::Miss;
use crate::cache::store::Slot;
use crate::reply::body::Content;
use crate::request::forwarded;
use crate::telemetry::record::Record;
use crate::upstream::client::Errand;

/// How often a request has waited for a flight, and what has come of that.
#[derive(Default)]
pub(super) struct Rounds {
    pub(super) number: u32,
    /// Whether a leader was refused or throttled, so that another takes its place.
    pub(super) refused: bool,
    /// Whether a call was repeated for it because upstream failed another's.
    pub(super) has_repeated: bool,
    /// Why its next call is made, if that is such a repetition.
    pub(super) additional: Option<Additional>,
}

/// What waiting for a flight has come to.
pub(super) enum WaitEnd {
    /// A result, or the flight was lost.
    Given(Option<Given<FetchResult>>),
    /// The request is answered without it.
    Answered(Response<Content>),
}

impl Gateway {
    /// Joins the flight for a slot, or begins one. A solo flight is nobody else's.
    pub(super) fn join(
        self: &Arc<Self>,
        question: &Question,
        (slot, why, solo): (Slot, Miss, bool),
        headers: &HeaderMap,
        rounds: &mut Rounds,
        record: &mut Record,
    ) -> (Waiter<Slot, FetchResult>, Seat) {
        let (flights, caller) = (self.fetcher.flights(&slot), question.asked.grantee.caller);
        let (waiter, leader) = match solo {
            true => flights.solo(caller),
            // Nobody is to wait for a call that comes after all others.
            false if question.half_close.is_closed() => flights.wait_or_solo(&slot, caller),
            false => flights.join(&slot, caller),
        };
        let elected = rounds.refused && leader.is_some() && slot.owner.is_none();
        let is_last = rounds.number >= MAX_ELECTIONS;
        let seat = Seat { leads: leader.is_some(), elected, is_last, has_repeated: rounds.has_repeated, slot, why };
        record.answered(seat.outcome(), "");
        if let Some(leader) = leader {
            self.observer.metrics.elections.inc_by(u64::from(elected));
            self.start(leader, question, seat.slot.clone(), headers, rounds.additional.take(), record);
        }
        (waiter, seat)
    }

    /// Waits for the result of a flight, and makes another call for it if that is due.
    pub(super) async fn wait(
        self: &Arc<Self>,
        question: &Question,
        (mut waiter, seat, is_patient): (Waiter<Slot, FetchResult>, &Seat, bool),
        headers: &HeaderMap,
        timers: &mut Timers,
        record: &mut Record,
    ) -> WaitEnd {
        let (caller, service) = (question.asked.grantee.caller, question.asked.key.operation().service);
        // A caller whose grant has ended must not lead others, and an answer may have come by another way.
        let may_lead = || {
            let found = self.memory.look_up(question, self.clock.now());
            let has_to_wait = question.half_close.is_closed() || self.fetcher.has_to_wait(question);
            matches!(found, LookUp::Ask { slot, .. } if slot == seat.slot) && !has_to_wait
        };
        let mut is_refused = false;
        loop {
            let another = AnotherCall { caller, service, successes: &self.fetcher.successes, may_lead: &may_lead };
            let waited = match is_refused {
                false => timers.wait_for(&mut waiter, is_patient, another).await,
                true => timers.wait_for_whole(&mut waiter).await,
            };
            match waited {
                Waited::Ended(Some(given)) if given.result.is_refusal_of(caller) => is_refused = true,
                Waited::Ended(given) => return WaitEnd::Given(given),
                Waited::OutOfPatience => {
                    if let Some(response) = self.releasing(question, seat).out_of_patience(record) {
                        return WaitEnd::Answered(response);
                    }
                }
                Waited::MayLead => {
                    if let Some(leader) = waiter.lead_another(caller) {
                        self.start(leader, question, seat.slot.clone(), headers, Some(Additional::Slow), record);
                    }
                }
                Waited::OutOfTime => {
                    return WaitEnd::Answered(
                        self.releasing(question, seat).out_of_time(waiter.has_departed(), record),
                    );
                }
            }
        }
    }

    /// Has what is in a slot asked for again, on behalf of one who doesn't wait for it.
    pub(super) fn refresh(self: &Arc<Self>, question: &Question, slot: Slot, headers: &HeaderMap, record: &mut Record) {
        if let Some(leader) = self.fetcher.flights(&slot).begin(&slot, question.asked.grantee.caller) {
            self.observer.metrics.refreshes.inc();
            self.start(leader, question, slot, headers, None, record);
        }
    }

    /// Starts a call, in a task of its own: a client that hangs up neither cancels nor poisons it.
    fn start(
        self: &Arc<Self>,
        leader: Leader<Slot, FetchResult>,
        question: &Question,
        slot: Slot,
        headers: &HeaderMap,
        additional: Option<Additional>,
        record: &mut Record,
    ) {
        let errand = Errand {
            credential: question.credential.kept(),
            date: self.clock.date(),
            request_id: record.request_id().to_owned(),
            via: self.via.trail(headers),
            validator: None,
            trace: record.traced(headers),
            forwarded: forwarded::select(question.asked.key.operation(), headers),
        };
        let fetch = Fetch { question: question.clone(), slot, errand, additional };
        tokio::spawn(Arc::clone(self).run_fetch(leader, fetch));
    }
}
