//! Invalidation by unsafe methods (RFC 9111 §4.4). After a response that is no error, the entries of the scope that
//! were sent for before are given only after a revalidation.
//!
//! Only a caller with a grant in the scope can invalidate. Other callers must not be able to empty the cache.

use std::sync::Arc;
use std::time::Instant;

use http::Response;
use http::request::Parts;

use super::cache_request::ClientIdentity;
use super::memory::Memory;
use crate::cache::admission;
use crate::cache::grants::CallerScope;
use crate::clock::Clock;
use crate::request::key::Scope;
use crate::stream::{StreamBody, peek};
use crate::upstream::{MAX_PEEK, PEEK_TIMEOUT, UpstreamError};

/// A request with an unsafe method and the path of an operation.
pub(super) struct UnsafeRequest {
    caller_scope: CallerScope,
    memory: Arc<Memory>,
    clock: Clock,
}

impl UnsafeRequest {
    /// `None` if the method is safe, or the path is not an operation's.
    pub(super) fn of(
        client_identity: &ClientIdentity,
        head: &Parts,
        memory: &Arc<Memory>,
        clock: &Clock,
    ) -> Option<Self> {
        if head.method.is_safe() {
            return None;
        }
        let (operation, place) = client_identity.active.catalogue.operation(head.uri.path())?;
        let caller_scope =
            client_identity.caller_scope(Scope::read(&client_identity.active.catalogue, operation, place).ok()?)?;
        Some(Self { caller_scope, memory: Arc::clone(memory), clock: clock.clone() })
    }

    /// Invalidates the scope if the response is no error, before the response is sent to the client.
    pub(super) async fn invalidate_after(
        self,
        result: Result<Response<StreamBody>, UpstreamError>,
    ) -> Result<Response<StreamBody>, UpstreamError> {
        let response = result?;
        let at = self.clock.now();
        let is_success = response.status().is_success() || response.status().is_redirection();
        if !is_success || !self.memory.grants.is_granted(&self.caller_scope, at) {
            return Ok(response);
        }
        // From here on the scope is invalidated, even if the client disconnects, unless the body has an error code.
        let pending = PendingInvalidation { scope: self.caller_scope.scope, at, memory: self.memory, is_error: false };
        Ok(pending.decide(response).await)
    }
}

/// Invalidates the scope when it is dropped, unless the response is an error.
struct PendingInvalidation {
    scope: Scope,
    /// When the head of the response was received.
    at: Instant,
    memory: Arc<Memory>,
    is_error: bool,
}

impl PendingInvalidation {
    async fn decide(mut self, response: Response<StreamBody>) -> Response<StreamBody> {
        let (head, body) = response.into_parts();
        let (beginning, body) = peek(body, MAX_PEEK, PEEK_TIMEOUT).await;
        self.is_error = admission::has_error_code(&beginning);
        Response::from_parts(head, body)
    }
}

impl Drop for PendingInvalidation {
    fn drop(&mut self) {
        if !self.is_error {
            // First: a look-up that begins later must not find what is invalidated.
            self.memory.second_tier.iter().for_each(|tier| tier.invalidated(&self.scope));
            self.memory.store.invalidate(&self.scope, self.at);
            tracing::debug!(
                operation = &*self.scope.operation().name,
                project_id = self.scope.project_id(),
                "unsafe method invalidated the stored responses"
            );
        }
    }
}
