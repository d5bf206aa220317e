//! The sequence of a fetch: one call to upstream, from waiting for its turn to the result that all waiters get.
//!
//! What a response changes is decided in `settle.rs`, and which waiters get it in `release.rs`, not here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Response, StatusCode};

use super::call_trace::CallTrace;
use super::charge;
use super::claim::{Claimant, Claimed, EndedClaim};
use super::denial::apply_denial;
use super::fetch_result::{AdditionalCallReason, FetchPurpose, FetchResult};
use super::fetcher::{ProofLeader, Turn, TurnError};
use super::key_trial::KeyTurn;
use super::look_up::{HitKind, LookupResult};
use super::pacing;
use super::settle::{self, EndedCall};
use super::upstream_result::{resolve_304, signature_outcome};
use super::{CacheRequest, Gateway};
use crate::budget::Charge;
use crate::cache::admission::Verdict;
use crate::cache::backoffs;
use crate::cache::entry::Entry;
use crate::cache::flights::Leader;
use crate::cache::grants::{PendingGrant, Proof};
use crate::cache::lifetime::ResponseTimes;
use crate::cache::store::{CacheKey, Epoch};
use crate::request::forwarded;
use crate::request::precondition::Validator;
use crate::request::trace::TraceContext;
use crate::telemetry::calls::UpstreamCall;
use crate::telemetry::record::RequestRecord;
use crate::telemetry::traces::CallTarget;
use crate::upstream::client::FetchContext;
use crate::upstream::gate::{Class, Permit};
use crate::upstream::{CallerRefusal, Failure, UpstreamError, UpstreamResponse, is_refusal};

/// How often a call that waits for its turn looks whether another one has stored its entry.
const RECHECK: Duration = Duration::from_secs(1);

/// What a request needs to start a fetch.
pub(super) struct NewFetch {
    pub(super) leader: Leader<CacheKey, FetchResult>,
    /// The key of the flight. Other requests may have joined it.
    pub(super) cache_key: CacheKey,
    pub(super) purpose: FetchPurpose,
    /// If other requests of the caller wait for the proof.
    pub(super) proof: Option<ProofLeader>,
    /// When the request's first fetch began, if upstream has throttled that call.
    pub(super) throttled: Option<tokio::time::Instant>,
}

/// A call that is going to be made.
struct Fetch {
    new: NewFetch,
    request: CacheRequest,
    context: FetchContext,
    trace: CallTrace,
    /// The turn, if the call has had it already.
    turn: Option<Turn>,
    /// For the response.
    memory: Charge,
}

/// A call that was sent, and its result.
struct SentCall<'g> {
    key_turn: Option<KeyTurn>,
    _permit: Permit,
    begun: tokio::time::Instant,
    epoch: Epoch,
    pending_grant: PendingGrant,
    call_metrics: UpstreamCall<'g>,
    span: Option<TraceContext>,
    revalidated: Option<(Arc<Entry>, Validator)>,
    result: Result<UpstreamResponse, UpstreamError>,
    times: ResponseTimes,
    status: Result<StatusCode, Failure>,
    /// If it was refused because of a limit that is known: when that allows the next call.
    retry_after: Option<Duration>,
}

impl Gateway {
    /// Starts a fetch in a task of its own, so that it does not end when its client disconnects.
    pub(super) fn start_fetch(
        self: &Arc<Self>,
        new: NewFetch,
        request: &CacheRequest,
        headers: &HeaderMap,
        record: &mut RequestRecord,
    ) {
        let context = FetchContext {
            credential: request.credential.kept(),
            date: self.clock.date(),
            request_id: record.request_id().to_owned(),
            via: self.via.trail(headers),
            validator: None,
            trace: None,
            forwarded: forwarded::select(request.lookup.key.operation(), headers),
        };
        self.spawn_fetch(new, request, context, record.forward_trace(headers).into(), None);
    }

    /// The same without a client, for a call that has had its turn. The request is built only from the key, the
    /// credential and constants.
    pub(super) fn start_own_fetch(self: &Arc<Self>, new: NewFetch, request: &CacheRequest, turn: Turn) {
        let id = self.request_ids.next();
        let context = FetchContext {
            credential: request.credential.kept(),
            date: self.clock.date(),
            request_id: id.as_str().to_owned(),
            via: self.via.trail(&HeaderMap::new()),
            validator: None,
            trace: None,
            forwarded: HeaderMap::new(),
        };
        self.spawn_fetch(new, request, context, CallTrace::own(&self.observer, &id), Some(turn));
    }

    /// The response is charged here, before the requests that wait for it can fill the share of their client. If there is
    /// no room, and a limit of upstream holds the call back, its turn would be used in vain.
    fn spawn_fetch(
        self: &Arc<Self>,
        new: NewFetch,
        request: &CacheRequest,
        context: FetchContext,
        trace: CallTrace,
        turn: Option<Turn>,
    ) {
        let class = self.memory.class_of(request, self.clock.now());
        let is_held = || turn.is_none() && self.fetcher.held_for(request, class).is_some();
        let Some(memory) = charge::for_response(&request.account, || !is_held()) else {
            let (caller, epoch) = (request.lookup.caller_scope.caller, self.memory.store.epoch());
            let result = if new.purpose == FetchPurpose::Response {
                FetchResult::failed_before_sending(caller, epoch, self.deadline_error(request, false))
            } else {
                // Its client has a response, or waits for another call.
                FetchResult::NotSent { throttled: new.throttled }
            };
            return new.leader.end(result, false);
        };
        tokio::spawn(Arc::clone(self).run_fetch(Fetch { new, request: request.clone(), context, trace, turn, memory }));
    }

    /// Calls upstream, applies what the response changes, and releases the waiters.
    async fn run_fetch(self: Arc<Self>, fetch: Fetch) {
        let Fetch { new, request, mut context, trace, mut turn, mut memory } = fetch;
        // The proof is held to the end of this function: then the grant is decided.
        let NewFetch { mut leader, cache_key, purpose, proof, mut throttled } = new;
        let is_for_caller_alone = purpose.is_for_caller_alone();
        let caller = request.lookup.caller_scope.caller;
        let (service, catalogue) = (request.lookup.key.operation().service, &request.active.catalogue);
        self.refresh_staleness(request.lookup.key.operation());
        let is_key_only = self.via.is_own(&context.via) && context.forwarded.is_empty();
        let mut fetch_begun = throttled.unwrap_or_else(|| self.clock.timer_now());
        let class_of_client = || self.memory.class_of(&request, self.clock.now());
        let mut class = match purpose {
            FetchPurpose::Renewal => Class::Renewal,
            FetchPurpose::Refresh => Class::Refresh,
            FetchPurpose::Response | FetchPurpose::Additional(_) | FetchPurpose::KeepWarm => class_of_client(),
        };
        let is_shared = leader.key().is_some();
        // Not if all requests of the flight are its caller's. Their response may be for others, too.
        let leads_others = leader.key().is_some_and(|key| key.owner.is_none());
        if leads_others && self.fetcher.has_to_wait(&request, class) {
            return leader.end(FetchResult::NotSent { throttled }, false);
        }

        // The second tier. If it has what is needed, all waiters look up again, also those of other calls of the flight.
        let is_for_all = is_shared && cache_key.owner.is_none();
        let claimant = Claimant {
            memory: &self.memory,
            observer: &self.observer,
            clock: &self.clock,
            request: &request,
            purpose,
            is_for_all,
        };
        let claim = match claimant.claim(&leader).await {
            Claimed::Call(claim) => claim,
            Claimed::Answered => return leader.end(FetchResult::InSecondTier, true),
            Claimed::Dropped { is_abandoned: true } => return,
            Claimed::Dropped { is_abandoned: false } => return leader.end(FetchResult::NotSent { throttled }, false),
        };

        // A call that upstream throttles in spite of the ledger is made once more, if nothing stale can be served, and if
        // upstream says when, or the ledger does, and that is soon enough.
        let sent_call = loop {
            // From now on a client waits for the renewal or refresh.
            if !class.has_client() && leader.is_joined() {
                (class, fetch_begun) = (class_of_client(), self.clock.timer_now());
            }
            // The turn: a permit to use the access key, and one of the gate. The fetch ends if all its clients have
            // disconnected, unless it is a renewal or a refresh.
            let signed = context.credential.signed();
            let time_left = || request.active.answer_timeout.saturating_sub(self.clock.timer_now() - fetch_begun);
            let wait_for_turn = async {
                match turn.take() {
                    Some(turn) => Ok(turn),
                    None => {
                        let observer = &self.observer;
                        self.fetcher.wait_for_turn(&request, signed, class, is_shared, time_left(), observer).await
                    }
                }
            };
            let (key_turn, mut permit) = tokio::select! {
                biased;
                turn = wait_for_turn => match turn {
                    Ok(turn) => turn,
                    Err(TurnError::Suspended) => return leader.end(FetchResult::Suspended { leader: caller }, false),
                    Err(TurnError::Late(error)) => {
                        let epoch = self.memory.store.epoch();
                        return leader.end(FetchResult::failed_before_sending(caller, epoch, error), false);
                    }
                },
                () = leader.abandoned() => return,
                () = leader.joined(), if !class.has_client() => continue,
                () = self.stored_meanwhile(purpose, &request) => {
                    return leader.end(FetchResult::NotSent { throttled }, false);
                }
            };
            leader.mark_sent();
            proof.iter().for_each(Leader::mark_sent);
            let (sent, begun) = (self.clock.now(), self.clock.timer_now());

            // Another call may have stored the entry meanwhile. A stale entry with a validator makes the request
            // conditional.
            let stored = match self.memory.look_up(&request.lookup, sent) {
                LookupResult::Hit(entry, HitKind::Fresh) if self.is_ahead(purpose, &request, sent) => Some(entry),
                LookupResult::Hit(..) => return leader.end(FetchResult::NotSent { throttled }, false),
                LookupResult::StaleWhileRevalidate(entry, _) => Some(entry),
                LookupResult::Fetch { stored, .. } => stored,
            };
            let revalidated = stored.and_then(|entry| entry.validator().cloned().map(|validator| (entry, validator)));
            context.validator = revalidated.as_ref().map(|(_, validator)| validator.clone());

            // The call.
            let epoch = self.memory.store.epoch();
            let pending_grant = self.memory.grants.begin_call(request.lookup.caller_scope.clone(), sent);
            let call = trace.begin(&self.observer, &self.request_ids, || call_target(&request, purpose));
            (context.trace, context.date) = (call.traceparent(), self.clock.date());
            let span = call.exported();
            let call_metrics = self.observer.metrics.upstream_call(service, call.span);
            self.observer.metrics.fetch(request.lookup.key.operation());
            if let FetchPurpose::Additional(additional) = purpose {
                self.observer.metrics.additional_calls.with_label_values(&[additional.into_str()]).inc();
            }
            permit.mark_sent();
            let result = call_upstream(&request, context.clone(), memory, sent, &mut leader).await;
            permit.unsent_if_unreached(result.as_ref().err());
            let times = ResponseTimes { sent, received: self.clock.now(), date: self.clock.date() };
            let status = result.as_ref().map(UpstreamResponse::status).map_err(UpstreamError::failure);
            if status.is_ok_and(|status| !status.is_server_error()) {
                self.fetcher.successes.answered(service, times.received);
            }
            let mut retry_after = None;
            if let Ok(UpstreamResponse::Complete(response)) = &result {
                pacing::learn(&self.fetcher, &permit, response, catalogue, &self.observer, &self.clock);
                if response.status() == StatusCode::TOO_MANY_REQUESTS {
                    // Before a wait. The path of a caller without a proof may be invented.
                    let scope = (class != Class::Unknown).then_some(request.lookup.key.scope());
                    self.observer.throttled(service, response.status(), scope);
                    // The longer of what the known limits and the response ask for.
                    let asked = pacing::retry_after(response, &self.clock);
                    let held = self.fetcher.held_for(&request, class);
                    let wait = held.max(asked);
                    let has_client = class.has_client() || leader.is_joined();
                    let is_waited_for = has_client && purpose != FetchPurpose::KeepWarm;
                    let has_stale = self.memory.has_for_failure(&request, times.received);
                    let may_repeat = is_waited_for && !has_stale && throttled.is_none();
                    if may_repeat
                        && wait.is_some_and(|wait| wait < time_left())
                        && let Some(for_second) = charge::for_response(&request.account, || false)
                    {
                        memory = for_second;
                        // Also if it seems shorter than what holds this call: that may be about this operation only.
                        if let Some(asked) = asked {
                            self.fetcher.pause(&request, class, asked, times.received);
                        }
                        throttled = Some(fetch_begun);
                        call_metrics.ended(status, self.clock.timer_now().saturating_duration_since(begun));
                        // A leader that waits for a limit of its own leads nobody.
                        if leads_others && self.fetcher.has_to_wait(&request, class) {
                            return leader.end(FetchResult::NotSent { throttled }, false);
                        }
                        continue;
                    }
                    retry_after = wait;
                }
            }
            break SentCall {
                key_turn,
                _permit: permit,
                begun,
                epoch,
                pending_grant,
                call_metrics,
                span,
                revalidated,
                result,
                times,
                status,
                retry_after,
            };
        };
        let SentCall {
            key_turn,
            _permit,
            begun,
            epoch,
            mut pending_grant,
            call_metrics,
            span,
            revalidated,
            result,
            times,
            status,
            retry_after,
        } = sent_call;
        let sent = times.sent;
        let mut refusal = None;
        let result = match result {
            Ok(UpstreamResponse::Complete(response)) => Ok(response),
            // A 401 or 403 counts from its head on. Only the leader's caller waits for the body.
            Ok(UpstreamResponse::Refused(CallerRefusal { head, body })) => {
                let read = (head.status, &head.headers);
                let catalogue = &request.active.catalogue;
                refusal = Some(apply_denial(&self.memory, &self.observer, catalogue, &mut pending_grant, read));
                leader.announce(FetchResult::Refused { leader: caller });
                let body = body.await.ok_or(UpstreamError::RefusalIncomplete(head.status));
                body.map(|body| Response::from_parts(head, body))
            }
            Err(error) => Err(error),
        };
        let duration = self.clock.timer_now().saturating_duration_since(begun);
        call_metrics.ended(status, duration);
        if let Some(key_turn) = key_turn {
            let is_client_accepted = purpose != FetchPurpose::KeepWarm && !status.is_ok_and(is_refusal);
            let outcome = signature_outcome(&result);
            self.fetcher.signature_ended(key_turn, outcome, is_client_accepted, catalogue, &self.observer);
        }

        // What the result changes.
        let (memory, observer) = (&self.memory, &self.observer);
        let (request, cache_key) = (&request, &cache_key);
        let call = EndedCall { memory, observer, request, cache_key, is_for_caller_alone, is_key_only, epoch, times };
        let mut asked = None;
        let (response, is_external) = match result.and_then(|response| resolve_304(response, revalidated.as_ref())) {
            Ok((response, upstream_status)) => {
                // Not what the known limits ask for: they hold the next renewal back.
                asked = backoffs::retry_after(response.headers(), times.date);
                let mut fetched = call.settle(pending_grant, response, upstream_status, refusal);
                pacing::add_retry_after(&mut fetched.response, retry_after);
                // The cause may be a header of this request that is not in the key. Others did not send it.
                if fetched.verdict == Verdict::Negative && !(is_key_only && call.is_trusted()) {
                    fetched.verdict = Verdict::Personal;
                }
                (Ok(Arc::new(fetched)), true)
            }
            Err(error) => {
                if !matches!(error, UpstreamError::TooLarge(_) | UpstreamError::NoMemory(_)) {
                    self.observer.call_failed(service, &context.request_id, &error);
                }
                let is_external = self.fetcher.is_external_failure(service, &error, times.received);
                call.settle_failure(pending_grant, &error, is_external, refusal);
                (Err(error), is_external)
            }
        };
        let is_proved = response.as_ref().is_ok_and(|fetched| fetched.proof.is_some());
        if is_proved {
            self.fetcher.successes.list(service, sent);
        }
        if response.as_ref().is_ok_and(|fetched| fetched.proof.is_some_and(|proof| proof != Proof::Late)) {
            // Whichever call has proved the caller, its other requests need not wait longer.
            self.fetcher.proofs.release(&request.lookup.caller_scope);
        }
        if purpose == FetchPurpose::Renewal {
            let caller_scope = &request.lookup.caller_scope;
            settle::end_renewal(memory, observer, caller_scope, is_proved, asked, times.received);
        }
        let is_stored = is_proved && response.as_ref().is_ok_and(|fetched| fetched.not_stored.is_none());
        self.observer.record_health(service, status, class != Class::Unknown || is_proved);

        // The result for all waiters.
        let has_failed = response.as_ref().is_ok_and(|fetched| fetched.verdict == Verdict::Failure);
        let is_retry = purpose == FetchPurpose::Additional(AdditionalCallReason::Failed);
        let may_retry = has_failed && !is_retry && self.fetcher.successes.has_listed_since(service, sent);
        let duration = Some(duration);
        let result = FetchResult::Sent { leader: caller, epoch, response, duration, is_external, may_retry, span };
        let (serves_all, ended) = (result.serves_all(), EndedClaim::of(sent, &result, is_stored));
        leader.end(result, serves_all);
        claim.end(memory, request, ended, &self.clock);
    }
}

impl Gateway {
    /// Waits until another call has stored a fresh entry for the caller of a call that waits for its turn.
    async fn stored_meanwhile(&self, purpose: FetchPurpose, request: &CacheRequest) {
        loop {
            tokio::time::sleep(RECHECK).await;
            let now = self.clock.now();
            if matches!(self.memory.look_up(&request.lookup, now), LookupResult::Hit(_, HitKind::Fresh))
                && !self.is_ahead(purpose, request, now)
            {
                return;
            }
        }
    }

    /// Whether a call is made although there is a fresh entry, because its caller's grant or the entry ends soon.
    fn is_ahead(&self, purpose: FetchPurpose, request: &CacheRequest, now: Instant) -> bool {
        match purpose {
            FetchPurpose::Response | FetchPurpose::Refresh | FetchPurpose::Additional(_) => false,
            FetchPurpose::Renewal => self.memory.grants.ends_soon(&request.lookup.caller_scope, now),
            // It has been found due when its turn came.
            FetchPurpose::KeepWarm => true,
        }
    }
}

/// What a call is for its span.
fn call_target(request: &CacheRequest, purpose: FetchPurpose) -> CallTarget<'_> {
    let (key, operation) = (&request.lookup.key, request.lookup.key.operation());
    CallTarget {
        method: &Method::GET,
        origin: key.origin(),
        path: key.scope().path(),
        operation: Some((&operation.name, operation.template.to_string())),
        purpose: purpose.into_str(),
    }
}

/// Sends the request upstream. Marks the call slow after `stale_if_slow`, so that a waiter may start an additional
/// call.
async fn call_upstream(
    request: &CacheRequest,
    context: FetchContext,
    memory: Charge,
    sent: Instant,
    leader: &mut Leader<CacheKey, FetchResult>,
) -> Result<UpstreamResponse, UpstreamError> {
    let mut call = request.active.upstream.fetch_list(&request.lookup.key, context, memory);
    tokio::select! {
        biased;
        result = call.as_mut() => result,
        () = tokio::time::sleep(request.active.stale_if_slow) => {
            leader.mark_slow(sent);
            call.await
        }
    }
}
