//! What the gateway knows about a cache key and a caller, for `explain`. Nothing is changed, and nobody is called.

use std::sync::Arc;

use super::Gateway;
use crate::cache::freshness::Freshness;
use crate::cache::grants::{CallerScope, GrantState};
use crate::cache::unstorable::Unstorable;
use crate::request::caller::Credential;
use crate::request::key::RequestKey;
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
    /// Whether the caller's access key is suspended, because upstream refused it too often.
    pub is_suspended: bool,
    /// Whether a backoff is active: a stale entry, if there is one, is served without a call.
    pub is_backing_off: bool,
    /// The limit of upstream for which a call would wait now, and how long at least.
    pub hold: Option<Hold>,
    /// Why responses cannot be stored, if the key is marked uncacheable.
    pub uncacheable: Option<Unstorable>,
    /// `None` without a fleet.
    pub engine: Option<EngineInspection>,
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
    /// The state of a key for a caller, for `explain`.
    pub fn inspect(&self, key: RequestKey, credential: &Credential) -> Inspection {
        let (now, caller) = (self.clock.now(), self.callers.of(credential));
        let service = key.operation().service;
        let cache_key = self.memory.store.cache_key(&Arc::new(key), caller);
        let caller_scope = CallerScope { caller, scope: cache_key.key.scope().clone() };
        let call = GateCall {
            client: GateClient { caller: Some(caller), peer: None, connection: 0 },
            class: self.memory.class(Some(caller), Some(&caller_scope), now),
            caller: Some(caller),
            api: Some(Arc::clone(&cache_key.key.operation().name)),
            kind: CallKind::List,
            max_wait: self.active().answer_timeout,
        };
        Inspection {
            grant_state: self.memory.grants.grant_state(&caller_scope, now),
            is_shared: cache_key.owner.is_none(),
            entry: self.memory.store.get(&cache_key).map(|entry| entry.freshness_info().freshness(now)),
            needs_confirmation: self.memory.store.get(&cache_key).is_none()
                && self.memory.store.get_for_validation(&cache_key).is_some(),
            is_suspended: credential
                .signed()
                .is_some_and(|signed| self.fetcher.key_breaker.is_suspended(&signed.key, service)),
            hold: self.fetcher.gate.hold(service, &call),
            is_backing_off: self.memory.backoffs.is_active_for(&cache_key, &caller_scope, now),
            uncacheable: self.memory.store.uncacheable_reason(&cache_key, caller, now),
            engine: self.memory.fleet.as_ref().zip(self.memory.second_tier.as_ref()).map(|(fleet, tier)| {
                EngineInspection {
                    state: fleet.state().into(),
                    is_in_use: fleet.is_in_use(),
                    is_told: fleet.is_told_of(&tier.place(&cache_key.key)),
                    shares_grants: tier.shares_grants,
                }
            }),
        }
    }
}
