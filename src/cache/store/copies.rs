//! What the store gives to other processes, and takes from them.

use std::sync::Arc;
use std::time::Instant;

use super::private::PrivateName;
use super::{CacheKey, Epoch, Store};
use crate::cache::divergence::Observations;
use crate::cache::entry::{Entry, EntryBuilder};
use crate::cache::freshness::Freshness;
use crate::request::caller::Caller;
use crate::request::key::RequestKey;

impl Store {
    /// Stores a response that another process has got: a shared one, or one of its `owner` in a private scope. Returns
    /// whether it was stored. It is not stored if a newer response is known, if there has been a purge since `epoch`, or if
    /// its request was sent before the latest invalidation of its scope. Where it comes from, it must not be from before an
    /// earlier purge. It does not count as an observation, because no caller of this process got it. `observations` are those
    /// of the other process.
    pub(crate) fn insert_copy(
        &self,
        (key, owner): (&Arc<RequestKey>, Option<Caller>),
        (builder, observations): (EntryBuilder, Observations),
        epoch: Epoch,
    ) -> bool {
        let mut sharing = self.write();
        let cache_key = CacheKey { owner, key: Arc::clone(key) };
        let before = self.entries.get(&cache_key);
        let is_outdated = before
            .iter()
            .chain(&self.negatives.get(&cache_key))
            .any(|known| known.freshness_info().sent >= builder.sent());
        let is_for_owner = owner.is_some() == sharing.private.contains(key.scope());
        let is_storable = is_for_owner
            && sharing.may_share(&cache_key, epoch)
            && (owner.is_some() || !builder.must_be_private())
            && !sharing.invalidations.covers(key.scope(), builder.sent())
            && !is_outdated;
        if is_storable {
            let mut entry = builder.build(owner.is_some());
            entry.observations = observations;
            if let Some(before) = before {
                before.set_replaced();
                (entry.earlier_hits, entry.observations) = (before.hits(), before.observations.clone());
            }
            self.entries.insert(cache_key, Arc::new(entry));
            sharing.changes += 1;
        }
        is_storable
    }

    /// A number that grows with each response that is stored.
    pub(crate) fn changes(&self) -> u64 {
        self.read().changes
    }

    /// The scopes and operations that have become private.
    pub(crate) fn private(&self) -> Vec<PrivateName> {
        self.read().private.names()
    }

    /// Makes a scope or an operation private that has become so in another process, and removes what was shared there.
    pub(crate) fn told_private(&self, name: &PrivateName) {
        self.restore_private(name);
        self.remove_shared(|scope| match name {
            PrivateName::Operation(operation) => scope.operation() == operation,
            PrivateName::Scope(private) => scope == private,
        });
    }

    /// Makes a scope or an operation private that was so in another process.
    pub(crate) fn restore_private(&self, name: &PrivateName) {
        let private = &mut self.write().private;
        match name {
            PrivateName::Operation(operation) => {
                private.add_operation(operation);
            }
            PrivateName::Scope(scope) => {
                private.add(scope);
            }
        }
    }

    /// The entries that a later process may use: not the ones that are too old, were invalidated, or were followed by a
    /// refusal.
    pub(crate) fn usable_entries(&self, now: Instant) -> impl Iterator<Item = (Arc<CacheKey>, Arc<Entry>)> {
        self.entries.iter().filter(move |(cache_key, entry)| {
            let sent = entry.freshness_info().sent;
            let is_later = |negative: Arc<Entry>| negative.freshness_info().sent > sent;
            entry.freshness_info().freshness(now) != Freshness::Gone
                && !self.is_invalidated(cache_key.key.scope(), sent)
                && !self.negatives.get(cache_key.as_ref()).is_some_and(is_later)
        })
    }
}
