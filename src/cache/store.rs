//! The store of entries. Only this file uses moka.
//!
//! moka bounds the memory. It does not decide whether an entry may be used: [`super::freshness`] does. moka's time
//! limit only removes entries that can never be used again.
//!
//! Every entry is checked under one lock before it is stored. Its request must have been sent after the latest purge,
//! after the latest invalidation of its scope, and after that of the present entry. The scope decides whether it is
//! shared.

mod copies;
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
use self::private::PrivateScopes;
pub(crate) use self::private::{PrivateExtent, PrivateName};
pub use self::selection::PurgeSelection;
use super::admission::Audience;
pub use super::cache_key::CacheKey;
use super::divergence::{Observation, Observations};
use super::entry::{Entry, EntryBuilder};
use super::revocations::Revocations;
use super::staleness::Staleness;
use super::unstorable::Unstorable;
use crate::budget::Budget;
use crate::request::caller::Caller;
use crate::request::key::{RequestKey, Scope};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The number of purges so far. It shows whether there was a purge since a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreResult {
    /// Stored. moka may still evict it immediately if the cache is full.
    Stored,
    /// Not stored: the request of the present entry was sent at the same time or later.
    Outdated,
    /// Not stored: there was a purge after the request had been sent.
    Purged,
    /// Not stored: the scope was invalidated after the request had been sent.
    Invalidated,
}

impl StoreResult {
    /// Why the entry was not stored. `None` if it was.
    pub(crate) fn reason(self) -> Option<Unstorable> {
        match self {
            Self::Stored => None,
            Self::Outdated => Some(Unstorable::Outdated),
            Self::Purged => Some(Unstorable::Purged),
            Self::Invalidated => Some(Unstorable::Invalidated),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct StoreUsage {
    /// Entries, fresh or not.
    pub entries: u64,
    pub bytes: u64,
    /// Cache keys that are marked as uncacheable.
    pub uncacheable: u64,
    /// Scopes that have become private. An operation that is private as a whole counts once.
    pub private_scopes: usize,
}

pub(crate) struct Store {
    entries: Cache<CacheKey, Arc<Entry>>,
    /// Responses with 400, 404 or 405. They are separate, so that they do not evict entries.
    negatives: Cache<CacheKey, Arc<Entry>>,
    uncacheable: Cache<CacheKey, UncacheableMark>,
    /// Sees all responses that are stored.
    staleness: Staleness,
    /// Locked for writing when an entry is stored and when a purge begins or ends.
    sharing: RwLock<SharingState>,
    revocations: Arc<Revocations>,
}

/// Marks a cache key for which a response could not be stored. Other requests should not wait for the next response.
#[derive(Clone, Copy)]
struct UncacheableMark {
    reason: Unstorable,
    until: Instant,
}

#[derive(Default)]
struct SharingState {
    /// Grows with each response that is stored.
    changes: u64,
    purges: u64,
    /// When the latest purge began, whatever it selected.
    purged: Option<Instant>,
    private: PrivateScopes,
    invalidations: Invalidations,
}

/// The memory that moka needs for each entry besides the entry itself, in bytes: its own nodes, our `Arc`s, and the
/// overhead of the allocator. Measured. If it is wrong, only the memory limit is inexact.
const OVERHEAD: usize = 512;

/// How long a mark of an uncacheable key lasts.
const UNCACHEABLE_TTL: Duration = Duration::from_secs(60);
const MAX_UNCACHEABLE_BYTES: u64 = 1 << 20;

/// How long a negative response is stored. Its own lifetime, usually shorter, decides whether it may be used.
const NEGATIVE_STORAGE_TTL: Duration = Duration::from_secs(3600);
const MAX_NEGATIVE_BYTES: u64 = 4 << 20;

/// When moka removes an entry. This bounds the memory only.
struct EntryExpiry;

impl Expiry<CacheKey, Arc<Entry>> for EntryExpiry {
    fn expire_after_create(&self, _: &CacheKey, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        Some(entry.storage_ttl())
    }

    fn expire_after_update(
        &self,
        _: &CacheKey,
        entry: &Arc<Entry>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.storage_ttl())
    }
}

fn weight(cache_key: &CacheKey, bytes: usize) -> u32 {
    u32::try_from(OVERHEAD + size_of::<CacheKey>() + cache_key.key.size() + bytes).unwrap_or(u32::MAX)
}

impl Store {
    /// A store of at most `max_bytes`. It calls `evicted` with the reason, "size" or "expired", when moka removes an
    /// entry on its own.
    pub(crate) fn new(
        max_bytes: u64,
        budget: Arc<Budget>,
        revocations: Arc<Revocations>,
        evicted: impl Fn(&'static str) + Send + Sync + 'static,
    ) -> Self {
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|cache_key: &CacheKey, entry: &Arc<Entry>| weight(cache_key, entry.size()))
            .expire_after(EntryExpiry)
            .eviction_listener(move |_cache_key, entry, cause| {
                entry.charge_after_removal(&budget);
                // Later ones cannot say so: they do not find it any more.
                entry.set_replaced();
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
            .time_to_live(NEGATIVE_STORAGE_TTL)
            .build();
        let uncacheable = Cache::builder()
            .max_capacity(MAX_UNCACHEABLE_BYTES)
            .weigher(|cache_key: &CacheKey, _: &UncacheableMark| weight(cache_key, size_of::<UncacheableMark>()))
            .time_to_live(UNCACHEABLE_TTL)
            .build();
        let (staleness, sharing) = (Staleness::default(), RwLock::default());
        Self { entries, negatives, uncacheable, staleness, sharing, revocations }
    }

    /// How often answers were stale.
    pub(crate) fn staleness(&self) -> &Staleness {
        &self.staleness
    }

    /// The cache key of a caller's request. It changes when the scope becomes private or is purged.
    pub(crate) fn cache_key(&self, key: &Arc<RequestKey>, caller: Caller) -> CacheKey {
        self.read().cache_key(key, caller)
    }

    /// The entry, fresh or stale. `None` if it was invalidated after its request had been sent.
    pub(crate) fn get(&self, cache_key: &CacheKey) -> Option<Arc<Entry>> {
        self.entries
            .get(cache_key)
            .filter(|entry| !self.is_invalidated(cache_key.key.scope(), entry.freshness_info().sent))
    }

    /// The entry for a conditional request to upstream. It may be used for a response only if [`Self::get`] returns it,
    /// too.
    pub(crate) fn get_for_validation(&self, cache_key: &CacheKey) -> Option<Arc<Entry>> {
        self.entries.get(cache_key)
    }

    /// The 400, 404 or 405, if that is the latest response and was not invalidated. Its freshness decides whether it
    /// may be used. As long as it is stored, the gateway must not use a stale entry in its place.
    pub(crate) fn negative(&self, cache_key: &CacheKey) -> Option<Arc<Entry>> {
        self.negatives
            .get(cache_key)
            .filter(|negative| !self.is_invalidated(cache_key.key.scope(), negative.freshness_info().sent))
    }

    /// Whether the scope was invalidated after a request had been sent.
    pub(crate) fn is_invalidated(&self, scope: &Scope, sent: Instant) -> bool {
        self.read().invalidations.covers(scope, sent)
    }

    /// Invalidates a scope (RFC 9111 §4.4). Entries whose request was sent by then must be validated before they are
    /// used, and responses to requests in flight are not stored. It removes no entry.
    pub(crate) fn invalidate(&self, scope: &Scope, at: Instant) {
        self.write().invalidations.add(scope, at);
        self.revocations.add();
    }

    /// The current epoch. It must be read before a call is sent.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.read().purges)
    }

    /// Whether callers other than its own may get the response to a request that was sent in `epoch`, at `sent`. False
    /// after a purge or an invalidation, and if the cache key is shared but the scope has become private.
    ///
    /// Waiters that joined before an invalidation could get the response, too. But then the time at which each of them
    /// joined would have to be stored. So they call upstream again.
    pub(crate) fn may_share(&self, cache_key: &CacheKey, epoch: Epoch, sent: Instant) -> bool {
        let sharing = self.read();
        sharing.may_share(cache_key, epoch) && !sharing.invalidations.covers(cache_key.key.scope(), sent)
    }

    /// Stores a caller's response, unless a newer one is known. The second result says what has become private because
    /// of it: the responses to different callers diverge, or upstream says that its responses vary on the credential.
    /// The observations that show a divergence are part of the entry.
    pub(crate) fn insert(
        &self,
        key: &Arc<RequestKey>,
        builder: EntryBuilder,
        audience: Audience,
        observation: Observation,
        epoch: Epoch,
    ) -> (StoreResult, Option<PrivateExtent>) {
        // The lock is held until the entry is stored. So a purge runs either before this check, or after the entry is
        // stored and removes it.
        let mut sharing = self.write();
        if Epoch(sharing.purges) != epoch {
            return (StoreResult::Purged, None);
        }
        let scope = key.scope();
        // This also counts if the response itself is outdated, and for all scopes of the operation.
        let varies = audience == Audience::Caller && sharing.private.add_operation(scope.operation());
        let mut made_private = varies.then_some(PrivateExtent::Operation);
        let mut cache_key = sharing.cache_key(key, observation.caller);
        let before = self.entries.get(&cache_key);
        let mut look = None;
        let result = if sharing.invalidations.covers(scope, builder.sent()) {
            StoreResult::Invalidated
        } else if before.as_ref().is_some_and(|before| before.sent_by() >= builder.sent()) {
            StoreResult::Outdated
        } else if cache_key.owner.is_none() && builder.must_be_private() {
            // The scope was private when the request was sent. Only a purge ends that.
            StoreResult::Purged
        } else {
            let mut observations = Observations::default();
            if let Some(before) = &before {
                before.set_replaced();
                observations.clone_from(&before.observations);
            }
            if cache_key.owner.is_some() {
                observations = Observations::default();
            } else if observations.add(observation) {
                observations = Observations::default();
                made_private = Some(sharing.private.add(scope));
                cache_key = sharing.cache_key(key, observation.caller);
            }
            let mut entry = builder.build(cache_key.owner.is_some());
            (entry.earlier_hits, entry.observations) = (before.map_or(0, |before| before.hits()), observations);
            let is_later = |negative: &Arc<Entry>| negative.freshness_info().sent > entry.freshness_info().sent;
            if !self.negatives.get(&cache_key).as_ref().is_some_and(is_later) {
                self.negatives.invalidate(&cache_key);
            }
            look = Some((cache_key.clone(), Arc::clone(entry.answers())));
            self.entries.insert(cache_key, Arc::new(entry));
            sharing.changes += 1;
            StoreResult::Stored
        };
        drop(sharing);
        if let Some((cache_key, answers)) = look {
            self.staleness.look(&cache_key, &observation, answers);
        }
        if let Some(extent) = made_private {
            self.remove_shared(|other| extent.covers(scope, other));
        }
        (result, made_private)
    }

    /// Makes the operation of a scope private, because upstream says that its responses vary on the credential. `None`
    /// if it was private already.
    pub(crate) fn make_private(&self, scope: &Scope) -> Option<PrivateExtent> {
        let extent = self.write().private.add_operation(scope.operation()).then_some(PrivateExtent::Operation)?;
        self.remove_shared(|other| extent.covers(scope, other));
        Some(extent)
    }

    /// Removes the shared entries of a scope or operation that has become private. It does not hold the lock, because
    /// hits need it. This is safe: no request uses a shared key of a private scope.
    fn remove_shared(&self, is_private: impl Fn(&Scope) -> bool) {
        self.remove(|cache_key| cache_key.owner.is_none() && is_private(cache_key.key.scope()));
        self.staleness.forget_shared(is_private);
    }

    /// Stores a 400, 404 or 405, unless a newer response is known.
    pub(crate) fn insert_negative(&self, cache_key: &CacheKey, negative: Entry, epoch: Epoch) -> StoreResult {
        let mut sharing = self.write();
        if !sharing.may_share(cache_key, epoch) {
            return StoreResult::Purged;
        }
        if sharing.invalidations.covers(cache_key.key.scope(), negative.freshness_info().sent) {
            return StoreResult::Invalidated;
        }
        let known = [self.entries.get(cache_key), self.negatives.get(cache_key)];
        if known.iter().flatten().any(|known| known.freshness_info().sent >= negative.freshness_info().sent) {
            return StoreResult::Outdated;
        }
        self.negatives.insert(cache_key.clone(), Arc::new(negative));
        sharing.changes += 1;
        StoreResult::Stored
    }

    /// Marks a cache key as uncacheable for 60 s.
    pub(crate) fn mark_uncacheable(&self, cache_key: CacheKey, reason: Unstorable, now: Instant) {
        self.uncacheable.insert(cache_key, UncacheableMark { reason, until: now + UNCACHEABLE_TTL });
    }

    /// Removes the mark of a cache key.
    pub(crate) fn clear_uncacheable(&self, cache_key: &CacheKey) {
        self.uncacheable.invalidate(cache_key);
    }

    /// Why a recent response could not be stored. `None` if neither the cache key nor the caller's own key is marked.
    pub(crate) fn uncacheable_reason(&self, cache_key: &CacheKey, caller: Caller, now: Instant) -> Option<Unstorable> {
        let mark = |cache_key: &CacheKey| {
            self.uncacheable.get(cache_key).filter(|mark| now < mark.until).map(|mark| mark.reason)
        };
        mark(cache_key).or_else(|| mark(&cache_key.of(caller)))
    }

    /// Removes the selected entries and returns their number. Marks, negative responses and private scopes that are
    /// selected are removed, too. Responses to requests in flight are not stored.
    pub(crate) fn purge(&self, selection: &PurgeSelection, now: Instant) -> usize {
        let purged = self.clear(selection, now);
        // This must be last. Otherwise a scope could be shared again while entries from before the divergence remain.
        self.write().private.purge(selection);
        purged
    }

    /// The same, but what is private stays so.
    pub(crate) fn clear(&self, selection: &PurgeSelection, now: Instant) -> usize {
        let mut sharing = self.write();
        (sharing.purges, sharing.purged) = (sharing.purges + 1, Some(now));
        drop(sharing);
        for (cache_key, _) in self.uncacheable.iter().filter(|(cache_key, _)| selection.matches(&cache_key.key)) {
            self.uncacheable.invalidate(cache_key.as_ref());
        }
        for (cache_key, _) in self.negatives.iter().filter(|(cache_key, _)| selection.matches(&cache_key.key)) {
            self.negatives.invalidate(cache_key.as_ref());
        }
        self.remove(|cache_key| selection.matches(&cache_key.key))
    }

    /// The time of the latest purge, whatever it selected.
    pub(crate) fn purged(&self) -> Option<Instant> {
        self.read().purged
    }

    fn remove(&self, condition: impl Fn(&CacheKey) -> bool) -> usize {
        let mut removed = 0;
        // Removing takes a while. Remembered look-ups must end before.
        self.revocations.add();
        for (cache_key, _) in self.entries.iter().filter(|(cache_key, _)| condition(cache_key)) {
            self.entries.invalidate(cache_key.as_ref());
            removed += 1;
        }
        // A snapshot that was begun meanwhile may have what is gone now.
        self.revocations.add();
        removed
    }

    /// All entries with their keys. This takes long if there are many.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Arc<CacheKey>, Arc<Entry>)> {
        self.entries.iter()
    }

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
        self.sharing.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, SharingState> {
        self.sharing.write()
    }
}

impl SharingState {
    fn may_share(&self, cache_key: &CacheKey, epoch: Epoch) -> bool {
        Epoch(self.purges) == epoch && (cache_key.owner.is_some() || !self.private.contains(cache_key.key.scope()))
    }

    fn cache_key(&self, key: &Arc<RequestKey>, caller: Caller) -> CacheKey {
        CacheKey { owner: self.private.contains(key.scope()).then_some(caller), key: Arc::clone(key) }
    }
}
