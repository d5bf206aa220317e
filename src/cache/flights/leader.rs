//! The call of a flight: it is made by a leader, which ends it with a result for the waiters, or by being dropped.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Flight, FlightState, FlightsInner};
use crate::request::caller::Caller;

/// Makes one call of a flight, and must end it.
pub(crate) struct Leader<K: Eq + Hash, T> {
    /// `None` for a flight that no other request can join.
    pub(super) key: Option<K>,
    pub(super) flight: Arc<Flight<T>>,
    pub(super) caller: Caller,
    /// Sends the result to the leader's own request. `None` after that.
    pub(super) own: Option<oneshot::Sender<T>>,
    /// After the call has finished: whether it was the last one in flight.
    pub(super) was_last: Option<bool>,
    pub(super) shared: Arc<FlightsInner<K, T>>,
}

impl<K: Eq + Hash, T> Leader<K, T> {
    /// Notes that the request is being sent to upstream. Before that, the call waits for a call slot.
    pub(crate) fn mark_sent(&self) {
        self.flight.is_sent.store(true, Ordering::Relaxed);
    }

    /// Notes that the call has taken so long that another caller may make one. `sent` is when this call was sent.
    pub(crate) fn mark_slow(&self, sent: Instant) {
        self.flight.update(|calls| {
            if let Some(call) = calls.in_flight.iter_mut().find(|call| call.caller == self.caller) {
                call.slow = Some(sent);
            }
        });
    }

    /// The key under which other requests can join the flight, or could join it before it was closed.
    pub(crate) fn key(&self) -> Option<&K> {
        self.key.as_ref()
    }

    /// Whether a request has joined the flight.
    pub(crate) fn is_joined(&self) -> bool {
        *self.flight.is_joined.borrow()
    }

    /// Waits until a request has joined the flight.
    pub(crate) async fn joined(&self) {
        // This cannot fail: the flight holds the sender, and `self` holds the flight.
        let _ = self.flight.is_joined.subscribe().wait_for(|is_joined| *is_joined).await;
    }

    /// Waits until no request waits for the flight. A call that is wanted for itself is abandoned only if no request can
    /// join it either. When this resolves, the call counts no more, and if it was the only one, no request can join.
    pub(crate) async fn abandoned(&self) {
        loop {
            self.flight.state.closed().await;
            // Requests join under this lock.
            let mut in_flight = self.shared.in_flight();
            if self.flight.state.receiver_count() > 0 {
                continue;
            }
            let is_last = self.flight.update(|calls| {
                calls.in_flight.retain(|call| call.caller != self.caller);
                calls.is_closed |= calls.in_flight.is_empty();
                calls.in_flight.is_empty()
            });
            if is_last && let Some(key) = &self.key {
                in_flight.remove(key, &self.flight);
            }
            return;
        }
    }

    /// Releases the waiters before the result is complete, if this is the last call. Requests of its own caller must
    /// then wait for [`Waiter::final_result`].
    pub(crate) fn announce(&mut self, result: T) {
        if self.finish_call() {
            self.close();
            self.publish(FlightState::Announced(result));
        }
    }

    /// Ends the call. A result that serves all callers ends the flight. Any other result ends it only if this is the
    /// last call. Otherwise only the leader's own request gets it.
    pub(crate) fn end(mut self, result: T, serves_all: bool)
    where
        T: Clone,
    {
        let own = self.own.take();
        if serves_all {
            // Before `finish_call`, which may wake a waiter that would begin another call.
            self.close();
        }
        let is_over = self.finish_call() || serves_all;
        if is_over {
            // Before any request gets the result. Otherwise a later request could still join.
            self.close();
        }
        if let Some(own) = own {
            // The client of that request may have disconnected.
            let _ = own.send(result.clone());
        }
        if is_over {
            self.publish(FlightState::Ended(result));
        }
    }

    /// Removes the call from those in flight. Returns whether it was the last one.
    fn finish_call(&mut self) -> bool {
        *self.was_last.get_or_insert_with(|| {
            self.flight.update(|calls| {
                calls.in_flight.retain(|call| call.caller != self.caller);
                calls.in_flight.is_empty()
            })
        })
    }

    /// Publishes the state, unless the flight has ended.
    fn publish(&self, state: FlightState<T>) {
        self.flight.state.send_if_modified(|published| {
            let is_over = matches!(published, FlightState::Ended(_) | FlightState::Lost);
            if !is_over {
                *published = state;
            }
            !is_over
        });
    }

    /// Closes the flight: no request can join it.
    fn close(&self) {
        let Some(key) = &self.key else { return };
        self.flight.update(|calls| calls.is_closed = true);
        self.shared.in_flight().remove(key, &self.flight);
    }
}

impl<K: Eq + Hash, T> Drop for Leader<K, T> {
    fn drop(&mut self) {
        // This changes nothing if the call has ended.
        if self.finish_call() {
            self.close();
            self.publish(FlightState::Lost);
        }
    }
}
