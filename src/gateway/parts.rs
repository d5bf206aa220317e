//! Puts together the parts of the gateway that a step of a request needs. Nothing is decided here.

use std::sync::Arc;

use super::cache_request::{CacheRequest, ClientIdentity};
use super::forward::Forwarder;
use super::identify::IdentityResolver;
use super::release::Releaser;
use super::role::Role;
use super::{Connection, Gateway, classify};
use crate::cache::grants::CallerScope;
use crate::telemetry::record::RequestRecord;
use crate::upstream::UpstreamError;

impl Gateway {
    pub(super) fn identity_resolver(&self) -> IdentityResolver<'_> {
        let Self { callers, fingerprints, fetcher, observer, clock, .. } = self;
        IdentityResolver { callers, fingerprints, fetcher, observer, clock }
    }

    /// Raises the class of a connection whose request has been answered.
    pub(super) fn raise_class(
        &self,
        connection: &Connection,
        client_identity: &ClientIdentity,
        caller_scope: Option<&CallerScope>,
        record: &RequestRecord,
    ) {
        classify::by_client(connection, client_identity, caller_scope, &self.memory, &self.clock, record);
    }

    pub(super) fn forwarder(&self) -> Forwarder {
        let (memory, fetcher) = (Arc::clone(&self.memory), Arc::clone(&self.fetcher));
        Forwarder {
            memory,
            fetcher,
            observer: Arc::clone(&self.observer),
            request_ids: Arc::clone(&self.request_ids),
            clock: self.clock.clone(),
        }
    }

    pub(super) fn deadline_error(&self, request: &CacheRequest, is_sent: bool) -> UpstreamError {
        let class = self.memory.class_of(request, self.clock.now());
        self.fetcher.deadline_error(request, class, is_sent, &self.observer)
    }

    /// The releaser uses the current state, not the state when the request joined its flight.
    pub(super) fn releaser<'g>(&'g self, request: &'g CacheRequest, role: &'g Role) -> Releaser<'g> {
        Releaser { memory: &self.memory, observer: &self.observer, request, role, now: self.clock.now() }
    }
}
