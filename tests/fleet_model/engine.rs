//! What an engine does in one step, as its scripts do.

use super::rules::{Rule, Rules};
use super::state::{Denials, Engine, Grant, LookUp, NOBODY, Record, SCOPE, SERVICE, Void};

impl Engine {
    /// Begins an incarnation if the control hash is missing.
    fn begin(&mut self, next_incarnation: &mut u8) {
        if self.incarnation == 0 {
            self.incarnation = *next_incarnation;
            *next_incarnation += 1;
        }
    }

    /// The incarnation and a new ticket in it.
    pub(crate) fn draw(&mut self, next_incarnation: &mut u8) -> (u8, u8) {
        self.begin(next_incarnation);
        self.ticket += 1;
        (self.incarnation, self.ticket)
    }

    /// Opens a link.
    pub(crate) fn open(&mut self, next_incarnation: &mut u8) -> u8 {
        self.begin(next_incarnation);
        self.incarnation
    }

    /// Whether a denial has a new entry in the log now.
    pub(crate) fn tell(&mut self, denial: u8, set: usize, next_incarnation: &mut u8, rules: Rules) -> bool {
        self.told |= 1 << denial;
        if self.voids[set].denial == denial {
            return false;
        }
        let (_, ticket) = self.draw(next_incarnation);
        if rules.has(Rule::TellsVoid) {
            self.voids[set] = Void { ticket, denial };
        }
        self.last_number += 1;
        self.histories |= u64::from(self.history) << (3 * self.last_number);
        self.log |= 1 << denial;
        self.last = denial;
        if !rules.has(Rule::IgnoresTickets) {
            self.log_tickets[usize::from(denial)] = ticket;
        }
        true
    }

    pub(crate) fn store(&mut self, record: Record, rules: Rules) {
        if rules.has(Rule::StoresInIncarnation) && record.incarnation != self.incarnation {
            return;
        }
        let is_later = |there: Record| there.incarnation == record.incarnation && there.ticket > record.ticket;
        if rules.has(Rule::StoresIfLatest) && self.record.is_some_and(is_later) {
            return;
        }
        self.record = Some(record);
    }

    /// The record, if it is valid for those who read it.
    pub(crate) fn look_up(&self, rules: Rules) -> Option<LookUp> {
        let record = self.record?;
        let is_of_incarnation = record.incarnation == self.incarnation || !rules.has(Rule::ReadsIncarnation);
        let is_after = |set: usize, rule| record.ticket > self.voids[set].ticket || !rules.has(rule);
        let is_valid = is_of_incarnation
            && is_after(SCOPE, Rule::ReadsVoidOfScope)
            && is_after(SERVICE, Rule::ReadsVoidOfService)
            && record.ticket > self.all;
        let ticket = if rules.has(Rule::IgnoresTickets) { 0 } else { record.ticket };
        is_valid.then_some(LookUp { grant: Grant { old: record.old, ticket }, is_outdated: false })
    }

    /// The control hash is evicted. What was told remains a promise.
    pub(crate) fn evict_control(&mut self) {
        let Engine { record, history, log, last, is_full, told, due, log_tickets, .. } = *self;
        *self = Engine { record, history, log, last, is_full, told, due, log_tickets, ..Engine::EMPTY };
    }

    /// The log loses all entries, or all but the last one.
    pub(crate) fn trim(&mut self, keeps_last: bool) {
        if keeps_last && self.last != NOBODY {
            self.log = 1 << self.last;
            self.first_number = self.last_number.max(1);
        } else {
            self.log = 0;
            self.last = NOBODY;
            self.first_number = self.last_number + 1;
        }
        self.histories &= !0 << (3 * self.first_number);
    }

    /// Which entry has a number, if it is still in the log.
    pub(crate) fn history_of(&self, number: u8) -> u8 {
        (self.histories >> (3 * number)) as u8 & 7
    }

    /// The control hash has too many fields: the void of all grants stands for the removed ones.
    pub(crate) fn squeeze(&mut self, rules: Rules) {
        if rules.has(Rule::RaisesFloor) {
            self.all = self.voids.iter().fold(self.all, |void, there| void.max(there.ticket));
        }
        self.voids = Engine::EMPTY.voids;
    }

    /// A record that cannot become valid again only exists.
    pub(crate) fn forget_record(&mut self) {
        let void = self.voids.iter().fold(self.all, |void, there| void.max(there.ticket));
        let incarnation = self.incarnation;
        let is_void = |record: &&mut Record| record.incarnation != incarnation || record.ticket <= void;
        self.record.iter_mut().filter(is_void).for_each(|record| *record = Record::default());
    }

    pub(crate) fn remaining(&self, unread: Denials) -> Denials {
        unread & self.log
    }
}
