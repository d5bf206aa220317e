//! The link of a process to the engine: what the process has told, what it has read of the log, and how far.

use std::collections::{HashMap, HashSet};
use std::future::{Future, pending, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;
use workspace_gateway::testing::cache::second_tier::{
    Lease, LookUp, LookedUp, Name, NewRecord, Notice, Order, Place, SecondTier, Ticket,
};
use workspace_gateway::testing::clock::{Clock, ManualClock};

use super::super::domain::Ms;
use super::super::driver::milliseconds;
use super::engine::{Asked, Engine, Given, LogEntry, NoticeId, Noticed, Record, State, Stored};
use super::steps::Mode;

/// Where the engine's clock begins (ms since 1970).
const EPOCH: Ms = 1_800_000_000_000;

/// How long a look-up takes in the slow mode.
const SLOW: Duration = Duration::from_millis(3);

/// What a process has read of the log.
pub struct Read {
    pub notices: Vec<ReadNotice>,
    /// Notices have been lost.
    pub has_gap: bool,
    /// All has been read.
    pub is_whole: bool,
}

pub struct ReadNotice {
    pub notice: NoticeId,
    pub voids: Option<Name>,
    pub sealed: Bytes,
    /// The last ticket that it voids.
    pub order: Order,
}

/// What a process knows of notices.
#[derive(Default)]
struct Knowledge {
    /// The last notice about each set that the engine was told.
    known: HashMap<Name, (Order, NoticeId)>,
    /// Grows with each notice.
    serial: u64,
    changed: HashMap<Name, u64>,
    /// About the time before this, nothing is known.
    changed_since: u64,
    /// What the engine was not told yet.
    to_tell: Vec<NoticeId>,
    /// Those that it has made, and those that it has read.
    own: HashSet<NoticeId>,
    read: HashSet<NoticeId>,
    /// The incarnation, and the number of the last notice that was read.
    position: (u8, u64),
}

impl Knowledge {
    fn change(&mut self, set: Option<Name>) {
        self.serial += 1;
        self.changed.extend(set.map(|set| (set, self.serial)));
    }
}

pub struct Link {
    engine: Arc<Engine>,
    process: usize,
    clock: ManualClock,
    is_dead: AtomicBool,
    knowledge: Mutex<Knowledge>,
}

impl Link {
    pub fn new(engine: &Arc<Engine>, process: usize, clock: &ManualClock) -> Arc<Self> {
        // It reads the log from its beginning.
        let state = engine.state();
        let first = state.log.first().map_or(state.last, |entry| entry.number - 1);
        let position = (state.incarnation, first);
        drop(state);
        Arc::new(Self {
            engine: Arc::clone(engine),
            process,
            clock: clock.clone(),
            is_dead: AtomicBool::new(false),
            knowledge: Mutex::new(Knowledge { position, ..Knowledge::default() }),
        })
    }

    /// The process is killed.
    pub fn kill(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
        self.engine.forsake(self.process);
    }

    fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    fn knowledge(&self) -> MutexGuard<'_, Knowledge> {
        self.knowledge.lock().unwrap()
    }

    /// There is a new connection: tells what was not told yet, and again what the engine may have lost.
    /// Returns the last tickets that they void.
    pub fn tell_again(&self) -> Vec<(NoticeId, Order)> {
        let mut state = self.engine.state();
        let mut knowledge = self.knowledge();
        let mut known: Vec<(Name, NoticeId)> =
            knowledge.known.iter().map(|(set, (_, notice))| (*set, *notice)).collect();
        known.sort_unstable_by_key(|(_, notice)| *notice);
        for (set, notice) in known {
            let order = state.tell(notice);
            knowledge.known.insert(set, (order, notice));
        }
        for notice in std::mem::take(&mut knowledge.to_tell) {
            self.tell_one(&mut state, &mut knowledge, notice);
        }
        knowledge.known.values().map(|(order, notice)| (*notice, *order)).collect()
    }

    fn tell_one(&self, state: &mut State, knowledge: &mut Knowledge, notice: NoticeId) {
        let Notice { voids, if_known, .. } = state.notices[notice].clone();
        let is_known = if_known.is_empty() || state.knows(&if_known, self.engine.timer_now());
        if !is_known {
            return;
        }
        let order = state.tell(notice);
        knowledge.known.extend(voids.map(|set| (set, (order, notice))));
        state.seen.noticed.iter_mut().filter(|noticed| noticed.notice == notice).for_each(|it| it.order = Some(order));
    }

    /// Reads at most so many notices. `None` if the engine does not answer.
    pub fn read(&self, most: usize) -> Option<Read> {
        let state = self.engine.state();
        if !state.is_reached() || self.is_dead() {
            return None;
        }
        let mut knowledge = self.knowledge();
        if knowledge.position.0 != state.incarnation {
            knowledge.position = (state.incarnation, 0);
        }
        let (from, mut has_gap) = (knowledge.position.1, false);
        let mut next = from;
        let mut notices = Vec::new();
        for LogEntry { number, order, notice } in state.log.iter().filter(|entry| entry.number > from).take(most) {
            has_gap |= *number > next + 1;
            next = *number;
            let Notice { voids, sealed, .. } = state.notices[*notice].clone();
            if !knowledge.own.contains(notice) && knowledge.read.insert(*notice) {
                knowledge.change(voids);
                knowledge.known.extend(voids.map(|set| (set, (*order, *notice))));
                notices.push(ReadNotice { notice: *notice, voids, sealed, order: *order });
            }
        }
        let is_at_end = state.log.last().is_none_or(|entry| entry.number <= next);
        if is_at_end && next < state.last {
            (has_gap, next) = (true, state.last);
        }
        if has_gap {
            knowledge.serial += 1;
            knowledge.changed_since = knowledge.serial;
        }
        knowledge.position.1 = next;
        Some(Read { notices, has_gap, is_whole: next == state.last })
    }

    /// Whether it knows all that has been told.
    pub fn has_read_all(&self) -> bool {
        let state = self.engine.state();
        self.knowledge().position == (state.incarnation, state.last)
    }

    /// Reads from the beginning of the log next time. What was read of other processes counts as new.
    pub fn read_again(&self) {
        let state = self.engine.state();
        let mut knowledge = self.knowledge();
        let first = state.log.first().map_or(state.last, |entry| entry.number - 1);
        knowledge.position.1 = knowledge.position.1.min(first);
        knowledge.read.clear();
    }
}

impl SecondTier for Link {
    fn look_up<'a>(&'a self, look_up: LookUp<'a>) -> Pin<Box<dyn Future<Output = Option<LookedUp>> + Send + 'a>> {
        let at = self.engine.timer_now();
        let mut state = self.engine.state();
        if look_up.wants_records && !self.is_dead() {
            let places = look_up.places.iter().map(|place| place.record).collect();
            state.seen.asked.push(Asked { process: self.process, places, at });
        }
        if state.mode == Mode::Hangs {
            return Box::pin(pending());
        }
        let knowledge = self.knowledge();
        let waits = |place: &Place| {
            let mut waiting = knowledge.to_tell.iter().filter_map(|notice| state.notices[*notice].voids);
            waiting.any(|set| place.sets.contains(&set))
        };
        if state.mode == Mode::Away || self.is_dead() || look_up.places.iter().any(waits) {
            return Box::pin(ready(None));
        }
        let as_of = knowledge.serial;
        drop(knowledge);
        state.tickets += 1;
        let order = state.order(state.tickets);
        let time = Duration::from_millis((EPOCH + at).saturating_add_signed(state.moved));
        let drawn = Clock::Manual(self.clock.clone()).now();
        let ticket = Some(Ticket { order, time, drawn, connection: state.connection });
        let mut records = Vec::new();
        for place in look_up.places {
            let found = state.records.get(&place.record).cloned();
            let found = found.filter(|record| look_up.wants_records && !state.is_void(place, record.label));
            if let Some(Record { id: record, kind, order, label, place: own, .. }) = found.clone() {
                let is_genuine = order == label && own.record == place.record;
                let (process, place) = (self.process, place.record);
                state.seen.given.push(Given { process, place, record, kind, order, is_genuine, at });
            }
            records.push(found.map(|record| (record.label, record.sealed)));
        }
        let lease = look_up.lease.map(|name| state.take_lease(self.process, name, at)).unwrap_or_default();
        let is_slow = state.mode == Mode::Slow;
        Box::pin(async move {
            if is_slow {
                sleep(SLOW).await;
            }
            Some(LookedUp { records, ticket, lease, time, as_of })
        })
    }

    fn is_current(&self, place: &Place, order: Order, as_of: u64) -> bool {
        let state = self.engine.state();
        let knowledge = self.knowledge();
        let is_valid = |set: &Name| {
            let is_changed = knowledge.changed.get(set).is_some_and(|changed| *changed > as_of);
            let is_void = knowledge
                .known
                .get(set)
                .is_some_and(|(known, _)| known.incarnation == order.incarnation && known.number >= order.number);
            let mut waiting = knowledge.to_tell.iter().map(|notice| state.notices[*notice].voids);
            !is_changed && !is_void && !waiting.any(|waiting| waiting == Some(*set))
        };
        as_of >= knowledge.changed_since && place.sets.iter().all(is_valid)
    }

    fn store(&self, NewRecord { place, ticket, sealed, kind, marker, lease, .. }: NewRecord) {
        let at = self.engine.timer_now();
        let mut state = self.engine.state();
        let is_reached = state.is_reached() && !self.is_dead();
        lease.into_iter().for_each(|lease| state.release(lease, None, is_reached, at));
        if !is_reached || ticket.connection != state.connection {
            return;
        }
        let (process, name, order) = (self.process, place.record, ticket.order);
        let record = Record { id: state.history.len(), kind, place, order, label: order, sealed, marker };
        state.history.push(record.clone());
        state.seen.stored.push(Stored { process, place: name, record: record.id, kind });
        if state.is_delaying {
            state.put_later(record);
        } else {
            state.put(record);
        }
    }

    fn release(&self, lease: Lease, unshared: Option<Duration>) {
        let at = self.engine.timer_now();
        let mut state = self.engine.state();
        let is_reached = state.is_reached() && !self.is_dead();
        state.release(lease, unshared.map(milliseconds), is_reached, at);
    }

    fn tell(&self, notice: Notice) {
        if self.is_dead() {
            return;
        }
        let mut state = self.engine.state();
        let mut knowledge = self.knowledge();
        let (id, kind, is_for_known) = (state.notices.len(), notice.kind, notice.if_known.is_empty());
        knowledge.change(notice.voids);
        knowledge.own.insert(id);
        state.notices.push(notice);
        state.seen.noticed.push(Noticed { process: self.process, notice: id, kind, is_for_known, order: None });
        if state.is_reached() {
            self.tell_one(&mut state, &mut knowledge, id);
        } else {
            knowledge.to_tell.push(id);
        }
    }
}
