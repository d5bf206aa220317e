//! Grants: which caller may see which entries. Only a proof makes a grant: upstream has answered the caller's own
//! credential successfully, in this scope. The lifetime of a grant begins when that call was *sent*, because the
//! credential may have been revoked while the response was in transit.
//!
//! A denial ends a grant immediately. The caller's calls that were sent no later than the denied one cannot prove it
//! any more. A 401 says that the credential itself is refused. So it suspends all grants of the caller in that service,
//! until the error code in its body shows whether only one request was refused. A grant that is removed because the
//! table is full costs one upstream call. The time is an argument.
//!
//! A grant may rest on a proof of an earlier process (`restore.rs`) or of another gateway of the fleet (`fleet.rs`).

mod count;
mod fleet;
mod pending;
mod renewal;
mod restore;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use strum::{IntoStaticStr, VariantArray};

pub(crate) use self::pending::{PendingGrant, RefusedBy};
use self::renewal::Renewal;
pub(crate) use self::renewal::{GrantUse, RenewalPolicy, RenewalResult, backoff_after};
pub(crate) use self::restore::RestoredProof;
use super::entry::Entry;
use super::fleet_sync::FleetSync;
use super::lru_map::LruMap;
use super::revocations::Revocations;
use crate::catalogue::Service;
use crate::random::HashMap;
use crate::request::caller::Caller;
use crate::request::key::Scope;
use crate::sync::{Mutex, MutexGuard};

/// The maximum number of stored refusals. Few clients repeat requests with an expired token. During an attack with many
/// tokens, each refusal that is not stored costs an upstream call.
const MAX_REFUSALS: usize = 2_048;

/// The maximum size of a stored refusal, in bytes. A larger one is not stored.
const MAX_REFUSAL_SIZE: usize = 8 * 1024;

#[derive(Clone, Copy, Debug)]
pub(crate) struct GrantPolicy {
    /// The lifetime of a grant.
    pub grant_ttl: Duration,
    /// How long the gateway repeats a refusal without a call to upstream.
    pub denial_ttl: Duration,
    /// How long after the last proof a failure of upstream can extend a grant. `None` if it cannot.
    pub outage_grace: Option<Duration>,
    pub renewal: RenewalPolicy,
    /// The maximum number of grants. The most recently used half is never removed.
    pub max_grants: usize,
}

/// What a grant is for: a caller in a scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CallerScope {
    pub caller: Caller,
    pub scope: Scope,
}

#[derive(Clone, Debug)]
pub enum GrantState {
    /// The last proof is not older than `grant_ttl`.
    Granted,
    /// The grant has lapsed. A failure outside the gateway extends it, for entries that were requested no later than
    /// `ended`.
    Lapsed {
        /// The regular end of the grant: the last proof plus `grant_ttl`. If the grant covers less ([`Basis`]), the
        /// end of that.
        ended: Instant,
    },
    /// There is no proof, it is too old, or the caller was denied after it.
    Unknown,
    /// The caller was denied less than `denial_ttl` ago.
    Denied {
        /// The response of upstream.
        refusal: Arc<Entry>,
        /// How long the gateway still repeats it.
        left: Duration,
    },
}

/// The effect of a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Proof {
    /// There was no grant, or it had lapsed.
    Granted,
    /// The grant had not lapsed, and now has a later end.
    Renewed,
    /// No effect: a call that was sent at the same time or later has been denied.
    Late,
}

pub(crate) struct Grants {
    tables: Mutex<GrantTables>,
    revocations: Arc<Revocations>,
    /// Without it, no borrowed grant is live.
    sync: Option<Arc<FleetSync>>,
}

/// What a 401 covers: a caller in a service.
type CallerService = (Caller, Service);

struct GrantTables {
    settings: GrantPolicy,
    /// The age from which a grant may be renewed ahead of its end.
    first_renewal: Duration,
    grants: LruMap<CallerScope, Grant>,
    /// The callers with grants in a service. A grant counts only if its caller is in this table. So a caller that is
    /// removed because the table is full does not get ended grants back.
    caller_services: LruMap<CallerService, ServiceGrants>,
    stored_denials: LruMap<CallerScope, StoredDenial>,
    /// The calls in flight, by scope and by service. An entry is removed with its last call.
    calls: HashMap<CallerScope, ScopeCalls>,
    service_calls: HashMap<CallerService, ServiceCalls>,
    /// The sequence number of the latest proof or suspension.
    sequence: u64,
    /// The number of suspensions at present.
    suspensions: usize,
    /// When all grants have lapsed at once. A call that was sent no later proves nothing.
    all_lapsed: Option<Instant>,
}

struct Grant {
    /// When the request of the latest proof was sent.
    proved: Instant,
    /// The sequence number of that proof.
    sequence: u64,
    basis: Basis,
    renewal: Renewal,
}

/// What a grant rests on.
#[derive(Clone, Copy, Debug)]
enum Basis {
    /// A proof of this process.
    Own,
    /// A proof of another gateway. The grant is live only while this process is in sync with the fleet.
    Borrowed {
        /// When it was taken.
        at: Instant,
    },
    /// A proof of an earlier process, or one after which notices of the fleet were lost. The grant counts as lapsed.
    Lapsed {
        /// It covers nothing later than this.
        covers_until: Instant,
    },
}

/// What a grant that was neither ended nor suspended is good for. A later variant is better, and so is a later end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Nothing any more.
    Over,
    /// See [`GrantState::Lapsed`].
    Lapsed {
        ended: Instant,
    },
    Live,
}

impl Basis {
    /// Whether a grant that is young enough is live.
    fn is_sound(self, sync: Option<&FleetSync>, now: Instant) -> bool {
        match self {
            Self::Own => true,
            Self::Borrowed { .. } => sync.is_some_and(|sync| sync.is_in_sync(now)),
            Self::Lapsed { .. } => false,
        }
    }

    /// The grant covers nothing later than this, if it is not live. `None` if only its age bounds it.
    fn covers_until(self, sync: Option<&FleetSync>) -> Option<Instant> {
        match self {
            Self::Own => None,
            Self::Borrowed { at } => Some(sync.and_then(FleetSync::knows_until).map_or(at, |ended| ended.max(at))),
            Self::Lapsed { covers_until } => Some(covers_until),
        }
    }
}

impl Grant {
    /// A grant by a proof of this process.
    fn new(proved: Instant, sequence: u64) -> Self {
        Self { proved, sequence, basis: Basis::Own, renewal: Renewal::new(proved, sequence) }
    }

    fn is_live(&self, grant_ttl: Duration, sync: Option<&FleetSync>, now: Instant) -> bool {
        now.saturating_duration_since(self.proved) < grant_ttl && self.basis.is_sound(sync, now)
    }

    fn standing(&self, settings: &GrantPolicy, sync: Option<&FleetSync>, now: Instant) -> Standing {
        let GrantPolicy { grant_ttl, outage_grace, .. } = *settings;
        if self.is_live(grant_ttl, sync, now) {
            return Standing::Live;
        }
        if outage_grace.is_none_or(|grace| now.saturating_duration_since(self.proved) >= grace) {
            return Standing::Over;
        }
        let end = self.proved + grant_ttl;
        Standing::Lapsed { ended: self.basis.covers_until(sync).map_or(end, |until| until.min(end)) }
    }
}

/// The grants of a caller in a service, by their sequence numbers.
#[derive(Clone, Copy)]
struct ServiceGrants {
    /// Those up to this one have ended.
    ended: u64,
    /// The latest one.
    latest: u64,
}

impl ServiceGrants {
    /// Whether there are any that have not ended.
    fn are_any(&self) -> bool {
        self.latest > self.ended
    }
}

struct StoredDenial {
    refusal: Arc<Entry>,
    until: Instant,
}

/// The calls of one caller in one scope.
#[derive(Default)]
struct ScopeCalls {
    in_flight: usize,
    /// When the latest of the denied requests was sent.
    denied: Option<Instant>,
}

/// The calls of one caller to one service.
#[derive(Default)]
struct ServiceCalls {
    in_flight: usize,
    /// When the latest of the requests that ended all grants of the caller was sent.
    denied: Option<Instant>,
    suspensions: Vec<Suspension>,
}

/// A 401 whose body has not been read, so it is not known whether it is about the credential.
#[derive(Clone, Copy)]
struct Suspension {
    /// Grants up to this sequence number are suspended.
    sequence: u64,
    sent: Instant,
}

impl ServiceCalls {
    /// Whether they suspend the grant with this sequence number.
    fn suspend(&self, sequence: u64) -> bool {
        self.suspensions.iter().any(|suspension| sequence <= suspension.sequence)
    }
}

impl Grants {
    pub(crate) fn new(settings: GrantPolicy, revocations: Arc<Revocations>) -> Self {
        let tables = GrantTables {
            settings,
            first_renewal: settings.first_renewal(),
            grants: LruMap::new(settings.max_grants).tracking_removals(),
            caller_services: LruMap::new(settings.max_grants).tracking_removals(),
            stored_denials: LruMap::new(MAX_REFUSALS),
            calls: HashMap::default(),
            service_calls: HashMap::default(),
            sequence: 0,
            suspensions: 0,
            all_lapsed: None,
        };
        Self { tables: Mutex::new(tables), revocations, sync: None }
    }

    /// Changes the settings, also for existing grants. Stored refusals keep their old end.
    pub(crate) fn set_settings(&self, settings: GrantPolicy) {
        let mut tables = self.tables();
        if settings.max_grants != tables.settings.max_grants {
            tables.grants.resize(settings.max_grants);
            tables.caller_services.resize(settings.max_grants);
            // Grants may have been removed.
            self.revocations.add_for_process();
        }
        (tables.settings, tables.first_renewal) = (settings, settings.first_renewal());
    }

    pub(crate) fn grant_state(&self, caller_scope: &CallerScope, now: Instant) -> GrantState {
        let mut tables = self.tables();
        if let Some((refusal, left)) = tables.stored_denial(caller_scope, now) {
            return GrantState::Denied { refusal: Arc::clone(refusal), left };
        }
        let settings = tables.settings;
        let Some(grant) = tables.grant(caller_scope) else { return GrantState::Unknown };
        match grant.standing(&settings, self.sync(), now) {
            Standing::Live => GrantState::Granted,
            Standing::Lapsed { ended } => GrantState::Lapsed { ended },
            Standing::Over => GrantState::Unknown,
        }
    }

    pub(crate) fn is_granted(&self, caller_scope: &CallerScope, now: Instant) -> bool {
        matches!(self.grant_state(caller_scope, now), GrantState::Granted)
    }

    /// Registers a caller's own call in a scope, immediately before it is sent.
    pub(crate) fn begin_call(self: &Arc<Self>, caller_scope: CallerScope, sent: Instant) -> PendingGrant {
        let service = caller_scope.scope.operation().service;
        self.begin(caller_scope.caller, service, Some(caller_scope.scope), sent)
    }

    /// Like [`Self::begin_call`], for a request outside of all scopes. It cannot prove the caller, but it can be
    /// denied.
    pub(crate) fn begin_unscoped_call(
        self: &Arc<Self>,
        caller: Caller,
        service: Service,
        sent: Instant,
    ) -> PendingGrant {
        self.begin(caller, service, None, sent)
    }

    fn begin(self: &Arc<Self>, caller: Caller, service: Service, scope: Option<Scope>, sent: Instant) -> PendingGrant {
        let grants = Arc::clone(self);
        let pending_grant =
            PendingGrant { grants, caller, service, scope, sent, suspension: None, was_proved_later: false };
        let mut tables = self.tables();
        tables.service_calls.entry(pending_grant.caller_service()).or_default().in_flight += 1;
        if let Some(caller_scope) = pending_grant.caller_scope() {
            tables.calls.entry(caller_scope).or_default().in_flight += 1;
        }
        pending_grant
    }

    /// Must be called at the end of each denial. `is_revocation`: whether the denial ended a grant, or may concern one that
    /// was removed because there was no room: a snapshot, or a remembered look-up, may still know that.
    fn record_denial(&self, is_revocation: bool, mut tables: MutexGuard<'_, GrantTables>) {
        if is_revocation {
            // It ends everything that may still know of an earlier removal. While the lock is held, so that the next denial
            // does not come between.
            tables.grants.forget_removals();
            tables.caller_services.forget_removals();
            self.revocations.add();
        }
    }

    fn tables(&self) -> MutexGuard<'_, GrantTables> {
        self.tables.lock()
    }

    fn sync(&self) -> Option<&FleetSync> {
        self.sync.as_deref()
    }
}

impl CallerScope {
    fn caller_service(&self) -> CallerService {
        (self.caller, self.scope.operation().service)
    }
}

impl GrantTables {
    /// The refusal that the gateway repeats, and for how long.
    fn stored_denial(&mut self, caller_scope: &CallerScope, now: Instant) -> Option<(&Arc<Entry>, Duration)> {
        let left = self.stored_denials.get(caller_scope)?.until.saturating_duration_since(now);
        if left.is_zero() {
            self.stored_denials.remove(caller_scope);
            return None;
        }
        self.stored_denials.get(caller_scope).map(|denial| (&denial.refusal, left))
    }

    /// The grant of a caller, which may have lapsed. `None` if it was ended or is suspended.
    fn grant(&mut self, caller_scope: &CallerScope) -> Option<&mut Grant> {
        let Self { grants, caller_services, suspensions, service_calls, .. } = self;
        let grant = grants.get(caller_scope)?;
        let caller_service = caller_scope.caller_service();
        let ServiceGrants { ended, .. } = *caller_services.get(&caller_service)?;
        // Every hit runs this, and suspensions are rare.
        let is_suspended = || {
            *suspensions > 0 && service_calls.get(&caller_service).is_some_and(|calls| calls.suspend(grant.sequence))
        };
        (grant.sequence > ended && !is_suspended()).then_some(grant)
    }

    /// When the request of the latest proof was sent. `None` if the grant was ended or is suspended.
    fn proved(&mut self, caller_scope: &CallerScope) -> Option<Instant> {
        self.grant(caller_scope).map(|grant| grant.proved)
    }

    /// The grant of a caller, if it has not lapsed.
    fn live(&mut self, caller_scope: &CallerScope, sync: Option<&FleetSync>, now: Instant) -> Option<&mut Grant> {
        let grant_ttl = self.settings.grant_ttl;
        self.grant(caller_scope).filter(|grant| grant.is_live(grant_ttl, sync, now))
    }

    /// Adds a grant, or replaces it. It has a new sequence number.
    fn add(&mut self, caller_scope: CallerScope, grant: Grant) {
        let (sequence, caller_service) = (grant.sequence, caller_scope.caller_service());
        self.grants.insert(caller_scope, grant);
        // If the caller was removed from the table, it is unknown which of its grants had ended. So all earlier ones
        // end.
        let new = || ServiceGrants { ended: sequence - 1, latest: sequence };
        self.caller_services.get_or_insert_with(&caller_service, new).latest = sequence;
    }

    /// Whether a call that was sent at the same time or later has been denied.
    fn is_late(&self, caller_scope: &CallerScope, sent: Instant) -> bool {
        let in_scope = self.calls.get(caller_scope).and_then(|calls| calls.denied);
        let calls = self.service_calls.get(&caller_scope.caller_service());
        let in_service = calls.and_then(|calls| calls.denied);
        let suspended = calls.into_iter().flat_map(|calls| &calls.suspensions).map(|suspension| suspension.sent);
        in_scope.into_iter().chain(in_service).chain(suspended).any(|denied| denied >= sent)
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}
