//! Forwarding: what is not answered from memory goes upstream as it is, and its answer is streamed.

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
use super::caller_class::tells_of_caller;
use super::fetcher::Fetcher;
use super::invalidate::UnsafeRequest;
use super::memory::Memory;
use super::observer::Observer;
use super::settle::denied;
use crate::budget::{Account, Charge, Purpose};
use crate::cache::backoffs::retry_after;
use crate::cache::grants::{CallerScope, PendingGrant, RefusedBy};
use crate::catalogue::{Origin, Service};
use crate::clock::Clock;
use crate::reply::body::Content;
use crate::reply::compose::{CacheStatus, Forward};
use crate::reply::error::{Blame, Problem};
use crate::request::BypassReason;
use crate::request::decide::AuthorizationAction;
use crate::signing::SignedTarget;
use crate::signing::ring::{SignatureRejection, VerifiedRequest};
use crate::stream::{StreamBody, peek, stream};
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::RequestRecord;
use crate::upstream::gate::{Class, Permit};
use crate::upstream::key_breaker::{KeyPermit, SignatureOutcome};
use crate::upstream::{MAX_PEEK, PEEK_TIMEOUT, UpstreamError};

/// What a relayed request takes while it is under way, in bytes: what was read of its body or its response and waits to be
/// sent on, and the kernel's buffer for the direction that is slow. Measured.
const RELAY: usize = 192 * 1024;

/// The parts that forwarding takes.
#[derive(Clone)]
pub(super) struct Forwarding {
    pub(super) memory: Arc<Memory>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) observer: Arc<Observer>,
    pub(super) clock: Clock,
}

impl Forwarding {
    /// Forwards a request for an operation as it is, and says why.
    pub(super) async fn bypass(
        &self,
        client_identity: &ClientIdentity,
        reason: BypassReason,
        service: Service,
        caller_scope: Option<CallerScope>,
        request: Request<StreamBody>,
        record: &mut RequestRecord,
    ) -> Result<Response<Content>, Problem> {
        record.answered(Outcome::Bypass, reason.into_str());
        let mut response = match self.forward(client_identity, service, caller_scope, request, record).await {
            Ok(response) => {
                self.observer.metrics.bypass(reason);
                response
            }
            Err(problem) if problem.blame() == Blame::Client => return Err(problem),
            // The answer says both: why it is a bypass, and why that has failed.
            Err(problem) => {
                record.failed(problem.as_str());
                problem.response(record.request_id())
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

    /// Sends a request on as it is, and streams the answer. It is no proof, for nobody has read it
    /// whole; where it refuses the credential, a grant ends all the same.
    pub(super) async fn forward(
        &self,
        client_identity: &ClientIdentity,
        service: Service,
        caller_scope: Option<CallerScope>,
        request: Request<StreamBody>,
        record: &mut RequestRecord,
    ) -> Result<Response<Content>, Problem> {
        let (mut head, body) = request.into_parts();
        let origin = client_identity.active.catalogue.origin(service);
        let caller = client_identity.caller();
        if let Some(caller) = caller {
            record.asked_by(|| self.observer.digests.of_caller(caller));
        }
        let unsafe_request = UnsafeRequest::of(client_identity, &head, &self.memory, &self.clock);
        let signed = client_identity.identity.as_ref().and_then(|(credential, _)| credential.signed());
        match client_identity.authorization {
            AuthorizationAction::Kept | AuthorizationAction::Renewed => {}
            AuthorizationAction::Unverified => self.observer.metrics.signature("unknown-key"),
            AuthorizationAction::Dropped => {
                head.headers.remove(AUTHORIZATION);
            }
            AuthorizationAction::Bound => {
                self.observer.metrics.signature(Problem::SignatureBoundHere.as_str());
                return Err(Problem::SignatureBoundHere);
            }
        }
        let (key_permit, permit, buffers) = self.turn(client_identity, signed, service, caller_scope.as_ref()).await?;
        // An upload may outlast its answer.
        let body = if body.is_end_stream() { body } else { charged(body, Arc::clone(&buffers)) };
        let held = (permit, buffers);
        if let Some(signed) = signed {
            self.renew(signed, &mut head, origin)?;
        }
        let (sent, begun) = (self.clock.now(), self.clock.timer_now());
        let pending_grant = match caller_scope {
            Some(caller_scope) => Some(self.memory.grants.begin_call(caller_scope, sent)),
            None => caller.map(|caller| self.memory.grants.begin_unscoped_call(caller, service, sent)),
        };
        let call = self.observer.metrics.upstream_call(service);
        let may_tell = caller.filter(|_| tells_of_caller(&client_identity.active, &head, StatusCode::OK)).is_some();
        let (answer, (permit, buffers)) = match (&key_permit, &unsafe_request) {
            (None, None) => (
                self.relayed(
                    &client_identity.active,
                    service,
                    &client_identity.account,
                    (pending_grant, None),
                    &head,
                    body,
                )
                .await,
                held,
            ),
            _ => {
                // In a task of its own: what upstream makes of the signature, and what the request changes, is to be known
                // though the client hangs up.
                let (this, active, account) =
                    (self.clone(), Arc::clone(&client_identity.active), client_identity.account.clone());
                let relaying = tokio::spawn(async move {
                    let answer =
                        this.relayed(&active, service, &account, (pending_grant, key_permit), &head, body).await;
                    (invalidating(unsafe_request, answer).await, held)
                });
                relaying.await.map_err(|_| Problem::Internal)?
            }
        };
        let status = answer.as_ref().map(Response::status).map_err(UpstreamError::failure);
        let took = self.clock.timer_now().saturating_duration_since(begun);
        call.ended(status, took);
        record.upstream_took(Some(took));
        let is_accepted = may_tell && status.is_ok_and(|status| status.is_success());
        let is_known = is_accepted || self.memory.class(caller, None, self.clock.now()) != Class::Unknown;
        self.observer.heard(service, status, is_known);
        if let Some(response) = answer.as_ref().ok().filter(|response| is_known && self.is_throttled(response)) {
            self.observer.throttled(service, response.status(), None);
        }
        Ok(match answer {
            Ok(response) => response.map(|body| Content::Stream(charged(permit.hold(body), buffers))),
            Err(error) => {
                self.observer.call_failed(service, record.request_id(), &error);
                record.failed(error.failure().into_str());
                Problem::Upstream(error).response(record.request_id())
            }
        })
    }

    /// Relays a request, up to the head of its answer. A refusal counts at its head, whatever becomes of its body. The
    /// beginning of an error's body tells whom the refusal concerns, and what upstream made of a signature.
    async fn relayed(
        &self,
        active: &ActiveConfig,
        service: Service,
        account: &Account,
        (mut pending_grant, key_permit): (Option<PendingGrant>, Option<KeyPermit>),
        head: &Parts,
        body: StreamBody,
    ) -> Result<Response<StreamBody>, UpstreamError> {
        let response = active.upstream.relay(service, active.catalogue.origin(service), head, body).await?;
        let status = response.status();
        if !status.is_server_error() {
            self.fetcher.successes.answered(service, self.clock.now());
        }
        // A 403 that belongs to no scope ends no grant.
        let denies = |pending_grant: &PendingGrant| {
            status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN && pending_grant.scope().is_some()
        };
        if let Some(pending_grant) = pending_grant.as_mut().filter(|pending_grant| denies(pending_grant)) {
            denied(&self.memory, &self.observer, pending_grant, status);
        }
        let response = match &pending_grant {
            Some(pending_grant) => {
                self.memory.make_known(active, (pending_grant.caller(), account, &self.clock), head, response)
            }
            None => response,
        };
        let is_error = status.is_client_error() || status.is_server_error();
        let concerns_grants = status == StatusCode::UNAUTHORIZED && pending_grant.is_some();
        let (beginning, response) = if is_error && key_permit.is_some() || concerns_grants {
            let (head, body) = response.into_parts();
            let (beginning, body) = peek(body, MAX_PEEK, PEEK_TIMEOUT).await;
            (beginning, Response::from_parts(head, body))
        } else {
            (Bytes::new(), response)
        };
        if let Some(key_permit) = key_permit {
            self.observer.signature_ended(key_permit, SignatureOutcome::of(status, &beginning));
        }
        if let Some(pending_grant) = pending_grant.filter(denies) {
            pending_grant.refused(RefusedBy::of(&beginning), None, self.clock.now());
        }
        Ok(response)
    }

    /// Signs a request for the host that it is sent to.
    fn renew(&self, signed: &VerifiedRequest, head: &mut Parts, origin: &Origin) -> Result<(), Problem> {
        let host = HeaderValue::from_str(origin.authority().as_str()).map_err(|_| Problem::Internal)?;
        head.headers.insert(HOST, host);
        let Parts { method, uri, headers, .. } = head;
        signed.renew(method, SignedTarget::from(&*uri), headers, self.clock.date()).map_err(|_| Problem::Internal)
    }

    /// Waits for the turn of what is to be relayed, and for memory for it. The end of the response's body ends both.
    async fn turn(
        &self,
        client_identity: &ClientIdentity,
        signed: Option<&VerifiedRequest>,
        service: Service,
        caller_scope: Option<&CallerScope>,
    ) -> Result<(Option<KeyPermit>, Permit, Arc<Charge>), Problem> {
        let caller = client_identity.caller();
        let class = self.memory.class(caller, caller_scope, self.clock.now());
        let mut lacking = Problem::Upstream(UpstreamError::Busy);
        let turn = async {
            let key_permit = self
                .fetcher
                .key_permit(signed, service, &self.observer)
                .await
                .map_err(|_| Problem::Signature(SignatureRejection::Suspended))?;
            let permit = self
                .fetcher
                .relay_gate
                .enter_unless_closed(service, client_identity.client, class, &client_identity.half_close)
                .await;
            if let Some(buffers) = client_identity.account.try_charge(Purpose::Responses, RELAY) {
                return Ok((key_permit, permit, Arc::new(buffers)));
            }
            // Others wait for the slot, so it is not held while this request waits for memory.
            drop(permit);
            if class == Class::Unknown {
                return Err(Problem::NoMemory);
            }
            lacking = Problem::NoMemory;
            let cache_key = self.fetcher.relay_gate.enter_unless_closed(
                service,
                client_identity.client,
                class,
                &client_identity.half_close,
            );
            let waited = client_identity.account.wait_and(Purpose::Responses, RELAY, cache_key).await;
            let (buffers, permit) = waited.ok_or(Problem::NoMemory)?;
            Ok((key_permit, permit, Arc::new(buffers)))
        };
        timeout(client_identity.active.answer_timeout, turn).await.unwrap_or_else(|_| Err(lacking))
    }

    /// Whether a response says that upstream is asked too often.
    fn is_throttled(&self, response: &Response<StreamBody>) -> bool {
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS => true,
            StatusCode::SERVICE_UNAVAILABLE => retry_after(response.headers(), self.clock.date()).is_some(),
            _ => false,
        }
    }
}

/// A body, with the charge for what it is read into.
fn charged(body: StreamBody, charge: Arc<Charge>) -> StreamBody {
    stream(body.map_frame(move |frame| {
        let _ = &charge;
        frame
    }))
}

/// Has a response to an unsafe method invalidate what it changes.
async fn invalidating(
    request: Option<UnsafeRequest>,
    answer: Result<Response<StreamBody>, UpstreamError>,
) -> Result<Response<StreamBody>, UpstreamError> {
    match request {
        Some(request) => request.answered(answer).await,
        None => answer,
    }
}
