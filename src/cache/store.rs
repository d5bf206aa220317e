//! Where entries are kept: the only file that knows moka.
//!
//! moka bounds memory and nothing else. Whether an entry may still be given is decided by
//! [`super::freshness`]; moka's own time limit merely frees what that rule would never give again.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::sync::Cache;

use super::entry::Entry;
use crate::request::caller::Caller;
use crate::request::key::Key;

/// Where an entry is kept: what was asked, and by whom. Entries are not shared between callers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Who asked.
    pub caller: Caller,
    /// What was asked.
    pub key: Key,
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
    fn holds(&self, key: &Key) -> bool {
        self.operation.as_deref().is_none_or(|name| name == key.operation().name)
            && self.project_id.as_deref().is_none_or(|project_id| project_id == key.project_id())
    }
}

/// A moment between two purges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

/// The entries, bounded by bytes.
pub struct Store {
    entries: Cache<Slot, Arc<Entry>>,
    /// Read for as long as an entry goes in, written when a purge begins.
    epoch: RwLock<u64>,
}

/// What moka needs besides the bytes it is told of: its own nodes and our `Arc`. Estimated from
/// moka's structures; being somewhat off shifts the bound, not correctness.
const OVERHEAD: usize = 256;

impl Store {
    /// A store of at most `max_bytes`, freeing entries once they are older than `longest_life` and
    /// telling `evicted` why whenever one has to go that nobody asked to remove.
    pub fn new(max_bytes: u64, longest_life: Duration, evicted: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|slot: &Slot, entry: &Arc<Entry>| {
                u32::try_from(OVERHEAD + slot.key.size() + size_of::<Caller>() + entry.size()).unwrap_or(u32::MAX)
            })
            .time_to_live(longest_life)
            .eviction_listener(move |_slot, _entry, cause| match cause {
                RemovalCause::Size => evicted("size"),
                RemovalCause::Expired => evicted("expired"),
                RemovalCause::Explicit | RemovalCause::Replaced => {}
            })
            .build();
        Self { entries, epoch: RwLock::new(0) }
    }

    /// The entry in a slot, fresh or not.
    pub fn get(&self, slot: &Slot) -> Option<Arc<Entry>> {
        self.entries.get(slot)
    }

    /// The present epoch; note it before asking upstream.
    pub fn epoch(&self) -> Epoch {
        Epoch(*self.read_epoch())
    }

    /// Keeps an entry, unless there was a purge since it was asked for. Says whether it did (though
    /// moka may prefer what it has).
    pub fn insert(&self, slot: Slot, entry: Arc<Entry>, asked: Epoch) -> bool {
        // Held until the entry is in, so that a purge comes either before the comparison or after
        // the entry, and removes it.
        let epoch = self.read_epoch();
        let in_time = Epoch(*epoch) == asked;
        if in_time {
            self.entries.insert(slot, entry);
        }
        in_time
    }

    /// Removes the selected entries and says how many. What is being fetched meanwhile is not kept.
    pub fn purge(&self, selection: &Selection) -> usize {
        *self.epoch.write().unwrap_or_else(PoisonError::into_inner) += 1;
        let mut purged = 0;
        for (slot, _) in self.entries.iter().filter(|(slot, _)| selection.holds(&slot.key)) {
            self.entries.invalidate(slot.as_ref());
            purged += 1;
        }
        purged
    }

    fn read_epoch(&self) -> RwLockReadGuard<'_, u64> {
        self.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many entries there are and how many bytes they hold.
    pub fn usage(&self) -> (u64, u64) {
        self.entries.run_pending_tasks();
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::cache::freshness::Life;
    use crate::catalogue::Catalogue;
    use crate::clock::Clock;
    use crate::request::caller::Callers;

    #[test]
    fn an_answer_from_before_a_purge_leaves_what_came_after_alone() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, project_id) = catalogue.operation("/v2/p/products").unwrap();
        let key = Key::read(&catalogue, operation, project_id, None, &HeaderMap::new(), false).unwrap();
        let slot = Slot { caller: Callers::new([0; 32]).of_token(&HeaderValue::from_static("t")), key };
        let life = Life { sent: Clock::System.now(), initial_age: Duration::ZERO, ttl: Duration::from_secs(60) };
        let entry = |body: &str| Arc::new(Entry::new(&HeaderMap::new(), body.as_bytes(), life));

        let store = Store::new(1 << 20, Duration::from_secs(60), |_| {});
        let before = store.epoch();
        assert_eq!(store.purge(&Selection::default()), 0);
        assert!(store.insert(slot.clone(), entry("new"), store.epoch()));
        assert!(!store.insert(slot.clone(), entry("old"), before));
        assert_eq!(store.get(&slot).unwrap().body(), "new");
        assert_eq!(store.purge(&Selection::default()), 1);
        assert!(store.get(&slot).is_none());
    }
}
