//! Waits until the calls of a flight are slow, for a waiter that may then make another call.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::Flight;
use crate::request::caller::Caller;

pub(crate) struct Slowness<T> {
    pub(super) flight: Arc<Flight<T>>,
    pub(super) slow: watch::Receiver<Option<Instant>>,
}

impl<T> Slowness<T> {
    /// Waits until all calls in flight are slow and the caller may make another one. Returns the time at which the
    /// latest call was sent. Never resolves for a caller that has made a call of this flight.
    pub(crate) async fn all_slow(&mut self, caller: Caller) -> Instant {
        while self.flight.calls().may_begin(caller) {
            let slow = *self.slow.borrow_and_update();
            match slow {
                Some(sent) => return sent,
                None => self.changed().await,
            }
        }
        std::future::pending().await
    }

    /// Waits until a call has begun, ended or become slow.
    pub(crate) async fn changed(&mut self) {
        // This cannot fail: the flight holds the sender, and `self` holds the flight.
        let _ = self.slow.changed().await;
    }
}
