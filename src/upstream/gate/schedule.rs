//! Decides which call gets the next free slot. This is a state machine without I/O, clock or waiting.
//!
//! There are N slots, and each call under way has one. These rules, in this order, select the call for a free slot:
//!
//! 1. A caller has at most [`GateLimits::per_caller`] calls under way or in the queues below. Its further calls wait
//!    for these, in order of arrival, and do not delay other callers. On each connection, all requests without a token
//!    and without a signature that the gateway verifies count as one caller.
//! 2. A class below the first gets a slot only if it then holds at most half (rounded up) of the slots that the higher
//!    classes do not hold. So known callers alone get at most half of N, and unknown callers alone get at most half. If
//!    known callers hold their half, unknown callers get at most a quarter.
//!    Calls whose client has closed its sending side get at most a quarter of N (at least one slot), and no more than
//!    the first sentence allows. If a client closes while its call has a slot, the call keeps it, unless the quarter is
//!    in use and other calls wait.
//!    Calls that keep a response warm get at most an eighth of N (at least one slot), and no more than the first
//!    sentence allows.
//! 3. Clients that hold less than half of N go before those that hold half or more, in all classes. A client is a
//!    caller, a peer address or a connection. So no client keeps more than half while others can use the rest, and
//!    a client may use slots that no other client can use.
//! 4. A higher class goes before a lower one.
//! 5. In a class, the client that holds the fewest slots goes first ([`FairQueue`]). Proved and known callers are
//!    distinguished by caller, then by peer address, then by connection. Unknown callers are distinguished by peer
//!    address, then by connection, then by caller, because anyone can invent tokens.
//!
//! 6. Calls that keep a response warm get a slot only if no other call can have it. They never go before another
//!    call that waits, also by rule 3. But a call in progress keeps its slot until it ends.
//!
//! Exception to rules 2 to 4, but not to rule 6: if [`MAX_PASSED_OVER`] slots have gone to higher classes while a class without a slot was
//! waiting, this class gets the next slot. So higher classes can delay a lower class but not block it.

use std::collections::{BTreeSet, HashMap};

use strum::VariantArray;

use super::fair_queue::FairQueue;
use super::{Class, GateClient, GateLimits, GateUsage, Party, Ticket};

/// How many slots go to higher classes before a waiting class without a slot gets one.
pub(super) const MAX_PASSED_OVER: u32 = 16;

/// The classes of calls that are made for clients.
const CLIENT_CLASSES: [Class; 4] = [Class::Proved, Class::Relayed, Class::Unknown, Class::HalfClosed];

/// All calls to one service, under way and waiting.
pub(super) struct Schedule {
    limits: GateLimits,
    next_ticket: Ticket,
    calls: HashMap<Ticket, QueuedCall>,
    /// For rule 1.
    callers: HashMap<Party, CallerCalls>,
    queues: [ClassQueue; Class::VARIANTS.len()],
    /// How many slots each party holds. Parties without a slot have no entry.
    held: HashMap<Party, usize>,
    /// The parties that hold half of all slots or more (rule 3).
    heavy: Vec<Party>,
    under_way: usize,
}

struct QueuedCall {
    client: GateClient,
    class: Class,
    state: CallState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CallState {
    /// Its caller has reached the limit, so it waits for another call of this caller.
    AtCallerLimit,
    /// Waits in the queue of its class.
    Queued,
    UnderWay,
}

#[derive(Default)]
struct CallerCalls {
    /// Calls under way, or in the queue of their class.
    admitted: usize,
    at_caller_limit: BTreeSet<Ticket>,
}

#[derive(Default)]
struct ClassQueue {
    queue: FairQueue,
    /// The number of calls that wait for other calls of their caller, and are not in the queue yet.
    at_caller_limit: usize,
    /// How many slots have gone to higher classes since this class began to wait or last got a slot.
    passed_over: u32,
}

impl Schedule {
    pub(super) fn new(limits: GateLimits) -> Self {
        Self {
            limits,
            next_ticket: 0,
            calls: HashMap::new(),
            callers: HashMap::new(),
            queues: Default::default(),
            held: HashMap::new(),
            heavy: Vec::new(),
            under_way: 0,
        }
    }

    /// Adds a call. It waits until [`Schedule::start_next`] returns its ticket.
    pub(super) fn add(&mut self, client: GateClient, class: Class) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let caller = self.callers.entry(client.identity()).or_default();
        caller.at_caller_limit.insert(ticket);
        self.queues[class as usize].at_caller_limit += 1;
        self.calls.insert(ticket, QueuedCall { client, class, state: CallState::AtCallerLimit });
        self.admit(client);
        ticket
    }

    /// Removes a call that has ended or stopped waiting.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        let Some(QueuedCall { client, class, state }) = self.calls.remove(&ticket) else { return };
        let path = client.path(class);
        let queue = &mut self.queues[class as usize];
        match state {
            CallState::AtCallerLimit => queue.at_caller_limit -= 1,
            CallState::Queued => queue.queue.withdraw(&path, ticket),
            CallState::UnderWay => queue.queue.release(&path),
        }
        if queue.queue.waiting() == 0 {
            queue.passed_over = 0;
        }
        if state == CallState::UnderWay {
            self.under_way -= 1;
            client.parties().for_each(|party| self.uncount_slot(party));
        }
        if let Some(caller) = self.callers.get_mut(&client.identity()) {
            match state {
                CallState::AtCallerLimit => _ = caller.at_caller_limit.remove(&ticket),
                CallState::Queued | CallState::UnderWay => caller.admitted -= 1,
            }
        }
        self.admit(client);
    }

    /// Gives a free slot to the next call. The caller repeats this until it returns `None`.
    pub(super) fn start_next(&mut self) -> Option<Ticket> {
        let ticket = self.next()?;
        let call = self.calls.get_mut(&ticket)?;
        call.state = CallState::UnderWay;
        let (client, class) = (call.client, call.class);
        self.queues[class as usize].queue.start(&client.path(class), ticket);
        self.queues[class as usize].passed_over = 0;
        for lower in Class::VARIANTS.iter().copied().filter(|lower| *lower > class) {
            let lower = &mut self.queues[lower as usize];
            if lower.queue.waiting() > 0 {
                lower.passed_over = lower.passed_over.saturating_add(1);
            }
        }
        self.under_way += 1;
        client.parties().for_each(|party| self.count_slot(party));
        Some(ticket)
    }

    /// Moves a call under way to [`Class::HalfClosed`]. Returns `false` if this class has used up its quarter and other
    /// calls wait. Then the slot must be released.
    pub(super) fn move_to_half_closed(&mut self, ticket: Ticket) -> bool {
        let has_room = self.has_room_for_half_closed();
        let others_wait = CLIENT_CLASSES
            .iter()
            .filter(|class| **class != Class::HalfClosed)
            .any(|class| self.queues[*class as usize].queue.waiting() > 0);
        let Some(call) = self.calls.get_mut(&ticket) else { return true };
        if call.class == Class::HalfClosed || call.state != CallState::UnderWay {
            return true;
        }
        if !has_room && others_wait {
            return false;
        }
        let before = std::mem::replace(&mut call.class, Class::HalfClosed);
        let client = call.client;
        self.queues[before as usize].queue.release(&client.path(before));
        let (after, path) = (&mut self.queues[Class::HalfClosed as usize].queue, client.path(Class::HalfClosed));
        after.queue(&path, ticket);
        after.start(&path, ticket);
        true
    }

    fn has_room_for_half_closed(&self) -> bool {
        self.queues[Class::HalfClosed as usize].queue.held() < (self.limits.calls / 4).max(1)
    }

    /// Whether another call of a caller would have to wait for its own calls: the caller has reached its limit, or
    /// holds half of all slots while other calls wait. Peer address and connection do not count, because many callers
    /// may share them.
    pub(super) fn has_to_wait(&self, client: GateClient) -> bool {
        let calls = self.callers.get(&client.identity());
        let is_full = calls.is_some_and(|calls| calls.admitted >= self.limits.per_caller);
        let is_heavy = || self.heavy.contains(&client.identity());
        let is_waited_for = || CLIENT_CLASSES.iter().any(|class| self.queues[*class as usize].queue.waiting() > 0);
        is_full || is_waited_for() && is_heavy()
    }

    pub(super) fn usage(&self, class: Class) -> GateUsage {
        let class = &self.queues[class as usize];
        GateUsage { under_way: class.queue.held(), queued: class.queue.waiting() + class.at_caller_limit }
    }

    /// Moves the next calls of a caller to the queue of their class, up to the limit of the caller.
    fn admit(&mut self, client: GateClient) {
        let Some(caller) = self.callers.get_mut(&client.identity()) else { return };
        while caller.admitted < self.limits.per_caller {
            let Some(ticket) = caller.at_caller_limit.pop_first() else { break };
            caller.admitted += 1;
            if let Some(call) = self.calls.get_mut(&ticket) {
                call.state = CallState::Queued;
                let class = &mut self.queues[call.class as usize];
                class.at_caller_limit -= 1;
                class.queue.queue(&call.client.path(call.class), ticket);
            }
        }
        if caller.admitted == 0 {
            self.callers.remove(&client.identity());
        }
    }

    fn next(&self) -> Option<Ticket> {
        if self.under_way >= self.limits.calls {
            return None;
        }
        let mut clients = CLIENT_CLASSES.iter().map(|class| &self.queues[*class as usize]);
        let starving = clients.find(|class| class.passed_over >= MAX_PASSED_OVER && class.queue.held() == 0);
        if let Some(ticket) = starving.and_then(|class| class.queue.first(&[])) {
            return Some(ticket);
        }
        let first = |class: Class, except: &[Party]| self.queues[class as usize].queue.first(except);
        let eligible = || CLIENT_CLASSES.into_iter().filter(|class| self.may_take_slot(*class));
        eligible()
            .find_map(|class| first(class, &self.heavy))
            .or_else(|| eligible().find_map(|class| first(class, &[])))
            .or_else(|| self.may_take_slot(Class::KeepWarm).then(|| first(Class::KeepWarm, &[])).flatten())
    }

    /// Rule 2.
    fn may_take_slot(&self, class: Class) -> bool {
        let held = |class: Class| self.queues[class as usize].queue.held();
        let higher: usize = Class::VARIANTS.iter().copied().filter(|higher| *higher < class).map(held).sum();
        let has_room = match class {
            Class::Proved | Class::Relayed | Class::Unknown => true,
            Class::HalfClosed => self.has_room_for_half_closed(),
            Class::KeepWarm => held(Class::KeepWarm) < (self.limits.calls / 8).max(1),
        };
        has_room && (class == Class::Proved || held(class) < self.limits.calls.saturating_sub(higher).div_ceil(2))
    }

    fn count_slot(&mut self, party: Party) {
        let held = self.held.entry(party).or_default();
        *held += 1;
        if *held * 2 >= self.limits.calls && !self.heavy.contains(&party) {
            self.heavy.push(party);
        }
    }

    fn uncount_slot(&mut self, party: Party) {
        let Some(held) = self.held.get_mut(&party) else { return };
        *held -= 1;
        if *held * 2 < self.limits.calls {
            self.heavy.retain(|heavy| *heavy != party);
        }
        if *held == 0 {
            self.held.remove(&party);
        }
    }
}

#[cfg(test)]
mod tests;
