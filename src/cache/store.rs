//! Where entries are kept: the only file that knows moka.
//!
//! moka bounds memory and nothing else. Whether an entry may still be given is decided by
//! [`super::freshness`]; moka's own time limit merely frees what that rule would never give again.
//!
//! What goes in is checked here, under one lock: it was asked for after the last purge, after the last
//! invalidation of its scope and after what is there already, and it is kept where its scope shares or not.

mod invalidations;
mod private;
mod selection;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::notification::RemovalCause;
use moka::sync::Cache;

use self::invalidations::Invalidations;
pub(crate) use self::private::PrivateExtent;
use self::private::PrivateScopes;
pub use self::selection::PurgeSelection;
use super::admission::Audience;
use super::divergence::{Observation, Observations};
use super::entry::{Draft, Entry};
use super::unstorable::Unstorable;
use crate::budget::Budget;
use crate::request::caller::Caller;
use crate::request::key::{RequestKey, Scope};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Where an entry is kept, and what a flight is boarded for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey {
    /// Whose it is; nobody's in particular if it is shared by all who are granted.
    pub owner: Option<Caller>,
    /// What was asked.
    pub key: Arc<RequestKey>,
}

/// A moment between two purges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

/// What became of an entry that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It was (though moka may prefer what it has).
    Stored,
    /// What is there was asked for no earlier.
    Outdated,
    /// There was a purge since it was asked for.
    Purged,
    /// Its scope was invalidated since it was asked for.
    Invalidated,
}

impl Kept {
    /// Why it was not kept, if it wasn't.
    pub(crate) fn reason(self) -> Option<Unstorable> {
        match self {
            Self::Stored => None,
            Self::Outdated => Some(Unstorable::Outdated),
            Self::Purged => Some(Unstorable::Purged),
            Self::Invalidated => Some(Unstorable::Invalidated),
        }
    }
}

/// What is known of a store's use at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreUsage {
    /// Entries, fresh or not.
    pub entries: u64,
    /// Bytes that they hold.
    pub bytes: u64,
    /// Slots whose answers can't be kept.
    pub uncacheable: u64,
    /// Scopes that have turned private. An operation that is private as a whole counts once.
    pub private_scopes: usize,
}

/// The entries, bounded by bytes.
pub(crate) struct Store {
    entries: Cache<CacheKey, Arc<Entry>>,
    /// The latest word of upstream where that was no: apart, so that it displaces no answer.
    negatives: Cache<CacheKey, Arc<Entry>>,
    uncacheable: Cache<CacheKey, Mark>,
    /// Written whenever something goes in or a purge begins.
    rules: RwLock<SharingState>,
}

/// An answer for this slot could not be kept, so nobody should wait for the next.
#[derive(Clone, Copy)]
struct Mark {
    why: Unstorable,
    until: Instant,
}

#[derive(Default)]
struct SharingState {
    purges: u64,
    /// When the latest purge began, whatever it was of.
    purged: Option<Instant>,
    private: PrivateScopes,
    invalidations: Invalidations,
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
struct EntryExpiry;

impl Expiry<CacheKey, Arc<Entry>> for EntryExpiry {
    fn expire_after_create(&self, _: &CacheKey, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        Some(entry.useful_for())
    }

    fn expire_after_update(
        &self,
        _: &CacheKey,
        entry: &Arc<Entry>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.useful_for())
    }
}

fn weight(cache_key: &CacheKey, bytes: usize) -> u32 {
    u32::try_from(OVERHEAD + size_of::<CacheKey>() + cache_key.key.size() + bytes).unwrap_or(u32::MAX)
}

impl Store {
    /// A store of at most `max_bytes`, freeing entries once they are of no more use and telling `evicted`
    /// why whenever one has to go that nobody asked to remove.
    pub(crate) fn new(
        max_bytes: u64,
        budget: Arc<Budget>,
        evicted: impl Fn(&'static str) + Send + Sync + 'static,
    ) -> Self {
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|cache_key: &CacheKey, entry: &Arc<Entry>| weight(cache_key, entry.size()))
            .expire_after(EntryExpiry)
            .eviction_listener(move |_slot, entry, cause| {
                entry.is_let_go(&budget);
                match cause {
                    RemovalCause::Size => evicted("size"),
                    RemovalCause::Expired => evicted("expired"),
                    RemovalCause::Explicit | RemovalCause::Replaced => {}
                }
            })
            .build();
        let negatives = Cache::builder()
            .max_capacity(MAX_NEGATIVE_BYTES)
            .weigher(|cache_key: &CacheKey, entry: &Arc<Entry>| weight(cache_key, entry.size()))
            .time_to_live(NEGATIVE_FOR)
            .build();
        let uncacheable = Cache::builder()
            .max_capacity(MAX_UNCACHEABLE_BYTES)
            .weigher(|cache_key: &CacheKey, _: &Mark| weight(cache_key, size_of::<Mark>()))
            .time_to_live(UNCACHEABLE_FOR)
            .build();
        Self { entries, negatives, uncacheable, rules: RwLock::default() }
    }

    /// Where a caller's answer to a question is kept at present.
    pub(crate) fn cache_key(&self, key: &Arc<RequestKey>, caller: Caller) -> CacheKey {
        self.read().cache_key(key, caller)
    }

    /// The entry in a slot that may be given, fresh or not: not one from before an invalidation.
    pub(crate) fn get(&self, cache_key: &CacheKey) -> Option<Arc<Entry>> {
        self.entries.get(cache_key).filter(|entry| !self.is_invalidated(cache_key.key.scope(), entry.life().sent))
    }

    /// The entry in a slot that upstream may be asked about. It may be given only if [`Self::get`] gives it, too.
    pub(crate) fn get_to_confirm(&self, cache_key: &CacheKey) -> Option<Arc<Entry>> {
        self.entries.get(cache_key)
    }

    /// Upstream's no to what is asked in a slot, if that is its latest word, and not from before an
    /// invalidation. Whether it may be said again is told by its life; until upstream says otherwise,
    /// nothing stale is given in its place.
    pub(crate) fn negative(&self, cache_key: &CacheKey) -> Option<Arc<Entry>> {
        self.negatives.get(cache_key).filter(|no| !self.is_invalidated(cache_key.key.scope(), no.life().sent))
    }

    /// Whether what was sent for in a scope at a moment has been invalidated since.
    pub(crate) fn is_invalidated(&self, scope: &Scope, sent: Instant) -> bool {
        self.read().invalidations.cover(scope, sent)
    }

    /// Invalidates a scope: what was sent for until this moment is given only after upstream has confirmed it,
    /// and what is on its way is not kept. This is no purge: entries stay, and nothing else changes.
    pub(crate) fn invalidate(&self, scope: &Scope, at: Instant) {
        self.write().invalidations.add(scope, at);
    }

    /// The present epoch; note it before asking upstream.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.read().purges)
    }

    /// Whether an answer that was asked for at an epoch and sent for at a moment, to be kept in a slot, may be
    /// given to others than the one who asked for it: no purge and no invalidation since, and not shared in a
    /// scope that has become private. (Those who boarded before an invalidation could be given it. They go
    /// again, too, so that nothing has to be remembered of when each of them boarded.)
    pub(crate) fn may_share(&self, cache_key: &CacheKey, epoch: Epoch, sent: Instant) -> bool {
        let rules = self.read();
        rules.may_share(cache_key, epoch) && !rules.invalidations.cover(cache_key.key.scope(), sent)
    }

    /// Keeps what a caller was answered, unless something newer is known, and says how much has turned private
    /// by it: callers have been shown to be told different things, or upstream says that they are. Whoever was
    /// shown what before is remembered with the entry, for the tripwire.
    pub(crate) fn keep(
        &self,
        key: &Arc<RequestKey>,
        draft: Draft,
        audience: Audience,
        observation: Observation,
        epoch: Epoch,
    ) -> (Kept, Option<PrivateExtent>) {
        // Held until the entry is in, so that a purge comes either before the comparison or after
        // the entry, and removes it.
        let mut rules = self.write();
        if Epoch(rules.purges) != epoch {
            return (Kept::Purged, None);
        }
        let scope = key.scope();
        // However late it comes, it says that callers are told different things, in whatever scope.
        let varies = audience == Audience::Caller && rules.private.add_operation(scope.operation());
        let mut turned = varies.then_some(PrivateExtent::Operation);
        let mut cache_key = rules.cache_key(key, observation.caller);
        let before = self.entries.get(&cache_key);
        let kept = if rules.invalidations.cover(scope, draft.sent()) {
            Kept::Invalidated
        } else if before.as_ref().is_some_and(|before| before.life().sent >= draft.sent()) {
            Kept::Outdated
        } else if cache_key.owner.is_none() && draft.is_for_one_alone() {
            // It was made for a private scope, and only a purge ends that.
            Kept::Purged
        } else {
            let (mut hits, mut observations) = (Arc::default(), Observations::default());
            if let Some(before) = before {
                hits = Arc::clone(&before.hits);
                observations.clone_from(&before.observations);
            }
            if cache_key.owner.is_some() {
                observations = Observations::default();
            } else if observations.add(observation) {
                observations = Observations::default();
                turned = Some(rules.private.add(scope));
                cache_key = rules.cache_key(key, observation.caller);
            }
            let mut entry = draft.into_entry(cache_key.owner.is_some());
            (entry.hits, entry.observations) = (hits, observations);
            let was_denied_later = |no: &Arc<Entry>| no.life().sent > entry.life().sent;
            if !self.negatives.get(&cache_key).as_ref().is_some_and(was_denied_later) {
                self.negatives.invalidate(&cache_key);
            }
            self.entries.insert(cache_key, Arc::new(entry));
            Kept::Stored
        };
        drop(rules);
        if let Some(reach) = turned {
            self.remove_shared(scope, reach);
        }
        (kept, turned)
    }

    /// Keeps an answer that is shared and was fetched elsewhere, and says whether it was kept: not if something newer is known,
    /// or if it was asked for before the last purge (whatever that was of) or the last invalidation of its scope. It is nobody's
    /// view, for nobody here was shown it.
    pub(crate) fn keep_copy(&self, key: &Arc<RequestKey>, draft: Draft, epoch: Epoch) -> bool {
        let rules = self.write();
        let cache_key = CacheKey { owner: None, key: Arc::clone(key) };
        let before = self.entries.get(&cache_key);
        let is_outdated =
            before.iter().chain(&self.negatives.get(&cache_key)).any(|known| known.life().sent >= draft.sent());
        let is_kept = rules.may_share(&cache_key, epoch)
            && !draft.is_for_one_alone()
            && rules.purged.is_none_or(|purged| draft.sent() > purged)
            && !rules.invalidations.cover(key.scope(), draft.sent())
            && !is_outdated;
        if is_kept {
            let mut entry = draft.into_entry(false);
            if let Some(before) = before {
                (entry.hits, entry.observations) = (Arc::clone(&before.hits), before.observations.clone());
            }
            self.entries.insert(cache_key, Arc::new(entry));
        }
        is_kept
    }

    /// Makes the operation of a scope private, for upstream says that its answers vary on the credential. Says so, if it was
    /// not private already.
    pub(crate) fn make_private(&self, scope: &Scope) -> Option<PrivateExtent> {
        let turned = self.write().private.add_operation(scope.operation()).then_some(PrivateExtent::Operation)?;
        self.remove_shared(scope, turned);
        Some(turned)
    }

    /// Removes what was shared. Without the lock, which hits wait for: nobody looks into a shared slot there any more.
    fn remove_shared(&self, scope: &Scope, reach: PrivateExtent) {
        self.remove(|kept| {
            kept.owner.is_none()
                && match reach {
                    PrivateExtent::Scope => kept.key.scope() == scope,
                    PrivateExtent::Operation => kept.key.operation() == scope.operation(),
                }
        });
    }

    /// Keeps upstream's no to what is asked in a slot, unless something newer is known.
    pub(crate) fn keep_negative(&self, cache_key: &CacheKey, no: Entry, epoch: Epoch) -> Kept {
        let rules = self.write();
        if !rules.may_share(cache_key, epoch) {
            return Kept::Purged;
        }
        if rules.invalidations.cover(cache_key.key.scope(), no.life().sent) {
            return Kept::Invalidated;
        }
        let known = [self.entries.get(cache_key), self.negatives.get(cache_key)];
        if known.iter().flatten().any(|known| known.life().sent >= no.life().sent) {
            return Kept::Outdated;
        }
        self.negatives.insert(cache_key.clone(), Arc::new(no));
        Kept::Stored
    }

    /// Notes that answers for a slot can't be kept.
    pub(crate) fn mark_uncacheable(&self, cache_key: CacheKey, why: Unstorable, now: Instant) {
        self.uncacheable.insert(cache_key, Mark { why, until: now + UNCACHEABLE_FOR });
    }

    /// Takes that back.
    pub(crate) fn unmark(&self, cache_key: &CacheKey) {
        self.uncacheable.invalidate(cache_key);
    }

    /// Why a caller's answers for a slot can't be kept, if that is so: anybody's, or its own.
    pub(crate) fn uncacheable(&self, cache_key: &CacheKey, caller: Caller, now: Instant) -> Option<Unstorable> {
        let mark =
            |cache_key: &CacheKey| self.uncacheable.get(cache_key).filter(|mark| now < mark.until).map(|mark| mark.why);
        mark(cache_key).or_else(|| mark(&cache_key.of(caller)))
    }

    /// Removes the selected entries and says how many. What is being fetched meanwhile is not kept,
    /// and what was known of the selected keys and scopes is forgotten.
    pub(crate) fn purge(&self, selection: &PurgeSelection, now: Instant) -> usize {
        let mut rules = self.write();
        (rules.purges, rules.purged) = (rules.purges + 1, Some(now));
        drop(rules);
        for (cache_key, _) in self.uncacheable.iter().filter(|(cache_key, _)| selection.holds(&cache_key.key)) {
            self.uncacheable.invalidate(cache_key.as_ref());
        }
        for (cache_key, _) in self.negatives.iter().filter(|(cache_key, _)| selection.holds(&cache_key.key)) {
            self.negatives.invalidate(cache_key.as_ref());
        }
        let purged = self.remove(|cache_key| selection.holds(&cache_key.key));
        // Only now: what was shared before the tripwire must be gone before anything is shared again.
        let mut rules = self.write();
        rules.private.purge(selection);
        purged
    }

    fn remove(&self, condition: impl Fn(&CacheKey) -> bool) -> usize {
        let mut removed = 0;
        for (cache_key, _) in self.entries.iter().filter(|(cache_key, _)| condition(cache_key)) {
            self.entries.invalidate(cache_key.as_ref());
            removed += 1;
        }
        removed
    }

    /// Each entry, and where it is kept. Takes its time where there are many.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Arc<CacheKey>, Arc<Entry>)> {
        self.entries.iter()
    }

    /// What is in use at present.
    pub(crate) fn usage(&self) -> StoreUsage {
        self.entries.run_pending_tasks();
        self.uncacheable.run_pending_tasks();
        self.negatives.run_pending_tasks();
        StoreUsage {
            entries: self.entries.entry_count(),
            bytes: self.entries.weighted_size(),
            uncacheable: self.uncacheable.entry_count(),
            private_scopes: self.read().private.count(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, SharingState> {
        self.rules.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, SharingState> {
        self.rules.write()
    }
}

impl CacheKey {
    /// Where what is asked in this slot is kept for a caller alone.
    pub fn of(&self, caller: Caller) -> Self {
        Self { owner: Some(caller), key: Arc::clone(&self.key) }
    }
}

impl SharingState {
    fn may_share(&self, cache_key: &CacheKey, epoch: Epoch) -> bool {
        Epoch(self.purges) == epoch && (cache_key.owner.is_some() || !self.private.holds(cache_key.key.scope()))
    }

    fn cache_key(&self, key: &Arc<RequestKey>, caller: Caller) -> CacheKey {
        CacheKey { owner: self.private.holds(key.scope()).then_some(caller), key: Arc::clone(key) }
    }
}
