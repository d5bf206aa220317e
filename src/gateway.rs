//! The sequence of a request, from [`Gateway::handle`] to its response.
//!
//! ```text
//! request:  normalize → charge → decide → identify → look up → join a flight → wait → release → compose
//!                                             └─ or relay unchanged ─────────────────────────────┘
//! fetch:    second tier → wait for a call slot → look up again → call upstream → settle → release waiters
//! ```
//!
//! `fetch.rs` has the sequence of a fetch, and `forward.rs` that of a relayed request. These files, `background.rs`
//! and `keep_warm.rs` call the steps. A step must not call another step (checked by `tests/fences.rs`).
//!
//! A step is a function of the parts that it needs: [`Memory`] (grants, entries, backoffs), [`Fetcher`] (flights,
//! queue, key breaker), [`Observer`] (metrics, events, health) and [`ActiveConfig`] (settings in force). Steps pass on
//! the values of `connection.rs`, `cache_request.rs`, `role.rs` and `fetch_result.rs`.

mod active_config;
mod assemble;
mod background;
mod cache_request;
mod call_trace;
mod caller_class;
mod charge;
mod claim;
mod classify;
mod coalesce;
mod conditions;
mod connection;
mod denial;
mod fetch;
mod fetch_result;
mod fetcher;
mod fleet_log;
mod fleet_setup;
mod forward;
mod hint;
mod identify;
mod inspect;
mod invalidate;
mod keep_warm;
mod key_trial;
mod look_up;
mod memory;
mod message;
mod observer;
mod pacing;
mod parts;
pub(crate) mod probe;
mod prove;
mod release;
mod reload;
mod remembered;
mod role;
mod scope_record;
mod second_tier;
mod settle;
pub(crate) mod snapshot;
mod staleness;
mod take_hint;
#[cfg(test)]
mod tests;
mod tier;
mod upstream_result;
mod upstream_setup;
mod wait;

use std::future::{Future, ready};
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use http_body::Body;
use tokio_util::either::Either;

use crate::budget::{Account, Budget};
use crate::cache::flights::{FlightOutcome, Waiter};
use crate::cache::grants::GrantUse;
use crate::cache::miss::Miss;
use crate::cache::store::CacheKey;
use crate::cache::unstorable::Unstorable;
use crate::clock::Clock;
use crate::fast_path::FastPath;
use crate::machine::Machine;
use crate::reply::body::{Content, ReplyBody};
use crate::reply::compose;
use crate::reply::error::{ErrorSource, RequestError};
use crate::request::caller::{Callers, Credential};
use crate::request::decide::{Action, Decision, Facts, Plan, Rules, decide};
use crate::request::fingerprint::{Fingerprint, Fingerprints};
use crate::request::hop::Via;
use crate::request::id::RequestIds;
use crate::request::{BypassReason, X_REQUEST_ID, validate};
use crate::stream::{BoxError, nothing, stream};
use crate::sync::{Mutex, RwLock};
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::RequestRecord;
pub(crate) use crate::upstream::quota::{Hold, HoldCause, LimitState};
pub(crate) use active_config::ActiveConfig;
pub use assemble::REQUEST_IDS;
use cache_request::{CacheRequest, Lookup};
use coalesce::{Attempts, MAX_ELECTIONS};
pub use connection::Connection;
use fetch::NewFetch;
use fetch_result::{AdditionalCallReason, FetchPurpose, FetchResult};
use fetcher::Fetcher;
pub(crate) use fleet_setup::check_fleet;
pub use hint::{Hint, HintSink};
pub(crate) use inspect::{Answer, EngineInspection, Inspection};
use look_up::{HitKind, LookupResult, respond_from_memory};
use memory::Memory;
pub(crate) use observer::Observer;
use prove::ProofRole;
use release::Release;
pub(crate) use remembered::RememberedLookup;
use role::Role;
use snapshot::Snapshot;
use wait::{AdditionalCall, DEADLINE_MARGIN, ProofWaitOutcome, Timers, WaitOutcome};

pub struct Gateway {
    active: RwLock<Arc<ActiveConfig>>,
    /// Held during a reload, so that reloads run one after the other.
    reloading: Mutex<()>,
    callers: Callers,
    fingerprints: Fingerprints,
    fast_path: FastPath<RememberedLookup>,
    request_ids: Arc<RequestIds>,
    via: Via,
    bypassing: Arc<AtomicBool>,
    memory: Arc<Memory>,
    fetcher: Arc<Fetcher>,
    observer: Arc<Observer>,
    /// `None` without `cache.snapshot`.
    snapshot: Option<Arc<Snapshot>>,
    /// Counts the memory that clients make the gateway hold, without the cache.
    budget: Arc<Budget>,
    clock: Clock,
    machine: Machine,
}

impl Gateway {
    pub fn connection(&self, local: SocketAddr, peer: IpAddr) -> Connection {
        Connection::open(local, peer, Account::open(&self.budget, self.active().peer(peer)))
    }

    /// Answers a request. Every error becomes a response in upstream's error format.
    pub fn handle<'g, B>(
        self: &'g Arc<Self>,
        request: Request<B>,
        connection: &'g Connection,
    ) -> impl Future<Output = Response<ReplyBody>> + Send + use<'g, B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        let received = self.fast_path.read_parsed(&head, !body.is_end_stream());
        match received.as_ref().and_then(|received| self.respond_to_known(received, connection)) {
            Some(response) => Either::Left(ready(response)),
            None => {
                let http2 = received.map(|received| received.fingerprint);
                // Boxed: it takes many KiB, is freed when the response starts, and is not moved with its callers.
                Either::Right(Box::pin(self.handle_unknown(head, body, http2, connection)))
            }
        }
    }

    /// Answers a request that takes the full path. `http2` is the fingerprint of an HTTP/2 head.
    async fn handle_unknown<B>(
        self: &Arc<Self>,
        mut head: Parts,
        body: B,
        http2: Option<Fingerprint>,
        connection: &Connection,
    ) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let has_body = !body.is_end_stream();
        let normalized = validate::normalize(&mut head);
        let fingerprint = self.fast_path.begin_request(&connection.tracker, &head, has_body, http2);
        let method = head.method.clone();
        let (sinks, clock, id) = (Arc::clone(&self.observer.sinks), self.clock.clone(), self.request_ids.next());
        let mut record = RequestRecord::begin(sinks, clock, id, &head, connection.peer);

        let recognise = |credential: &Credential| self.identity_resolver().recognise(credential, connection);
        classify::by_head(&head, connection, recognise, &self.memory, &self.clock);
        let charge = charge::for_request(&head, has_body, connection, || self.active().answer_timeout).await;
        let result = match (normalized, &charge) {
            (Ok(()), Some(_)) => self.process(head, body, connection, fingerprint, &mut record).await,
            (Ok(()), None) => Err(RequestError::NoMemory),
            (Err(invalid), _) => Err(RequestError::Rejected(invalid.into())),
        };
        let charge = charge.unwrap_or_else(|| charge::for_refusal(connection));
        let mut response = result.unwrap_or_else(|error| {
            match error.error_source() {
                ErrorSource::Client => record.set_outcome(Outcome::Refused, error.as_str()),
                ErrorSource::Upstream | ErrorSource::Gateway => record.set_failure(error.as_str()),
            }
            error.response(record.request_id())
        });

        record.set_upstream_id(response.headers().get(X_REQUEST_ID));
        compose::set_request_id(response.headers_mut(), record.request_id());
        if method == Method::HEAD {
            response = compose::without_body(response);
        }
        record.set_status(response.status());
        response.map(|content| ReplyBody::new(content, record, charge))
    }

    /// Decides what to do with a request, and does it. `fingerprint` is the head's, if the fast path may remember it.
    async fn process<B>(
        self: &Arc<Self>,
        mut head: Parts,
        body: B,
        connection: &Connection,
        fingerprint: Option<Fingerprint>,
        record: &mut RequestRecord,
    ) -> Result<Response<Content>, RequestError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let active = self.active();
        let facts = Facts { local: connection.local, has_body: !body.is_end_stream() };
        let decision = decide(&mut head, facts, self.rules(&active));
        self.observer.near_miss(active.catalogue(), &head, &decision);
        let Plan { service, presentation, action } = match decision {
            Ok(Decision::Proceed(plan)) => plan,
            Ok(Decision::AnswerOptions) => {
                record.set_outcome(Outcome::Refused, "options");
                return Ok(compose::allowed_methods());
            }
            Err(rejection) => return Err(RequestError::Rejected(rejection)),
        };
        match action.operation() {
            Some(operation) => record.set_operation(operation),
            None => record.set_pass_through(service),
        }
        let received_uri = presentation.received_uri.clone();
        let body = if facts.has_body { stream(body) } else { nothing() };
        let (client_identity, body) =
            self.identity_resolver().identify(&active, &head, body, service, presentation, connection).await?;
        record.set_caller(self.observer.caller_counts(client_identity.identity.as_ref(), &head.headers));
        let (reason, scope) = match action {
            Action::LookUp { key, directives } => {
                let scope = key.scope().clone();
                // `decide` looks up only requests with a credential.
                let request = client_identity.request(key, directives).ok_or(RequestError::Internal)?;
                match self.look_up_or_fetch(&request, &head.headers, record).await? {
                    Some(response) => {
                        self.raise_class(connection, &client_identity, Some(&request.lookup.caller_scope), record);
                        if let (Some(fingerprint), Outcome::Hit) = (fingerprint, record.outcome()) {
                            self.remember(fingerprint, (&head, &received_uri), &request, record, connection);
                        }
                        return Ok(response);
                    }
                    None => (Some(BypassReason::TooLarge), Some(scope)),
                }
            }
            Action::Bypass(bypass) => (Some(bypass.reason), bypass.scope),
            Action::PassThrough => (None, None),
        };
        let caller_scope = scope.and_then(|scope| client_identity.caller_scope(scope));
        let request = Request::from_parts(head, body);
        let result = match reason {
            Some(reason) => {
                self.forwarder().bypass(&client_identity, reason, service, caller_scope, request, record).await
            }
            None => self.forwarder().pass_through(&client_identity, service, request, record).await,
        };
        self.raise_class(connection, &client_identity, None, record);
        result
    }

    /// The input of [`decide`] besides the request and its connection.
    pub fn rules<'a>(&'a self, active: &'a ActiveConfig) -> Rules<'a> {
        active.rules(&self.via, self.mode())
    }

    /// Answers a request for an operation from memory, or from a flight. If the result of the flight is not for this
    /// caller, looks up again. Returns `None` if the response is too large to buffer: relay the request.
    async fn look_up_or_fetch(
        self: &Arc<Self>,
        request: &CacheRequest,
        headers: &HeaderMap,
        record: &mut RequestRecord,
    ) -> Result<Option<Response<Content>>, RequestError> {
        let respond = |response| Ok(Some(compose::not_modified_if_current(response, headers)));
        let mut timers = None;
        let mut attempts = Attempts::default();
        let mut is_renewal_due =
            self.memory.grants.use_grant(&request.lookup.caller_scope, self.clock.now()) == GrantUse::RenewalDue;
        loop {
            let now = self.clock.now();
            let (cache_key, miss, has_stale) = match self.memory.look_up(&request.lookup, now) {
                LookupResult::Hit(entry, mut kind) => {
                    if matches!(kind, HitKind::Fresh) && is_renewal_due {
                        self.renew_in_background(request, headers, record);
                    }
                    if matches!(kind, HitKind::Fresh) {
                        kind = attempts.kind_of_hit();
                    }
                    return respond(respond_from_memory(&self.observer, request, &entry, kind, now, record));
                }
                LookupResult::StaleWhileRevalidate(entry, cache_key) => {
                    if !request.lookup.directives.only_if_cached {
                        self.revalidate_in_background(request, cache_key, headers, record);
                    }
                    let kind = HitKind::Revalidating;
                    return respond(respond_from_memory(&self.observer, request, &entry, kind, now, record));
                }
                LookupResult::Fetch { cache_key, miss, has_stale, stored } => {
                    record.set_miss(miss, || self.observer.digests.of_key(&request.lookup.key));
                    if request.lookup.directives.only_if_cached {
                        return Err(RequestError::NotCached);
                    }
                    // A call would wait for upstream's quota.
                    if let Some(entry) = stored.filter(|_| has_stale)
                        && self.fetcher.held_for(request, self.memory.class_of(request, now)).is_some()
                    {
                        self.revalidate_in_background(request, cache_key, headers, record);
                        let kind = HitKind::Backoff;
                        return respond(respond_from_memory(&self.observer, request, &entry, kind, now, record));
                    }
                    (cache_key, miss, has_stale)
                }
            };
            let uncacheable = self.memory.store.uncacheable_reason(&cache_key, request.lookup.caller_scope.caller, now);
            if uncacheable == Some(Unstorable::TooLarge) {
                return Ok(None);
            }
            // The request gets a flight of its own if the response cannot be shared, after too many elections, and with
            // no-cache: the calls of an existing flight may have been sent before this request came.
            let is_solo =
                uncacheable.is_some() || attempts.number > MAX_ELECTIONS || request.lookup.directives.no_cache;
            // From here on the request waits for upstream, so it starts no renewal.
            is_renewal_due = false;
            // The deadline covers all attempts.
            let timers = timers.get_or_insert_with(|| {
                Timers::begin(request.active.answer_timeout + DEADLINE_MARGIN, request.active.stale_if_slow)
            });
            let class = self.memory.class_of(request, self.clock.now());
            let mut proof = None;
            if matches!(miss, Miss::NoGrant | Miss::GrantLapsed) && !is_solo {
                match prove::join(&self.fetcher, request, class, &cache_key, &attempts.proof_waits) {
                    ProofRole::Call(leader) => proof = leader,
                    ProofRole::Wait(mut waiter) => {
                        record.set_outcome(Outcome::Coalesced, "");
                        match timers.wait_for_proof(&mut waiter, &self.clock).await {
                            ProofWaitOutcome::Ended => attempts.proof_waits.count(),
                            ProofWaitOutcome::TooSlow => attempts.proof_waits.time_out(),
                            ProofWaitOutcome::DeadlineReached => {
                                let role = attempts.waiting_role(cache_key, miss);
                                let releaser = self.releaser(request, &role);
                                let error = self.deadline_error(request, waiter.is_sent());
                                return respond(releaser.deadline_response(&error, record));
                            }
                        }
                        continue;
                    }
                }
            }
            let (waiter, role, leader) =
                coalesce::join(&self.fetcher, request, class, cache_key, miss, is_solo, &attempts);
            let role = Role { has_stale, ..role };
            record.set_outcome(role.outcome(), "");
            if let Some(leader) = leader {
                self.observer.metrics.elections.inc_by(u64::from(role.elected));
                let purpose = attempts.additional.take().map_or(FetchPurpose::Response, FetchPurpose::Additional);
                let (cache_key, throttled) = (role.cache_key.clone(), role.throttled);
                let fetch = NewFetch { leader, cache_key, purpose, proof, throttled };
                self.start_fetch(fetch, request, headers, record);
            }
            let outcome = match self.wait(request, waiter, &role, headers, timers, record).await {
                ControlFlow::Continue(outcome) => outcome.ok_or(RequestError::Internal)?,
                ControlFlow::Break(response) => return respond(response),
            };
            let role = Role { leads: outcome.is_own, ..role };
            record.set_outcome(role.outcome(), "");
            match self.releaser(request, &role).release(&outcome.result, record) {
                Release::Respond(response) => return respond(response),
                Release::RespondUnconditionally(response) => return Ok(Some(response)),
                Release::Relay => return Ok(None),
                Release::Fail(error) => return Err(error),
                Release::ElectLeader => attempts.leader_was_refused = true,
                Release::Retry => {
                    (attempts.has_retried, attempts.additional) = (true, Some(AdditionalCallReason::Failed));
                }
                Release::LookUpAgain => {}
            }
            attempts.count(&outcome);
        }
    }

    /// Waits for the result of a flight. Starts an additional call if all calls of the flight are slow. Breaks with a
    /// response if the request is answered before the result. Returns `None` if the flight ended without a result.
    async fn wait(
        self: &Arc<Self>,
        request: &CacheRequest,
        mut waiter: Waiter<CacheKey, FetchResult>,
        role: &Role,
        headers: &HeaderMap,
        timers: &mut Timers,
        record: &mut RequestRecord,
    ) -> ControlFlow<Response<Content>, Option<FlightOutcome<FetchResult>>> {
        let (caller, class) = (request.lookup.caller_scope.caller, self.memory.class_of(request, self.clock.now()));
        // The caller's grant may have ended, and the entry may have been stored by another call.
        let is_needed = || {
            let found = self.memory.look_up(&request.lookup, self.clock.now());
            let is_for_key = matches!(found, LookupResult::Fetch { cache_key, .. } if cache_key == role.cache_key);
            is_for_key && !request.half_close.is_closed()
        };
        let mut is_refused = false;
        loop {
            let (fetcher, clock, is_needed) = (&self.fetcher, &self.clock, &is_needed);
            let additional = AdditionalCall { request, class, fetcher, clock, is_needed };
            let waited = match is_refused {
                false => timers.wait_for(&mut waiter, role.has_stale, additional).await,
                true => timers.wait_for_complete(&mut waiter).await,
            };
            match waited {
                WaitOutcome::Ended(Some(outcome)) if outcome.result.is_refusal_of(caller) => is_refused = true,
                WaitOutcome::Ended(outcome) => return ControlFlow::Continue(outcome),
                WaitOutcome::StaleIfSlow => {
                    if let Some(response) = self.releaser(request, role).stale_if_slow_response(record) {
                        return ControlFlow::Break(response);
                    }
                }
                WaitOutcome::MayStartCall => {
                    if let Some(leader) = waiter.lead_another(caller) {
                        let purpose = FetchPurpose::Additional(AdditionalCallReason::Slow);
                        let (cache_key, proof, throttled) = (role.cache_key.clone(), None, role.throttled);
                        let fetch = NewFetch { leader, cache_key, purpose, proof, throttled };
                        self.start_fetch(fetch, request, headers, record);
                    }
                }
                WaitOutcome::DeadlineReached => {
                    let error = self.deadline_error(request, waiter.is_sent());
                    return ControlFlow::Break(self.releaser(request, role).deadline_response(&error, record));
                }
            }
        }
    }
}
