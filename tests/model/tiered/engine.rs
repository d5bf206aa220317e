//! The second tier in memory, and how it can misbehave. It cannot read or forge a record, as no engine can.

use std::collections::{BTreeMap, HashMap};
use std::future::{Future, pending, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use workspace_gateway::testing::cache::second_tier::{
    Lease, LookUp, LookedUp, Name, NewRecord, Notice, Order, Place, SecondTier, Ticket,
};
use workspace_gateway::testing::clock::{Clock, ManualClock};

use super::super::domain::Ms;
use super::super::driver::milliseconds;
use super::steps::{Label, Mode, Pick};

/// Where the engine's clock begins (ms since 1970).
const EPOCH: Ms = 1_800_000_000_000;

/// How long a look-up takes in the slow mode.
const SLOW: Duration = Duration::from_millis(3);

/// Identifies a record, in the order in which they were stored.
pub type RecordId = usize;

#[derive(Clone)]
struct Record {
    id: RecordId,
    /// The place and the order for which it was sealed.
    place: Place,
    order: Order,
    /// The order that the engine says it has.
    label: Order,
    sealed: Bytes,
}

/// What a gateway has got.
pub struct Given {
    pub process: usize,
    pub place: Name,
    pub record: RecordId,
    /// When it was looked up, by timers.
    pub at: Ms,
}

/// A look-up for a record. Not the ones for a ticket only.
pub struct Asked {
    pub process: usize,
    pub place: Name,
    pub at: Ms,
}

/// What has happened since the last look.
#[derive(Default)]
pub struct Seen {
    pub asked: Vec<Asked>,
    pub given: Vec<Given>,
    /// The processes that have stored a record, its place, and the record.
    pub stored: Vec<(usize, Name, RecordId)>,
}

#[derive(Default)]
struct State {
    mode: Mode,
    /// How far its clock was moved (ms).
    moved: i64,
    incarnation: u8,
    tickets: u64,
    connection: u64,
    /// The last ticket at the time when a set became void.
    voided: HashMap<Name, u64>,
    records: BTreeMap<Name, Record>,
    /// All that it was ever sent.
    history: Vec<Record>,
    is_delaying: bool,
    delayed: Vec<Record>,
    seen: Seen,
}

pub struct Engine {
    start: Instant,
    state: Mutex<State>,
}

impl State {
    fn is_void(&self, place: &Place, order: Order) -> bool {
        let mut voided = place.sets.iter().filter_map(|set| self.voided.get(set));
        order.incarnation != [self.incarnation; 16] || voided.any(|last| *last >= order.number)
    }

    /// Stores a record, unless one with a later ticket is there.
    fn put(&mut self, record: Record) {
        let is_outdated = self.records.get(&record.place.record).is_some_and(|there| {
            there.label.incarnation == record.label.incarnation && there.label.number >= record.label.number
        });
        if record.order.incarnation == [self.incarnation; 16] && !is_outdated {
            self.records.insert(record.place.record, record);
        }
    }

    fn tell(&mut self, notice: &Notice) {
        self.tickets += 1;
        let ticket = self.tickets;
        if let Some(set) = notice.voids {
            self.voided.insert(set, ticket);
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

impl Engine {
    pub fn new(start: Instant) -> Arc<Self> {
        Arc::new(Self { start, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
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
        let mut state = self.state();
        state.connection += u64::from(state.mode == Mode::Away && mode != Mode::Away);
        state.mode = mode;
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

    /// All data are lost.
    pub fn flush(&self) {
        let mut state = self.state();
        state.records.clear();
        state.voided.clear();
        (state.incarnation, state.tickets) = (state.incarnation + 1, 0);
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
        let (incarnation, next) = ([state.incarnation; 16], state.tickets + 1);
        record.label = match label {
            Label::Own => record.order,
            Label::NextTicket => Order { incarnation, number: next },
            Label::Incarnation => Order { incarnation, ..record.order },
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

/// The connection of a process to the engine.
pub struct Link {
    engine: Arc<Engine>,
    process: usize,
    clock: ManualClock,
    is_dead: AtomicBool,
    /// What has become void and was not told to the engine yet.
    to_tell: Mutex<Vec<Notice>>,
}

impl Link {
    pub fn new(engine: &Arc<Engine>, process: usize, clock: &ManualClock) -> Arc<Self> {
        Arc::new(Self {
            engine: Arc::clone(engine),
            process,
            clock: clock.clone(),
            is_dead: AtomicBool::new(false),
            to_tell: Mutex::default(),
        })
    }

    /// The process is killed.
    pub fn kill(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }

    /// The engine answers again.
    pub fn tell(&self) {
        let notices = std::mem::take(&mut *self.to_tell.lock().unwrap());
        notices.iter().for_each(|notice| self.engine.state().tell(notice));
    }

    fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }
}

impl SecondTier for Link {
    fn look_up<'a>(&'a self, look_up: LookUp<'a>) -> Pin<Box<dyn Future<Output = Option<LookedUp>> + Send + 'a>> {
        let mut state = self.engine.state();
        let at = milliseconds(Clock::System.timer_now() - self.engine.start);
        for place in look_up.places.iter().filter(|_| look_up.wants_records && !self.is_dead()) {
            state.seen.asked.push(Asked { process: self.process, place: place.record, at });
        }
        if state.mode == Mode::Hangs {
            return Box::pin(pending());
        }
        if state.mode == Mode::Away || self.is_dead() {
            return Box::pin(ready(None));
        }
        state.tickets += 1;
        let order = Order { incarnation: [state.incarnation; 16], number: state.tickets };
        let time = Duration::from_millis((EPOCH + at).saturating_add_signed(state.moved));
        let drawn = Clock::Manual(self.clock.clone()).now();
        let ticket = Some(Ticket { order, time, drawn, connection: state.connection });
        let mut records = Vec::new();
        for place in look_up.places {
            let found = state.records.get(&place.record).cloned();
            let found = found.filter(|record| look_up.wants_records && !state.is_void(place, record.label));
            if let Some(Record { id, .. }) = found {
                state.seen.given.push(Given { process: self.process, place: place.record, record: id, at });
            }
            records.push(found.map(|record| (record.label, record.sealed)));
        }
        let is_slow = state.mode == Mode::Slow;
        Box::pin(async move {
            if is_slow {
                sleep(SLOW).await;
            }
            Some(LookedUp { records, ticket, time, ..LookedUp::default() })
        })
    }

    fn is_current(&self, _: &Place, _: Order, _: u64) -> bool {
        true
    }

    fn release(&self, _: Lease, _: Option<Duration>) {}

    fn store(&self, NewRecord { place, ticket, sealed, .. }: NewRecord) {
        let mut state = self.engine.state();
        let is_reached = matches!(state.mode, Mode::Well | Mode::Slow) && ticket.connection == state.connection;
        if !is_reached || self.is_dead() {
            return;
        }
        let place_name = place.record;
        let record = Record { id: state.history.len(), place, order: ticket.order, label: ticket.order, sealed };
        state.history.push(record.clone());
        state.seen.stored.push((self.process, place_name, record.id));
        if state.is_delaying {
            state.delayed.push(record);
        } else {
            state.put(record);
        }
    }

    fn tell(&self, notice: Notice) {
        match self.engine.mode() {
            _ if self.is_dead() => {}
            Mode::Well | Mode::Slow => self.engine.state().tell(&notice),
            Mode::Away | Mode::Hangs => self.to_tell.lock().unwrap().push(notice),
        }
    }
}
