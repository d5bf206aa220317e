//! Forwarding: what is not answered from memory goes upstream as it is, and its answer is streamed.

use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};

use super::{Gateway, Live};
use crate::cache::grants::Grantee;
use crate::catalogue::Service;
use crate::reply::body::Content;
use crate::reply::compose::{CacheStatus, Forward};
use crate::reply::error::Problem;
use crate::request::BypassReason;
use crate::request::caller::{self, Caller};
use crate::stream::StreamBody;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::Record;
use crate::upstream::UpstreamError;
use crate::upstream::gate::Permit;

impl Gateway {
    /// Forwards a request for an operation as it is, and says why.
    pub(super) async fn bypass(
        &self,
        live: &Live,
        reason: BypassReason,
        service: Service,
        grantee: Option<Grantee>,
        request: Request<StreamBody>,
        record: &mut Record,
    ) -> Result<Response<Content>, Problem> {
        record.answered(Outcome::Bypass, reason.as_str());
        let mut response = self.forward(live, service, grantee, request, record).await?;
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
        live: &Live,
        service: Service,
        grantee: Option<Grantee>,
        request: Request<StreamBody>,
        record: &mut Record,
    ) -> Result<Response<Content>, Problem> {
        let (mut head, body) = request.into_parts();
        let origin = live.catalogue.origin(service);
        if caller::signature_is_bound_elsewhere(&head.headers, origin.authority().as_str()) {
            if !caller::has_token(&head.headers) {
                return Err(Problem::SignatureBoundHere);
            }
            head.headers.remove(AUTHORIZATION);
        }
        let caller = caller::credential(&head.headers).ok().map(|token| self.callers.of_token(token));
        let permit = self.turn(live, service, caller, grantee.as_ref()).await?;
        let begun = self.clock.now();
        let departure = grantee.map(|grantee| self.grants.depart(grantee, begun));
        let call = self.metrics.upstream_call(service);
        let answer = live.upstream.relay(service, origin, &head, body).await;
        let status = answer.as_ref().map(Response::status).map_err(UpstreamError::as_str);
        call.ended(status, self.clock.now().saturating_duration_since(begun));
        if let (Some(caller), Ok(status)) = (caller, status) {
            self.acquaintances.note(caller, status);
        }
        if let (Some(departure), Ok(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)) = (departure, status) {
            self.metrics.denial("upstream");
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

    /// Waits for the turn of what is to be relayed: its body's end ends it.
    async fn turn(
        &self,
        live: &Live,
        service: Service,
        caller: Option<Caller>,
        grantee: Option<&Grantee>,
    ) -> Result<Permit, Problem> {
        let is_granted = || grantee.is_some_and(|grantee| self.grants.stands(grantee, self.clock.now()));
        let is_known = caller.is_some_and(|caller| self.acquaintances.includes(&caller)) || is_granted();
        let turn = self.relay_gate.enter(service, caller, is_known);
        tokio::time::timeout(live.answer_timeout, turn).await.map_err(|_| Problem::Upstream(UpstreamError::Busy))
    }
}
