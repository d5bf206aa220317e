//! Additional calls while the calls of a flight are slow.

use super::super::domain::{CallerId, RequestId, service_of};
use super::{Call, Effect, Flight, FlightId, MAX_CALLS, Rules, Waiter};

impl Rules {
    /// Whether upstream has returned a list that was sent for after this call.
    pub(super) fn is_listed_since(&self, call: &Call) -> bool {
        self.listed[service_of(call.key)].is_some_and(|sent| sent > call.sent)
    }

    /// Whether a caller that joins a flight makes an additional call for it at once. No caller makes two.
    pub(super) fn is_slow_for(&self, caller: CallerId, id: FlightId) -> bool {
        let mut flights = self.flights.iter().filter(|flight| flight.id == id && self.may_have_another(flight));
        flights.any(|flight| !flight.callers.contains(&caller))
    }

    /// Whether a flight may have an additional call: all its calls are slow, and upstream answers other calls.
    fn may_have_another(&self, flight: &Flight) -> bool {
        let is_under_way = |call: &&Call| call.flight == flight.id && call.head.is_none();
        let mut calls = self.calls.iter().filter(is_under_way).peekable();
        flight.is_open
            && flight.callers.len() < MAX_CALLS
            && calls.peek().is_some()
            && calls.all(|call| call.timer_sent + self.settings.stale_if_slow <= self.now && self.is_listed_since(call))
    }

    /// A waiter makes an additional call for a slow flight. If several could, it is the one that did so in the gateway.
    ///
    /// # Errors
    /// If none did so, and one had to.
    pub(super) fn make_additional_calls(&mut self, started: &[RequestId]) -> Result<Vec<Effect>, String> {
        let effects = self.make_observed_calls(started);
        for id in self.slow_flights() {
            if let Some(index) = self.candidates(id).into_iter().find(|index| !self.waiters[*index].could_not_call) {
                let id = self.waiters[index].request.id;
                return Err(format!("#{id} made no additional call, but all calls of its flight are slow"));
            }
        }
        Ok(effects)
    }

    /// The additional calls that the gateway has started.
    pub(super) fn make_observed_calls(&mut self, started: &[RequestId]) -> Vec<Effect> {
        let mut effects = Vec::new();
        for id in self.slow_flights() {
            let candidates = self.candidates(id);
            let position = |index: usize| started.iter().position(|started| *started == self.waiters[index].request.id);
            let first =
                candidates.into_iter().filter(|index| position(*index).is_some()).min_by_key(|index| position(*index));
            let Some(index) = first else { continue };
            self.count("additional call");
            let waiter = Waiter { is_repeat_due: false, ..self.waiters[index].clone() };
            let flight = self.flights.iter_mut().find(|flight| flight.id == id).expect("the flight is slow");
            flight.callers.push(waiter.request.caller);
            let cache_key = flight.cache_key;
            effects.push(Effect::Call(self.start_call(&waiter, cache_key, id, false)));
        }
        effects
    }

    fn slow_flights(&self) -> Vec<FlightId> {
        self.flights.iter().filter(|flight| self.may_have_another(flight)).map(|flight| flight.id).collect()
    }

    /// The indexes of the waiters that could make an additional call for a flight.
    fn candidates(&mut self, id: FlightId) -> Vec<usize> {
        let flight = self.flights.iter().find(|flight| flight.id == id).expect("the flight is slow");
        let (cache_key, callers) = (flight.cache_key, flight.callers.clone());
        let mut candidates = Vec::new();
        for index in 0..self.waiters.len() {
            let Waiter { request, stale_if_slow, flight, .. } = self.waiters[index];
            if flight != id || stale_if_slow.is_some() || callers.contains(&request.caller) {
                continue;
            }
            // Its grant may have ended, or it may find a response now. Then it continues to wait.
            if self.fetch_key(&request) == cache_key && self.reply_from_memory(&request).is_none() {
                candidates.push(index);
            } else {
                self.waiters[index].could_not_call = true;
            }
        }
        candidates
    }
}
