//! The second tier in a fetch: one look-up before a call, and what is stored there after it. `claim.rs` repeats the look-up
//! while another gateway makes the call.
//!
//! It is used only inside a fetch. So there is one look-up for all waiters, and a hit in memory does not wait for it.
//! Only callers with a grant get what it has, be it their own or one that another gateway has proved. Records are sealed
//! under their full key and their place in the order of the tier.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::timeout;

use super::CacheRequest;
use super::fetch_result::{AdditionalCallReason, FetchPurpose};
use super::look_up::LookupResult;
use super::memory::Memory;
use super::observer::Observer;
use super::tier::{Tier, entry_context, grant_context, passed_since, service_of, written};
use crate::budget::Purpose;
use crate::cache::grants::GrantState;
use crate::cache::record::{self, DecodedEntry};
use crate::cache::second_tier::{
    Lease, LeaseState, LookUp, LookedUp, Name, NewRecord, Order, Place, RecordKind, Ticket,
};
use crate::clock::Clock;
use crate::seal::{self, Unreadable};

/// The largest part of a sealed record besides its body, in bytes.
pub(super) const MAX_RECORD_HEAD: usize = record::MAX_HEAD + seal::OVERHEAD;

/// What a fetch has to do with the tier.
pub(super) struct TierUse {
    /// The entry, unless it belongs to one caller.
    entry: Option<Place>,
    /// The proof of the caller, if another gateway may have a later one.
    grant: Option<Place>,
    wants_records: bool,
    /// Not taken if the call is not for others.
    pub(super) lease: Option<Name>,
    purpose: FetchPurpose,
}

/// What one look-up has shown.
#[derive(Default)]
pub(super) struct Consulted {
    /// The request can be answered from memory now, or its caller has a grant.
    pub(super) is_answered: bool,
    /// For what upstream answers to the call, if the tier accepts it.
    pub(super) ticket: Option<Ticket>,
    pub(super) lease: LeaseState,
}

impl Tier {
    /// What the fetch for a request has to do with the tier. `is_shared`: other requests can join its flight. `for_all`: they
    /// may be those of other callers, so all of them have grants.
    pub(super) fn plan(
        &self,
        memory: &Memory,
        request: &CacheRequest,
        purpose: FetchPurpose,
        (is_shared, for_all): (bool, bool),
        now: Instant,
    ) -> TierUse {
        let lookup = &request.lookup;
        let is_private = memory.store.cache_key(&lookup.key, lookup.caller_scope.caller).owner.is_some();
        let entry = (!is_private).then(|| self.names.entry_place(&lookup.key));
        let wants_grant = self.shares_grants
            && match purpose {
                FetchPurpose::Renewal => true,
                FetchPurpose::KeepWarm => false,
                _ => is_shared && !for_all && !memory.grants.is_granted(&lookup.caller_scope, now),
            };
        let grant = wants_grant.then(|| self.names.grant_place(&lookup.caller_scope));
        let wants_records = is_shared && !lookup.directives.no_cache && (grant.is_some() || for_all && entry.is_some());
        let lease = match (&grant, &entry) {
            _ if !wants_records => None,
            (Some(grant), _) => Some(grant.record),
            (None, Some(entry)) => Some(numbered(entry.record, purpose)),
            (None, None) => None,
        };
        TierUse { entry, grant, wants_records, lease, purpose }
    }

    /// Draws a ticket for a call, takes its lease, and copies into memory what the tier has for it.
    pub(super) async fn consult(
        &self,
        memory: &Memory,
        observer: &Observer,
        clock: &Clock,
        request: &CacheRequest,
        tier_use: &TierUse,
    ) -> Consulted {
        let epoch = memory.store.epoch();
        let TierUse { entry, grant, wants_records, lease, purpose } = tier_use;
        let places: Vec<Place> = grant.iter().chain(entry).cloned().collect();
        let look_up = LookUp { places: &places, wants_records: *wants_records, lease: *lease };
        let looked_up = timeout(self.time_limit, self.store.look_up(look_up)).await;
        let Ok(Some(LookedUp { mut records, ticket, lease, time, as_of })) = looked_up else {
            return Consulted::default();
        };
        records.resize(places.len(), None);
        let mut records = records.into_iter();
        let proof = grant.as_ref().and_then(|place| Some((place, records.next()??)));
        let is_borrowed = proof.is_some_and(|(place, (order, sealed))| {
            let is_current = || self.store.is_current(place, order, as_of);
            self.borrow(request, observer, clock, (order, sealed), time, memory, is_current)
        });
        // A caller without a grant, even a lapsed one, gets nothing from the entry, and must not change what others get.
        let caller_scope = &request.lookup.caller_scope;
        let has_grant = grant.is_none()
            || matches!(
                memory.grants.grant_state(caller_scope, clock.now()),
                GrantState::Granted | GrantState::Lapsed { .. }
            );
        let copy = entry.as_ref().filter(|_| has_grant).and_then(|place| Some((place, records.next()??)));
        let is_copied = copy.is_some_and(|(place, (order, sealed))| {
            let copy = self.read(request, observer, clock, (order, sealed), time, memory);
            copy.is_some_and(|copy| {
                self.store.is_current(place, order, as_of)
                    && memory.store.insert_copy((&request.lookup.key, None), copy, epoch)
            })
        });
        let now = clock.now();
        let is_answered = match purpose {
            FetchPurpose::Renewal => is_borrowed && !memory.grants.ends_soon(&request.lookup.caller_scope, now),
            // It looks up again as a caller with a grant.
            _ if is_borrowed => {
                matches!(memory.grants.grant_state(&request.lookup.caller_scope, now), GrantState::Granted)
            }
            _ => is_copied && grant.is_none() && matches!(memory.look_up(&request.lookup, now), LookupResult::Hit(..)),
        };
        Consulted { is_answered, ticket, lease }
    }

    /// Opens a proof of another gateway, and gives the caller its grant.
    #[expect(clippy::too_many_arguments, reason = "the parts that a proof depends on")]
    fn borrow(
        &self,
        request: &CacheRequest,
        observer: &Observer,
        clock: &Clock,
        (order, sealed): (Order, Bytes),
        time: Duration,
        memory: &Memory,
        is_current: impl FnOnce() -> bool,
    ) -> bool {
        let caller_scope = &request.lookup.caller_scope;
        let opened = self.names.open(&grant_context(caller_scope, order), &sealed);
        let Ok((written, record)) = opened.inspect_err(|reason| observer.metrics.unreadable_record(*reason)) else {
            return false;
        };
        let now = clock.now();
        let proved = postcard::from_bytes::<Duration>(&record).ok().and_then(|proved_before| {
            let passed = passed_since(&written, time, clock)?;
            now.checked_sub(passed.longest)?.checked_sub(proved_before)
        });
        proved.is_some_and(|proved| memory.grants.borrow(caller_scope, proved, is_current, now))
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
        let opened = self.names.open(&entry_context(key, order), &sealed);
        let (written, record) = opened.inspect_err(|reason| observer.metrics.unreadable_record(*reason)).ok()?;
        let now = clock.now();
        let passed = passed_since(&written, time, clock)?;
        let configured = request.active.lifetime(key.scope(), memory.store.staleness(), now);
        let (builder, observations) = record::decode(&record, key, configured, now.checked_sub(passed.longest)?)?;
        let sent_by = builder.sent() + (passed.longest - passed.certain);
        Some((builder.sent_by(sent_by).with_key_digest(observer.digests.of_key(key)), observations))
    }

    /// Stores the entry for a key in the tier, if the entry is shared. Returns the lease if it was not released by that.
    pub(super) fn store_record(
        &self,
        memory: &Memory,
        request: &CacheRequest,
        ticket: &Ticket,
        lease: Option<Lease>,
        clock: &Clock,
    ) -> Option<Lease> {
        let key = &request.lookup.key;
        let cache_key = memory.store.cache_key(key, request.lookup.caller_scope.caller);
        let Some((now, written)) = written(ticket, clock) else { return lease };
        if cache_key.owner.is_none()
            && let Some(entry) = memory.store.get(&cache_key)
            // Else it is another call's, which may have had an earlier ticket.
            && entry.freshness_info().sent >= ticket.drawn
            && let Some(_charge) =
                request.account.try_charge(Purpose::Responses, 2 * (entry.body().len() + MAX_RECORD_HEAD))
            && let Some(record) = record::encode(key, &entry, now)
            && let Some(sealed) = self.names.seal(&entry_context(key, ticket.order), &written, &record)
        {
            let (place, ticket, lifetime) = (self.place(key), ticket.clone(), entry.storage_ttl());
            self.store.store(NewRecord {
                place,
                ticket,
                sealed,
                lifetime,
                kind: RecordKind::Entry,
                marker: None,
                lease,
            });
            return None;
        }
        lease
    }

    /// Stores the proof of a caller, whose request was sent at `proved`. Returns the lease if it was not released by that.
    pub(super) fn store_grant(
        &self,
        request: &CacheRequest,
        proved: Instant,
        ticket: &Ticket,
        lease: Option<Lease>,
        clock: &Clock,
    ) -> Option<Lease> {
        let caller_scope = &request.lookup.caller_scope;
        let Some((now, written)) = written(ticket, clock) else { return lease };
        if self.shares_grants
            && proved >= ticket.drawn
            && let Ok(record) = postcard::to_allocvec(&now.saturating_duration_since(proved))
            && let Some(sealed) = self.names.seal(&grant_context(caller_scope, ticket.order), &written, &record)
        {
            let grants = &request.active.settings.grants;
            let lifetime = grants.grant_ttl.0.max(grants.outage_grace.0);
            let marker = Some(self.names.marker(caller_scope.caller, &service_of(&caller_scope.scope)));
            let (place, ticket) = (self.names.grant_place(caller_scope), ticket.clone());
            self.store.store(NewRecord { place, ticket, sealed, lifetime, kind: RecordKind::Grant, marker, lease });
            return None;
        }
        lease
    }
}

/// The name of the lease for a call: a call beside or after another one of its key has another one.
fn numbered(mut name: Name, purpose: FetchPurpose) -> Name {
    name[0] ^= match purpose {
        FetchPurpose::Additional(AdditionalCallReason::Slow) => 1,
        FetchPurpose::Additional(AdditionalCallReason::Failed) => 2,
        _ => 0,
    };
    name
}
