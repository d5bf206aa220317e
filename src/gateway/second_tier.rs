//! The second tier: the look-up there before a call, and storing there after it.
//!
//! It is used only inside a shared fetch. So there is one look-up for all waiters, a hit in memory does not wait for
//! it, and only callers with a grant get what it has.

use std::time::Duration;

use tokio::time::timeout;

use super::CacheRequest;
use super::look_up::LookupResult;
use super::memory::Memory;
use crate::budget::Purpose;
use crate::cache::second_tier::{SecondTier, decode, encode};
use crate::cache::store::CacheKey;
use crate::clock::Clock;
use crate::request::digest::Digests;

const LOOK_UP_TIMEOUT: Duration = Duration::from_millis(8);

/// The largest part of a record besides its body, in bytes.
const MAX_RECORD_HEAD: usize = 64 * 1024;

/// Copies the record that the tier has for a key into memory. Returns whether the request can now be answered from
/// memory.
pub(super) async fn adopt_record(
    tier: &dyn SecondTier,
    memory: &Memory,
    digests: &Digests,
    clock: &Clock,
    request: &CacheRequest,
    cache_key: &CacheKey,
) -> bool {
    // A key without an owner is only for callers with a grant.
    if cache_key.owner.is_some() || request.lookup.directives.no_cache {
        return false;
    }
    let key = &request.lookup.key;
    let epoch = memory.store.epoch();
    let Ok(Some(record)) = timeout(LOOK_UP_TIMEOUT, tier.get(key)).await else { return false };
    if record.len() > request.active.settings.cache.max_body_size.bytes().saturating_add(MAX_RECORD_HEAD) {
        return false;
    }
    // For the record, and for its copy until the cache counts the copy as an entry.
    let Some(_charge) = request.account.try_charge(Purpose::Responses, 2 * record.len()) else { return false };
    let (now, date) = (clock.now(), clock.date());
    let configured = request.active.lifetime(key.scope(), memory.store.staleness(), now);
    let Some(builder) = decode(&record, key, configured, (now, date)) else { return false };
    memory.store.insert_copy(key, builder.with_key_digest(digests.of_key(key)), epoch)
        && matches!(memory.look_up(request, now), LookupResult::Hit(..))
}

/// Stores the entry for a key in the tier, if the entry is shared.
pub(super) fn store_record(tier: &dyn SecondTier, memory: &Memory, request: &CacheRequest, clock: &Clock) {
    let key = &request.lookup.key;
    let cache_key = memory.store.cache_key(key, request.lookup.caller_scope.caller);
    if cache_key.owner.is_none()
        && let Some(entry) = memory.store.get(&cache_key)
        && let Some(_charge) = request.account.try_charge(Purpose::Responses, entry.body().len() + MAX_RECORD_HEAD)
        && let Some(record) = encode(key, &entry, clock.now(), clock.date())
    {
        tier.put(key, record);
    }
}
