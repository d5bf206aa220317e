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
//! 6. Calls that keep a response warm get a slot only if no other call can have it. They never go before another
//!    call that waits, also by rule 3. But a call in progress keeps its slot until it ends.
//!
//! Exception to rules 2 to 4, but not to rule 6: if [`MAX_PASSED_OVER`] slots have gone to higher classes while a class
//! without a slot was waiting, this class gets the next slot. So higher classes can delay a lower class but not block
//! it. It does not apply to calls that draw from a limit of all callers: of such a limit, a lower class gets nothing
//! while a higher one waits.
//!
//! A call that a limit of upstream holds back ([`Pace`]) has no slot while it waits, and delays no other call: those of a
//! limit of its caller wait as by rule 1, lists and relayed requests each in their own order, and those of a limit of all
//! callers are passed over in their queues.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strum::VariantArray;

use super::class_queue::ClassQueue;
use super::deadlines::Deadlines;
use super::pace::Pace;
use super::quota_wait::{HoldClock, QuotaWait};
use super::{Class, GateClient, GateLimits, GateUsage, Party, Ticket};
use crate::random::HashMap;
use crate::upstream::quota::{Draw, Hold, LimitKind, Share};

/// How many slots go to higher classes before a waiting class without a slot gets one.
pub(super) const MAX_PASSED_OVER: u32 = 16;

/// The classes of calls that are made because of a client's request.
const CLIENT_CLASSES: [Class; 6] =
    [Class::Proved, Class::Relayed, Class::Unknown, Class::Renewal, Class::Refresh, Class::HalfClosed];

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
    /// The callers whose next call a limit of their own holds back, and until when.
    held_callers: HashMap<Party, Instant>,
    /// No time in `held_callers` is before this one.
    held_until: Option<Instant>,
    /// The operations of calls so far, and whether they are relayed: a limit may hold back either. Their positions are
    /// their numbers in [`Party::Api`].
    apis: Vec<(Option<Arc<str>>, bool)>,
}

struct QueuedCall {
    client: GateClient,
    class: Class,
    draw: Draw,
    /// See [`Schedule::apis`].
    api: u32,
    state: CallState,
    /// When it gives up waiting.
    deadline: Instant,
    quota_wait: QuotaWait,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CallState {
    /// Its caller has reached the limit, so it waits for another call of this caller, or for a limit of upstream that
    /// holds back this caller.
    AtCallerLimit,
    /// Waits in the queue of its class.
    Queued,
    UnderWay,
}

#[derive(Default)]
struct CallerCalls {
    /// Calls under way, or in the queue of their class.
    admitted: usize,
    /// Calls in the queue of their class, by class.
    queued: [u32; Class::VARIANTS.len()],
    /// The calls that wait for their caller: lists, and relayed requests. A limit may hold back either.
    at_caller_limit: [BTreeSet<Ticket>; 2],
    /// The deadlines of all calls that wait.
    deadlines: Deadlines,
    /// How long limits of the caller have held back its calls.
    clock: HoldClock,
}

impl CallerCalls {
    /// The calls that wait for the caller, and that limits hold back like this one.
    fn at_limit_like(&mut self, draw: &Draw) -> &mut BTreeSet<Ticket> {
        &mut self.at_caller_limit[usize::from(draw.share == Share::Relayed)]
    }
}

impl Schedule {
    pub(super) fn new(limits: GateLimits) -> Self {
        Self {
            limits,
            next_ticket: 0,
            calls: HashMap::default(),
            callers: HashMap::default(),
            queues: Default::default(),
            held: HashMap::default(),
            heavy: Vec::new(),
            under_way: 0,
            held_callers: HashMap::default(),
            held_until: None,
            apis: Vec::new(),
        }
    }

    /// Adds a call. It waits until [`Schedule::start_next`] returns its ticket, or for `max_wait`.
    pub(super) fn add(
        &mut self,
        client: GateClient,
        class: Class,
        draw: Draw,
        max_wait: Duration,
        pace: &dyn Pace,
    ) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let is_relayed = draw.share == Share::Relayed;
        let is_same = |known: &(Option<Arc<str>>, bool)| known.0 == draw.api && known.1 == is_relayed;
        let api = self.apis.iter().position(is_same).unwrap_or_else(|| {
            self.apis.push((draw.api.clone(), is_relayed));
            self.apis.len() - 1
        });
        let api = u32::try_from(api).unwrap_or(u32::MAX);
        let caller = self.callers.entry(client.identity()).or_default();
        let deadline = pace.now() + max_wait;
        caller.at_caller_limit[usize::from(is_relayed)].insert(ticket);
        caller.deadlines.add(deadline);
        let mut quota_wait = QuotaWait::default();
        quota_wait.join(&caller.clock, pace.now());
        self.queues[class as usize].at_caller_limit += 1;
        let state = CallState::AtCallerLimit;
        self.calls.insert(ticket, QueuedCall { client, class, draw, api, state, deadline, quota_wait });
        self.admit(client.identity(), pace);
        ticket
    }

    /// Removes a call that has ended or stopped waiting.
    pub(super) fn remove(&mut self, ticket: Ticket, pace: &dyn Pace) {
        let Some(QueuedCall { client, class, state, api, deadline, draw, .. }) = self.calls.remove(&ticket) else {
            return;
        };
        let path = path(&client, class, api);
        let queue = &mut self.queues[class as usize];
        match state {
            CallState::AtCallerLimit => queue.at_caller_limit -= 1,
            CallState::Queued => queue.withdraw(&path, api, (ticket, deadline)),
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
                CallState::AtCallerLimit => _ = caller.at_limit_like(&draw).remove(&ticket),
                CallState::Queued => {
                    caller.admitted -= 1;
                    caller.queued[class as usize] -= 1;
                }
                CallState::UnderWay => caller.admitted -= 1,
            }
            if state != CallState::UnderWay {
                caller.deadlines.remove(deadline);
            }
        }
        self.admit(client.identity(), pace);
    }

    /// Gives a free slot to the next call. The caller repeats this until it returns `None`.
    pub(super) fn start_next(&mut self, pace: &dyn Pace) -> Option<Ticket> {
        loop {
            let ticket = self.next(pace)?;
            let QueuedCall { client, class, ref draw, api, deadline, .. } = *self.calls.get(&ticket)?;
            let path = path(&client, class, api);
            let (held, queue) = (pace.hold(draw, LimitKind::Own, 0), &mut self.queues[class as usize]);
            let caller = self.callers.get_mut(&client.identity())?;
            caller.queued[class as usize] -= 1;
            let call = self.calls.get_mut(&ticket)?;
            call.quota_wait.leave(&queue.by_api.get(&api)?.clock, pace.now());
            if let Some(Hold { policy, until, .. }) = held {
                // Other calls of the caller have been sent meanwhile, through another gate.
                queue.withdraw(&path, api, (ticket, deadline));
                queue.at_caller_limit += 1;
                call.state = CallState::AtCallerLimit;
                caller.admitted -= 1;
                caller.at_limit_like(&call.draw).insert(ticket);
                call.quota_wait.join(&caller.clock, pace.now());
                caller.clock.set(Some(policy), pace.now());
                self.hold_caller(client.identity(), until);
                continue;
            }
            call.state = CallState::UnderWay;
            pace.take(&call.draw);
            queue.uncount(api);
            queue.deadlines.remove(deadline);
            queue.queue.start(&path, ticket);
            caller.deadlines.remove(deadline);
            queue.passed_over = 0;
            for lower in Class::VARIANTS.iter().copied().filter(|lower| *lower > class) {
                let lower = &mut self.queues[lower as usize];
                if lower.queue.waiting() > 0 {
                    lower.passed_over = lower.passed_over.saturating_add(1);
                }
            }
            self.under_way += 1;
            client.parties().for_each(|party| self.count_slot(party));
            // Calls of this caller that were held back because of this one were assumed to have the same share.
            if self.held_callers.contains_key(&client.identity()) {
                self.admit(client.identity(), pace);
            }
            return Some(ticket);
        }
    }

    /// Lets callers continue whose limits hold back nothing any more.
    pub(super) fn admit_held(&mut self, now: Instant, pace: &dyn Pace) {
        if self.held_until.is_none_or(|until| until > now) {
            return;
        }
        let is_free = |until: &Instant| *until <= now;
        let free: Vec<_> = self.held_callers.iter().filter(|(_, until)| is_free(until)).map(|it| *it.0).collect();
        for party in free {
            self.admit(party, pace);
        }
        self.held_until = self.held_callers.values().min().copied();
    }

    /// Lets all callers continue whose limits hold back nothing any more, because limits have changed.
    pub(super) fn admit_all(&mut self, pace: &dyn Pace) {
        let held: Vec<_> = self.held_callers.keys().copied().collect();
        for party in held {
            self.admit(party, pace);
        }
        self.held_until = self.held_callers.values().min().copied();
    }

    fn hold_caller(&mut self, party: Party, until: Instant) {
        self.held_callers.insert(party, until);
        self.held_until = Some(self.held_until.map_or(until, |other| other.min(until)));
    }

    /// When a call may be sent that a limit holds back now, or earlier. `None` if none is held back.
    pub(super) fn next_release(&mut self, pace: &dyn Pace) -> Option<Instant> {
        let groups = self.queues.iter_mut().flat_map(|queue| queue.by_api.values_mut());
        let shared = groups.filter_map(|calls| {
            let hold = pace.hold(&calls.draw, LimitKind::Shared, 0);
            calls.clock.set(hold.map(|hold| hold.policy), pace.now());
            hold.map(|hold| hold.until)
        });
        self.held_until.into_iter().chain(shared).min()
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
        let (client, api) = (call.client, call.api);
        self.queues[before as usize].queue.release(&path(&client, before, api));
        let (after, path) = (&mut self.queues[Class::HalfClosed as usize].queue, path(&client, Class::HalfClosed, api));
        after.queue(&path, ticket);
        after.start(&path, ticket);
        true
    }

    fn has_room_for_half_closed(&self) -> bool {
        self.queues[Class::HalfClosed as usize].queue.held() < (self.limits.calls / 4).max(1)
    }

    pub(super) fn usage(&self, class: Class) -> GateUsage {
        let class = &self.queues[class as usize];
        GateUsage { under_way: class.queue.held(), queued: class.queue.waiting() + class.at_caller_limit }
    }

    /// Moves the next calls of a caller to the queue of their class, up to the limit of the caller, and as many as may be
    /// sent by upstream's limits for it.
    fn admit(&mut self, identity: Party, pace: &dyn Pace) {
        self.held_callers.remove(&identity);
        let mut held = None;
        let Some(caller) = self.callers.get_mut(&identity) else { return };
        let mut is_open = [true; 2];
        while caller.admitted < self.limits.per_caller {
            // The earliest of the lists and relayed requests that are not held back.
            let open = caller.at_caller_limit.iter().enumerate().filter(|(kind, _)| is_open[*kind]);
            let Some((ticket, kind)) = open.filter_map(|(kind, calls)| Some((*calls.first()?, kind))).min() else {
                break;
            };
            if let Some(call) = self.calls.get_mut(&ticket) {
                if let Some(hold) = pace.hold(&call.draw, LimitKind::Own, caller.queued_before(call.class)) {
                    is_open[kind] = false;
                    held = held.filter(|held: &Hold| held.until <= hold.until).or(Some(hold));
                    continue;
                }
                call.state = CallState::Queued;
                let class = &mut self.queues[call.class as usize];
                class.at_caller_limit -= 1;
                caller.queued[call.class as usize] += 1;
                call.quota_wait.leave(&caller.clock, pace.now());
                let group = class.queue(
                    &path(&call.client, call.class, call.api),
                    (&call.draw, call.api),
                    (ticket, call.deadline),
                );
                call.quota_wait.join(&group.clock, pace.now());
            }
            caller.at_caller_limit[kind].remove(&ticket);
            caller.admitted += 1;
        }
        caller.clock.set(held.map(|hold| hold.policy), pace.now());
        if caller.admitted == 0 && caller.at_caller_limit.iter().all(BTreeSet::is_empty) {
            self.callers.remove(&identity);
        }
        if let Some(hold) = held {
            self.hold_caller(identity, hold.until);
        }
    }

    fn next(&self, pace: &dyn Pace) -> Option<Ticket> {
        if self.under_way >= self.limits.calls {
            return None;
        }
        let mut clients = CLIENT_CLASSES.iter();
        let starving = clients.find(|class| {
            let queue = &self.queues[**class as usize];
            queue.passed_over >= MAX_PASSED_OVER && queue.queue.held() == 0
        });
        let shared = |class: Class| self.apis_where(class, |draw| pace.is_shared(draw));
        if let Some(ticket) = starving.and_then(|class| self.first(*class, shared(*class), &[])) {
            return Some(ticket);
        }
        let held = |class| self.apis_where(class, |draw| pace.hold(draw, LimitKind::Shared, 0).is_some());
        let first = |class: Class, except: &[Party]| self.first(class, held(class), except);
        let eligible = || CLIENT_CLASSES.into_iter().filter(|class| self.may_take_slot(*class));
        eligible()
            .find_map(|class| first(class, &self.heavy))
            .or_else(|| eligible().find_map(|class| first(class, &[])))
            .or_else(|| self.may_take_slot(Class::KeepWarm).then(|| first(Class::KeepWarm, &[])).flatten())
    }

    /// The next call of a class among those of other operations and other parties.
    fn first(&self, class: Class, mut except: Vec<Party>, except_parties: &[Party]) -> Option<Ticket> {
        let queue = &self.queues[class as usize];
        // The operations of `except` have calls in this queue.
        if except.len() == queue.by_api.len() {
            return None;
        }
        except.extend(except_parties);
        queue.queue.first(&except)
    }

    /// The operations with calls in the queue of a class for which a condition holds.
    fn apis_where(&self, class: Class, condition: impl Fn(&Draw) -> bool) -> Vec<Party> {
        let apis = self.queues[class as usize].by_api.iter();
        apis.filter(|(_, calls)| condition(&calls.draw)).map(|(api, _)| Party::Api(*api)).collect()
    }

    /// Rule 2.
    fn may_take_slot(&self, class: Class) -> bool {
        let held = |class: Class| self.queues[class as usize].queue.held();
        let higher: usize = Class::VARIANTS.iter().copied().filter(|higher| *higher < class).map(held).sum();
        let has_room = match class {
            Class::Proved | Class::Relayed | Class::Renewal | Class::Refresh | Class::Unknown => true,
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

/// The parties by which a queue is ordered, and then the operation.
fn path(client: &GateClient, class: Class, api: u32) -> Vec<Party> {
    let mut path = client.path(class);
    path.push(Party::Api(api));
    path
}

mod new_call;
mod waits;

#[cfg(test)]
mod tests;
