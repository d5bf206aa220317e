//! Waiting outside the queue: until a call that may become necessary would not wait for its own client. It takes no place
//! and no slot.

use std::pin::pin;
use std::time::Instant;

use super::{Gate, GateCall, LONGEST_TIMER, SHORTEST_TIMER};
use crate::catalogue::Service;
use crate::clock::Clock;
use crate::upstream::quota::LimitKind;

impl Gate {
    /// Waits until [`Gate::has_to_wait`] is false.
    pub(crate) async fn ready(&self, service: Service, call: &GateCall) {
        let service_gate = self.service_gate(service);
        loop {
            let mut changed = pin!(service_gate.changed.notified());
            // Before the state is read, or a call that ends in between would be missed.
            changed.as_mut().enable();
            if !self.has_to_wait(service, call) {
                return;
            }
            let (draw, now) = (Self::draw(call), self.clock.now());
            let hold = |kind| self.ledger.hold(service, &draw, kind, 0, now);
            let hold = hold(LimitKind::Own).or_else(|| hold(LimitKind::Shared));
            let free = async {
                match hold {
                    Some(hold) => sleep_until(&self.clock, hold.until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = free => {}
            }
        }
    }
}

/// Sleeps until a time of a clock that may jump.
pub(super) async fn sleep_until(clock: &Clock, at: Instant) {
    loop {
        let left = at.saturating_duration_since(clock.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.clamp(SHORTEST_TIMER, LONGEST_TIMER)).await;
    }
}
