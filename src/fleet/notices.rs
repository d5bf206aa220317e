//! What all gateways must know, and whether the engine has been told. Pure.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::commands::{LogEntry, hex};
use crate::cache::second_tier::{Name, Notice, NoticeKind, Order, Place};
use crate::random::HashMap;

/// The most notices of each kind that are kept. With more, everything of the kind becomes void; hints are lost.
const MAX_KEPT: usize = 4_096;
const MAX_HINTS: usize = 64;
/// A longer hint, in bytes, is not told: it has a long key.
const MAX_HINT_SIZE: usize = 2_048;
/// So many notices about one set are kept.
const MAX_OF_SET: usize = 4;
/// So many hints are recognised when they are read again.
const MAX_SEEN: usize = 1_024;
/// The same for notices that void something: more than the log has.
const MAX_APPLIED: usize = 2 * MAX_KEPT;

/// A notice, and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) notice: Notice,
    /// What differs between all notices.
    pub(super) id: String,
    /// Whether the engine was told it before.
    is_told_again: bool,
}

impl Numbered {
    fn new(notice: Notice) -> Self {
        Self { id: id(&notice.sealed), notice, is_told_again: false }
    }

    /// Whether it has this kind, and the engine was not told it before.
    pub(super) fn is_new_of(&self, kind: NoticeKind) -> bool {
        self.notice.kind == kind && !self.is_told_again
    }
}

fn id(sealed: &Bytes) -> String {
    hex(&blake3::hash(sealed).as_bytes()[..16])
}

/// A notice that the engine has been told, by this gateway or another one. The engine may have lost it: a replica that was
/// behind becomes the master, or a backup is restored. So each new link is told it again. An earlier notice about the same set
/// does not stand for it: of two, another master may have either.
struct Known {
    notice: Numbered,
    /// The last ticket that it voids.
    order: Order,
    at: Instant,
}

/// What a notice about everything covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What the engine has.
    Engine,
    /// What gateways have in memory, too.
    Gateways,
}

/// A notice that voids everything of a kind. Each one is another notice.
pub(crate) type Everything = Box<dyn Fn(NoticeKind, Extent) -> Notice + Send + Sync>;

pub(super) struct Notices {
    everything: Everything,
    queue: VecDeque<Numbered>,
    /// Those that are being told. If the same set becomes void meanwhile, that is told, too.
    telling: VecDeque<Numbered>,
    /// Those that are told only if the engine has something of theirs.
    strangers: VecDeque<Numbered>,
    hints: VecDeque<Numbered>,
    /// How many notices about each set have not been told yet.
    waiting: HashMap<Name, usize>,
    /// At most [`MAX_OF_SET`] of each set.
    known: HashMap<Name, Vec<Known>>,
    applied: Applied,
    /// Whether some of `known` were dropped.
    is_incomplete: bool,
    seen_hints: VecDeque<String>,
    /// Grows with each notice about a set, whether it is to be told or was read.
    serial: u64,
    changed: HashMap<Name, u64>,
    /// `changed` knows nothing about the time before this.
    changed_since: u64,
}

impl Notices {
    pub(super) fn new(everything: Everything) -> Self {
        Self {
            everything,
            queue: VecDeque::new(),
            telling: VecDeque::new(),
            strangers: VecDeque::new(),
            hints: VecDeque::new(),
            waiting: HashMap::default(),
            known: HashMap::default(),
            is_incomplete: false,
            applied: Applied::default(),
            seen_hints: VecDeque::new(),
            serial: 0,
            changed: HashMap::default(),
            changed_since: 0,
        }
    }

    /// How many notices the engine has not been told yet. Hints do not count.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.telling.len() + self.strangers.len()
    }

    /// Whether the engine knows all that has become void here.
    pub(super) fn are_told(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the engine may not know yet that a record of this place is void.
    pub(super) fn concerns(&self, place: &Place) -> bool {
        !self.waiting.is_empty() && place.sets.iter().any(|set| self.waiting.contains_key(set))
    }

    /// A number for [`Self::is_current`].
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// Whether no notice that is known here voids a record, there has been none about its place since this number, and none
    /// waits to be told.
    pub(super) fn is_current(&self, place: &Place, order: Order, as_of: u64) -> bool {
        let is_unchanged = |set: &Name| self.changed.get(set).is_none_or(|changed| *changed <= as_of);
        let is_void =
            |known: &Known| known.order.incarnation == order.incarnation && known.order.number >= order.number;
        let is_valid =
            |set: &Name| is_unchanged(set) && !self.known.get(set).is_some_and(|all| all.iter().any(is_void));
        as_of >= self.changed_since && place.sets.iter().all(is_valid) && !self.concerns(place)
    }

    /// Notices were lost, so nothing is known about look-ups that have been sent by now.
    pub(super) fn lose(&mut self) {
        self.serial += 1;
        self.changed_since = self.serial;
    }

    fn change(&mut self, set: Name) {
        self.serial += 1;
        if self.changed.len() >= MAX_KEPT && !self.changed.contains_key(&set) {
            self.changed.clear();
            self.changed_since = self.serial;
        }
        self.changed.insert(set, self.serial);
    }

    /// Adds a notice that is to be told. Returns whether another one was dropped, or this one.
    pub(super) fn add(&mut self, notice: Notice) -> bool {
        let Some(set) = notice.voids else {
            if notice.sealed.len() > MAX_HINT_SIZE {
                return true;
            }
            self.hints.push_back(Numbered::new(notice));
            return self.hints.len() > MAX_HINTS && self.hints.pop_front().is_some();
        };
        self.change(set);
        if !notice.if_known.is_empty() {
            self.wait(set);
            self.strangers.push_back(Numbered::new(notice));
            let dropped = (self.strangers.len() > MAX_KEPT).then(|| self.strangers.pop_front()).flatten();
            dropped.iter().for_each(|dropped| self.end_wait(dropped));
            return dropped.is_some();
        }
        self.add_to_queue(Numbered::new(notice));
        false
    }

    /// With too many of a kind, one about everything takes their place.
    fn add_to_queue(&mut self, notice: Numbered) {
        let kind = notice.notice.kind;
        if self.queue.iter().filter(|queued| queued.is_new_of(kind)).count() >= MAX_KEPT {
            self.queue.retain(|queued| !queued.is_new_of(kind));
            self.recount();
            let everything = (self.everything)(kind, Extent::Gateways);
            everything.voids.iter().for_each(|set| self.change(*set));
            return self.enqueue(Numbered::new(everything));
        }
        self.enqueue(notice);
    }

    fn enqueue(&mut self, notice: Numbered) {
        // The later one says what the earlier one does.
        if let Some(at) = self.queue.iter().position(|queued| queued.notice.voids == notice.notice.voids)
            && let Some(earlier) = self.queue.remove(at)
        {
            self.end_wait(&earlier);
        }
        notice.notice.voids.iter().for_each(|set| self.wait(*set));
        self.queue.push_back(notice);
    }

    fn wait(&mut self, set: Name) {
        *self.waiting.entry(set).or_default() += 1;
    }

    fn end_wait(&mut self, ended: &Numbered) {
        let Some(set) = ended.notice.voids else { return };
        if let Some(count) = self.waiting.get_mut(&set) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&set);
            }
        }
    }

    fn recount(&mut self) {
        self.waiting.clear();
        let sets: Vec<Name> =
            self.queue.iter().chain(&self.strangers).chain(&self.telling).filter_map(set_of).collect();
        sets.into_iter().for_each(|set| self.wait(set));
    }

    /// The next one to tell. [`Self::end`] must follow.
    pub(super) fn begin(&mut self) -> Option<Numbered> {
        let notice = self.queue.pop_front()?;
        self.telling.push_back(notice.clone());
        Some(notice)
    }

    /// The telling of the first one that was begun has ended. `order`: the last ticket that the notice voids.
    pub(super) fn end(&mut self, order: Option<Order>, now: Instant) {
        let Some(told) = self.telling.pop_front() else { return };
        self.end_wait(&told);
        let Some(order) = order else {
            // What is told again may be older.
            let is_covered = |queued: &Numbered| queued.notice.voids == told.notice.voids && !queued.is_told_again;
            if !self.queue.iter().any(is_covered) {
                set_of(&told).into_iter().for_each(|set| self.wait(set));
                self.queue.push_front(told);
            }
            return;
        };
        self.keep(told, order, now);
    }

    fn keep(&mut self, notice: Numbered, order: Order, at: Instant) {
        let Some(set) = set_of(&notice) else { return };
        self.applied.add(&notice.id);
        if self.known.len() >= MAX_KEPT
            && !self.known.contains_key(&set)
            && let Some(oldest) =
                self.known.iter().min_by_key(|(_, all)| all.last().map(|known| known.at)).map(|(set, _)| *set)
        {
            self.known.remove(&oldest);
            self.is_incomplete = true;
        }
        let all = self.known.entry(set).or_default();
        all.retain(|known| known.notice.id != notice.id);
        if all.len() >= MAX_OF_SET {
            all.remove(0);
            self.is_incomplete = true;
        }
        all.push(Known { notice: Numbered { is_told_again: true, ..notice }, order, at });
    }

    pub(super) fn next_hint(&mut self) -> Option<Numbered> {
        let hint = self.hints.pop_front()?;
        self.see(hint.id.clone());
        Some(hint)
    }

    fn see(&mut self, id: String) {
        self.seen_hints.push_back(id);
        if self.seen_hints.len() > MAX_SEEN {
            self.seen_hints.pop_front();
        }
    }

    /// Some of those of which it is not known whether the engine has something of theirs. [`Self::checked`] must follow.
    pub(super) fn strangers(&self, most: usize) -> Vec<Numbered> {
        self.strangers.iter().take(most).cloned().collect()
    }

    /// Whether the engine has something of these strangers.
    pub(super) fn checked(&mut self, strangers: &[Numbered], are_known: &[bool]) {
        for (checked, is_known) in strangers.iter().zip(are_known) {
            // Else it has been dropped meanwhile.
            if self.strangers.front().is_some_and(|stranger| stranger.id == checked.id)
                && let Some(stranger) = self.strangers.pop_front()
            {
                self.end_wait(&stranger);
                if *is_known {
                    self.add_to_queue(stranger);
                }
            }
        }
    }

    /// A notice was read in the log. Returns whether it is new: not this gateway's own one, and not read before.
    pub(super) fn learn(&mut self, entry: &LogEntry, now: Instant) -> bool {
        let LogEntry { incarnation, ticket, voids, ref sealed, .. } = *entry;
        let id = id(sealed);
        let Some(set) = voids else {
            let is_new = !self.seen_hints.contains(&id);
            if is_new {
                self.see(id);
            }
            return is_new;
        };
        let is_own = |own: &Numbered| own.id == id;
        // Each link reads the whole log again. An earlier notice about the set must not end what has come later.
        if self.telling.iter().any(is_own) || self.applied.has(&id) {
            return false;
        }
        self.change(set);
        let notice = Notice { voids, kind: NoticeKind::Entries, sealed: sealed.clone(), if_known: Box::default() };
        self.keep(Numbered { notice, id, is_told_again: true }, Order { incarnation, number: ticket }, now);
        true
    }

    /// There is a new link: what was told within `lifetime` is told again. Hints are too old by now.
    pub(super) fn tell_again(&mut self, lifetime: Duration, now: Instant) {
        self.hints.clear();
        // Those of an earlier link, which has failed.
        self.queue.retain(|queued| !queued.is_told_again);
        self.recount();
        self.known.retain(|_, all| {
            all.retain(|known| now.saturating_duration_since(known.at) < lifetime);
            !all.is_empty()
        });
        let mut known: Vec<(Instant, Numbered)> =
            self.known.values().flatten().map(|known| (known.at, known.notice.clone())).collect();
        known.sort_by_key(|(at, _)| *at);
        for (_, notice) in known {
            set_of(&notice).into_iter().for_each(|set| self.wait(set));
            self.queue.push_back(notice);
        }
        if std::mem::take(&mut self.is_incomplete) {
            self.void_engine();
        }
    }

    /// Everything that the engine has becomes void.
    pub(super) fn void_engine(&mut self) {
        for kind in [NoticeKind::Entries, NoticeKind::Grants] {
            let everything = Numbered::new((self.everything)(kind, Extent::Engine));
            set_of(&everything).into_iter().for_each(|set| self.change(set));
            self.enqueue(everything);
        }
    }
}

/// The ids of the notices that have had their effect here, own ones and those of others.
#[derive(Default)]
struct Applied {
    ids: HashSet<String>,
    in_order: VecDeque<String>,
}

impl Applied {
    fn add(&mut self, id: &str) {
        if self.ids.insert(id.to_owned()) {
            self.in_order.push_back(id.to_owned());
        }
        if self.in_order.len() > MAX_APPLIED
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    fn has(&self, id: &str) -> bool {
        self.ids.contains(id)
    }
}

fn set_of(numbered: &Numbered) -> Option<Name> {
    numbered.notice.voids
}

#[cfg(test)]
mod tests;
