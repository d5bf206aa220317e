//! Who makes another call while those of a flight are slow.

use super::super::world::{RequestId, service_of};
use super::{CALLS, Call, Effect, Flight, FlightId, Rules, Waiting};

impl Rules {
    /// Whether upstream has answered a list well that was sent after this call.
    pub(super) fn is_listed_since(&self, call: &Call) -> bool {
        self.listed[service_of(call.key)].is_some_and(|sent| sent > call.sent)
    }

    /// Whether another call may be made for a flight that can be joined.
    pub(super) fn is_slow(&self, id: FlightId) -> bool {
        self.flights.iter().any(|flight| flight.id == id && self.may_have_another(flight))
    }

    /// Whether another call may be made for a flight: all that it has are slow, and upstream answers others.
    fn may_have_another(&self, flight: &Flight) -> bool {
        let is_under_way = |call: &&Call| call.flight == flight.id && call.head.is_none();
        let mut calls = self.calls.iter().filter(is_under_way).peekable();
        flight.is_open
            && flight.callers.len() < CALLS
            && calls.peek().is_some()
            && calls.all(|call| call.timer_sent + self.settings.stale_if_slow <= self.now && self.is_listed_since(call))
    }

    /// A request makes another call for a flight that is slow. Of several that could, it is the one that was seen to.
    ///
    /// # Errors
    /// If none was seen to, and one had to.
    pub(super) fn relieve(&mut self, seen: &[RequestId]) -> Result<Vec<Effect>, String> {
        let effects = self.relieve_seen(seen);
        for id in self.slow_flights() {
            if let Some(place) = self.able(id).into_iter().find(|place| !self.waiting[*place].was_unable) {
                let id = self.waiting[place].question.id;
                return Err(format!("#{id} had to make another call, for those of its flight are slow"));
            }
        }
        Ok(effects)
    }

    /// Requests make another call for flights that are slow, as far as they were seen to.
    pub(super) fn relieve_seen(&mut self, seen: &[RequestId]) -> Vec<Effect> {
        let mut effects = Vec::new();
        for id in self.slow_flights() {
            let able = self.able(id);
            let turn = |place: usize| seen.iter().position(|begun| *begun == self.waiting[place].question.id);
            let first = able.into_iter().filter(|place| turn(*place).is_some()).min_by_key(|place| turn(*place));
            let Some(place) = first else { continue };
            self.note("second leader");
            let request = Waiting { is_repeat_due: false, ..self.waiting[place].clone() };
            let flight = self.flights.iter_mut().find(|flight| flight.id == id).expect("it is slow");
            flight.callers.push(request.question.caller);
            let slot = flight.slot;
            effects.push(Effect::Call(self.depart(&request, slot, id, false)));
        }
        effects
    }

    fn slow_flights(&self) -> Vec<FlightId> {
        self.flights.iter().filter(|flight| self.may_have_another(flight)).map(|flight| flight.id).collect()
    }

    /// The places of the requests that could make another call for a flight.
    fn able(&mut self, id: FlightId) -> Vec<usize> {
        let flight = self.flights.iter().find(|flight| flight.id == id).expect("it is slow");
        let (slot, callers) = (flight.slot, flight.callers.clone());
        let mut able = Vec::new();
        for place in 0..self.waiting.len() {
            let Waiting { question, stale_if_slow, aboard, .. } = self.waiting[place];
            if aboard != id || stale_if_slow.is_some() || callers.contains(&question.caller) {
                continue;
            }
            // Its grant may have ended, or an answer may have come by another way. Then it waits on.
            if self.boarding(&question) == slot && self.remembered(&question).is_none() {
                able.push(place);
            } else {
                self.waiting[place].was_unable = true;
            }
        }
        able
    }
}
