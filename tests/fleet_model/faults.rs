//! Time, and what can go wrong. In the bounds of a search a letter stands for each kind of fault.

use super::rules::Rule;
use super::state::{Denials, Engine, Gateway, Link, State, each};
use super::steps::{Step, Steps, drop_stores};

impl Steps<'_> {
    pub(super) fn time(&mut self, state: &State) {
        let told = state.isolated.map_or(0, |engine| engine.told) | state.master.told;
        let due =
            state.isolated.map_or(!0, |engine| engine.due | !engine.told) & (state.master.due | !state.master.told);
        for denial in each(told & !due) {
            let mut next = *state;
            let bit: Denials = 1 << denial;
            let is_told_to = |engine: &Engine| engine.told & bit != 0;
            let (by_master, by_isolated) = (is_told_to(&state.master), state.isolated.as_ref().is_some_and(is_told_to));
            next.master.due |= bit & next.master.told;
            next.isolated.iter_mut().for_each(|engine| engine.due |= bit & engine.told);
            next.is_isolation_known |= state.isolated.is_some() && by_master && !by_isolated;
            for gateway in &mut next.gateways[..self.bounds.gateways] {
                let is_told = if gateway.link == Link::Isolated { by_isolated } else { by_master };
                let is_not_named = self.is_not_named(gateway, next.is_isolation_known);
                if (is_told && gateway.seen & bit == 0 || is_not_named) && self.rules.has(Rule::SyncExpires) {
                    gateway.is_fresh = false;
                }
                gateway.poll.iter_mut().for_each(|poll| poll.is_overdue |= poll.told & bit == 0);
            }
            self.push(Step::SecondAfterDenial(denial), next);
        }
        let waits = |gateway: &Gateway| gateway.link == Link::Master && gateway.pending & !gateway.strangers != 0;
        if state.master.is_full && !state.is_full_for_long && state.gateways.iter().any(waits) {
            let mut next = *state;
            next.is_full_for_long = true;
            // A gateway that is linked to a full engine has been linked to it for longer than that.
            next.is_isolation_known = state.isolated.is_some();
            for gateway in &mut next.gateways {
                let is_exempt = gateway.link == Link::Isolated && !self.rules.has(Rule::AsksSentinels);
                gateway.is_fresh &= is_exempt || !self.rules.has(Rule::SyncExpires);
                gateway.poll.iter_mut().for_each(|poll| poll.is_overdue = true);
            }
            self.push(Step::SecondWhileFull, next);
        }
        if state.master.is_full {
            let mut next = *state;
            next.master.is_full = false;
            next.is_full_for_long = false;
            self.push(Step::Drains, next);
        }
        if state.left.copies > 0 && state.copy != state.master {
            let mut next = *state;
            next.left.copies -= 1;
            next.copy = Engine { is_full: false, ..state.master };
            self.push(Step::Copy, next);
        }
    }

    pub(super) fn faults(&mut self, state: &State) {
        if state.left.faults == 0 {
            return;
        }
        let mut base = *state;
        base.left.faults -= 1;
        let kinds = self.bounds.kinds;
        let may = |kind: char| kinds.contains(kind);
        if may('f') && state.copy != state.master || may('f') && state.isolated.is_some() {
            let next = self.replaced(&base, state.copy);
            self.push(Step::FailsOver, next);
        }
        if may('e') {
            let next = self.replaced(&base, Engine::EMPTY);
            self.push(Step::IsEmptied, next);
        }
        if may('s') && state.isolated.is_none() && state.gateways.iter().any(|gateway| gateway.link == Link::Master) {
            let mut next = base;
            next.was_due |= next.master.due;
            next.isolated = Some(next.master);
            next.master = next.copy;
            next.begin_history();
            next.master.due |= next.master.told & state.master.due;
            next.is_full_for_long = false;
            for gateway in &mut next.gateways {
                if gateway.link == Link::Master {
                    gateway.link = Link::Isolated;
                }
                let calls = gateway.calls.iter_mut().flatten();
                calls.filter(|call| call.ticket != 0).for_each(|call| call.is_isolated = true);
            }
            self.push(Step::Splits, next);
        }
        if may('c') && state.master.incarnation != 0 {
            let mut next = base;
            next.master.evict_control();
            self.push(Step::EvictsControl, next);
        }
        if may('r') && state.master.record.is_some() {
            let mut next = base;
            next.master.record = None;
            self.push(Step::EvictsRecord, next);
        }
        for (kind, keeps_last, step) in [('l', false, Step::LosesLog), ('t', true, Step::TrimsLog)] {
            if may(kind) && state.master.log != 0 {
                let mut next = base;
                next.master.trim(keeps_last);
                let master = next.master;
                if master != state.master {
                    let readers = next.gateways.iter_mut().filter(|gateway| gateway.link == Link::Master);
                    readers.for_each(|gateway| gateway.unread = master.remaining(gateway.unread));
                    self.push(step, next);
                }
            }
        }
        if may('q') && state.master.voids.iter().any(|void| void.ticket > 0) {
            let mut next = base;
            next.master.squeeze(self.rules);
            self.push(Step::Squeezes, next);
        }
        if may('u') && !state.master.is_full {
            let mut next = base;
            next.master.is_full = true;
            self.push(Step::Fills, next);
        }
        for place in 0..self.bounds.gateways {
            if may('g') && state.gateways[place] != Gateway::NEW {
                let mut next = base;
                next.gateways[place] = Gateway::NEW;
                self.push(Step::Restarts(place), next);
            }
        }
    }

    /// All links break, and the master's data are others.
    fn replaced(&self, state: &State, by: Engine) -> State {
        let mut next = *state;
        next.was_due |= next.master.due;
        next.isolated = None;
        next.is_isolation_known = false;
        next.master = by;
        next.begin_history();
        next.master.due |= by.told & state.master.due;
        next.is_full_for_long = false;
        for gateway in &mut next.gateways[..self.bounds.gateways] {
            match gateway.link {
                Link::Master => self.break_link(gateway, Link::Broken),
                Link::Isolated => self.break_link(gateway, Link::CutOff),
                Link::Broken | Link::CutOff => {}
            }
            drop_stores(gateway, |_| true);
        }
        next
    }
}
