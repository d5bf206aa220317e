//! The permit of a call: its place in the queue, and then its slot. What the call gives back is given back here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::oneshot::error::RecvError;

use super::permitted_body::PermittedBody;
use super::quota_wait::QuotaWait;
use super::{ServiceGate, Ticket};
use crate::catalogue::Service;
use crate::stream::StreamBody;
use crate::upstream::UpstreamError;
use crate::upstream::quota::{Draw, Lesson};

/// A call slot, or a place in the queue until the slot is assigned. Dropping it ends the call.
#[must_use = "the call is under way as long as this is held"]
pub(crate) struct Permit {
    service_gate: Arc<ServiceGate>,
    ticket: Ticket,
    draw: Draw,
    /// When the slot was assigned, and the call was counted.
    started: Option<Instant>,
    is_sent: bool,
    /// Whether its wait for limits of upstream is still to be reported.
    reports_wait: bool,
}

impl Permit {
    pub(super) fn new(service_gate: Arc<ServiceGate>, ticket: Ticket, draw: Draw) -> Self {
        Self { service_gate, ticket, draw, started: None, is_sent: false, reports_wait: true }
    }

    /// The slot is assigned. The sender of the message is dropped only after it has sent, or together with this permit.
    pub(super) fn started(mut self, message: Result<Instant, RecvError>) -> Self {
        self.started = message.ok();
        self
    }

    /// Leaves the gate before the call is sent. Returns how long limits have held the call back, which is not reported.
    pub(super) fn leave(mut self) -> QuotaWait {
        self.reports_wait = false;
        let ServiceGate { clock, .. } = &*self.service_gate;
        self.service_gate.state().schedule.wait_so_far(self.ticket, clock.now())
    }

    /// The call is sent now. Without this, dropping the permit takes it from the limits that have counted it.
    pub(crate) fn mark_sent(&mut self) {
        self.is_sent = true;
        self.report_wait();
    }

    /// Without a connection, upstream has not counted the call.
    pub(crate) fn unsent_if_unreached(&mut self, error: Option<&UpstreamError>) {
        self.is_sent &= !error.is_some_and(|error| error.failure().is_unreached());
    }

    /// Reports how long limits have held the call back, once.
    fn report_wait(&mut self) {
        if std::mem::take(&mut self.reports_wait) {
            let now = self.service_gate.clock.now();
            let wait = self.service_gate.state().schedule.quota_wait(self.ticket, now);
            wait.inspect(|(policy, time)| (self.service_gate.on_quota_wait)(*policy, *time));
        }
    }

    pub(crate) fn service(&self) -> Service {
        self.service_gate.service
    }

    /// The name of the operation. `None` for a request that is not one's.
    pub(crate) fn operation(&self) -> Option<&Arc<str>> {
        self.draw.api.as_ref()
    }

    /// Learns from what the response says of limits. `body` is read only if it is a 429.
    pub(crate) fn learn(&self, response: (StatusCode, &HeaderMap, &[u8]), retry_after: Option<Duration>) -> Lesson {
        let ServiceGate { service, ledger, clock, .. } = &*self.service_gate;
        let Some(started) = self.started else { return Lesson::default() };
        ledger.learn(*service, (&self.draw, started), response, retry_after, clock.now())
    }

    /// Returns a closure that moves this call to [`Class::HalfClosed`]. The closure returns `false` if the slot must be
    /// released.
    pub(super) fn half_close_handler(&self) -> impl Fn() -> bool + Send + 'static {
        let (service_gate, ticket) = (Arc::downgrade(&self.service_gate), self.ticket);
        move || {
            service_gate.upgrade().is_none_or(|service_gate| {
                let mut state = service_gate.state();
                let may_keep_slot = state.schedule.move_to_half_closed(ticket);
                service_gate.start_calls(state, service_gate.clock.now());
                may_keep_slot
            })
        }
    }

    /// Returns a body that ends the call when it ends or is dropped.
    pub(crate) fn hold(self, body: StreamBody) -> StreamBody {
        PermittedBody { body, permit: Some(self) }.boxed_unsync()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.report_wait();
        let (mut state, now) = (self.service_gate.state(), self.service_gate.clock.now());
        // The slot may have been assigned after the future that waits for it was last polled.
        let is_waiting = state.waiting.remove(&self.ticket).is_some();
        let ServiceGate { service, ledger, .. } = &*self.service_gate;
        let gives_back = !is_waiting && !self.is_sent;
        if gives_back {
            ledger.give_back(*service, &self.draw, self.started.unwrap_or(now));
        }
        state.schedule.remove(self.ticket, &self.service_gate.pace(now));
        self.service_gate.start_calls(state, now);
        if gives_back {
            self.service_gate.quota_changed_for_other();
        }
    }
}
