//! What a 401 or 403 of upstream changes, here and at other gateways.
//!
//! Its head ends grants. Whether a 401 is about the credential itself is known only with its body. A refusal by something
//! between the gateway and upstream has no `X-Request-Id`: it counts here, but other gateways keep their grants.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use super::memory::Memory;
use super::observer::Observer;
use super::tier::DeniedBy;
use crate::cache::grants::{CallerScope, PendingGrant, RefusedBy};
use crate::catalogue::{Catalogue, Origin, Service};
use crate::request::X_REQUEST_ID;
use crate::request::caller::Caller;
use crate::request::key::Scope;
use crate::telemetry::events::{Event, NewEvent};

/// A refusal whose body has not been read. If it is dropped, the credential itself counts as refused. It must be dropped or
/// decided before the pending grant of its call: until then that grant prevents that an older proof is borrowed.
pub(super) struct UnreadRefusal<'m> {
    memory: &'m Memory,
    caller: Caller,
    service: Service,
    origin: Arc<Origin>,
    scope: Option<Scope>,
    is_known: bool,
    by: DeniedBy,
    /// Whether it may be about the credential.
    is_to_tell: bool,
}

/// Applies what a 401 or 403 changes as soon as its head has been read.
pub(super) fn apply_denial<'m>(
    memory: &'m Memory,
    observer: &Observer,
    catalogue: &Catalogue,
    pending_grant: &mut PendingGrant,
    (status, headers): (StatusCode, &HeaderMap),
) -> UnreadRefusal<'m> {
    observer.metrics.denial("upstream");
    observer
        .record_event(NewEvent::new(Event::Denial, "upstream refused a credential").in_scope(pending_grant.scope()));
    let (caller, service) = (pending_grant.caller(), pending_grant.service());
    if status == StatusCode::UNAUTHORIZED {
        memory.known_callers.refused(&caller);
    }
    let had = pending_grant.denied(status);
    let by = if headers.contains_key(X_REQUEST_ID) { DeniedBy::Upstream } else { DeniedBy::Intermediary };
    if let (Some(tier), Some(scope)) = (&memory.second_tier, pending_grant.scope()) {
        tier.denied(&CallerScope { caller, scope: scope.clone() }, had.in_scope, by);
    }
    UnreadRefusal {
        memory,
        caller,
        service,
        origin: Arc::clone(catalogue.origin(service)),
        scope: pending_grant.scope().cloned(),
        is_known: had.in_service,
        by,
        is_to_tell: status == StatusCode::UNAUTHORIZED,
    }
}

impl UnreadRefusal<'_> {
    /// The body, or the part of it that was read, shows who has refused.
    pub(super) fn decide(mut self, by: RefusedBy) {
        self.is_to_tell &= by == RefusedBy::ApiGateway;
    }
}

impl Drop for UnreadRefusal<'_> {
    fn drop(&mut self) {
        if let (true, Some(tier)) = (self.is_to_tell, &self.memory.second_tier) {
            let known = (self.scope.as_ref(), self.is_known);
            tier.refused(self.caller, (self.service, &self.origin), known, self.by);
        }
    }
}
