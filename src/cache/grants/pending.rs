//! A call of a caller from its begin to its end, and what its end does to the grants.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;

use super::{
    Basis, CallerScope, CallerService, Grant, Grants, MAX_REFUSAL_SIZE, Proof, ServiceGrants, StoredDenial, Suspension,
};
use crate::cache::entry::Entry;
use crate::catalogue::{Service, error_code};
use crate::request::caller::Caller;
use crate::request::key::Scope;

/// A caller's own call that is in flight and may prove the caller. If it is dropped without a result, nothing changes.
/// If it is dropped after a 401, the 401 counts as a refusal of the credential.
pub(crate) struct PendingGrant {
    pub(super) grants: Arc<Grants>,
    pub(super) caller: Caller,
    pub(super) service: Service,
    pub(super) scope: Option<Scope>,
    pub(super) sent: Instant,
    /// The sequence number up to which its 401 suspends grants. `None` after the body has been read.
    pub(super) suspension: Option<u64>,
    /// Whether a request of the scope that was sent later had proved the caller when this one was denied.
    pub(super) was_proved_later: bool,
}

impl PendingGrant {
    pub(super) fn caller_service(&self) -> CallerService {
        (self.caller, self.service)
    }

    pub(super) fn caller_scope(&self) -> Option<CallerScope> {
        self.scope.clone().map(|scope| CallerScope { caller: self.caller, scope })
    }

    /// The scope of the call. `None` if it is outside of all scopes.
    pub(crate) fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }

    pub(crate) fn caller(&self) -> Caller {
        self.caller
    }

    pub(crate) fn service(&self) -> Service {
        self.service
    }

    /// Records a successful response. A call outside of all scopes proves nothing and returns [`Proof::Late`].
    pub(crate) fn proved(self, now: Instant) -> Proof {
        let Some(caller_scope) = self.caller_scope() else { return Proof::Late };
        let mut tables = self.grants.tables();
        if tables.is_late(&caller_scope, self.sent) || tables.all_lapsed.is_some_and(|lapsed| lapsed >= self.sent) {
            return Proof::Late;
        }
        tables.stored_denials.remove(&caller_scope);
        let was_live = tables.live(&caller_scope, self.grants.sync(), now).is_some();
        // The time of another gateway's proof does not become one of an own proof.
        let own = tables.grant(&caller_scope).filter(|grant| matches!(grant.basis, Basis::Own));
        let proved = own.map_or(self.sent, |own| own.proved.max(self.sent));
        let sequence = tables.next_sequence();
        tables.add(caller_scope, Grant::new(proved, sequence));
        if was_live { Proof::Renewed } else { Proof::Granted }
    }

    /// Records the head of a 401 or 403. It ends the grant of the call's scope. A 401 also suspends the caller's other
    /// grants in the service until [`Self::refused`]. Returns which grants there were.
    pub(crate) fn denied(&mut self, status: StatusCode) -> HadGrants {
        debug_assert!(self.suspension.is_none(), "a call is denied once");
        let mut tables = self.grants.tables();
        let service_grants = tables.caller_services.peek(&self.caller_service());
        let mut had = HadGrants { in_scope: false, in_service: service_grants.is_some_and(ServiceGrants::are_any) };
        let mut was_removed = false;
        if let Some(caller_scope) = self.caller_scope() {
            if let Some(calls) = tables.calls.get_mut(&caller_scope) {
                calls.denied = calls.denied.max(Some(self.sent));
            }
            self.was_proved_later = tables.proved(&caller_scope).is_some_and(|proved| proved > self.sent);
            had.in_scope = tables.grants.remove(&caller_scope).is_some();
            was_removed = tables.grants.may_have_removed(&caller_scope);
        }
        let mut is_revocation = had.in_scope || was_removed;
        if status == StatusCode::UNAUTHORIZED {
            is_revocation |= had.in_service || tables.caller_services.may_have_removed(&self.caller_service());
            let sequence = tables.next_sequence();
            tables.suspensions += 1;
            let suspension = Suspension { sequence, sent: self.sent };
            tables.service_calls.entry(self.caller_service()).or_default().suspensions.push(suspension);
            self.suspension = Some(sequence);
        }
        self.grants.record_denial(is_revocation, tables);
        had
    }

    /// Records the body of the refusal, or that it will not be read. The gateway repeats the refusal for `denial_ttl`,
    /// if the body is known and no request that was sent later has proved the caller.
    ///
    /// Returns whether the credential itself is refused: a 401 that has ended all grants of the caller in the service.
    pub(crate) fn refused(mut self, by: RefusedBy, refusal: Option<Entry>, now: Instant) -> bool {
        let is_of_credential = self.suspension.is_some() && by == RefusedBy::ApiGateway;
        self.end_suspension(by);
        let Some(caller_scope) = self.caller_scope() else { return is_of_credential };
        let mut tables = self.grants.tables();
        let is_latest = !self.was_proved_later && tables.proved(&caller_scope).is_none_or(|proved| proved <= self.sent);
        if let Some(refusal) = refusal.filter(|refusal| is_latest && refusal.size() <= MAX_REFUSAL_SIZE) {
            let until = now + tables.settings.denial_ttl;
            tables.stored_denials.insert(caller_scope, StoredDenial { refusal: Arc::new(refusal), until });
        }
        is_of_credential
    }

    fn end_suspension(&mut self, by: RefusedBy) {
        let Some(sequence) = self.suspension.take() else { return };
        let mut tables = self.grants.tables();
        tables.suspensions -= 1;
        if let Some(calls) = tables.service_calls.get_mut(&self.caller_service()) {
            calls.suspensions.retain(|suspension| suspension.sequence != sequence);
            if by == RefusedBy::ApiGateway {
                calls.denied = calls.denied.max(Some(self.sent));
            }
        }
        if by == RefusedBy::ApiGateway
            && let Some(grants) = tables.caller_services.get(&self.caller_service())
        {
            grants.ended = sequence.max(grants.ended);
        }
    }
}

impl Drop for PendingGrant {
    fn drop(&mut self) {
        self.end_suspension(RefusedBy::ApiGateway);
        let (caller_service, caller_scope) = (self.caller_service(), self.caller_scope());
        let mut tables = self.grants.tables();
        if let Some(caller_scope) = caller_scope
            && let Some(calls) = tables.calls.get_mut(&caller_scope)
        {
            calls.in_flight -= 1;
            if calls.in_flight == 0 {
                tables.calls.remove(&caller_scope);
            }
        }
        if let Some(calls) = tables.service_calls.get_mut(&caller_service) {
            calls.in_flight -= 1;
            if calls.in_flight == 0 {
                tables.service_calls.remove(&caller_service);
            }
        }
    }
}

/// Which grants the caller of a denied call had until then, in force or lapsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HadGrants {
    /// One in the scope of the call.
    pub(crate) in_scope: bool,
    /// Any in the service.
    pub(crate) in_service: bool,
}

/// The sender of a 401 or 403, according to the error code in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedBy {
    /// The service. It has accepted the credential and refuses only this request.
    Service,
    /// The API gateway in front of the service. Also used if the code does not show the sender.
    ApiGateway,
}

impl RefusedBy {
    /// Reads the error code from the body, or from the part of it that was received.
    pub(crate) fn of(body: &[u8]) -> Self {
        if error_code::is_services_own(body) { Self::Service } else { Self::ApiGateway }
    }
}
