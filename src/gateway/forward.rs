//! The sequence of a relayed request: it is sent upstream unchanged, and the response is streamed.
//!
//! Nothing is stored here, and a relayed response gives no grant.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::ActiveConfig;
use super::cache_request::ClientIdentity;
use super::call_trace::{CallTrace, TracedCall};
use super::caller_class::accepts_caller;
use super::denial::apply_denial;
use super::fetcher::Fetcher;
use super::invalidate::UnsafeRequest;
use super::key_trial::KeyTurn;
use super::memory::Memory;
use super::observer::Observer;
use super::pacing;
use crate::budget::{Account, Charge, Purpose};
use crate::cache::backoffs::retry_after;
use crate::cache::grants::{CallerScope, PendingGrant, RefusedBy};
use crate::catalogue::{Origin, Service};
use crate::clock::Clock;
use crate::reply::body::Content;
use crate::reply::compose::{CacheStatus, Forward};
use crate::reply::error::{ErrorSource, RequestError};
use crate::request::BypassReason;
use crate::request::decide::AuthorizationAction;
use crate::request::id::RequestIds;
use crate::request::trace::TRACEPARENT;
use crate::signing::SignedTarget;
use crate::signing::ring::{SignatureRejection, VerifiedRequest};
use crate::stream::{StreamBody, peek, stream};
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::RequestRecord;
use crate::telemetry::traces::CallTarget;
use crate::upstream::gate::{CallKind, Class, GateCall, Permit};
use crate::upstream::key_breaker::SignatureOutcome;
use crate::upstream::{MAX_PEEK, PEEK_TIMEOUT, UpstreamError, is_refusal};

/// The memory of a relayed request in flight, in bytes: the parts of its body and its response that were read and not
/// yet written, and the kernel's buffer for the slow direction. Measured.
const RELAY_SIZE: usize = 192 * 1024;

/// The parts that relaying needs.
#[derive(Clone)]
pub(super) struct Forwarder {
    pub(super) memory: Arc<Memory>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) observer: Arc<Observer>,
    pub(super) request_ids: Arc<RequestIds>,
    pub(super) clock: Clock,
}

impl Forwarder {
    /// Relays a request that is for no operation.
    pub(super) async fn pass_through(
        &self,
        client_identity: &ClientIdentity,
        service: Service,
        request: Request<StreamBody>,
        record: &mut RequestRecord,
    ) -> Result<Response<Content>, RequestError> {
        record.set_outcome(Outcome::PassThrough, "");
        self.forward(client_identity, service, None, CallKind::Relay, request, record).await
    }

    /// Relays a request for an operation, and gives the reason in `Cache-Status`.
    pub(super) async fn bypass(
        &self,
        client_identity: &ClientIdentity,
        reason: BypassReason,
        service: Service,
        caller_scope: Option<CallerScope>,
        request: Request<StreamBody>,
        record: &mut RequestRecord,
    ) -> Result<Response<Content>, RequestError> {
        record.set_outcome(Outcome::Bypass, reason.into_str());
        // A list that is too large to be stored is one nevertheless.
        let kind = if reason == BypassReason::TooLarge { CallKind::List } else { CallKind::Relay };
        let mut response = match self.forward(client_identity, service, caller_scope, kind, request, record).await {
            Ok(response) => {
                self.observer.metrics.bypass(record.operation(), reason);
                response
            }
            Err(error) if error.error_source() == ErrorSource::Client => return Err(error),
            // `Cache-Status` has both: the reason for the bypass, and why the call failed.
            Err(error) => {
                record.set_failure(error.as_str());
                error.response(record.request_id())
            }
        };
        let status = CacheStatus::Forwarded {
            why: Forward::Bypass,
            status: None,
            stored: false,
            collapsed: false,
            key: record.key(),
            detail: Some(reason.into_str()),
            failure: record.failure(),
        };
        status.add_to(response.headers_mut());
        Ok(response)
    }

    /// Relays a request, and streams the response. It is no proof, because the gateway does not read it to its end. But
    /// a 401 or 403 ends a grant.
    async fn forward(
        &self,
        client_identity: &ClientIdentity,
        service: Service,
        caller_scope: Option<CallerScope>,
        kind: CallKind,
        request: Request<StreamBody>,
        record: &mut RequestRecord,
    ) -> Result<Response<Content>, RequestError> {
        let (mut head, body) = request.into_parts();
        let origin = client_identity.active.catalogue.origin(service);
        let caller = client_identity.caller();
        let unsafe_request = UnsafeRequest::of(client_identity, &head, &self.memory, &self.clock);
        let signed = client_identity.identity.as_ref().and_then(|(credential, _)| credential.signed());
        match client_identity.authorization {
            AuthorizationAction::Kept | AuthorizationAction::Renewed => {}
            AuthorizationAction::Unverified => self.observer.metrics.signature("unknown-key"),
            AuthorizationAction::Dropped => {
                head.headers.remove(AUTHORIZATION);
            }
            AuthorizationAction::Bound => {
                self.observer.metrics.signature(RequestError::SignatureBoundToGateway.as_str());
                return Err(RequestError::SignatureBoundToGateway);
            }
        }
        let (key_turn, mut permit, buffers) =
            self.wait_for_turn(client_identity, signed, service, caller_scope.as_ref(), kind).await?;
        // The upload can go on after the response has ended.
        let body = if body.is_end_stream() { body } else { charged(body, Arc::clone(&buffers)) };
        let traced_call = self.begin_trace(&mut head, origin, signed.is_some(), record);
        if let Some(signed) = signed {
            self.renew(signed, &mut head, origin)?;
        }
        let (sent, begun) = (self.clock.now(), self.clock.timer_now());
        let pending_grant = match caller_scope {
            Some(caller_scope) => Some(self.memory.grants.begin_call(caller_scope, sent)),
            None => caller.map(|caller| self.memory.grants.begin_unscoped_call(caller, service, sent)),
        };
        let call = self.observer.metrics.upstream_call(service, traced_call.span);
        permit.mark_sent();
        let permit_and_buffers = (permit, buffers);
        let can_make_known =
            caller.filter(|_| accepts_caller(&client_identity.active, &head, StatusCode::OK)).is_some();
        let (result, (mut permit, buffers)) = match (&key_turn, &unsafe_request) {
            (None, None) => (
                self.relayed(
                    &client_identity.active,
                    service,
                    &client_identity.account,
                    (pending_grant, None, &permit_and_buffers.0),
                    &head,
                    body,
                )
                .await,
                permit_and_buffers,
            ),
            _ => {
                // In a task of its own: the outcome of the signature, and an invalidation, must not be lost when the
                // client disconnects.
                let (this, active, account) =
                    (self.clone(), Arc::clone(&client_identity.active), client_identity.account.clone());
                let task = tokio::spawn(async move {
                    let held = (pending_grant, key_turn, &permit_and_buffers.0);
                    let result = this.relayed(&active, service, &account, held, &head, body).await;
                    (invalidate_after(unsafe_request, result).await, permit_and_buffers)
                });
                task.await.map_err(|_| RequestError::Internal)?
            }
        };
        permit.unsent_if_unreached(result.as_ref().err());
        let status = result.as_ref().map(Response::status).map_err(UpstreamError::failure);
        let duration = self.clock.timer_now().saturating_duration_since(begun);
        call.ended(status, duration);
        record.set_upstream_time(Some(duration));
        let is_accepted = can_make_known && status.is_ok_and(|status| status.is_success());
        let is_known = is_accepted || self.memory.class(caller, None, self.clock.now()) != Class::Unknown;
        self.observer.record_health(service, status, is_known);
        if let Some(response) = result.as_ref().ok().filter(|response| is_known && self.is_throttled(response)) {
            self.observer.throttled(service, response.status(), None);
        }
        Ok(match result {
            Ok(response) => response.map(|body| Content::Stream(charged(permit.hold(body), buffers))),
            Err(error) => {
                self.observer.call_failed(service, record.request_id(), &error);
                record.set_failure(error.failure().into_str());
                RequestError::Upstream(error).response(record.request_id())
            }
        })
    }

    /// Relays a request, up to the head of its response. A 401 or 403 counts at its head. The beginning of an error's
    /// body says whether a 401 concerns only one scope, and whether upstream accepted the signature.
    async fn relayed(
        &self,
        active: &ActiveConfig,
        service: Service,
        account: &Account,
        (mut pending_grant, key_turn, permit): (Option<PendingGrant>, Option<KeyTurn>, &Permit),
        head: &Parts,
        body: StreamBody,
    ) -> Result<Response<StreamBody>, UpstreamError> {
        let response = active.upstream.relay(service, active.catalogue.origin(service), head, body).await?;
        let status = response.status();
        if !status.is_server_error() {
            self.fetcher.successes.answered(service, self.clock.now());
        }
        // A 403 without a scope ends no grant.
        let denies = |pending_grant: &PendingGrant| {
            status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN && pending_grant.scope().is_some()
        };
        // Dropped before the pending grant, also if the client disconnects.
        let refusal = pending_grant.as_mut().filter(|pending_grant| denies(pending_grant)).map(|pending_grant| {
            let head = (status, response.headers());
            apply_denial(&self.memory, &self.observer, &active.catalogue, pending_grant, head)
        });
        let response = match &pending_grant {
            Some(pending_grant) => {
                self.memory.make_known(active, pending_grant.caller(), account, &self.clock, head, response)
            }
            None => response,
        };
        let is_error = status.is_client_error() || status.is_server_error();
        let concerns_grants = status == StatusCode::UNAUTHORIZED && pending_grant.is_some();
        let is_throttled = status == StatusCode::TOO_MANY_REQUESTS;
        let (beginning, response) = if is_error && key_turn.is_some() || concerns_grants || is_throttled {
            let (head, body) = response.into_parts();
            let (beginning, body) = peek(body, MAX_PEEK, PEEK_TIMEOUT).await;
            (beginning, Response::from_parts(head, body))
        } else {
            (Bytes::new(), response)
        };
        let (head, body) = response.into_parts();
        let known = Response::from_parts(head, beginning);
        pacing::learn(&self.fetcher, permit, &known, &active.catalogue, &self.observer, &self.clock);
        let (head, beginning) = known.into_parts();
        let response = Response::from_parts(head, body);
        if let Some(key_turn) = key_turn {
            let outcome = SignatureOutcome::of(status, &beginning);
            let is_accepted = !is_refusal(status);
            self.fetcher.signature_ended(key_turn, outcome, is_accepted, &active.catalogue, &self.observer);
        }
        if let Some(pending_grant) = pending_grant.filter(denies) {
            let by = RefusedBy::of(&beginning);
            refusal.into_iter().for_each(|refusal| refusal.decide(by));
            pending_grant.refused(by, None, self.clock.now());
        }
        Ok(response)
    }

    /// If the request's span is exported, upstream gets the span of the call as its parent, unless the client has signed
    /// another one and the request is not signed anew. Otherwise the trace headers stay unchanged.
    fn begin_trace(
        &self,
        head: &mut Parts,
        origin: &Origin,
        is_signed_anew: bool,
        record: &RequestRecord,
    ) -> TracedCall {
        let target = || {
            let (method, path) = (&head.method, head.uri.path());
            CallTarget { method, origin, path, operation: None, purpose: "relay" }
        };
        let call = CallTrace::from(record.exported_trace()).begin(&self.observer, &self.request_ids, target);
        let signature = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let is_covered = memchr::memmem::find(signature, TRACEPARENT.as_str().as_bytes()).is_some();
        if let Some(traceparent) = call.traceparent().filter(|_| is_signed_anew || !is_covered) {
            head.headers.insert(TRACEPARENT, traceparent);
        }
        call
    }

    /// Signs a request for the host that it is sent to.
    fn renew(&self, signed: &VerifiedRequest, head: &mut Parts, origin: &Origin) -> Result<(), RequestError> {
        let host = HeaderValue::from_str(origin.authority().as_str()).map_err(|_| RequestError::Internal)?;
        head.headers.insert(HOST, host);
        let Parts { method, uri, headers, .. } = head;
        signed.renew(method, SignedTarget::from(&*uri), headers, self.clock.date()).map_err(|_| RequestError::Internal)
    }

    /// Waits for the turn of a relayed request, and for its memory. Both are held until the end of the response's body.
    async fn wait_for_turn(
        &self,
        client_identity: &ClientIdentity,
        signed: Option<&VerifiedRequest>,
        service: Service,
        caller_scope: Option<&CallerScope>,
        kind: CallKind,
    ) -> Result<(Option<KeyTurn>, Permit, Arc<Charge>), RequestError> {
        let caller = client_identity.caller();
        let class = self.memory.class(caller, caller_scope, self.clock.now());
        let api = caller_scope.map(|caller_scope| Arc::clone(&caller_scope.scope.operation().name));
        let max_wait = client_identity.active.answer_timeout;
        let call = GateCall { client: client_identity.client, class, caller, api, kind, max_wait };
        let (gate, half_close) = (&self.fetcher.relay_gate, &client_identity.half_close);
        let parts = (&client_identity.active.catalogue, &*self.observer);
        let mut timeout_error = None;
        let turn = async {
            let turn = self.fetcher.enter(gate, signed, service, call.clone(), Some(half_close), parts).await;
            let (key_turn, permit) = turn.map_err(|_| RequestError::Signature(SignatureRejection::Suspended))?;
            if let Some(buffers) = client_identity.account.try_charge(Purpose::Responses, RELAY_SIZE) {
                return Ok((key_turn, permit, Arc::new(buffers)));
            }
            // Other requests wait for the permits, so this one gives them back while it waits for memory.
            drop((key_turn, permit));
            if class == Class::Unknown {
                return Err(RequestError::NoMemory);
            }
            timeout_error = Some(RequestError::NoMemory);
            let turn = self.fetcher.enter(gate, signed, service, call.clone(), Some(half_close), parts);
            let both = client_identity.account.wait_and(Purpose::Responses, RELAY_SIZE, turn).await;
            let (buffers, turn) = both.ok_or(RequestError::NoMemory)?;
            let (key_turn, permit) = turn.map_err(|_| RequestError::Signature(SignatureRejection::Suspended))?;
            Ok((key_turn, permit, Arc::new(buffers)))
        };
        let late = || RequestError::Upstream(self.fetcher.late_error(gate, service, &call, &self.observer));
        timeout(max_wait, turn).await.unwrap_or_else(|_| Err(timeout_error.unwrap_or_else(late)))
    }

    /// Whether upstream throttles calls, by 429 or by 503 with `Retry-After`.
    fn is_throttled(&self, response: &Response<StreamBody>) -> bool {
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS => true,
            StatusCode::SERVICE_UNAVAILABLE => retry_after(response.headers(), self.clock.date()).is_some(),
            _ => false,
        }
    }
}

/// A body that holds its charge until it is dropped.
fn charged(body: StreamBody, charge: Arc<Charge>) -> StreamBody {
    stream(body.map_frame(move |frame| {
        let _ = &charge;
        frame
    }))
}

/// Invalidates what an unsafe request has changed.
async fn invalidate_after(
    request: Option<UnsafeRequest>,
    result: Result<Response<StreamBody>, UpstreamError>,
) -> Result<Response<StreamBody>, UpstreamError> {
    match request {
        Some(request) => request.invalidate_after(result).await,
        None => result,
    }
}
