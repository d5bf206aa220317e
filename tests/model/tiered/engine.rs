//! The second tier in memory, and how it can misbehave. It cannot read or forge a record or a notice, as no engine can.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::time::Instant;
use workspace_gateway::testing::cache::second_tier::{
    Lease, LeaseState, Name, Notice, NoticeKind, Order, Place, RecordKind,
};
use workspace_gateway::testing::clock::Clock;

use super::super::domain::Ms;
use super::super::driver::milliseconds;
use super::steps::{Label, Mode, Pick};

/// A lease that is not renewed ends after this.
pub const LEASE: Ms = 1000;

/// Identifies a record, in the order in which they were stored.
pub type RecordId = usize;

/// Identifies a notice, in the order in which gateways made them.
pub type NoticeId = usize;

#[derive(Clone)]
pub(super) struct Record {
    pub(super) id: RecordId,
    pub(super) kind: RecordKind,
    /// The place and the order for which it was sealed.
    pub(super) place: Place,
    pub(super) order: Order,
    /// The order that the engine says it has.
    pub(super) label: Order,
    pub(super) sealed: Bytes,
    pub(super) marker: Option<Name>,
}

/// What a gateway has got.
pub struct Given {
    pub process: usize,
    pub place: Name,
    pub record: RecordId,
    pub kind: RecordKind,
    pub order: Order,
    /// Whether it is what was stored there.
    pub is_genuine: bool,
    /// When it was looked up, by timers.
    pub at: Ms,
}

/// A look-up for records. Not the ones for a ticket only.
pub struct Asked {
    pub process: usize,
    pub places: Vec<Name>,
    pub at: Ms,
}

/// What a gateway has stored.
pub struct Stored {
    pub process: usize,
    pub place: Name,
    pub record: RecordId,
    pub kind: RecordKind,
}

/// What a gateway wants all gateways to know.
pub struct Noticed {
    pub process: usize,
    pub notice: NoticeId,
    pub kind: NoticeKind,
    /// Whether it is told whether or not the engine knows the caller.
    pub is_for_known: bool,
    /// When the engine was told, the last ticket that it voids.
    pub order: Option<Order>,
}

/// What has happened since the last look.
#[derive(Default)]
pub struct Seen {
    pub asked: Vec<Asked>,
    pub given: Vec<Given>,
    pub stored: Vec<Stored>,
    pub noticed: Vec<Noticed>,
}

pub(super) struct LogEntry {
    pub(super) number: u64,
    pub(super) order: Order,
    pub(super) notice: NoticeId,
}

struct HeldLease {
    process: usize,
    /// `None`: other gateways make their own calls.
    holder: Option<[u8; 16]>,
    /// `None` while the holder renews it.
    until: Option<Ms>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) mode: Mode,
    /// How far its clock was moved (ms).
    pub(super) moved: i64,
    pub(super) incarnation: u8,
    pub(super) tickets: u64,
    pub(super) connection: u64,
    /// The last ticket at the time when a set became void, and the notice of that.
    voided: HashMap<Name, (u64, NoticeId)>,
    pub(super) records: BTreeMap<Name, Record>,
    /// All that it was ever sent.
    pub(super) history: Vec<Record>,
    pub(super) is_delaying: bool,
    delayed: Vec<Record>,
    pub(super) notices: Vec<Notice>,
    pub(super) log: Vec<LogEntry>,
    /// The number of the last notice in the log.
    pub(super) last: u64,
    leases: HashMap<Name, HeldLease>,
    holders: u128,
    pub(super) seen: Seen,
}

pub struct Engine {
    pub(super) start: Instant,
    state: Mutex<State>,
}

impl State {
    pub(super) fn order(&self, number: u64) -> Order {
        Order { incarnation: [self.incarnation; 16], number }
    }

    pub(super) fn is_reached(&self) -> bool {
        matches!(self.mode, Mode::Well | Mode::Slow)
    }

    pub(super) fn is_void(&self, place: &Place, order: Order) -> bool {
        let mut voided = place.sets.iter().filter_map(|set| self.voided.get(set));
        order.incarnation != [self.incarnation; 16] || voided.any(|(last, _)| *last >= order.number)
    }

    /// Stores a record, unless one with a later ticket is there.
    pub(super) fn put(&mut self, record: Record) {
        let is_outdated = self.records.get(&record.place.record).is_some_and(|there| {
            there.label.incarnation == record.label.incarnation && there.label.number >= record.label.number
        });
        if record.order.incarnation == [self.incarnation; 16] && !is_outdated {
            self.records.insert(record.place.record, record);
        }
    }

    pub(super) fn put_later(&mut self, record: Record) {
        self.delayed.push(record);
    }

    /// Tells a notice, which may have been told before. Returns the last ticket that it voids.
    pub(super) fn tell(&mut self, notice: NoticeId) -> Order {
        let voids = self.notices[notice].voids;
        if let Some((number, told)) = voids.and_then(|set| self.voided.get(&set))
            && *told == notice
        {
            return self.order(*number);
        }
        (self.tickets, self.last) = (self.tickets + 1, self.last + 1);
        let order = self.order(self.tickets);
        self.voided.extend(voids.map(|set| (set, (order.number, notice))));
        self.log.push(LogEntry { number: self.last, order, notice });
        order
    }

    /// Whether there is a record, a marker or a lease with one of these names.
    pub(super) fn knows(&self, names: &[Name], at: Ms) -> bool {
        names.iter().any(|name| {
            self.records.contains_key(name)
                || self.records.values().any(|record| record.marker == Some(*name))
                || self.leases.get(name).is_some_and(|lease| lease.lasts(at))
        })
    }

    pub(super) fn take_lease(&mut self, process: usize, name: Name, at: Ms) -> LeaseState {
        match self.leases.get(&name).filter(|lease| lease.lasts(at)) {
            Some(HeldLease { holder: None, .. }) => LeaseState::Unshared,
            Some(_) => LeaseState::Elsewhere,
            None => {
                self.holders += 1;
                let holder = self.holders.to_le_bytes();
                self.leases.insert(name, HeldLease { process, holder: Some(holder), until: None });
                LeaseState::Held(Lease { name, holder })
            }
        }
    }

    /// The holder gives a lease back, if that reaches the engine.
    pub(super) fn release(&mut self, lease: Lease, unshared: Option<Ms>, is_reached: bool, at: Ms) {
        let Some(held) = self.leases.get_mut(&lease.name).filter(|held| held.holder == Some(lease.holder)) else {
            return;
        };
        match unshared {
            _ if !is_reached => held.until = held.until.min(Some(at + LEASE)).or(Some(at + LEASE)),
            Some(span) => (held.holder, held.until) = (None, Some(at + span)),
            None => drop(self.leases.remove(&lease.name)),
        }
    }

    /// Nobody renews these leases any more.
    fn end_renewals(&mut self, at: Ms, is_ended: impl Fn(&HeldLease) -> bool) {
        for lease in self.leases.values_mut().filter(|lease| is_ended(lease)) {
            lease.until = lease.until.or(Some(at + LEASE));
        }
    }

    /// A place that has a record.
    fn pick(&self, pick: Pick) -> Option<Name> {
        let mut places: Vec<(RecordId, Name)> =
            self.records.iter().map(|(place, record)| (record.id, *place)).collect();
        places.sort_unstable();
        (!places.is_empty()).then(|| places[pick % places.len()].1)
    }
}

impl HeldLease {
    fn lasts(&self, at: Ms) -> bool {
        self.until.is_none_or(|until| at < until)
    }
}

impl Engine {
    pub fn new(start: Instant) -> Arc<Self> {
        Arc::new(Self { start, state: Mutex::default() })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The time by timers.
    pub(super) fn timer_now(&self) -> Ms {
        milliseconds(Clock::System.timer_now() - self.start)
    }

    pub fn take_seen(&self) -> Seen {
        std::mem::take(&mut self.state().seen)
    }

    pub fn mode(&self) -> Mode {
        self.state().mode
    }

    /// The record that a gateway gets from a place, if nothing is wrong with it.
    pub fn holds(&self, place: &Name) -> Option<RecordId> {
        let state = self.state();
        let record = state.records.get(place)?;
        let is_good = record.place.record == *place && record.label == record.order;
        (is_good && !state.is_void(&record.place, record.order)).then_some(record.id)
    }

    /// Another mode. A connection that was away is another one when it is back.
    pub fn set_mode(&self, mode: Mode) {
        let at = self.timer_now();
        let mut state = self.state();
        state.connection += u64::from(state.mode == Mode::Away && mode != Mode::Away);
        state.mode = mode;
        if !state.is_reached() {
            state.end_renewals(at, |_| true);
        }
    }

    /// A gateway is killed.
    pub fn forsake(&self, process: usize) {
        let at = self.timer_now();
        self.state().end_renewals(at, |lease| lease.process == process);
    }

    pub fn move_clock(&self, by: i64) {
        self.state().moved += by;
    }

    /// A record is evicted.
    pub fn lose(&self, pick: Pick) {
        let mut state = self.state();
        if let Some(place) = state.pick(pick) {
            state.records.remove(&place);
        }
    }

    /// The notices in the log are lost.
    pub fn lose_log(&self) {
        self.state().log.clear();
    }

    /// All data are lost.
    pub fn flush(&self) {
        let mut state = self.state();
        state.records.clear();
        state.voided.clear();
        state.log.clear();
        state.leases.clear();
        (state.incarnation, state.tickets, state.last) = (state.incarnation + 1, 0, 0);
    }

    /// What has become void is forgotten.
    pub fn forget_voided(&self) {
        self.state().voided.clear();
    }

    /// Whether records that are stored arrive later: with the next call of this.
    pub fn delay(&self, is_delaying: bool) {
        let mut state = self.state();
        state.is_delaying = is_delaying;
        for record in std::mem::take(&mut state.delayed) {
            state.put(record);
        }
    }

    /// A record that was stored at some time is put where it belongs, perhaps with another label.
    pub fn repeat(&self, pick: Pick, label: Label) {
        let mut state = self.state();
        if state.history.is_empty() {
            return;
        }
        let mut record = state.history[pick % state.history.len()].clone();
        record.label = match label {
            Label::Own => record.order,
            Label::NextTicket => state.order(state.tickets + 1),
            Label::Incarnation => state.order(record.order.number),
        };
        state.records.insert(record.place.record, record);
    }

    /// Two places get the records of each other.
    pub fn swap(&self, one: Pick, other: Pick) {
        let mut state = self.state();
        if let (Some(one), Some(other)) = (state.pick(one), state.pick(other))
            && let (Some(first), Some(second)) = (state.records.get(&one).cloned(), state.records.get(&other).cloned())
        {
            state.records.extend([(one, second), (other, first)]);
        }
    }
}
