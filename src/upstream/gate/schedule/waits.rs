//! How long limits of upstream have held back the calls of a schedule, and which they hold back now.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::Ticket;
use super::super::quota_wait::{HeldCalls, QuotaWait};
use super::{CallState, QueuedCall, Schedule};
use crate::catalogue::QuotaPolicy;

impl Schedule {
    /// Adds how long a call has been held back before it was added.
    pub(in crate::upstream::gate) fn add_wait(&mut self, ticket: Ticket, waited: QuotaWait) {
        if let Some(call) = self.calls.get_mut(&ticket) {
            call.quota_wait.add(waited);
        }
    }

    /// How long limits have held back a call.
    pub(in crate::upstream::gate) fn wait_so_far(&self, ticket: Ticket, now: Instant) -> QuotaWait {
        let Some(QueuedCall { client, class, state, api, quota_wait, .. }) = self.calls.get(&ticket) else {
            return QuotaWait::default();
        };
        let clock = match state {
            CallState::AtCallerLimit => self.callers.get(&client.identity()).map(|caller| &caller.clock),
            CallState::Queued => self.queues[*class as usize].by_api.get(api).map(|calls| &calls.clock),
            CallState::UnderWay => None,
        };
        quota_wait.so_far(clock, now)
    }

    /// How long limits have held back a call for which a client waits, and the policy of the last one. `None` if none has.
    pub(in crate::upstream::gate) fn quota_wait(
        &self,
        ticket: Ticket,
        now: Instant,
    ) -> Option<(QuotaPolicy, Duration)> {
        let has_client = self.calls.get(&ticket).is_some_and(|call| call.class.has_client());
        self.wait_so_far(ticket, now).by().filter(|_| has_client)
    }

    /// The calls that limits hold back.
    pub(in crate::upstream::gate) fn held_calls(&self) -> Vec<HeldCalls> {
        let own = self.callers.values().filter_map(|caller| {
            Some(HeldCalls {
                policy: caller.clock.holding()?,
                calls: caller.at_caller_limit.iter().map(BTreeSet::len).sum(),
            })
        });
        let groups = self.queues.iter().flat_map(|queue| queue.by_api.values());
        let shared = groups.filter_map(|calls| Some(HeldCalls { policy: calls.clock.holding()?, calls: calls.count }));
        own.chain(shared).collect()
    }
}
