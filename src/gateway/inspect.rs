//! What the gateway knows about a cache key and a caller, for `explain`. Nothing is changed, and nobody is called.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::look_up::{HitKind, LookupResult};
use super::{Gateway, Lookup};
use crate::cache::entry::Entry;
use crate::cache::freshness::Freshness;
use crate::cache::grants::{CallerScope, GrantState};
use crate::cache::miss::Miss;
use crate::cache::unstorable::Unstorable;
use crate::catalogue::Service;
use crate::request::caller::Credential;
use crate::request::key::RequestKey;
use crate::request::request_directives::RequestDirectives;
use crate::signing::AccessKey;
use crate::telemetry::outcome::Outcome;
use crate::upstream::gate::{CallKind, GateCall, GateClient};
use crate::upstream::quota::Hold;

/// The state of a cache key for one caller, for `explain`.
pub struct Inspection {
    pub grant_state: GrantState,
    /// Whether callers share the entry.
    pub is_shared: bool,
    /// `None` if nothing is stored.
    pub entry: Option<Freshness>,
    /// Whether the stored entry must be revalidated before it is served, because an unsafe method invalidated it.
    pub needs_confirmation: bool,
    /// Whether a backoff is active: a stale entry, if there is one, is served without a call.
    pub is_backing_off: bool,
    /// The limit of upstream for which a call would wait now, and how long at least.
    pub hold: Option<Hold>,
    /// Why responses cannot be stored, if the key is marked uncacheable.
    pub uncacheable: Option<Unstorable>,
    /// `None` without a fleet.
    pub engine: Option<EngineInspection>,
    /// What a request with the key gets that comes now.
    pub answer: Answer,
}

/// What a request that is looked up gets.
pub enum Answer {
    /// A stored response.
    FromMemory {
        outcome: Outcome,
        status: StatusCode,
        age: Duration,
        /// How long it is still given without a call. Zero if it is stale.
        left: Duration,
    },
    /// A 504, because the request has `only-if-cached`.
    NotCached,
    /// It is relayed: its response is too large to be stored.
    Relayed,
    /// The response to a call.
    Call {
        miss: Miss,
        /// Whether it gets a stale response if the call fails or is slow.
        has_stale: bool,
    },
}

/// The engine of the fleet, for a cache key.
#[derive(Clone, Copy)]
pub struct EngineInspection {
    /// `in-use`, or why it is not.
    pub state: &'static str,
    pub is_in_use: bool,
    /// Whether it knows all that has become void for the key.
    pub is_told: bool,
    /// Whether it has proofs of callers, too.
    pub shares_grants: bool,
}

impl Gateway {
    pub fn is_suspended(&self, key: &AccessKey, service: Service) -> bool {
        self.fetcher.key_breaker.is_suspended(key, service)
    }

    /// The state of a key for a caller, for `explain`.
    pub fn inspect(&self, key: RequestKey, credential: &Credential, directives: RequestDirectives) -> Inspection {
        let (now, caller) = (self.clock.now(), self.callers.of(credential));
        let service = key.operation().service;
        let caller_scope = CallerScope { caller, scope: key.scope().clone() };
        let lookup = Lookup { caller_scope, key: Arc::new(key), directives };
        let caller_scope = &lookup.caller_scope;
        let cache_key = self.memory.store.cache_key(&lookup.key, caller);
        let call = GateCall {
            client: GateClient { caller: Some(caller), peer: None, connection: 0 },
            class: self.memory.class(Some(caller), Some(caller_scope), now),
            caller: Some(caller),
            api: Some(Arc::clone(&cache_key.key.operation().name)),
            kind: CallKind::List,
            max_wait: self.active().answer_timeout,
        };
        let hold = self.fetcher.gate.hold(service, &call);
        Inspection {
            grant_state: self.memory.grants.grant_state(caller_scope, now),
            is_shared: cache_key.owner.is_none(),
            entry: self.memory.store.get(&cache_key).map(|entry| entry.freshness_info().freshness(now)),
            needs_confirmation: self.memory.store.get(&cache_key).is_none()
                && self.memory.store.get_for_validation(&cache_key).is_some(),
            is_backing_off: self.memory.backoffs.is_active_for(&cache_key, caller_scope, now),
            uncacheable: self.memory.store.uncacheable_reason(&cache_key, caller, now),
            engine: self.memory.fleet.as_ref().zip(self.memory.second_tier.as_ref()).map(|(fleet, tier)| {
                EngineInspection {
                    state: fleet.state().into(),
                    is_in_use: fleet.is_in_use(),
                    is_told: fleet.is_told_of(&tier.place(&cache_key.key)),
                    shares_grants: tier.shares_grants,
                }
            }),
            answer: self.answer(&lookup, hold.is_some(), now),
            hold,
        }
    }

    /// What a request with this look-up gets now. `is_held`: whether its call would wait for a limit of upstream.
    fn answer(&self, lookup: &Lookup, is_held: bool, now: Instant) -> Answer {
        let from_memory = |entry: Arc<Entry>, kind: HitKind| {
            let info = entry.freshness_info();
            let left = match (kind, info.freshness(now)) {
                (HitKind::Denied(left), _) | (_, Freshness::Fresh { left }) => left,
                _ => Duration::ZERO,
            };
            Answer::FromMemory { outcome: kind.outcome(), status: entry.status(), age: info.age(now), left }
        };
        match self.memory.look_up(lookup, now) {
            LookupResult::Hit(entry, kind) => from_memory(entry, kind),
            LookupResult::StaleWhileRevalidate(entry, _) => from_memory(entry, HitKind::Revalidating),
            LookupResult::Fetch { .. } if lookup.directives.only_if_cached => Answer::NotCached,
            LookupResult::Fetch { stored: Some(entry), has_stale: true, .. } if is_held => {
                from_memory(entry, HitKind::Backoff)
            }
            LookupResult::Fetch { cache_key, miss, has_stale, .. } => {
                match self.memory.store.uncacheable_reason(&cache_key, lookup.caller_scope.caller, now) {
                    Some(Unstorable::TooLarge) => Answer::Relayed,
                    _ => Answer::Call { miss, has_stale },
                }
            }
        }
    }
}
