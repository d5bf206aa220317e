//! Where entries are kept: the only file that knows moka.
//!
//! moka bounds memory and nothing else. Whether an entry may still be given is decided by
//! [`super::freshness`]; moka's own time limit merely frees what that rule would never give again.
//!
//! What goes in is checked here, under one lock: it was asked for after the last purge and after what
//! is there already, and its scope is not private.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::admission::Unstorable;
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
}

impl Selection {
    fn holds(&self, scope: &Scope) -> bool {
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
    /// It was, for its caller alone: it has shown that callers are told different things, and the
    /// scope is private from now on.
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

/// Each takes two callers with different views to come about.
const MAX_PRIVATE_SCOPES: usize = 1_024;

fn weight(slot: &Slot, bytes: usize) -> u32 {
    u32::try_from(OVERHEAD + size_of::<Slot>() + slot.key.size() + bytes).unwrap_or(u32::MAX)
}

impl Store {
    /// A store of at most `max_bytes`, freeing entries once they are older than `longest_life` and
    /// telling `evicted` why whenever one has to go that nobody asked to remove.
    pub fn new(max_bytes: u64, longest_life: Duration, evicted: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|slot: &Slot, entry: &Arc<Entry>| weight(slot, entry.size()))
            .time_to_live(longest_life)
            .eviction_listener(move |_slot, _entry, cause| match cause {
                RemovalCause::Size => evicted("size"),
                RemovalCause::Expired => evicted("expired"),
                RemovalCause::Explicit | RemovalCause::Replaced => {}
            })
            .build();
        let uncacheable = Cache::builder()
            .max_capacity(MAX_UNCACHEABLE_BYTES)
            .weigher(|slot: &Slot, _: &Mark| weight(slot, size_of::<Mark>()))
            .time_to_live(UNCACHEABLE_FOR)
            .build();
        Self { entries, uncacheable, rules: RwLock::default() }
    }

    /// Where a caller's answer to a question is kept at present.
    pub fn slot(&self, key: &Arc<Key>, caller: Caller) -> Slot {
        self.read().slot(key, caller)
    }

    /// The entry in a slot, fresh or not.
    pub fn get(&self, slot: &Slot) -> Option<Arc<Entry>> {
        self.entries.get(slot)
    }

    /// The present epoch; note it before asking upstream.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.read().purges)
    }

    /// Whether an answer that was asked for at an epoch, to be kept in a slot, may be given to others
    /// than the one who asked for it: no purge since, and not shared in a scope that has become private.
    pub fn may_share(&self, slot: &Slot, asked: Epoch) -> bool {
        let rules = self.read();
        Epoch(rules.purges) == asked && (slot.owner.is_some() || !rules.is_private(slot.key.scope()))
    }

    /// Keeps what a caller was answered, unless something newer is known. Whoever was shown what
    /// before is remembered with the entry, for the tripwire.
    pub fn keep(&self, key: &Arc<Key>, mut entry: Entry, view: View, asked: Epoch) -> Kept {
        // Held until the entry is in, so that a purge comes either before the comparison or after
        // the entry, and removes it.
        let mut rules = self.write();
        if Epoch(rules.purges) != asked {
            return Kept::Purged;
        }
        let mut slot = rules.slot(key, view.caller);
        let before = self.get(&slot);
        if before.as_ref().is_some_and(|before| before.life().sent >= entry.life().sent) {
            return Kept::Outdated;
        }
        let mut tripped = false;
        if slot.owner.is_none() {
            entry.views = before.map(|before| before.views.clone()).unwrap_or_default();
            tripped = entry.views.add(view);
        }
        if tripped {
            entry.views = Views::default();
            rules.make_private(key.scope());
            slot = rules.slot(key, view.caller);
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
        for (slot, _) in self.uncacheable.iter().filter(|(slot, _)| selection.holds(slot.key.scope())) {
            self.uncacheable.invalidate(slot.as_ref());
        }
        let purged = self.remove(|slot| selection.holds(slot.key.scope()));
        // Only now: what was shared before the tripwire must be gone before anything is shared again.
        let mut rules = self.write();
        if *selection == Selection::default() {
            rules.all_private = false;
        }
        if !rules.all_private {
            rules.private.retain(|scope| !selection.holds(scope));
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

    /// What is in use at present.
    pub fn usage(&self) -> Usage {
        self.entries.run_pending_tasks();
        self.uncacheable.run_pending_tasks();
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Response};

    use super::*;
    use crate::cache::freshness::Life;
    use crate::catalogue::Catalogue;
    use crate::clock::Clock;
    use crate::request::caller::Callers;

    const SECOND: Duration = Duration::from_secs(1);

    /// A store, and one question.
    struct Bench {
        store: Store,
        key: Arc<Key>,
        begun: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let catalogue = Catalogue::for_tests(Vec::new());
            let (operation, project_id) = catalogue.operation("/v2/p/products").unwrap();
            let key = Key::read(&catalogue, operation, project_id, None, &HeaderMap::new(), false).unwrap();
            let store = Store::new(1 << 20, 60 * SECOND, |_| {});
            Self { store, key: Arc::new(key), begun: Clock::System.now() }
        }

        fn caller(name: &'static str) -> Caller {
            Callers::new([0; 32]).of_token(&HeaderValue::from_static(name))
        }

        /// What a caller was answered, having asked in this second.
        fn keep(&self, caller: &'static str, body: &'static str, second: u32, asked: Epoch) -> Kept {
            let sent = self.begun + second * SECOND;
            let life = Life { sent, initial_age: Duration::ZERO, ttl: 60 * SECOND, stale_if_error: SECOND };
            let entry = Entry::new(&Response::new(Bytes::from_static(body.as_bytes())), life);
            let digest = *blake3::hash(body.as_bytes()).as_bytes();
            self.store.keep(
                &self.key,
                entry,
                View { digest, caller: Self::caller(caller), sent, received: sent },
                asked,
            )
        }

        fn get(&self, caller: &'static str) -> Option<Bytes> {
            let slot = self.store.slot(&self.key, Self::caller(caller));
            self.store.get(&slot).map(|entry| entry.body().clone())
        }
    }

    #[test]
    fn an_answer_from_before_a_purge_leaves_what_came_after_alone() {
        let bench = Bench::new();
        let before = bench.store.epoch();
        assert_eq!(bench.store.purge(&Selection::default()), 0);
        assert_eq!(bench.keep("a", "new", 1, bench.store.epoch()), Kept::Stored);
        assert_eq!(bench.keep("a", "old", 2, before), Kept::Purged);
        assert_eq!(bench.get("b").unwrap(), "new");
        assert_eq!(bench.store.purge(&Selection::default()), 1);
        assert_eq!(bench.get("b"), None);
    }

    #[test]
    fn newer_means_sent_later() {
        let bench = Bench::new();
        let epoch = bench.store.epoch();
        assert_eq!(bench.keep("a", "second", 2, epoch), Kept::Stored);
        assert_eq!(bench.keep("a", "first", 1, epoch), Kept::Outdated);
        assert_eq!(bench.keep("b", "at once", 2, epoch), Kept::Outdated);
        assert_eq!(bench.get("c").unwrap(), "second");
    }

    #[test]
    fn a_scope_that_has_tripped_is_private_until_purged() {
        let bench = Bench::new();
        let epoch = bench.store.epoch();
        let shared = bench.store.slot(&bench.key, Bench::caller("a"));
        for (second, caller, body) in [(1, "a", "one"), (2, "b", "two"), (3, "a", "one")] {
            assert_eq!(bench.keep(caller, body, second, epoch), Kept::Stored);
        }
        assert!(bench.store.may_share(&shared, epoch));
        assert_eq!(bench.keep("b", "two", 4, epoch), Kept::Tripped);
        assert!(!bench.store.may_share(&shared, epoch));
        assert_eq!((bench.get("b").unwrap(), bench.get("a"), bench.get("c")), ("two".into(), None, None));
        assert_eq!(bench.keep("a", "one", 5, epoch), Kept::Stored);
        assert_eq!((bench.get("b").unwrap(), bench.get("a").unwrap()), ("two".into(), "one".into()));
        assert_eq!(bench.store.usage().private_scopes, 1);

        let elsewhere = Selection { project_id: Some("other".to_owned()), ..Selection::default() };
        bench.store.purge(&elsewhere);
        assert_eq!(bench.store.usage().private_scopes, 1);
        assert_eq!(bench.store.purge(&Selection::default()), 2);
        assert_eq!(bench.keep("a", "one", 6, bench.store.epoch()), Kept::Stored);
        assert_eq!(bench.get("c").unwrap(), "one");
    }

    #[test]
    fn where_more_scopes_are_private_than_can_be_remembered_all_are() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let scope = |number: usize| {
            let path = format!("/v2/{number}/products");
            let (operation, place) = catalogue.operation(&path).unwrap();
            Scope::read(&catalogue, operation, place).unwrap()
        };
        let mut rules = Rules::default();
        (0..MAX_PRIVATE_SCOPES).for_each(|number| rules.make_private(&scope(number)));
        assert!(!rules.is_private(&scope(MAX_PRIVATE_SCOPES)));
        rules.make_private(&scope(MAX_PRIVATE_SCOPES));
        assert!(rules.is_private(&scope(MAX_PRIVATE_SCOPES)) && rules.is_private(&scope(usize::MAX)));
        assert_eq!(rules.private_scopes(), MAX_PRIVATE_SCOPES + 1);
    }

    #[test]
    fn what_cannot_be_kept_is_remembered_for_a_while() {
        let bench = Bench::new();
        let slot = bench.store.slot(&bench.key, Bench::caller("a"));
        bench.store.mark_uncacheable(slot.clone(), Unstorable::Vary, bench.begun);
        let after = |second| bench.store.uncacheable(&slot, bench.begun + second * SECOND);
        assert_eq!((after(59), after(60)), (Some(Unstorable::Vary), None));
        bench.store.unmark(&slot);
        assert_eq!(after(0), None);
        bench.store.mark_uncacheable(slot.clone(), Unstorable::Vary, bench.begun);
        bench.store.purge(&Selection::default());
        assert_eq!(after(0), None);
    }
}
