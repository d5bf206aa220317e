//! The calls of one flight: who has made one, which are in flight, and which of these are slow. Nothing waits here.

use std::time::Instant;

use crate::request::caller::Caller;

/// The number of calls that one flight may make in all.
pub(super) const MAX_CALLS: usize = 3;

#[derive(Default)]
pub(super) struct FlightCalls {
    /// Whether no request can join and no other call can begin.
    pub(super) is_closed: bool,
    /// The callers that have made a call.
    pub(super) callers: Vec<Caller>,
    pub(super) in_flight: Vec<FlightCall>,
}

pub(super) struct FlightCall {
    pub(super) caller: Caller,
    /// The time at which it was sent, if it is slow.
    pub(super) slow: Option<Instant>,
}

impl FlightCalls {
    pub(super) fn begin(&mut self, caller: Caller) {
        self.callers.push(caller);
        self.in_flight.push(FlightCall { caller, slow: None });
    }

    /// Whether a caller may make another call when all calls in flight are slow.
    pub(super) fn may_begin(&self, caller: Caller) -> bool {
        self.callers.len() < MAX_CALLS && !self.callers.contains(&caller)
    }

    /// The time at which the latest call was sent. `None` if a call is not slow or no other call may begin.
    pub(super) fn all_slow(&self) -> Option<Instant> {
        let latest = self.in_flight.iter().map(|call| call.slow).max()?;
        latest.filter(|_| !self.is_closed && self.in_flight.iter().all(|call| call.slow.is_some()))
    }
}
