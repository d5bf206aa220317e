//! What it takes to ask upstream: the flights that requests share, the turns they wait for, and what is known of the services.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::timeout;

use super::CacheRequest;
use super::fetch_result::FetchResult;
use super::observer::Observer;
use crate::cache::flights::Flights;
use crate::cache::second_tier::SecondTier;
use crate::cache::store::CacheKey;
use crate::catalogue::Service;
use crate::signing::ring::VerifiedRequest;
use crate::upstream::gate::{Class, Gate, Permit};
use crate::upstream::key_breaker::{KeyBreaker, KeyPermit, Suspended};
use crate::upstream::successes::Successes;
use crate::upstream::{Fault, UpstreamError};

/// All that calls to upstream have in common.
pub(super) struct Fetcher {
    pub(super) shared_flights: Arc<Flights<CacheKey, FetchResult>>,
    /// Of callers for themselves. Bounded apart, so that those without a grant can't take the room of those with one.
    pub(super) lone_flights: Arc<Flights<CacheKey, FetchResult>>,
    /// When each service last answered well.
    pub(super) successes: Successes,
    pub(super) gate: Arc<Gate>,
    /// For what is relayed. Apart, for streams may take as long as they like.
    pub(super) relay_gate: Arc<Gate>,
    pub(super) key_breaker: Arc<KeyBreaker>,
    /// Lookup before upstream, if there is one.
    pub(super) second_tier: Option<Arc<dyn SecondTier>>,
}

/// Why a call is not sent.
pub(super) enum NoTurn {
    /// Its access key is suspended.
    Suspended,
    /// Its turn did not come in time.
    Busy,
}

impl Fetcher {
    /// Waits for the turn of a call, and for leave to use its access key.
    pub(super) async fn turn(
        &self,
        request: &CacheRequest,
        signed: Option<&VerifiedRequest>,
        class: Class,
        is_shared: bool,
        observer: &Observer,
    ) -> Result<(Option<KeyPermit>, Permit), NoTurn> {
        let (service, client) = (request.lookup.key.operation().service, request.client);
        let turn = async {
            let key_permit = self.key_permit(signed, service, observer).await?;
            let permit = match is_shared {
                true => self.gate.enter(service, client, class).await,
                // It is its own client's alone.
                false => self.gate.enter_unless_closed(service, client, class, &request.half_close).await,
            };
            Ok::<_, Suspended>((key_permit, permit))
        };
        let turn = timeout(request.active.answer_timeout, turn).await;
        turn.map_err(|_| NoTurn::Busy)?.map_err(|_| NoTurn::Suspended)
    }

    /// Whether a call would have to wait for others of its client or its access key. Such a caller must not lead a shared
    /// fetch.
    pub(super) fn has_to_wait(&self, request: &CacheRequest) -> bool {
        let service = request.lookup.key.operation().service;
        let is_busy = |signed: &VerifiedRequest| self.key_breaker.is_busy(&signed.key, service);
        self.gate.has_to_wait(service, request.client) || request.credential.signed().is_some_and(is_busy)
    }

    /// KeyPermit to use an access key, if one is used.
    pub(super) async fn key_permit(
        &self,
        signed: Option<&VerifiedRequest>,
        service: Service,
        observer: &Observer,
    ) -> Result<Option<KeyPermit>, Suspended> {
        let Some(signed) = signed else { return Ok(None) };
        self.key_breaker.enter(&signed.key, service).await.map(Some).inspect_err(|held| observer.key_suspended(held))
    }

    /// The flights that a slot's calls belong to.
    pub(super) fn flights(&self, cache_key: &CacheKey) -> &Flights<CacheKey, FetchResult> {
        if cache_key.owner.is_none() { &self.shared_flights } else { &self.lone_flights }
    }

    /// Whether a failure has its cause outside the gateway, so that it may extend the grant of the call's caller. That
    /// there is no way to a service counts only while nobody has reached it.
    pub(super) fn is_outside(&self, service: Service, error: &UpstreamError, now: Instant) -> bool {
        match error.fault() {
            Fault::Outside => true,
            Fault::Unreachable => !self.successes.is_reachable(service, now),
            Fault::Local => false,
        }
    }
}
