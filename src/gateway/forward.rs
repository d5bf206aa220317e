//! Forwarding: what is not answered from memory goes upstream as it is, and its answer is streamed.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::time::timeout;

use super::Gateway;
use super::identify::Asker;
use super::settle::DENIED;
use crate::cache::grants::Grantee;
use crate::catalogue::{Origin, Service};
use crate::reply::body::Content;
use crate::reply::compose::{CacheStatus, Forward};
use crate::reply::error::Problem;
use crate::request::BypassReason;
use crate::request::caller;
use crate::signing::ring::{Refusal, Signed};
use crate::signing::{Binding, Target};
use crate::stream::{StreamBody, peek};
use crate::telemetry::events::Event;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::Record;
use crate::upstream::UpstreamError;
use crate::upstream::gate::Permit;
use crate::upstream::probation::{Held, Leave, Reception};

/// How much of an error is read to see whether it is about the signature.
const MAX_REFUSAL: usize = 64 * 1024;

impl Gateway {
    /// Forwards a request for an operation as it is, and says why.
    pub(super) async fn bypass(
        &self,
        asker: &Asker,
        reason: BypassReason,
        service: Service,
        grantee: Option<Grantee>,
        request: Request<StreamBody>,
        record: &mut Record,
    ) -> Result<Response<Content>, Problem> {
        record.answered(Outcome::Bypass, reason.as_str());
        let mut response = self.forward(asker, service, grantee, request, record).await?;
        self.metrics.bypass(reason);
        let status = CacheStatus::Forwarded {
            why: Forward::Bypass,
            status: None,
            stored: false,
            collapsed: false,
            detail: Some(reason.as_str()),
        };
        status.add_to(response.headers_mut());
        Ok(response)
    }

    /// Sends a request on as it is, and streams the answer. It is no proof, for nobody has read it
    /// whole; where it refuses the credential, a grant ends all the same.
    pub(super) async fn forward(
        &self,
        asker: &Asker,
        service: Service,
        grantee: Option<Grantee>,
        request: Request<StreamBody>,
        record: &mut Record,
    ) -> Result<Response<Content>, Problem> {
        let (mut head, body) = request.into_parts();
        let origin = asker.live.catalogue.origin(service);
        let signed = asker.identity.as_ref().ok().and_then(|(credential, _)| credential.signed());
        if signed.is_none() {
            self.check_signature(asker, &mut head, origin)?;
        }
        let (leave, permit) = self.turn(asker, signed, service, grantee.as_ref()).await?;
        if let Some(signed) = signed {
            self.renew(signed, &mut head, origin)?;
        }
        let begun = self.clock.now();
        let scope = grantee.as_ref().map(|grantee| grantee.scope.clone());
        let departure = grantee.map(|grantee| self.grants.depart(grantee, begun));
        let call = self.metrics.upstream_call(service);
        let (answer, permit) = match leave {
            None => (asker.live.upstream.relay(service, origin, &head, body).await, permit),
            Some(leave) => {
                // In a task of its own: what upstream makes of the signature is to be known, though the client hangs up.
                let live = Arc::clone(&asker.live);
                let relaying = tokio::spawn(async move {
                    let origin = live.catalogue.origin(service);
                    let answer = live.upstream.relay(service, origin, &head, body).await;
                    (received(leave, answer).await, permit)
                });
                relaying.await.map_err(|_| Problem::Internal)?
            }
        };
        let status = answer.as_ref().map(Response::status).map_err(UpstreamError::as_str);
        call.ended(status, self.clock.now().saturating_duration_since(begun));
        if let (Ok((_, caller)), Ok(status)) = (&asker.identity, status) {
            self.acquaintances.note(*caller, status);
        }
        let is_known = asker.identity.as_ref().is_ok_and(|(_, caller)| self.acquaintances.includes(caller));
        self.heard(service, status, is_known);
        if let (Some(departure), Ok(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) = (departure, status) {
            self.metrics.denial("upstream");
            self.notable(Event::Denial, DENIED, scope.as_ref());
            departure.denied(None, self.clock.now());
        }
        Ok(match answer {
            Ok(response) => response.map(|body| Content::Stream(permit.hold(body))),
            Err(error) => {
                tracing::warn!(request_id = record.request_id(), service = service.as_str(), %error, "upstream gave no answer");
                record.because(error.as_str());
                Problem::Upstream(error).response(record.request_id())
            }
        })
    }

    /// Looks after a signature that isn't verified here: it is sent on only where it may be valid upstream, and
    /// not beside a token if it may not.
    fn check_signature(&self, asker: &Asker, head: &mut Parts, origin: &Origin) -> Result<(), Problem> {
        let binding = Binding::of(&head.headers, origin.authority().as_str(), &asker.changes);
        if caller::has_token(&head.headers) {
            if binding == Binding::Bound || asker.live.keys.claim(&head.headers).is_some() {
                head.headers.remove(AUTHORIZATION);
            }
            return Ok(());
        }
        match binding {
            Binding::Unsigned => Ok(()),
            Binding::Free => {
                self.metrics.signature("unknown-key");
                Ok(())
            }
            Binding::Bound => {
                self.metrics.signature(Problem::SignatureBoundHere.as_str());
                Err(Problem::SignatureBoundHere)
            }
        }
    }

    /// Signs a request for the host that it is sent to.
    fn renew(&self, signed: &Signed, head: &mut Parts, origin: &Origin) -> Result<(), Problem> {
        let host = HeaderValue::from_str(origin.authority().as_str()).map_err(|_| Problem::Internal)?;
        head.headers.insert(HOST, host);
        let Parts { method, uri, headers, .. } = head;
        signed.renew(method, Target::from(&*uri), headers, self.clock.date()).map_err(|_| Problem::Internal)
    }

    /// Waits for the turn of what is to be relayed: its body's end ends it.
    async fn turn(
        &self,
        asker: &Asker,
        signed: Option<&Signed>,
        service: Service,
        grantee: Option<&Grantee>,
    ) -> Result<(Option<Leave>, Permit), Problem> {
        let caller = asker.identity.as_ref().ok().map(|(_, caller)| *caller);
        let is_granted = || grantee.is_some_and(|grantee| self.grants.stands(grantee, self.clock.now()));
        let is_known = caller.is_some_and(|caller| self.acquaintances.includes(&caller)) || is_granted();
        let turn = async {
            let leave = self.leave(signed, service).await?;
            Ok((leave, self.relay_gate.enter(service, caller, is_known).await))
        };
        let turn =
            timeout(asker.live.answer_timeout, turn).await.map_err(|_| Problem::Upstream(UpstreamError::Busy))?;
        turn.map_err(|Held| Problem::Signature(Refusal::Held))
    }

    /// Leave to use an access key, if one is used.
    pub(super) async fn leave(&self, signed: Option<&Signed>, service: Service) -> Result<Option<Leave>, Held> {
        match signed {
            Some(signed) => self.probation.enter(&signed.key, service).await.map(Some).inspect_err(|_| {
                let what = format!("access key {} is not used: upstream has refused it several times", signed.key.id());
                self.notable(Event::KeyHeld, what, None);
            }),
            None => Ok(None),
        }
    }
}

/// Notes what upstream made of a signature. Only an error is looked into for it, and then passed on.
async fn received(
    leave: Leave,
    answer: Result<Response<StreamBody>, UpstreamError>,
) -> Result<Response<StreamBody>, UpstreamError> {
    let response = answer?;
    let status = response.status();
    if status.as_u16() < 400 {
        leave.ended(Reception::of(status, b""));
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let (beginning, body) = peek(body, MAX_REFUSAL).await;
    leave.ended(Reception::of(status, &beginning));
    Ok(Response::from_parts(head, body))
}
