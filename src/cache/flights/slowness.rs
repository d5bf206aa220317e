//! Whether the calls of a flight are slow, for a waiter that may make another.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::Flight;
use crate::request::caller::Caller;

/// Whether the calls of a flight are slow.
pub(crate) struct Slowness<T> {
    pub(super) flight: Arc<Flight<T>>,
    pub(super) slow: watch::Receiver<Option<Instant>>,
}

impl<T> Slowness<T> {
    /// Waits until all calls under way are slow and the caller may make another. Gives the time at which the latest was
    /// sent. A caller that has made a call of this flight waits without end.
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

    /// Waits until one of the calls has begun, ended, or become slow.
    pub(crate) async fn changed(&mut self) {
        // The flight holds the sender, and this holds the flight.
        let _ = self.slow.changed().await;
    }
}
