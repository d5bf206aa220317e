//! Asking a second tier before upstream, and telling it what upstream has answered.
//!
//! It is asked in one place, inside of a shared fetch: so each question is asked once for all who wait, a hit in memory never
//! waits for it, and only callers that hold a grant are shown what it has.

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

/// How long a fetch waits for the tier.
const LOOK_UP_TIMEOUT: Duration = Duration::from_millis(8);

/// What a record may have besides its body, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Keeps the record that a tier has for a question, and says whether memory has an answer now. The answer of the fetch would be
/// kept in `slot`.
pub(super) async fn adopt_record(
    tier: &dyn SecondTier,
    (memory, digests, clock): (&Memory, &Digests, &Clock),
    request: &CacheRequest,
    cache_key: &CacheKey,
) -> bool {
    // A slot without an owner is only for callers with a grant.
    if cache_key.owner.is_some() || request.lookup.directives.no_cache {
        return false;
    }
    let key = &request.lookup.key;
    let epoch = memory.store.epoch();
    let Ok(Some(record)) = timeout(LOOK_UP_TIMEOUT, tier.get(key)).await else { return false };
    if record.len() > request.active.settings.cache.max_body_size.bytes().saturating_add(MAX_HEAD) {
        return false;
    }
    // The record, and its copy until that is counted as an entry.
    let Some(_charge) = request.account.try_charge(Purpose::Responses, 2 * record.len()) else { return false };
    let (now, date) = (clock.now(), clock.date());
    let configured = request.active.lifetime(key.operation());
    let Some(draft) = decode(&record, key, configured, (now, date)) else { return false };
    memory.store.keep_copy(key, draft.under(digests.of_key(key)), epoch)
        && matches!(memory.look_up(request, now), LookupResult::FlightOutcome(..))
}

/// Tells a tier what is kept for a question now, if that is shared.
pub(super) fn tell(tier: &dyn SecondTier, memory: &Memory, request: &CacheRequest, clock: &Clock) {
    let key = &request.lookup.key;
    let cache_key = memory.store.cache_key(key, request.lookup.caller_scope.caller);
    if cache_key.owner.is_none()
        && let Some(entry) = memory.store.get(&cache_key)
        && let Some(_charge) = request.account.try_charge(Purpose::Responses, entry.body().len() + MAX_HEAD)
        && let Some(record) = encode(key, &entry, clock.now(), clock.date())
    {
        tier.put(key, record);
    }
}
