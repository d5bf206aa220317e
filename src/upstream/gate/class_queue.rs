//! The calls of a class that wait or are under way, in their order, and by operation.

use std::collections::hash_map::Entry;
use std::time::Instant;

use super::deadlines::Deadlines;
use super::fair_queue::FairQueue;
use super::quota_wait::HoldClock;
use super::{Party, Ticket};
use crate::random::HashMap;
use crate::upstream::quota::Draw;

#[derive(Default)]
pub(super) struct ClassQueue {
    pub(super) queue: FairQueue,
    /// The number of calls that wait for other calls of their caller, and are not in the queue yet.
    pub(super) at_caller_limit: usize,
    /// The calls in the queue, by operation.
    pub(super) by_api: HashMap<u32, ApiCalls>,
    /// The deadlines of the calls in the queue.
    pub(super) deadlines: Deadlines,
    /// How many slots have gone to higher classes since this class began to wait or last got a slot.
    pub(super) passed_over: u32,
}

/// The queued calls of a class and an operation, lists or relayed requests. Limits of all callers count them alike.
pub(super) struct ApiCalls {
    /// At least 1.
    pub(super) count: usize,
    /// Without a caller.
    pub(super) draw: Draw,
    /// How long limits of all callers have held them back.
    pub(super) clock: HoldClock,
}

impl ClassQueue {
    /// Adds a call with its deadline. Returns the calls that it waits with.
    pub(super) fn queue(
        &mut self,
        path: &[Party],
        (draw, api): (&Draw, u32),
        (ticket, deadline): (Ticket, Instant),
    ) -> &ApiCalls {
        self.queue.queue(path, ticket);
        self.deadlines.add(deadline);
        let new = || ApiCalls { count: 0, draw: Draw { caller: None, ..draw.clone() }, clock: HoldClock::default() };
        let calls = self.by_api.entry(api).or_insert_with(new);
        calls.count += 1;
        calls
    }

    pub(super) fn withdraw(&mut self, path: &[Party], api: u32, (ticket, deadline): (Ticket, Instant)) {
        self.queue.withdraw(path, ticket);
        self.deadlines.remove(deadline);
        self.uncount(api);
    }

    pub(super) fn uncount(&mut self, api: u32) {
        if let Entry::Occupied(mut calls) = self.by_api.entry(api) {
            calls.get_mut().count -= 1;
            if calls.get().count == 0 {
                calls.remove();
            }
        }
    }
}
