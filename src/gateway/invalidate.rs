//! Invalidation by unsafe methods (RFC 9111 §4.4): after a response that is no error, what was sent for in that scope before
//! is given only after upstream has confirmed it.
//!
//! Only a caller that holds a grant in the scope can bring that about, and only by a response that is no error: a stranger
//! must not be able to empty the cache.

use std::sync::Arc;
use std::time::Instant;

use http::Response;
use http::request::Parts;

use super::cache_request::ClientIdentity;
use super::memory::Memory;
use crate::cache::admission;
use crate::cache::grants::{CallerScope, Grants};
use crate::cache::store::Store;
use crate::clock::Clock;
use crate::request::key::Scope;
use crate::stream::{StreamBody, peek};
use crate::upstream::{MAX_PEEK, PEEK_TIMEOUT, UpstreamError};

/// A request that may change what an operation answers in a scope.
pub(super) struct UnsafeRequest {
    caller_scope: CallerScope,
    grants: Arc<Grants>,
    store: Arc<Store>,
    clock: Clock,
}

impl UnsafeRequest {
    /// The request, if it may change what an operation answers: it has an unsafe method and an operation's path.
    pub(super) fn of(client_identity: &ClientIdentity, head: &Parts, memory: &Memory, clock: &Clock) -> Option<Self> {
        if head.method.is_safe() {
            return None;
        }
        let (operation, place) = client_identity.active.catalogue.operation(head.uri.path())?;
        let caller_scope =
            client_identity.caller_scope(Scope::read(&client_identity.active.catalogue, operation, place).ok()?)?;
        let (grants, store) = (Arc::clone(&memory.grants), Arc::clone(&memory.store));
        Some(Self { caller_scope, grants, store, clock: clock.clone() })
    }

    /// Invalidates the scope, if that is what the response means, before the client is told.
    pub(super) async fn answered(
        self,
        answer: Result<Response<StreamBody>, UpstreamError>,
    ) -> Result<Response<StreamBody>, UpstreamError> {
        let response = answer?;
        let at = self.clock.now();
        let is_good = response.status().is_success() || response.status().is_redirection();
        if !is_good || !self.grants.is_granted(&self.caller_scope, at) {
            return Ok(response);
        }
        // From here on it is invalidated unless the body says that nothing was changed, though the client hangs up.
        let pending = Pending { scope: self.caller_scope.scope, at, store: self.store, is_error: false };
        Ok(pending.decide(response).await)
    }
}

/// An invalidation. It takes place when this is dropped, unless the response has told of an error.
struct Pending {
    scope: Scope,
    /// When the response began.
    at: Instant,
    store: Arc<Store>,
    is_error: bool,
}

impl Pending {
    async fn decide(mut self, response: Response<StreamBody>) -> Response<StreamBody> {
        let (head, body) = response.into_parts();
        let (beginning, body) = peek(body, MAX_PEEK, PEEK_TIMEOUT).await;
        self.is_error = admission::tells_error(&beginning);
        Response::from_parts(head, body)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_error {
            self.store.invalidate(&self.scope, self.at);
            tracing::debug!(
                operation = &*self.scope.operation().name,
                project_id = self.scope.project_id(),
                "an unsafe method has invalidated what was known"
            );
        }
    }
}
