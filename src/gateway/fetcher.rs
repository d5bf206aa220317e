//! The parts that calls to upstream share: flights, gates, the key breaker, and the successes of each service. No call
//! is made here.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::CacheRequest;
use super::fetch_result::FetchResult;
use super::observer::Observer;
use crate::cache::flights::{Flights, Leader};
use crate::cache::grants::CallerScope;
use crate::cache::second_tier::SecondTier;
use crate::cache::store::CacheKey;
use crate::catalogue::Service;
use crate::signing::ring::VerifiedRequest;
use crate::upstream::gate::{Class, Gate, Permit};
use crate::upstream::key_breaker::{KeyBreaker, KeyPermit, SignatureOutcome, Suspended};
use crate::upstream::successes::Successes;
use crate::upstream::{Fault, UpstreamError};

pub(super) struct Fetcher {
    pub(super) shared_flights: Arc<Flights<CacheKey, FetchResult>>,
    /// Flights of one caller each. They have a limit of their own, so that callers without a grant cannot use up the
    /// limit of the others.
    pub(super) lone_flights: Arc<Flights<CacheKey, FetchResult>>,
    /// The calls that may prove their caller in a scope, or renew its grant there. Their result is the grant.
    pub(super) proofs: Arc<Flights<CallerScope, ()>>,
    pub(super) successes: Successes,
    pub(super) gate: Arc<Gate>,
    /// For relayed requests. Separate from `gate`, because streams have no time limit.
    pub(super) relay_gate: Arc<Gate>,
    pub(super) key_breaker: Arc<KeyBreaker>,
    pub(super) second_tier: Option<Arc<dyn SecondTier>>,
    /// Wakes keep warm, which looks again what is due: settings or entries have changed, or upstream has accepted an
    /// access key for a client while keep warm waited for this.
    pub(super) keep_warm_changes: Notify,
}

/// Held by a call that may prove its caller. The caller's other requests in the scope wait until it is dropped.
pub(super) type ProofLeader = Leader<CallerScope, ()>;

/// The right to make a call: a permit to use its access key, if it is signed, and a call slot.
pub(super) type Turn = (Option<KeyPermit>, Permit);

/// Why a call is not sent.
pub(super) enum TurnError {
    /// The access key is suspended.
    Suspended,
    /// The turn did not come within `answer_timeout`.
    Busy,
}

impl Fetcher {
    /// Waits for a permit of the key breaker and one of the gate.
    pub(super) async fn wait_for_turn(
        &self,
        request: &CacheRequest,
        signed: Option<&VerifiedRequest>,
        class: Class,
        is_shared: bool,
        observer: &Observer,
    ) -> Result<Turn, TurnError> {
        let (service, client) = (request.lookup.key.operation().service, request.client);
        let turn = async {
            let key_permit = self.key_permit(signed, service, observer).await?;
            let permit = match is_shared {
                true => self.gate.enter(service, client, class).await,
                // Nobody else waits for this call, so it may lose its place when its client closes its sending side.
                false => self.gate.enter_unless_closed(service, client, class, &request.half_close).await,
            };
            Ok::<_, Suspended>((key_permit, permit))
        };
        let turn = timeout(request.active.answer_timeout, turn).await;
        turn.map_err(|_| TurnError::Busy)?.map_err(|_| TurnError::Suspended)
    }

    /// Whether a call would wait for other calls of its client or its access key. Such a caller must not lead a shared
    /// fetch.
    pub(super) fn has_to_wait(&self, request: &CacheRequest) -> bool {
        let service = request.lookup.key.operation().service;
        let is_busy = |signed: &VerifiedRequest| self.key_breaker.is_busy(&signed.key, service);
        self.gate.has_to_wait(service, request.client) || request.credential.signed().is_some_and(is_busy)
    }

    /// Waits until the access key may be used. `None` if the request is not signed by the gateway.
    pub(super) async fn key_permit(
        &self,
        signed: Option<&VerifiedRequest>,
        service: Service,
        observer: &Observer,
    ) -> Result<Option<KeyPermit>, Suspended> {
        let Some(signed) = signed else { return Ok(None) };
        self.key_breaker
            .enter(&signed.key, service)
            .await
            .map(Some)
            .inspect_err(|suspended| observer.key_suspended(suspended))
    }

    /// Records what a call has shown about its signature. `is_client_accepted`: it was a client's, and upstream has not
    /// refused it.
    pub(super) fn signature_ended(
        &self,
        key_permit: KeyPermit,
        outcome: SignatureOutcome,
        is_client_accepted: bool,
        observer: &Observer,
    ) {
        if outcome == SignatureOutcome::Accepted && is_client_accepted {
            if key_permit.accepted_for_client() {
                self.keep_warm_changes.notify_one();
            }
        } else {
            observer.signature_ended(key_permit, outcome);
        }
    }

    /// Whether the request is signed, and its access key must not be used now.
    pub(super) fn is_suspended(&self, request: &CacheRequest) -> bool {
        let service = request.lookup.key.operation().service;
        request.credential.signed().is_some_and(|signed| self.key_breaker.is_suspended(&signed.key, service))
    }

    pub(super) fn flights(&self, cache_key: &CacheKey) -> &Flights<CacheKey, FetchResult> {
        if cache_key.owner.is_none() { &self.shared_flights } else { &self.lone_flights }
    }

    /// Whether a failure has its cause outside the gateway, so that it may extend the grant of the call's caller. An
    /// unreachable service counts only if no call has reached it lately.
    pub(super) fn is_external_failure(&self, service: Service, error: &UpstreamError, now: Instant) -> bool {
        match error.fault() {
            Fault::Outside => true,
            Fault::Unreachable => !self.successes.is_reachable(service, now),
            Fault::Local => false,
        }
    }
}
