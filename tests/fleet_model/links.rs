//! Links: what a gateway does when one breaks, and on a new one.

use super::rules::Rule;
use super::state::{Gateway, Link, NOBODY, Phase, State, each};
use super::steps::{Promise, Step, Steps};

impl Steps<'_> {
    pub(super) fn break_link(&self, gateway: &mut Gateway, link: Link) {
        gateway.link = link;
        gateway.poll = None;
        gateway.unread = 0;
        if self.has(Rule::TicketBoundToLink) {
            let in_flight = gateway.calls.iter_mut().flatten().filter(|call| call.phase == Phase::InFlight);
            in_flight.for_each(|call| (call.ticket, call.incarnation, call.is_isolated) = (0, 0, false));
        }
    }

    pub(super) fn links(&mut self, state: &State, place: usize) {
        let gateway = state.gateways[place];
        if let Some(look_up) = gateway.look_up {
            let mut next = *state;
            let gateway = &mut next.gateways[place];
            gateway.look_up = None;
            if !look_up.is_outdated && gateway.own.is_none() {
                gateway.borrowed = Some(look_up.grant);
                gateway.is_known_caller = true;
            }
            self.push(Step::Borrows(place), next);
        }
        let mut next = *state;
        match gateway.link {
            Link::Master => {
                if state.left.breaks > 0 {
                    next.left.breaks -= 1;
                    self.break_link(&mut next.gateways[place], Link::Broken);
                    self.push(Step::LosesLink(place), next);
                }
                let are_others_linked = |other: &Gateway| other.link != Link::Broken;
                if !gateway.has_settled && state.gateways[..self.bounds.gateways].iter().all(are_others_linked) {
                    let mut next = *state;
                    let gateway = &mut next.gateways[place];
                    gateway.has_settled = true;
                    gateway.is_fresh = false;
                    gateway.poll.iter_mut().for_each(|poll| poll.is_overdue = true);
                    self.push(Step::Settles(place), next);
                }
            }
            Link::Isolated => {
                self.break_link(&mut next.gateways[place], Link::CutOff);
                self.push(Step::LosesLink(place), next);
            }
            Link::Broken | Link::CutOff => {
                if gateway.link == Link::Broken && self.bounds.promise != Promise::Crashed {
                    next.gateways[place].link = Link::CutOff;
                    self.push(Step::IsCutOff(place), next);
                }
                if !state.master.is_full {
                    self.link(state, place);
                }
            }
        }
    }

    fn link(&mut self, state: &State, place: usize) {
        let mut next = *state;
        let mut next_incarnation = next.next_incarnation;
        let incarnation = next.master.open(&mut next_incarnation);
        next.next_incarnation = next_incarnation;
        let engine = next.master;
        let gateway = &mut next.gateways[place];
        gateway.link = Link::Master;
        gateway.has_settled = !self.has(Rule::Settles);
        gateway.is_fresh = false;
        gateway.seen = 0;
        gateway.unread = if self.has(Rule::ReadsFromBeginning) { engine.log } else { 0 };
        let is_new = gateway.incarnation == 0;
        let is_other = !is_new && gateway.incarnation != incarnation;
        let is_back = !is_new && !is_other && engine.last_number < gateway.position;
        let is_same = gateway.history != 0 && engine.history_of(gateway.position) == gateway.history;
        let is_lost = self.may_lose_log() && !is_new && !is_other && gateway.position > 0 && !is_same;
        let is_gap = is_new && self.has(Rule::FirstLinkIsGap)
            || is_other && self.has(Rule::IncarnationShowsGap)
            || is_lost && self.has(Rule::LastEntryShowsGap);
        if is_gap {
            let borrowed = gateway.borrowed;
            self.gap(gateway);
            if is_other && !is_new && !self.has(Rule::IncarnationEndsBorrowed) {
                gateway.borrowed = borrowed;
            }
        }
        if is_new || is_other || is_back || is_lost {
            gateway.position = engine.first_number - 1;
            gateway.history = 0;
        }
        if !self.has(Rule::ReadsFromBeginning) {
            gateway.position = engine.last_number;
        }
        gateway.incarnation = incarnation;
        let last_ticket = gateway.last_ticket;
        let again = if self.has(Rule::TellsAgainAll) {
            gateway.known
        } else {
            gateway.newest.iter().filter(|newest| **newest != NOBODY).fold(0, |all, newest| all | 1 << newest)
        };
        let again = if self.has(Rule::TellsAgainRead) { again } else { again & gateway.own_denials };
        let again = if self.has(Rule::TellsAgain) { again } else { 0 };
        let pending = if self.has(Rule::KeepsPending) { gateway.pending } else { gateway.pending & gateway.known };
        // The promise is that these are told, too.
        next.master.told |= gateway.pending & !gateway.strangers & !pending;
        gateway.pending &= pending;
        gateway.strangers &= pending;
        if self.has(Rule::WentBack) {
            let drawn = self.draw(&mut next, place);
            if is_other || !is_new && drawn.is_some_and(|(_, ticket)| ticket <= last_ticket) {
                next.master.all = self.draw(&mut next, place).unwrap_or_default().1;
            }
        }
        if self.has(Rule::TellsAgainFirst) {
            // The promise is that all these are told.
            next.master.told |= next.gateways[place].known;
            each(again | pending).for_each(|denial| self.tell(&mut next, place, denial));
        } else {
            next.gateways[place].untold_again = again;
        }
        self.push(Step::Links(place), next);
    }
}
