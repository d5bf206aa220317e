//! What may happen next: each step of a gateway, of an engine, of upstream, and of time.

use super::rules::{Rule, Rules};
use super::state::{
    Call, Denials, Engine, Gateway, Grant, Link, MAX_CALLS, MAX_DENIALS, Phase, Poll, Record, State, each,
};

/// A step. The number is the place of its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    SendsCall(usize),
    Proves(usize, usize),
    IsDenied(usize, usize, usize),
    Stores(usize, usize),
    Tells(usize, u8),
    TellsAgain(usize),
    LooksUp(usize),
    Borrows(usize),
    Polls(usize),
    ReadsPoll(usize),
    LosesLink(usize),
    IsCutOff(usize),
    Links(usize),
    Settles(usize),
    Restarts(usize),
    SecondAfterDenial(u8),
    SecondWhileFull,
    Copy,
    FailsOver,
    Splits,
    IsEmptied,
    EvictsControl,
    EvictsRecord,
    LosesLog,
    TrimsLog,
    Squeezes,
    Fills,
    Drains,
}

/// Which denials count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Those that were told, unless the engine has lost them and all gateways that know them crashed or are cut off.
    Told,
    /// Those, too.
    Lost,
    /// Those, too, and no gateway is cut off.
    Crashed,
    /// Also denials of strangers that are not told.
    Strangers,
}

/// What is searched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) gateways: usize,
    pub(crate) calls: u8,
    pub(crate) faults: u8,
    pub(crate) breaks: u8,
    pub(crate) copies: u8,
    /// Whether a denial may be one of the service.
    pub(crate) has_services: bool,
    /// The faults, one letter each: see `faults.rs`.
    pub(crate) kinds: &'static str,
    pub(crate) promise: Promise,
}

pub(crate) struct Steps<'a> {
    pub(crate) bounds: &'a Bounds,
    pub(crate) rules: Rules,
    pub(crate) out: Vec<(Step, State)>,
}

impl Steps<'_> {
    pub(super) fn has(&self, rule: Rule) -> bool {
        self.rules.has(rule)
    }

    /// Collects all states that may follow.
    pub(crate) fn collect(&mut self, state: &State) {
        self.out.clear();
        for gateway in 0..self.bounds.gateways {
            self.calls(state, gateway);
            self.engine_steps(state, gateway);
            self.links(state, gateway);
        }
        self.time(state);
        self.faults(state);
    }

    pub(super) fn push(&mut self, step: Step, mut state: State) {
        let is_used = |gateway: &Gateway| gateway.link == Link::Isolated;
        if state.isolated.is_some() && !state.gateways.iter().any(is_used) {
            state.isolated = None;
            state.is_isolation_known = false;
            for gateway in &mut state.gateways {
                drop_stores(gateway, |call| call.is_isolated);
            }
        }
        self.forget(&mut state);
        self.out.push((step, state));
    }

    pub(super) fn may_lose_log(&self) -> bool {
        self.bounds.kinds.contains(['l', 't'])
    }

    /// Forgets what makes no difference any more, so that more states are the same.
    fn forget(&self, state: &mut State) {
        if !self.may_lose_log() {
            let engines = [&mut state.master, &mut state.copy].into_iter().chain(&mut state.isolated);
            engines.for_each(|engine| engine.histories = 0);
            state.gateways.iter_mut().for_each(|gateway| gateway.history = 0);
        }
        let may_replace = self.bounds.kinds.contains(['f', 's']);
        if state.left.faults == 0 || !may_replace {
            state.copy = Engine::EMPTY;
            state.left.copies = 0;
        }
        if self.has(Rule::ReadsIncarnation) && self.has(Rule::ReadsVoidOfScope) && self.has(Rule::ReadsVoidOfService) {
            [&mut state.master, &mut state.copy].into_iter().chain(&mut state.isolated).for_each(Engine::forget_record);
        }
        let engines = [&state.master, &state.copy].into_iter().chain(&state.isolated);
        let told = engines.fold(0, |told, engine| told | engine.told);
        let gateways = &state.gateways[..self.bounds.gateways];
        let known = gateways.iter().fold(told, |known, gateway| known | gateway.known | gateway.pending);
        // Nobody can be told any more of the others.
        let lost = !known & !state.was_due;
        state.of_service &= known;
        let records = [&mut state.master.record, &mut state.copy.record].into_iter().flatten();
        let isolated = state.isolated.as_mut().and_then(|engine| engine.record.as_mut());
        records.chain(isolated).for_each(|record| record.old &= !lost);
        let may_be_denied = state.left.calls > 0 || gateways.iter().any(Gateway::has_call_in_flight);
        if !may_be_denied {
            state.denials = MAX_DENIALS;
        }
        for gateway in &mut state.gateways[..self.bounds.gateways] {
            gateway.seen &= told;
            let calls = gateway.calls.iter_mut().flatten();
            calls.for_each(|call| (call.old, call.old_here) = (call.old & !lost, call.old_here & !lost));
            gateway.own.iter_mut().chain(&mut gateway.borrowed).for_each(|grant| grant.old &= !lost);
            gateway.look_up.iter_mut().for_each(|look_up| look_up.grant.old &= !lost);
        }
    }

    fn calls(&mut self, state: &State, place: usize) {
        let free = state.gateways[place].calls.iter().position(Option::is_none);
        if let Some(free) = free.filter(|_| state.left.calls > 0) {
            let mut next = *state;
            next.left.calls -= 1;
            let mut call = Call {
                phase: Phase::InFlight,
                ticket: 0,
                incarnation: 0,
                is_isolated: state.gateways[place].link == Link::Isolated,
                is_late: false,
                old: 0,
                old_here: 0,
            };
            if self.has(Rule::DrawsBeforeCall) {
                (call.incarnation, call.ticket) = self.draw(&mut next, place).unwrap_or((0, 0));
            }
            next.gateways[place].calls[free] = Some(call);
            self.push(Step::SendsCall(place), next);
        }
        for number in 0..MAX_CALLS {
            match state.gateways[place].calls[number] {
                Some(call) if call.phase == Phase::InFlight => {
                    self.proves(state, place, number, call);
                    for set in 0..=usize::from(self.bounds.has_services) {
                        self.is_denied(state, place, number, set);
                    }
                }
                Some(call) => self.stores(state, place, number, call),
                None => {}
            }
        }
    }

    pub(super) fn draw(&self, state: &mut State, place: usize) -> Option<(u8, u8)> {
        let mut next_incarnation = state.next_incarnation;
        let engine = state.engine(place).filter(|engine| !engine.is_full)?;
        let drawn = engine.draw(&mut next_incarnation);
        state.next_incarnation = next_incarnation;
        if self.has(Rule::WentBack) {
            state.gateways[place].last_ticket = drawn.1;
        }
        Some(drawn)
    }

    fn proves(&mut self, state: &State, place: usize, number: usize, mut call: Call) {
        let mut next = *state;
        let gateway = &mut next.gateways[place];
        if call.is_late {
            gateway.remove_call(number);
            return self.push(Step::Proves(place, number), next);
        }
        // The latest proof counts, and it is older than the fewest denials.
        let old = gateway.own.map_or(call.old_here, |own| own.old & call.old_here);
        gateway.own = Some(Grant { old, ticket: if self.has(Rule::IgnoresTickets) { 0 } else { call.ticket } });
        gateway.borrowed = None;
        gateway.is_known_caller = true;
        let has_ticket = call.ticket != 0 || !self.has(Rule::DrawsBeforeCall);
        if gateway.is_linked() && has_ticket {
            call.phase = Phase::Storing;
            call.is_isolated = gateway.link == Link::Isolated;
            gateway.calls[number] = Some(call);
        } else {
            gateway.remove_call(number);
        }
        self.push(Step::Proves(place, number), next);
    }

    fn is_denied(&mut self, state: &State, place: usize, number: usize, set: usize) {
        let denial = state.denials;
        if denial == MAX_DENIALS {
            return;
        }
        let mut next = *state;
        let bit: Denials = 1 << denial;
        next.denials += 1;
        next.of_service |= if set == 0 { 0 } else { bit };
        // From now on, all that was sent before is older than the denial.
        let records = [&mut next.master.record, &mut next.copy.record].into_iter().flatten();
        let isolated = next.isolated.as_mut().and_then(|engine| engine.record.as_mut());
        records.chain(isolated).for_each(|record| record.old |= bit);
        for (other, gateway) in next.gateways.iter_mut().enumerate() {
            for (order, call) in gateway.calls.iter_mut().enumerate() {
                let Some(call) = call else { continue };
                call.old |= bit;
                // The order in which calls of one gateway were sent decides there.
                call.old_here |= if other == place && order > number { 0 } else { bit };
            }
            gateway.own.iter_mut().chain(&mut gateway.borrowed).for_each(|grant| grant.old |= bit);
            gateway.look_up.iter_mut().for_each(|look_up| look_up.grant.old |= bit);
        }
        let is_kept = self.has(Rule::KeepsPending) || state.gateways[place].is_linked();
        let gateway = &mut next.gateways[place];
        gateway.pending |= bit;
        if !gateway.is_known_caller {
            gateway.strangers |= bit;
        } else if is_kept {
            self.learn(gateway, denial, set);
        }
        if self.has(Rule::DeniesAtOnce) {
            gateway.own = None;
            gateway.borrowed = None;
        }
        gateway.is_known_caller = false;
        gateway.look_up.iter_mut().for_each(|look_up| look_up.is_outdated |= self.rules.has(Rule::ChecksApplied));
        if self.has(Rule::DeniesEarlierCalls) {
            gateway.calls[..number].iter_mut().flatten().for_each(|call| call.is_late = true);
        }
        gateway.remove_call(number);
        if !self.has(Rule::IgnoresTickets) || !self.has(Rule::TellsAgainRead) {
            gateway.own_denials |= bit;
        }
        self.push(Step::IsDenied(place, number, set), next);
    }

    fn learn(&self, gateway: &mut Gateway, denial: u8, set: usize) {
        gateway.known |= 1 << denial;
        if !self.has(Rule::TellsAgainAll) {
            gateway.newest[set] = denial;
        }
    }

    fn stores(&mut self, state: &State, place: usize, number: usize, call: Call) {
        let mut next = *state;
        let mut next_incarnation = next.next_incarnation;
        next.gateways[place].remove_call(number);
        let engine = if call.is_isolated { next.isolated.as_mut() } else { Some(&mut next.master) };
        if let Some(engine) = engine.filter(|engine| !engine.is_full) {
            let drawn = (call.incarnation, call.ticket);
            let (incarnation, ticket) =
                if self.has(Rule::DrawsBeforeCall) { drawn } else { engine.draw(&mut next_incarnation) };
            engine.store(Record { incarnation, ticket, old: call.old }, self.rules);
        }
        next.next_incarnation = next_incarnation;
        self.push(Step::Stores(place, number), next);
    }

    /// One gateway tells its engine a denial.
    pub(super) fn tell(&self, state: &mut State, place: usize, denial: u8) {
        let (set, bit): (usize, Denials) = (state.set_of(denial), 1 << denial);
        let link = state.gateways[place].link;
        let is_stranger = state.gateways[place].strangers & bit != 0;
        // The lease of a call ends when its record is stored.
        let is_lease = |call: &Call| call.ticket != 0 && call.is_isolated == (link == Link::Isolated);
        let has_lease =
            state.gateways.iter().any(|gateway| gateway.link == link && gateway.calls.iter().flatten().any(is_lease));
        state.gateways[place].pending &= !bit;
        state.gateways[place].strangers &= !bit;
        let mut next_incarnation = state.next_incarnation;
        let rules = self.rules;
        let Some(engine) = state.engine(place) else { return };
        let has_record = engine.record.is_some();
        if is_stranger && !has_record && !has_lease {
            if self.bounds.promise == Promise::Strangers {
                engine.told |= bit;
            }
            return;
        }
        let by_record = has_record && rules.has(Rule::TellsStrangersOfRecord);
        let by_lease = has_lease && rules.has(Rule::TellsStrangersOfLease);
        if is_stranger && !by_record && !by_lease {
            engine.told |= bit;
            return;
        }
        let is_new = engine.tell(denial, set, &mut next_incarnation, rules);
        state.next_incarnation = next_incarnation;
        if is_new {
            let readers = state.gateways.iter_mut().filter(|gateway| gateway.link == link);
            readers.for_each(|gateway| gateway.unread |= bit);
        }
        self.learn(&mut state.gateways[place], denial, set);
    }

    fn engine_steps(&mut self, state: &State, place: usize) {
        let gateway = state.gateways[place];
        let mut probe = *state;
        let Some(engine) = probe.engine(place).copied() else { return };
        if !engine.is_full {
            for denial in each(gateway.pending) {
                let mut next = *state;
                self.tell(&mut next, place, denial);
                self.push(Step::Tells(place, denial), next);
            }
            if gateway.untold_again != 0 {
                let mut next = *state;
                each(gateway.untold_again).for_each(|denial| self.tell(&mut next, place, denial));
                next.gateways[place].untold_again = 0;
                self.push(Step::TellsAgain(place), next);
            }
        }
        let may_borrow = gateway.pending == 0 || !self.has(Rule::ChecksPending);
        let has_none = gateway.look_up.is_none() && gateway.own.is_none() && gateway.borrowed.is_none();
        if may_borrow
            && has_none
            && let Some(found) = engine.look_up(self.rules)
        {
            let mut next = *state;
            next.gateways[place].look_up = Some(found);
            self.push(Step::LooksUp(place), next);
        }
        if gateway.poll.is_none() {
            self.polls(state, place, &engine);
        } else {
            self.reads_poll(state, place);
        }
    }

    fn polls(&mut self, state: &State, place: usize, engine: &Engine) {
        let mut next = *state;
        let gateway = &mut next.gateways[place];
        let is_gap = self.rules.has(Rule::NumbersShowGap) && engine.first_number > gateway.position + 1;
        let poll = Poll {
            denials: if self.rules.has(Rule::ReadsLog) { gateway.unread } else { 0 },
            tickets: engine.log_tickets,
            last_number: engine.last_number,
            history: engine.history_of(engine.last_number),
            has_gap: is_gap,
            is_other_incarnation: engine.incarnation != gateway.incarnation,
            is_accepted: !engine.is_full,
            is_overdue: false,
            told: engine.told,
        };
        // A poll of a gateway in sync that finds nothing changes nothing, if it counts from its sending.
        let finds = poll.is_other_incarnation || is_gap || gateway.unread != 0 || gateway.seen != engine.told;
        let is_of_use = finds || !self.has(Rule::CountsFromSending);
        if is_of_use || !gateway.is_fresh || gateway.position != engine.last_number {
            gateway.unread = 0;
            gateway.poll = Some(poll);
            self.push(Step::Polls(place), next);
        }
    }

    fn reads_poll(&mut self, state: &State, place: usize) {
        let mut next = *state;
        let gateway = &mut next.gateways[place];
        let Some(poll) = gateway.poll.take() else { return };
        if poll.is_other_incarnation && self.has(Rule::IncarnationEndsLink) {
            let link = if gateway.link == Link::Isolated { Link::CutOff } else { Link::Broken };
            self.break_link(gateway, link);
            return self.push(Step::ReadsPoll(place), next);
        }
        for denial in each(poll.denials) {
            let bit: Denials = 1 << denial;
            if gateway.known & bit == 0 || !self.has(Rule::AppliesOnce) {
                self.apply(gateway, denial, state.set_of(denial), poll.tickets[usize::from(denial)]);
            }
        }
        if poll.has_gap {
            self.gap(gateway);
        }
        if gateway.position != poll.last_number {
            gateway.history = poll.history;
        }
        gateway.position = poll.last_number;
        gateway.seen |= poll.told;
        let is_not_named = self.is_not_named(gateway, state.is_isolation_known);
        let is_recent = !poll.is_overdue || !self.has(Rule::CountsFromSending);
        gateway.is_fresh |= is_recent && !is_not_named && (poll.is_accepted || !self.has(Rule::NeedsWrite));
        self.push(Step::ReadsPoll(place), next);
    }

    /// Whether Sentinels have named another master for long enough.
    pub(super) fn is_not_named(&self, gateway: &Gateway, is_isolation_known: bool) -> bool {
        gateway.link == Link::Isolated && is_isolation_known && self.has(Rule::AsksSentinels)
    }

    /// A notice of another gateway.
    fn apply(&self, gateway: &mut Gateway, denial: u8, set: usize, ticket: u8) {
        self.learn(gateway, denial, set);
        let is_spared = |grant: &Grant| !self.has(Rule::IgnoresTickets) && grant.ticket > ticket;
        if self.has(Rule::EndsOwn) {
            gateway.own = gateway.own.filter(is_spared);
        }
        if self.has(Rule::EndsBorrowed) {
            gateway.borrowed = gateway.borrowed.filter(is_spared);
        }
        if gateway.own.is_none() && gateway.borrowed.is_none() {
            gateway.is_known_caller = false;
        }
        if self.has(Rule::MarksLate) {
            mark_late(gateway);
        }
        if self.has(Rule::ChecksApplied) {
            gateway.look_up.iter_mut().for_each(|look_up| look_up.is_outdated = true);
        }
    }

    pub(super) fn gap(&self, gateway: &mut Gateway) {
        if self.has(Rule::GapEndsOwn) {
            gateway.own = None;
        }
        if self.has(Rule::GapEndsBorrowed) {
            gateway.borrowed = None;
        }
        if self.has(Rule::GapMarksLate) {
            mark_late(gateway);
        }
        if self.has(Rule::GapEndsLookUps) {
            gateway.look_up.iter_mut().for_each(|look_up| look_up.is_outdated = true);
        }
    }
}

fn mark_late(gateway: &mut Gateway) {
    let in_flight = gateway.calls.iter_mut().flatten().filter(|call| call.phase == Phase::InFlight);
    in_flight.for_each(|call| call.is_late = true);
}

pub(super) fn drop_stores(gateway: &mut Gateway, which: impl Fn(&Call) -> bool) {
    for number in (0..MAX_CALLS).rev() {
        if gateway.calls[number].is_some_and(|call| call.phase == Phase::Storing && which(&call)) {
            gateway.remove_call(number);
        }
    }
}
