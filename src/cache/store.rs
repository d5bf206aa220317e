//! Where entries are kept: the only file that knows moka.
//!
//! moka bounds memory and nothing else. Whether an entry may still be given is decided by
//! [`super::freshness`]; moka's own time limit merely frees what that rule would never give again.
//!
//! What goes in is checked here, under one lock: it was asked for after the last purge and after what
//! is there already, and its scope is not private.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::admission::{Audience, Unstorable};
use super::entry::Entry;
use super::tripwire::{View, Views};
use crate::catalogue::Sharing;
use crate::request::caller::Caller;
use crate::request::key::{Key, Scope};

/// Where an entry is kept, and what a flight is boarded for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Whose it is; nobody's in particular if it is shared by all who are granted.
    pub owner: Option<Caller>,
    /// What was asked.
    pub key: Arc<Key>,
}

/// What a purge removes. Conditions add up; none at all means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only entries of this operation.
    pub operation: Option<String>,
    /// Only entries of this project.
    pub project_id: Option<String>,
    /// Only answers to this canonical query.
    pub query: Option<String>,
}

impl Selection {
    /// Whether what is kept under a key is among what is selected.
    pub fn holds(&self, key: &Key) -> bool {
        self.query.as_deref().is_none_or(|query| query == key.query()) && self.reaches(key.scope())
    }

    /// Whether all of a scope is among it, so that what is known of the scope as a whole is, too.
    pub fn holds_all_of(&self, scope: &Scope) -> bool {
        self.query.is_none() && self.reaches(scope)
    }

    fn reaches(&self, scope: &Scope) -> bool {
        self.operation.as_deref().is_none_or(|name| *name == *scope.operation().name)
            && self.project_id.as_deref().is_none_or(|project_id| project_id == scope.project_id())
    }
}

/// A moment between two purges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

/// What became of an entry that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It was (though moka may prefer what it has).
    Stored,
    /// What is there was asked for no earlier.
    Outdated,
    /// There was a purge since it was asked for.
    Purged,
    /// It was, for its caller alone: callers have been shown to be told different things, or upstream
    /// says that they are, and the scope is private from now on.
    Tripped,
}

/// What is known of a store's use at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Entries, fresh or not.
    pub entries: u64,
    /// Bytes that they hold.
    pub bytes: u64,
    /// Slots whose answers can't be kept.
    pub uncacheable: u64,
    /// Scopes that the tripwire has made private.
    pub private_scopes: usize,
}

/// The entries, bounded by bytes.
pub struct Store {
    entries: Cache<Slot, Arc<Entry>>,
    /// The latest word of upstream where that was no: apart, so that it displaces no answer.
    negatives: Cache<Slot, Arc<Entry>>,
    uncacheable: Cache<Slot, Mark>,
    /// Written whenever something goes in or a purge begins.
    rules: RwLock<Rules>,
}

/// An answer for this slot could not be kept, so nobody should wait for the next.
#[derive(Clone, Copy)]
struct Mark {
    why: Unstorable,
    until: Instant,
}

#[derive(Default)]
struct Rules {
    purges: u64,
    private: HashSet<Scope>,
    /// There are more private scopes than are kept, so that every scope is one until all is purged.
    all_private: bool,
}

/// What moka needs besides the bytes it is told of: its own nodes, our `Arc`s, and the allocator's
/// share of each. Measured; being somewhat off shifts the bound, not correctness.
const OVERHEAD: usize = 512;

/// How long it is remembered that a question's answers can't be kept, and in how many bytes.
const UNCACHEABLE_FOR: Duration = Duration::from_secs(60);
const MAX_UNCACHEABLE_BYTES: u64 = 1 << 20;

/// How long it is remembered that upstream's latest word was no, and in how many bytes.
const NEGATIVE_FOR: Duration = Duration::from_secs(3600);
const MAX_NEGATIVE_BYTES: u64 = 4 << 20;

/// When moka may free an entry. That bounds memory only: whether an entry may be given is told by its life.
struct UntilUseless;

impl Expiry<Slot, Arc<Entry>> for UntilUseless {
    fn expire_after_create(&self, _: &Slot, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        Some(entry.useful_for())
    }

    fn expire_after_update(&self, _: &Slot, entry: &Arc<Entry>, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(entry.useful_for())
    }
}

/// Each takes two callers with different views to come about.
const MAX_PRIVATE_SCOPES: usize = 1_024;

fn weight(slot: &Slot, bytes: usize) -> u32 {
    u32::try_from(OVERHEAD + size_of::<Slot>() + slot.key.size() + bytes).unwrap_or(u32::MAX)
}

impl Store {
    /// A store of at most `max_bytes`, freeing entries once they are of no more use and telling `evicted`
    /// why whenever one has to go that nobody asked to remove.
    pub fn new(max_bytes: u64, evicted: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|slot: &Slot, entry: &Arc<Entry>| weight(slot, entry.size()))
            .expire_after(UntilUseless)
            .eviction_listener(move |_slot, _entry, cause| match cause {
                RemovalCause::Size => evicted("size"),
                RemovalCause::Expired => evicted("expired"),
                RemovalCause::Explicit | RemovalCause::Replaced => {}
            })
            .build();
        let negatives = Cache::builder()
            .max_capacity(MAX_NEGATIVE_BYTES)
            .weigher(|slot: &Slot, entry: &Arc<Entry>| weight(slot, entry.size()))
            .time_to_live(NEGATIVE_FOR)
            .build();
        let uncacheable = Cache::builder()
            .max_capacity(MAX_UNCACHEABLE_BYTES)
            .weigher(|slot: &Slot, _: &Mark| weight(slot, size_of::<Mark>()))
            .time_to_live(UNCACHEABLE_FOR)
            .build();
        Self { entries, negatives, uncacheable, rules: RwLock::default() }
    }

    /// Where a caller's answer to a question is kept at present.
    pub fn slot(&self, key: &Arc<Key>, caller: Caller) -> Slot {
        self.read().slot(key, caller)
    }

    /// The entry in a slot, fresh or not.
    pub fn get(&self, slot: &Slot) -> Option<Arc<Entry>> {
        self.entries.get(slot)
    }

    /// Upstream's no to what is asked in a slot, if that is its latest word. Whether it may be said again
    /// is told by its life; until upstream says otherwise, nothing stale is given in its place.
    pub fn negative(&self, slot: &Slot) -> Option<Arc<Entry>> {
        self.negatives.get(slot)
    }

    /// The present epoch; note it before asking upstream.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.read().purges)
    }

    /// Whether an answer that was asked for at an epoch, to be kept in a slot, may be given to others
    /// than the one who asked for it: no purge since, and not shared in a scope that has become private.
    pub fn may_share(&self, slot: &Slot, asked: Epoch) -> bool {
        self.read().may_share(slot, asked)
    }

    /// Keeps what a caller was answered, unless something newer is known. Whoever was shown what
    /// before is remembered with the entry, for the tripwire.
    pub fn keep(&self, key: &Arc<Key>, mut entry: Entry, audience: Audience, view: View, asked: Epoch) -> Kept {
        // Held until the entry is in, so that a purge comes either before the comparison or after
        // the entry, and removes it.
        let mut rules = self.write();
        if Epoch(rules.purges) != asked {
            return Kept::Purged;
        }
        let mut slot = rules.slot(key, view.caller);
        let before = self.get(&slot);
        // However late it comes, it says that callers are told different things.
        let varies = slot.owner.is_none() && audience == Audience::Caller;
        if !varies && before.as_ref().is_some_and(|before| before.life().sent >= entry.life().sent) {
            return Kept::Outdated;
        }
        if let Some(before) = &before {
            entry.hits = Arc::clone(&before.hits);
        }
        let mut tripped = varies;
        if slot.owner.is_none() && !varies {
            entry.views = before.map(|before| before.views.clone()).unwrap_or_default();
            tripped = entry.views.add(view);
        }
        if tripped {
            entry.views = Views::default();
            rules.make_private(key.scope());
            slot = rules.slot(key, view.caller);
        }
        let was_denied_later = |no: &Arc<Entry>| no.life().sent > entry.life().sent;
        if !self.negative(&slot).as_ref().is_some_and(was_denied_later) {
            self.negatives.invalidate(&slot);
        }
        self.entries.insert(slot, Arc::new(entry));
        drop(rules);
        if !tripped {
            return Kept::Stored;
        }
        // Without the lock, which hits wait for: nobody looks into a shared slot there any more.
        self.remove(|kept| kept.owner.is_none() && kept.key.scope() == key.scope());
        Kept::Tripped
    }

    /// Keeps upstream's no to what is asked in a slot, unless something newer is known.
    pub fn keep_negative(&self, slot: &Slot, no: Entry, asked: Epoch) -> Kept {
        let rules = self.write();
        if !rules.may_share(slot, asked) {
            return Kept::Purged;
        }
        let known = [self.get(slot), self.negative(slot)];
        if known.iter().flatten().any(|known| known.life().sent >= no.life().sent) {
            return Kept::Outdated;
        }
        self.negatives.insert(slot.clone(), Arc::new(no));
        Kept::Stored
    }

    /// Notes that answers for a slot can't be kept.
    pub fn mark_uncacheable(&self, slot: Slot, why: Unstorable, now: Instant) {
        self.uncacheable.insert(slot, Mark { why, until: now + UNCACHEABLE_FOR });
    }

    /// Takes that back.
    pub fn unmark(&self, slot: &Slot) {
        self.uncacheable.invalidate(slot);
    }

    /// Why answers for a slot can't be kept, if that is so.
    pub fn uncacheable(&self, slot: &Slot, now: Instant) -> Option<Unstorable> {
        self.uncacheable.get(slot).filter(|mark| now < mark.until).map(|mark| mark.why)
    }

    /// Removes the selected entries and says how many. What is being fetched meanwhile is not kept,
    /// and what was known of the selected keys and scopes is forgotten.
    pub fn purge(&self, selection: &Selection) -> usize {
        self.write().purges += 1;
        for (slot, _) in self.uncacheable.iter().filter(|(slot, _)| selection.holds(&slot.key)) {
            self.uncacheable.invalidate(slot.as_ref());
        }
        for (slot, _) in self.negatives.iter().filter(|(slot, _)| selection.holds(&slot.key)) {
            self.negatives.invalidate(slot.as_ref());
        }
        let purged = self.remove(|slot| selection.holds(&slot.key));
        // Only now: what was shared before the tripwire must be gone before anything is shared again.
        let mut rules = self.write();
        if *selection == Selection::default() {
            rules.all_private = false;
        }
        if !rules.all_private {
            rules.private.retain(|scope| !selection.holds_all_of(scope));
        }
        purged
    }

    fn remove(&self, condition: impl Fn(&Slot) -> bool) -> usize {
        let mut removed = 0;
        for (slot, _) in self.entries.iter().filter(|(slot, _)| condition(slot)) {
            self.entries.invalidate(slot.as_ref());
            removed += 1;
        }
        removed
    }

    /// Each entry, and where it is kept. Takes its time where there are many.
    pub fn entries(&self) -> impl Iterator<Item = (Arc<Slot>, Arc<Entry>)> {
        self.entries.iter()
    }

    /// What is in use at present.
    pub fn usage(&self) -> Usage {
        self.entries.run_pending_tasks();
        self.uncacheable.run_pending_tasks();
        self.negatives.run_pending_tasks();
        Usage {
            entries: self.entries.entry_count(),
            bytes: self.entries.weighted_size(),
            uncacheable: self.uncacheable.entry_count(),
            private_scopes: self.read().private_scopes(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Rules> {
        self.rules.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rules {
    fn may_share(&self, slot: &Slot, asked: Epoch) -> bool {
        Epoch(self.purges) == asked && (slot.owner.is_some() || !self.is_private(slot.key.scope()))
    }

    fn make_private(&mut self, scope: &Scope) {
        if self.private.len() < MAX_PRIVATE_SCOPES {
            self.private.insert(scope.clone());
        } else {
            self.all_private = true;
        }
    }

    fn private_scopes(&self) -> usize {
        self.private.len() + usize::from(self.all_private)
    }

    fn is_private(&self, scope: &Scope) -> bool {
        self.all_private || scope.operation().sharing == Sharing::Caller || self.private.contains(scope)
    }

    fn slot(&self, key: &Arc<Key>, caller: Caller) -> Slot {
        Slot { owner: self.is_private(key.scope()).then_some(caller), key: Arc::clone(key) }
    }
}
