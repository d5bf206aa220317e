//! Who may be shown what is kept. A grant is made by proof and by nothing else: upstream has answered
//! this caller's own credential well, in this scope. It lives from when that call was *sent*: an
//! answer may have been long on its way, and the credential revoked meanwhile.
//!
//! A denial ends a grant at once, whatever other calls of the caller bring that were sent no later.
//! A 401 says that the credential itself is refused, so it suspends all grants of the caller in that
//! service. They come back only if the service's own error code shows that the 401 was about one request.
//! Losing a grant for want of room costs one upstream call. Time is an argument here.

mod count;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use strum::{IntoStaticStr, VariantArray};

use super::entry::Entry;
use super::generations::Generations;
use crate::catalogue::{Service, error_code};
use crate::request::caller::Caller;
use crate::request::key::Scope;
use crate::sync::{Mutex, MutexGuard};

/// How many refusals are remembered, and how large they may be. A loop with a dead token is few
/// callers; many are an attack, of which each costs a call.
const MAX_REFUSALS: usize = 2_048;
const MAX_REFUSAL_SIZE: usize = 8 * 1024;

/// What holds for every grant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrantSettings {
    /// How long a grant lives.
    pub grant_ttl: Duration,
    /// How long a refusal is given again without asking.
    pub denial_ttl: Duration,
    /// How long after the last proof an outage is bridged; `None` if it isn't.
    pub outage_grace: Option<Duration>,
    /// How many grants there may be. The most recently used half of them stay for sure.
    pub max_grants: usize,
}

/// Who may hold a grant: a caller in a scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CallerScope {
    /// Who asks.
    pub caller: Caller,
    /// Where.
    pub scope: Scope,
}

/// How a caller stands in a scope.
#[derive(Clone, Debug)]
pub enum GrantState {
    /// Proved, and not long ago.
    Granted,
    /// Proved longer ago. A failure outside the gateway extends the grant for what was sent before its end.
    Grace {
        /// The regular end of the grant: its last proof and `grant_ttl`.
        ended: Instant,
    },
    /// Never proved, or too long ago, or denied since.
    Unknown,
    /// Denied just now.
    Denied {
        /// What upstream said.
        refusal: Arc<Entry>,
        /// How long that is said again.
        left: Duration,
    },
}

/// What a proof has brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Proof {
    /// A grant where there was none that lived.
    Granted,
    /// A longer life of one that did.
    Renewed,
    /// Nothing: a call that was sent no earlier has been denied meanwhile.
    Late,
}

/// All grants, and what was denied.
pub(crate) struct Grants {
    tables: Mutex<GrantTables>,
}

/// A caller in a service: what a 401 is about.
type CallerService = (Caller, Service);

struct GrantTables {
    terms: GrantSettings,
    grants: Generations<CallerScope, Grant>,
    /// Every caller that holds grants in a service. A grant without its account does not count, so that an
    /// account that is lost for want of room can bring no grant back.
    accounts: Generations<CallerService, Ended>,
    refused: Generations<CallerScope, RememberedDenial>,
    /// The calls under way, by scope and by service: as many as there are, and no more.
    calls: HashMap<CallerScope, ScopeCalls>,
    service_calls: HashMap<CallerService, ServiceCalls>,
    /// Counts proofs and suspensions, to tell their order.
    count: u64,
    /// How many suspensions there are at present.
    suspensions: usize,
}

struct Grant {
    /// When the request of the latest proof was sent.
    proved: Instant,
    /// The count at that proof.
    made: u64,
}

/// The grants of an account that were made up to this count have ended.
type Ended = u64;

struct RememberedDenial {
    answer: Arc<Entry>,
    until: Instant,
}

/// ScopeCalls of one caller in one scope.
#[derive(Default)]
struct ScopeCalls {
    under_way: usize,
    /// When the latest request that was denied meanwhile had been sent.
    denied: Option<Instant>,
}

/// ScopeCalls of one caller to one service.
#[derive(Default)]
struct ServiceCalls {
    under_way: usize,
    /// When the latest request that ended the account's grants meanwhile had been sent.
    denied: Option<Instant>,
    suspensions: Vec<Suspension>,
}

/// A 401 whose body has yet to tell whether it is about the credential.
#[derive(Clone, Copy)]
struct Suspension {
    /// Grants that were made up to this count are suspended.
    made: u64,
    sent: Instant,
}

impl Grants {
    /// None so far.
    pub(crate) fn new(terms: GrantSettings) -> Self {
        let tables = GrantTables {
            terms,
            grants: Generations::new(terms.max_grants),
            accounts: Generations::new(terms.max_grants),
            refused: Generations::new(MAX_REFUSALS),
            calls: HashMap::new(),
            service_calls: HashMap::new(),
            count: 0,
            suspensions: 0,
        };
        Self { tables: Mutex::new(tables) }
    }

    /// Other terms from now on, for the grants there are too. A refusal is given again for as long as it was
    /// going to be.
    pub(crate) fn set_terms(&self, terms: GrantSettings) {
        let mut tables = self.tables();
        if terms.max_grants != tables.terms.max_grants {
            tables.grants.resize(terms.max_grants);
            tables.accounts.resize(terms.max_grants);
        }
        tables.terms = terms;
    }

    /// How a caller stands in a scope at a moment.
    pub(crate) fn grant_state(&self, caller_scope: &CallerScope, now: Instant) -> GrantState {
        let mut tables = self.tables();
        if let Some(refusal) = tables.refused.get(caller_scope) {
            let left = refusal.until.saturating_duration_since(now);
            if !left.is_zero() {
                return GrantState::Denied { refusal: Arc::clone(&refusal.answer), left };
            }
            tables.refused.remove(caller_scope);
        }
        let Some(proved) = tables.proved(caller_scope) else { return GrantState::Unknown };
        let age = now.saturating_duration_since(proved);
        let GrantSettings { grant_ttl, outage_grace, .. } = tables.terms;
        if age < grant_ttl {
            GrantState::Granted
        } else if outage_grace.is_some_and(|grace| age < grace) {
            GrantState::Grace { ended: proved + grant_ttl }
        } else {
            GrantState::Unknown
        }
    }

    /// Whether a caller has a grant in a scope at a moment.
    pub(crate) fn is_granted(&self, caller_scope: &CallerScope, now: Instant) -> bool {
        matches!(self.grant_state(caller_scope, now), GrantState::Granted)
    }

    /// Notes that a caller's own request in a scope is about to be sent.
    pub(crate) fn begin_call(self: &Arc<Self>, caller_scope: CallerScope, sent: Instant) -> PendingGrant {
        let service = caller_scope.scope.operation().service;
        self.begin(caller_scope.caller, service, Some(caller_scope.scope), sent)
    }

    /// The same of a request that belongs to no scope: it proves nothing, but it may be denied.
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
        tables.service_calls.entry(pending_grant.account()).or_default().under_way += 1;
        if let Some(caller_scope) = pending_grant.caller_scope() {
            tables.calls.entry(caller_scope).or_default().under_way += 1;
        }
        pending_grant
    }

    fn tables(&self) -> MutexGuard<'_, GrantTables> {
        self.tables.lock()
    }
}

impl CallerScope {
    fn account(&self) -> CallerService {
        (self.caller, self.scope.operation().service)
    }
}

impl GrantTables {
    /// When the request of a grant's latest proof was sent, if the grant has not been ended or suspended.
    fn proved(&mut self, caller_scope: &CallerScope) -> Option<Instant> {
        let Grant { proved, made } = *self.grants.get(caller_scope)?;
        let account = caller_scope.account();
        let ended = *self.accounts.get(&account)?;
        (made > ended && !self.is_suspended(&account, made)).then_some(proved)
    }

    /// Whether a grant that was made at a count is suspended.
    fn is_suspended(&self, account: &CallerService, made: u64) -> bool {
        // There hardly ever is a suspension, and hits look here.
        self.suspensions > 0
            && self
                .service_calls
                .get(account)
                .is_some_and(|calls| calls.suspensions.iter().any(|suspension| made <= suspension.made))
    }

    /// Whether a call was sent no later than one that has been denied since.
    fn is_late(&self, caller_scope: &CallerScope, sent: Instant) -> bool {
        let in_scope = self.calls.get(caller_scope).and_then(|calls| calls.denied);
        let calls = self.service_calls.get(&caller_scope.account());
        let in_service = calls.and_then(|calls| calls.denied);
        let suspended = calls.into_iter().flat_map(|calls| &calls.suspensions).map(|suspension| suspension.sent);
        in_scope.into_iter().chain(in_service).chain(suspended).any(|denied| denied >= sent)
    }

    fn next_count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

/// A caller's own request that is under way. Dropped, it has brought neither proof nor denial; dropped after its
/// denial, that counts as one of the credential.
pub(crate) struct PendingGrant {
    grants: Arc<Grants>,
    caller: Caller,
    service: Service,
    scope: Option<Scope>,
    sent: Instant,
    /// The count up to which its 401 suspends grants, until its body has been read.
    suspension: Option<u64>,
    /// Whether a later request of the scope had been proved when its denial came.
    was_proved_later: bool,
}

impl PendingGrant {
    fn account(&self) -> CallerService {
        (self.caller, self.service)
    }

    fn caller_scope(&self) -> Option<CallerScope> {
        self.scope.clone().map(|scope| CallerScope { caller: self.caller, scope })
    }

    /// The scope that it belongs to, if it does to one.
    pub(crate) fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    /// Whose request it is.
    pub(crate) fn caller(&self) -> Caller {
        self.caller
    }

    /// Upstream has answered it well, and now is the moment. A request of no scope proves nothing.
    pub(crate) fn proved(self, now: Instant) -> Proof {
        let Some(caller_scope) = self.caller_scope() else { return Proof::Late };
        let mut tables = self.grants.tables();
        if tables.is_late(&caller_scope, self.sent) {
            return Proof::Late;
        }
        tables.refused.remove(&caller_scope);
        let before = tables.proved(&caller_scope);
        let proved = before.map_or(self.sent, |before| before.max(self.sent));
        let made = tables.next_count();
        tables.grants.insert(caller_scope, Grant { proved, made });
        // An account that was lost may have ended grants that are still there: a new one ends them all.
        tables.accounts.get_or_insert_with(&self.account(), || made - 1);
        let lived = before.is_some_and(|before| now.saturating_duration_since(before) < tables.terms.grant_ttl);
        if lived { Proof::Renewed } else { Proof::Granted }
    }

    /// The head of upstream's refusal has come: 401 or 403. It ends the grant of the request's scope; a 401
    /// suspends the caller's other grants in the service until [`Self::refused`].
    pub(crate) fn denied(&mut self, status: StatusCode) {
        debug_assert!(self.suspension.is_none(), "a call is denied once");
        let mut tables = self.grants.tables();
        if let Some(caller_scope) = self.caller_scope() {
            if let Some(calls) = tables.calls.get_mut(&caller_scope) {
                calls.denied = calls.denied.max(Some(self.sent));
            }
            self.was_proved_later = tables.proved(&caller_scope).is_some_and(|proved| proved > self.sent);
            tables.grants.remove(&caller_scope);
        }
        if status == StatusCode::UNAUTHORIZED {
            let made = tables.next_count();
            tables.suspensions += 1;
            let suspension = Suspension { made, sent: self.sent };
            tables.service_calls.entry(self.account()).or_default().suspensions.push(suspension);
            self.suspension = Some(made);
        }
    }

    /// The body of the refusal has been read, or is not going to be. What upstream said is repeated for a while, where
    /// it is known, and where no later request has been proved: then upstream has changed its mind since.
    pub(crate) fn refused(mut self, by: RefusedBy, refusal: Option<Entry>, now: Instant) {
        self.end_suspension(by);
        let Some(caller_scope) = self.caller_scope() else { return };
        let mut tables = self.grants.tables();
        let is_latest = !self.was_proved_later && tables.proved(&caller_scope).is_none_or(|proved| proved <= self.sent);
        if let Some(refusal) = refusal.filter(|refusal| is_latest && refusal.size() <= MAX_REFUSAL_SIZE) {
            let until = now + tables.terms.denial_ttl;
            tables.refused.insert(caller_scope, RememberedDenial { answer: Arc::new(refusal), until });
        }
    }

    fn end_suspension(&mut self, by: RefusedBy) {
        let Some(made) = self.suspension.take() else { return };
        let mut tables = self.grants.tables();
        tables.suspensions -= 1;
        if let Some(calls) = tables.service_calls.get_mut(&self.account()) {
            calls.suspensions.retain(|suspension| suspension.made != made);
            if by == RefusedBy::ApiGateway {
                calls.denied = calls.denied.max(Some(self.sent));
            }
        }
        if by == RefusedBy::ApiGateway
            && let Some(ended) = tables.accounts.get(&self.account())
        {
            *ended = made.max(*ended);
        }
    }
}

impl Drop for PendingGrant {
    fn drop(&mut self) {
        self.end_suspension(RefusedBy::ApiGateway);
        let (account, caller_scope) = (self.account(), self.caller_scope());
        let mut tables = self.grants.tables();
        if let Some(caller_scope) = caller_scope
            && let Some(calls) = tables.calls.get_mut(&caller_scope)
        {
            calls.under_way -= 1;
            if calls.under_way == 0 {
                tables.calls.remove(&caller_scope);
            }
        }
        if let Some(calls) = tables.service_calls.get_mut(&account) {
            calls.under_way -= 1;
            if calls.under_way == 0 {
                tables.service_calls.remove(&account);
            }
        }
    }
}

/// Whom a 401 or 403 concerns, by the error code of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedBy {
    /// The service itself: the code is its own. It has accepted the credential, and refuses this request.
    Service,
    /// The API gateway in front of it, or nobody can tell.
    ApiGateway,
}

impl RefusedBy {
    /// Reads it off the body, as far as that is known.
    pub(crate) fn of(body: &[u8]) -> Self {
        if error_code::is_services_own(body) { Self::Service } else { Self::ApiGateway }
    }
}
