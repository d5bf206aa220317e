//! The parts that calls to upstream share: flights, gates, the key breaker, and the successes of each service. No call
//! is made here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::CacheRequest;
use super::fetch_result::FetchResult;
use super::hint::{Hint, Hints};
use super::key_trial::{self, KeyTrials, KeyTurn, TrialRight};
use super::observer::Observer;
use crate::cache::flights::{Flights, Leader};
use crate::cache::grants::CallerScope;
use crate::cache::store::CacheKey;
use crate::catalogue::{Catalogue, ConfiguredQuota, Service};
use crate::request::half_close::HalfClose;
use crate::signing::AccessKey;
use crate::signing::ring::VerifiedRequest;
use crate::upstream::gate::{Class, Gate, GateCall, Permit};
use crate::upstream::key_breaker::{self, KeyBreaker, KeyChange, KeyPermit, SignatureOutcome, Suspended};
use crate::upstream::quota::{Hold, Ledger, LimitKind};
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
    /// The limits of upstream, which both gates respect.
    pub(super) ledger: Arc<Ledger>,
    pub(super) key_breaker: Arc<KeyBreaker>,
    /// `None` without a fleet.
    pub(super) key_trials: Option<KeyTrials>,
    /// Wakes keep warm, which looks again what is due: settings or entries have changed, or upstream has accepted an
    /// access key for a client while keep warm waited for this.
    pub(super) keep_warm_changes: Notify,
    pub(super) hints: Hints,
}

/// Held by a call that may prove its caller. The caller's other requests in the scope wait until it is dropped.
pub(super) type ProofLeader = Leader<CallerScope, ()>;

/// The right to make a call: a permit to use its access key, if it is signed, and a call slot.
pub(super) type Turn = (Option<KeyTurn>, Permit);

/// Why a call is not sent.
pub(super) enum TurnError {
    /// The access key is suspended.
    Suspended,
    /// The turn did not come in time: this limit of the gateway or of upstream holds the call back.
    Late(UpstreamError),
}

impl Fetcher {
    /// Waits for a permit of the key breaker and one of the gate, at most for `time_left`.
    pub(super) async fn wait_for_turn(
        &self,
        request: &CacheRequest,
        signed: Option<&VerifiedRequest>,
        class: Class,
        is_shared: bool,
        time_left: Duration,
        observer: &Observer,
    ) -> Result<Turn, TurnError> {
        let service = request.lookup.key.operation().service;
        let call = request.gate_call(class);
        // If nobody else waits for this call, it may lose its place when its client closes its sending side.
        let half_close = (!is_shared).then_some(&*request.half_close);
        let catalogue = &request.active.catalogue;
        let turn = self.enter(&self.gate, signed, service, call.clone(), half_close, (catalogue, observer));
        match timeout(time_left, turn).await {
            Ok(turn) => turn.map_err(|_| TurnError::Suspended),
            Err(_) => Err(TurnError::Late(self.late_error(&self.gate, service, &call, observer))),
        }
    }

    /// Waits for a permit of the key breaker, if the call is signed, and one of a gate. It holds none of them while it
    /// waits. `half_close`: of a client without which the call is not needed.
    pub(super) async fn enter(
        &self,
        gate: &Gate,
        signed: Option<&VerifiedRequest>,
        service: Service,
        call: GateCall,
        half_close: Option<&HalfClose>,
        (catalogue, observer): (&Catalogue, &Observer),
    ) -> Result<Turn, Suspended> {
        let try_key = |signed: &VerifiedRequest| {
            let permit = self.key_breaker.try_enter(&signed.key, service);
            permit.inspect_err(|suspended| observer.key_suspended(suspended))
        };
        loop {
            if let Some(signed) = signed {
                self.key_breaker.ready(&signed.key, service).await;
                if self.key_breaker.is_suspended(&signed.key, service) {
                    // It is suspended now, or a permit is issued and dropped.
                    try_key(signed)?;
                }
            }
            let permit = match half_close {
                Some(half_close) => gate.enter_unless_closed(service, call.clone(), half_close).await,
                None => gate.enter(service, call.clone()).await,
            };
            let Some(signed) = signed else { return Ok((None, permit)) };
            let Some(key_permit) = try_key(signed)? else { continue };
            match self.try_for_all(&signed.key, key_permit, service, (catalogue, observer)).await {
                Ok(key_turn) => return Ok((Some(key_turn), permit)),
                Err(key_permit) => {
                    drop(permit);
                    // The permit is kept during the pause, so that only one request of this gateway asks the engine.
                    sleep(key_trial::PAUSE).await;
                    drop(key_permit);
                }
            }
        }
    }

    /// Takes the lease for a trial, if the call is one. With an error it must not be sent now: another gateway makes a trial,
    /// or the key has been suspended meanwhile.
    pub(super) async fn try_for_all(
        &self,
        key: &AccessKey,
        mut permit: KeyPermit,
        service: Service,
        (catalogue, observer): (&Catalogue, &Observer),
    ) -> Result<KeyTurn, KeyPermit> {
        let Some(trials) = self.key_trials.as_ref().filter(|_| permit.is_trial()) else {
            return Ok(KeyTurn { permit, trial: None });
        };
        let (right, shown) = trials.begin(key.id(), service, (catalogue, observer)).await;
        if let Some((news, at)) = shown {
            self.key_changed(&self.key_breaker.told(&news, key_breaker::own_upstream(service), at), observer);
        }
        let may_send = permit.renew();
        let trial = match right {
            _ if !may_send => return Err(permit),
            // An earlier trial has shown that upstream accepts the secret.
            _ if !permit.is_trial() => None,
            TrialRight::Ours(trial) => Some(trial),
            TrialRight::Elsewhere => return Err(permit),
            TrialRight::Unknown => None,
        };
        Ok(KeyTurn { permit, trial })
    }

    /// The limits of upstream that are configured from now on.
    pub(super) fn set_quotas(&self, quotas: &[ConfiguredQuota]) {
        self.ledger.configure(quotas);
        self.limits_changed();
    }

    /// Limits of upstream have changed: starts the calls that may be sent now.
    pub(super) fn limits_changed(&self) {
        self.gate.limits_changed();
        self.relay_gate.limits_changed();
    }

    /// Why a call has not got its turn in time.
    pub(super) fn late_error(
        &self,
        gate: &Gate,
        service: Service,
        call: &GateCall,
        observer: &Observer,
    ) -> UpstreamError {
        match gate.hold(service, call) {
            Some(Hold { policy, left, .. }) => {
                observer.metrics.quota_refused(policy, "gateway");
                UpstreamError::Throttled { policy, retry_after: seconds(left) }
            }
            None => UpstreamError::Busy,
        }
    }

    /// Why a request has no response at its own deadline.
    pub(super) fn deadline_error(
        &self,
        request: &CacheRequest,
        class: Class,
        is_sent: bool,
        observer: &Observer,
    ) -> UpstreamError {
        let service = request.lookup.key.operation().service;
        match is_sent {
            true => UpstreamError::Deadline,
            false => self.late_error(&self.gate, service, &request.gate_call(class), observer),
        }
    }

    /// How long a limit of upstream would hold back the call for a request, at least. `None` if it would be sent now.
    pub(super) fn held_for(&self, request: &CacheRequest, class: Class) -> Option<Duration> {
        let service = request.lookup.key.operation().service;
        self.gate.hold(service, &request.gate_call(class)).map(|hold| hold.left)
    }

    /// Holds back the calls of a request's caller for as long as upstream has asked for.
    pub(super) fn pause(&self, request: &CacheRequest, class: Class, span: Duration, now: Instant) {
        let draw = Gate::draw(&request.gate_call(class));
        self.ledger.pause(request.lookup.key.operation().service, &draw, span, now);
    }

    /// Until when a limit of upstream holds back a call that waits for this and is not in the queue, at least.
    pub(super) fn hold_until(&self, request: &CacheRequest, class: Class, now: Instant) -> Option<Instant> {
        let (service, call) = (request.lookup.key.operation().service, request.gate_call(class));
        let hold = self.gate.hold(service, &call)?;
        // Otherwise a learnt limit would end, because it seems to hold back nothing.
        let draw = Gate::draw(&call);
        for kind in [LimitKind::Own, LimitKind::Shared] {
            self.ledger.limits(service).lock().hold_call(&draw, kind, 0, now);
        }
        Some(hold.until)
    }

    /// Whether a call would wait for other calls of its client or its access key. Such a caller must not lead a shared
    /// fetch.
    pub(super) fn has_to_wait(&self, request: &CacheRequest, class: Class) -> bool {
        let service = request.lookup.key.operation().service;
        let is_busy = |signed: &VerifiedRequest| self.key_breaker.is_busy(&signed.key, service);
        self.gate.has_to_wait(service, &request.gate_call(class)) || request.credential.signed().is_some_and(is_busy)
    }

    /// Waits until [`Fetcher::has_to_wait`] is false.
    pub(super) async fn ready_to_lead(&self, request: &CacheRequest, class: Class) {
        let service = request.lookup.key.operation().service;
        loop {
            if let Some(signed) = request.credential.signed() {
                self.key_breaker.ready(&signed.key, service).await;
            }
            self.gate.ready(service, &request.gate_call(class)).await;
            if !self.has_to_wait(request, class) {
                return;
            }
        }
    }

    /// Records what a call has shown about its signature. `is_client_accepted`: it was a client's, and upstream has not
    /// refused it.
    pub(super) fn signature_ended(
        &self,
        KeyTurn { permit, trial }: KeyTurn,
        outcome: SignatureOutcome,
        is_client_accepted: bool,
        catalogue: &Catalogue,
        observer: &Observer,
    ) {
        let mut change = if outcome == SignatureOutcome::Accepted && is_client_accepted {
            permit.accepted_for_client()
        } else {
            permit.ended(outcome)
        };
        if let Some((own_upstream, news)) = change.news.take() {
            if let (Some(trials), Some(trial)) = (&self.key_trials, trial) {
                trials.end(trial, &news);
            }
            self.hints.tell(|| Hint::access_key(own_upstream, news, catalogue));
        }
        self.key_changed(&change, observer);
    }

    /// Applies what has changed for an access key.
    pub(super) fn key_changed(&self, change: &KeyChange, observer: &Observer) {
        if let Some(suspended) = &change.suspended {
            observer.key_suspended(suspended);
        }
        if change.is_awaited {
            self.keep_warm_changes.notify_one();
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

/// The number of whole seconds in which a span has passed, at least 1.
pub(super) fn seconds(span: Duration) -> u64 {
    span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0)).max(1)
}
