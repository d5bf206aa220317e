//! The second tier in a fetch: the look-up there before a call, and storing there after it.
//!
//! It is used only inside a fetch. So there is one look-up for all waiters, and a hit in memory does not wait for it.
//! Only callers with a grant get what it has. Records are sealed under their full key and their place in the order of
//! the tier.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::CacheRequest;
use super::look_up::LookupResult;
use super::memory::Memory;
use super::observer::Observer;
use super::tier::{Tier, Written, context};
use crate::budget::Purpose;
use crate::cache::record::{self, DecodedEntry};
use crate::cache::second_tier::{LookedUp, Order, Ticket};
use crate::clock::Clock;
use crate::seal::{self, Unreadable};

/// The largest part of a sealed record besides its body, in bytes.
pub(super) const MAX_RECORD_HEAD: usize = record::MAX_HEAD + seal::OVERHEAD;

/// By how much clocks of two machines may differ.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// What a fetch has found in the tier.
#[derive(Default)]
pub(super) struct Consulted {
    /// The request can be answered from memory now.
    pub(super) is_answered: bool,
    /// For the response to the call, if the tier accepts it.
    pub(super) ticket: Option<Ticket>,
}

impl Tier {
    /// Draws a ticket for a call. If `wants_record`, copies the record that the tier has for the key into memory: the
    /// flight must be shared, so that all its callers have grants.
    pub(super) async fn consult(
        &self,
        memory: &Memory,
        observer: &Observer,
        clock: &Clock,
        request: &CacheRequest,
        wants_record: bool,
    ) -> Consulted {
        let epoch = memory.store.epoch();
        let place = self.place(&request.lookup.key);
        let looked_up = timeout(self.time_limit, self.store.look_up(&place, wants_record)).await;
        let Ok(Some(LookedUp { record, ticket, time })) = looked_up else { return Consulted::default() };
        let is_answered = wants_record
            && record.is_some_and(|(order, sealed)| {
                let copy = self.read(request, observer, clock, (order, sealed), time, memory);
                copy.is_some_and(|copy| {
                    memory.store.insert_copy((&request.lookup.key, None), copy, epoch)
                        && matches!(memory.look_up(request, clock.now()), LookupResult::Hit(..))
                })
            });
        Consulted { is_answered, ticket }
    }

    /// Opens and decodes a record. `time` is what the clock of the tier shows.
    fn read(
        &self,
        request: &CacheRequest,
        observer: &Observer,
        clock: &Clock,
        (order, sealed): (Order, Bytes),
        time: Duration,
        memory: &Memory,
    ) -> Option<DecodedEntry> {
        let key = &request.lookup.key;
        if sealed.len() > request.active.settings.cache.max_body_size.bytes().saturating_add(MAX_RECORD_HEAD) {
            observer.metrics.unreadable_record(Unreadable::TooLarge);
            return None;
        }
        // For the record, for its plain form, and for its copy until the cache counts the copy as an entry.
        let _charge = request.account.try_charge(Purpose::Responses, 3 * sealed.len())?;
        let opened = self.open(key, order, &sealed);
        let (written, record) = opened.inspect_err(|reason| observer.metrics.unreadable_record(*reason)).ok()?;
        let now = clock.now();
        let on_tier = match time.checked_sub(written.tier) {
            Some(passed) => passed,
            // Not from the future.
            None => MAX_SKEW.checked_sub(written.tier - time).map(|_| Duration::ZERO)?,
        };
        let passed = written.moment.until(&clock.moment()?)?.max(on_tier);
        let configured = request.active.lifetime(key.scope(), memory.store.staleness(), now);
        let (builder, observations) = record::decode(&record, key, configured, now.checked_sub(passed)?)?;
        Some((builder.sent_by(now).with_key_digest(observer.digests.of_key(key)), observations))
    }

    /// Stores the entry for a key in the tier, if the entry is shared.
    pub(super) fn store_record(&self, memory: &Memory, request: &CacheRequest, ticket: &Ticket, clock: &Clock) {
        let key = &request.lookup.key;
        let cache_key = memory.store.cache_key(key, request.lookup.caller_scope.caller);
        // In this order: if the machine is suspended between the two, ages are too high, not too low.
        let Some(moment) = clock.moment() else { return };
        let now = clock.now();
        if cache_key.owner.is_none()
            && let Some(entry) = memory.store.get(&cache_key)
            // Else it is another call's, which may have had an earlier ticket.
            && entry.freshness_info().sent >= ticket.drawn
            && let Some(_charge) =
                request.account.try_charge(Purpose::Responses, 2 * (entry.body().len() + MAX_RECORD_HEAD))
            && let written = (Written { moment, tier: ticket.time + now.saturating_duration_since(ticket.drawn) })
            && let Some(record) = record::encode(key, &entry, now)
            && let Ok(content) = postcard::to_extend(&written, Vec::with_capacity(record.len() + 64))
            && let Some(sealed) = self.sealer.seal(&context(key, ticket.order), &[content, record].concat())
        {
            self.store.store(&self.place(key), ticket, sealed.into(), entry.storage_ttl());
        }
    }
}
