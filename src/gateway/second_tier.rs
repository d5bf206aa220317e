//! The second tier: the look-up there before a call, and storing there after it.
//!
//! It is used only inside a shared fetch. So there is one look-up for all waiters, a hit in memory does not wait for
//! it, and only callers with a grant get what it has. Records are sealed under their full key.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::CacheRequest;
use super::fetcher::Tier;
use super::look_up::LookupResult;
use super::memory::Memory;
use super::observer::Observer;
use crate::budget::Purpose;
use crate::cache::record;
use crate::cache::store::CacheKey;
use crate::clock::{Clock, Moment};
use crate::request::key::RequestKey;
use crate::seal::{self, Unreadable};

const LOOK_UP_TIMEOUT: Duration = Duration::from_millis(8);

/// The largest part of a sealed record besides its body, in bytes.
const MAX_RECORD_HEAD: usize = record::MAX_HEAD + seal::OVERHEAD;

impl Tier {
    /// Copies the record that the tier has for a key into memory. Returns whether the request can now be answered from
    /// memory.
    pub(super) async fn adopt_record(
        &self,
        memory: &Memory,
        observer: &Observer,
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
        let Ok(Some(sealed)) = timeout(LOOK_UP_TIMEOUT, self.store.get(key)).await else { return false };
        if sealed.len() > request.active.settings.cache.max_body_size.bytes().saturating_add(MAX_RECORD_HEAD) {
            return false;
        }
        // For the record, for its plain form, and for its copy until the cache counts the copy as an entry.
        let Some(_charge) = request.account.try_charge(Purpose::Responses, 3 * sealed.len()) else { return false };
        let (moment, record) = match self.open(key, &sealed) {
            Ok(opened) => opened,
            Err(reason) => {
                observer.metrics.unreadable_record(reason);
                return false;
            }
        };
        let now = clock.now();
        let passed = clock.moment().and_then(|read| moment.until(&read));
        let Some(written) = passed.and_then(|passed| now.checked_sub(passed)) else { return false };
        let configured = request.active.lifetime(key.scope(), memory.store.staleness(), now);
        let Some((builder, observations)) = record::decode(&record, key, configured, written) else { return false };
        let copy = (builder.with_key_digest(observer.digests.of_key(key)), observations);
        memory.store.insert_copy((key, None), copy, epoch)
            && matches!(memory.look_up(request, now), LookupResult::Hit(..))
    }

    /// Stores the entry for a key in the tier, if the entry is shared.
    pub(super) fn store_record(&self, memory: &Memory, request: &CacheRequest, clock: &Clock) {
        let key = &request.lookup.key;
        let cache_key = memory.store.cache_key(key, request.lookup.caller_scope.caller);
        if cache_key.owner.is_none()
            && let Some(entry) = memory.store.get(&cache_key)
            && let Some(_charge) =
                request.account.try_charge(Purpose::Responses, 2 * (entry.body().len() + MAX_RECORD_HEAD))
            && let Some(moment) = clock.moment()
            && let Some(record) = record::encode(key, &entry, clock.now())
            && let Ok(content) = postcard::to_extend(&moment, Vec::with_capacity(record.len() + 64))
            && let Some(sealed) = self.sealer.seal(&context(key), &[content, record].concat())
        {
            self.store.put(key, sealed.into());
        }
    }

    fn open(&self, key: &RequestKey, sealed: &Bytes) -> Result<(Moment, Bytes), Unreadable> {
        let mut sealed = sealed.to_vec();
        let content = self.sealer.open(&context(key), &mut sealed)?;
        let (moment, record) = postcard::take_from_bytes(content).map_err(|_| Unreadable::Damaged)?;
        Ok((moment, Bytes::copy_from_slice(record)))
    }
}

fn context(key: &RequestKey) -> Vec<u8> {
    [&b"entry"[..], &record::name(key)].concat()
}
