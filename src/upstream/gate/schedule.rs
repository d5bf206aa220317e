//! Which call is next: a pure state machine, told of calls that come and of calls that end.
//!
//! Of N slots, each call under way takes one. A free slot is granted by these rules, in this order:
//!
//! 1. A caller has at most [`GateLimits::per_caller`] calls under way or in the queues below. Its further calls wait for
//!    these, in order of arrival, and stand in nobody else's way. A request without a credential that is verified here
//!    is a caller of its own with all such requests of its connection.
//! 2. A class below the first gets a slot only if it holds, after that, at most half (rounded up) of what the higher
//!    classes leave of N. So with nobody else present, known callers get at most half, and so do unknown ones; beside
//!    known callers that hold their half, unknown ones get at most a quarter.
//!    Calls whose client has closed its sending side get at most a quarter of N (one at least), and no more than that rule
//!    gives them. Those that have a slot when their client closes keep it, until the quarter is held and others wait.
//! 3. Clients that hold less than half of N go before those that hold half or more, whatever their class. A client is a
//!    caller, a peer address or a connection. So nobody keeps more than half while others can use the rest, and
//!    everybody may use what nobody else can.
//! 4. A higher class goes before a lower one.
//! 5. In a class, the client that holds least goes first ([`FairQueue`]). Proved and known callers are told apart by
//!    caller, then by peer address, then by connection. Unknown callers are told apart by peer address, then by
//!    connection, then by caller, for tokens can be invented without end.
//!
//! Exception to 2 to 4: when [`MAX_PASSED_OVER`] slots have gone to higher classes while a class that holds none was
//! waiting, it gets the next slot. So higher classes slow a lower one down, but do not stop it.

use std::collections::{BTreeSet, HashMap};

use strum::VariantArray;

use super::fair_queue::FairQueue;
use super::{Class, GateClient, GateLimits, GateUsage, Party, Ticket};

/// How many slots go to higher classes before a waiting class that holds none gets one.
pub(super) const MAX_PASSED_OVER: u32 = 16;

/// The calls to one service: those under way and those that wait.
pub(super) struct Schedule {
    bounds: GateLimits,
    next_ticket: Ticket,
    calls: HashMap<Ticket, QueuedCall>,
    /// Of each caller with calls: rule 1.
    callers: HashMap<Party, OneCaller>,
    queues: [ClassQueue; Class::VARIANTS.len()],
    /// How many slots each party holds, if any.
    held: HashMap<Party, usize>,
    /// The parties that hold half of all slots or more.
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
    /// It waits for other calls of its caller.
    BehindItself,
    /// It waits in the queue of its class.
    Queued,
    UnderWay,
}

#[derive(Default)]
struct OneCaller {
    /// Calls under way, or in the queue of their class.
    admitted: usize,
    behind_itself: BTreeSet<Ticket>,
}

#[derive(Default)]
struct ClassQueue {
    queue: FairQueue,
    /// Calls that wait for other calls of their caller, and so are not in the queue yet.
    behind_itself: usize,
    /// How many slots have gone to higher classes since it began to wait or last got one.
    passed_over: u32,
}

impl Schedule {
    pub(super) fn new(bounds: GateLimits) -> Self {
        Self {
            bounds,
            next_ticket: 0,
            calls: HashMap::new(),
            callers: HashMap::new(),
            queues: Default::default(),
            held: HashMap::new(),
            heavy: Vec::new(),
            under_way: 0,
        }
    }

    /// A call has come. It waits from now on, until [`Schedule::grant`] gives its ticket.
    pub(super) fn arrive(&mut self, client: GateClient, class: Class) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let caller = self.callers.entry(client.identity()).or_default();
        caller.behind_itself.insert(ticket);
        self.queues[class as usize].behind_itself += 1;
        self.calls.insert(ticket, QueuedCall { client, class, state: CallState::BehindItself });
        self.admit(client);
        ticket
    }

    /// A call is over, or has given up waiting.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        let Some(QueuedCall { client, class, state }) = self.calls.remove(&ticket) else { return };
        let path = client.path(class);
        let queue = &mut self.queues[class as usize];
        match state {
            CallState::BehindItself => queue.behind_itself -= 1,
            CallState::Queued => queue.queue.withdraw(&path, ticket),
            CallState::UnderWay => queue.queue.release(&path),
        }
        if queue.queue.waiting() == 0 {
            queue.passed_over = 0;
        }
        if state == CallState::UnderWay {
            self.under_way -= 1;
            client.parties().for_each(|party| self.lighten(party));
        }
        if let Some(caller) = self.callers.get_mut(&client.identity()) {
            match state {
                CallState::BehindItself => _ = caller.behind_itself.remove(&ticket),
                CallState::Queued | CallState::UnderWay => caller.admitted -= 1,
            }
        }
        self.admit(client);
    }

    /// Grants a free slot to the call that is next, if there are both. To be repeated until there is none.
    pub(super) fn grant(&mut self) -> Option<Ticket> {
        let ticket = self.next()?;
        let call = self.calls.get_mut(&ticket)?;
        call.state = CallState::UnderWay;
        let (client, class) = (call.client, call.class);
        self.queues[class as usize].queue.grant(&client.path(class), ticket);
        self.queues[class as usize].passed_over = 0;
        for lower in Class::VARIANTS.iter().copied().filter(|lower| *lower > class) {
            let lower = &mut self.queues[lower as usize];
            if lower.queue.waiting() > 0 {
                lower.passed_over = lower.passed_over.saturating_add(1);
            }
        }
        self.under_way += 1;
        client.parties().for_each(|party| self.burden(party));
        Some(ticket)
    }

    /// Moves a call under way to the class of those whose client has closed its sending side. `false` if these hold their
    /// quarter and others wait, so that the slot must be released.
    pub(super) fn give_way(&mut self, ticket: Ticket) -> bool {
        let room = self.has_room_for_half_closed();
        let of_others = Class::VARIANTS.iter().copied().filter(|class| *class != Class::HalfClosed);
        let is_wanted = of_others.into_iter().any(|class| self.queues[class as usize].queue.waiting() > 0);
        let Some(call) = self.calls.get_mut(&ticket) else { return true };
        if call.class == Class::HalfClosed || call.state != CallState::UnderWay {
            return true;
        }
        if !room && is_wanted {
            return false;
        }
        let before = std::mem::replace(&mut call.class, Class::HalfClosed);
        let client = call.client;
        self.queues[before as usize].queue.release(&client.path(before));
        let (after, path) = (&mut self.queues[Class::HalfClosed as usize].queue, client.path(Class::HalfClosed));
        after.queue(&path, ticket);
        after.grant(&path, ticket);
        true
    }

    fn has_room_for_half_closed(&self) -> bool {
        self.queues[Class::HalfClosed as usize].queue.held() < (self.bounds.calls / 4).max(1)
    }

    /// Whether another call of a caller would have to wait for calls of its own, or because the caller holds half of all slots
    /// while calls wait. Its peer address and connection do not count: many callers may have them in common.
    pub(super) fn has_to_wait(&self, client: GateClient) -> bool {
        let calls = self.callers.get(&client.identity());
        let is_full = calls.is_some_and(|calls| calls.admitted >= self.bounds.per_caller);
        let is_heavy = || self.heavy.contains(&client.identity());
        is_full || self.queues.iter().any(|class| class.queue.waiting() > 0) && is_heavy()
    }

    /// How many calls of a class there are.
    pub(super) fn usage(&self, class: Class) -> GateUsage {
        let class = &self.queues[class as usize];
        GateUsage { under_way: class.queue.held(), queued: class.queue.waiting() + class.behind_itself }
    }

    /// Admits a caller's next calls to the queue of their class, as many as it may have there.
    fn admit(&mut self, client: GateClient) {
        let Some(caller) = self.callers.get_mut(&client.identity()) else { return };
        while caller.admitted < self.bounds.per_caller {
            let Some(ticket) = caller.behind_itself.pop_first() else { break };
            caller.admitted += 1;
            if let Some(call) = self.calls.get_mut(&ticket) {
                call.state = CallState::Queued;
                let class = &mut self.queues[call.class as usize];
                class.behind_itself -= 1;
                class.queue.queue(&call.client.path(call.class), ticket);
            }
        }
        if caller.admitted == 0 {
            self.callers.remove(&client.identity());
        }
    }

    fn next(&self) -> Option<Ticket> {
        if self.under_way >= self.bounds.calls {
            return None;
        }
        let starving = self.queues.iter().find(|class| class.passed_over >= MAX_PASSED_OVER && class.queue.held() == 0);
        if let Some(ticket) = starving.and_then(|class| class.queue.first(&[])) {
            return Some(ticket);
        }
        let of = |class: Class, except: &[Party]| self.queues[class as usize].queue.first(except);
        let growing = || Class::VARIANTS.iter().copied().filter(|class| self.may_grow(*class));
        growing().find_map(|class| of(class, &self.heavy)).or_else(|| growing().find_map(|class| of(class, &[])))
    }

    /// Whether a class may hold one more slot (rule 2).
    fn may_grow(&self, class: Class) -> bool {
        let held = |class: Class| self.queues[class as usize].queue.held();
        let higher: usize = Class::VARIANTS.iter().copied().filter(|higher| *higher < class).map(held).sum();
        let has_room = class != Class::HalfClosed || self.has_room_for_half_closed();
        has_room && (class == Class::Proved || held(class) < self.bounds.calls.saturating_sub(higher).div_ceil(2))
    }

    fn burden(&mut self, party: Party) {
        let held = self.held.entry(party).or_default();
        *held += 1;
        if *held * 2 >= self.bounds.calls && !self.heavy.contains(&party) {
            self.heavy.push(party);
        }
    }

    fn lighten(&mut self, party: Party) {
        let Some(held) = self.held.get_mut(&party) else { return };
        *held -= 1;
        if *held * 2 < self.bounds.calls {
            self.heavy.retain(|heavy| *heavy != party);
        }
        if *held == 0 {
            self.held.remove(&party);
        }
    }
}

#[cfg(test)]
mod tests;
