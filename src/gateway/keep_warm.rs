//! The sequence of keep warm: the gateway itself sends the requests that `[[keep_warm]]` names, with configured access
//! keys, before their entries and the grants of the keys end. What is sent when is decided in `keep_warm/schedule.rs`.
//!
//! ```text
//! wait until a request is due → wait for a slot of the lowest class → check that it is still due → fetch → record the result
//! ```
//!
//! Nobody waits for these calls until they are sent: only then they hold a flight. A call must not be the trial of an
//! access key that upstream has refused ([`crate::upstream::key_breaker`]).

mod calls;
mod schedule;

use std::collections::HashMap;
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;

use self::calls::Calls;
use self::schedule::{CallResult, KeyFacts, Next, Schedule, StoredState, Timing, Validity};
use super::fetch::NewFetch;
use super::fetch_result::{FetchPurpose, FetchResult, FetchedResponse};
use super::prove::{self, LoneCall};
use super::{ActiveConfig, CacheRequest, Connection, Gateway, Lookup};
use crate::cache::admission::Verdict;
use crate::cache::backoffs;
use crate::cache::grants::{CallerScope, Proof};
use crate::catalogue::{Operation, Service};
use crate::config::Mode;
use crate::config::keep_warm::{KeepWarm, RESEND_AFTER, interval};
use crate::request::caller::Credential;
use crate::request::key::{RequestKey, Scope};
use crate::request::request_directives::RequestDirectives;
use crate::signing::AccessKey;
use crate::signing::ring::VerifiedRequest;
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::outcome::KeepWarmResult;
use crate::upstream::gate::{Class, GateClient};
use crate::upstream::{UpstreamError, key_breaker};

/// After this time the loop looks again in any case, because a clock may have jumped, or an entry may have been evicted.
/// A call that has not got a slot by then is not made, and others of its key have their turn.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// An access key at the services that count its refusals together. Another secret is another key.
#[derive(Clone)]
struct WarmKey {
    key: Arc<AccessKey>,
    /// One of these services.
    service: Service,
}

impl PartialEq for WarmKey {
    fn eq(&self, other: &Self) -> bool {
        self.key.fingerprint() == other.key.fingerprint()
            && key_breaker::own_upstream(self.service) == key_breaker::own_upstream(other.service)
    }
}

impl Eq for WarmKey {}

/// A request that is kept warm.
#[derive(Clone)]
struct WarmRequest(CacheRequest);

impl PartialEq for WarmRequest {
    fn eq(&self, other: &Self) -> bool {
        self.0.lookup.key == other.0.lookup.key
    }
}

impl Eq for WarmRequest {}

type WarmSchedule = Schedule<WarmKey, WarmRequest>;
type WarmCalls = Calls<WarmKey, WarmRequest>;

impl Gateway {
    /// Keeps the responses warm that `[[keep_warm]]` names. It does not end. If it is dropped, no new call begins.
    pub async fn keep_warm(self: Arc<Self>) {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let connection = self.connection(SocketAddr::new(loopback, 0), loopback);
        let (mut schedule, mut calls) = (WarmSchedule::new(), WarmCalls::new());
        let mut active: Option<Arc<ActiveConfig>> = None;
        loop {
            let in_force = self.active();
            if active.as_ref().is_none_or(|active| !Arc::ptr_eq(active, &in_force)) {
                let requests = self.warm_requests(&in_force, &connection);
                // Without randomness, the first try is made at once.
                let random = || f64::from(self.machine.random.u32().unwrap_or(0)) / f64::from(u32::MAX);
                schedule.set(requests, self.clock.now(), random);
                active = Some(in_force);
            }
            self.update_keys(&mut schedule);
            let until = match self.mode() {
                Mode::Cache => self.start_due_calls(&mut schedule, &mut calls),
                Mode::Bypass => None,
            };
            let stopped = i64::try_from(schedule.stopped_keys()).unwrap_or(i64::MAX);
            self.observer.metrics.keep_warm_stopped_keys.set(stopped);
            let wait = async {
                match until {
                    Some(until) => {
                        tokio::time::sleep(until.saturating_duration_since(self.clock.now()).min(LONGEST_WAIT)).await;
                    }
                    None => pending().await,
                }
            };
            tokio::select! {
                // Results first: changes and due calls must not delay them.
                biased;
                Some((key, request, result)) = calls.next() => {
                    schedule.ended(&key, &request, result, self.clock.now());
                }
                () = self.fetcher.keep_warm_changes.notified() => {}
                () = wait => {}
            }
        }
    }

    /// The requests that these settings name, each with its key and its interval ([`interval_of`]). They have been
    /// checked.
    fn warm_requests(
        &self,
        active: &Arc<ActiveConfig>,
        connection: &Connection,
    ) -> Vec<(WarmKey, WarmRequest, Duration)> {
        let mut clients = HashMap::new();
        let request = |KeepWarm { key, target }: &KeepWarm| {
            let (operation, path_match) = active.catalogue.operation(target.path())?;
            let headers = HeaderMap::new();
            let request_key =
                RequestKey::read(&active.catalogue, operation, path_match, target.query(), &headers, false).ok()?;
            let credential = Credential::Signed(Arc::new(VerifiedRequest::made_here(Arc::clone(key))));
            let caller_scope = CallerScope { caller: self.callers.of(&credential), scope: request_key.scope().clone() };
            let directives = RequestDirectives::default();
            let client = clients.entry(*key.fingerprint()).or_insert_with(Connection::new_id);
            let request = CacheRequest {
                active: Arc::clone(active),
                credential,
                // Each access key takes turns like a client of its own. It is without the caller, which has a limited
                // number of calls: a client's call with this key must not wait for one of the lowest class.
                client: GateClient { caller: None, peer: None, connection: *client },
                account: connection.account.clone(),
                half_close: Arc::clone(&connection.half_close),
                lookup: Arc::new(Lookup { caller_scope, key: Arc::new(request_key), directives }),
            };
            let key = WarmKey { key: Arc::clone(key), service: operation.service };
            Some((key, WarmRequest(request)))
        };
        let requests: Vec<_> = active.keep_warm().iter().filter_map(request).collect();
        let mut in_scope: HashMap<_, u32> = HashMap::new();
        for (_, WarmRequest(request)) in &requests {
            *in_scope.entry(request.lookup.caller_scope.clone()).or_default() += 1;
        }
        let with_interval = |(key, request): (WarmKey, WarmRequest)| {
            let Lookup { caller_scope, key: request_key, .. } = &*request.0.lookup;
            let interval = interval_of(active, request_key.operation(), in_scope[caller_scope]);
            (key, request, interval)
        };
        requests.into_iter().map(with_interval).collect()
    }

    /// Records what is known about the keys, and an event for each that a client's refused call has stopped.
    fn update_keys(&self, schedule: &mut WarmSchedule) {
        for key in schedule.keys() {
            let awaits_client = schedule.awaits_client(&key);
            let (accepted_call, needs_no_trial) =
                self.fetcher.key_breaker.for_keep_warm(&key.key, key.service, awaits_client);
            if schedule.update(&key, KeyFacts { accepted_call, needs_no_trial }) {
                self.record_stop(&key, None, "upstream has refused a call that was signed with it");
            }
        }
    }

    fn record_stop(&self, key: &WarmKey, scope: Option<&Scope>, reason: &str) {
        let id = key.key.id();
        let what =
            format!("keep warm with access key {id} is stopped until upstream accepts the key for a client: {reason}");
        self.observer.record_event(NewEvent::new(Event::KeepWarmStopped, what).in_scope(scope));
    }

    /// Starts the calls that are due, at most one for each key. Returns when to look again.
    fn start_due_calls(self: &Arc<Self>, schedule: &mut WarmSchedule, calls: &mut WarmCalls) -> Option<Instant> {
        let mut until: Option<Instant> = None;
        for key in schedule.keys() {
            let now = self.clock.now();
            let state = |request: &WarmRequest| self.stored_state(&request.0, now);
            let held = |request: &WarmRequest| self.fetcher.hold_until(&request.0, Class::KeepWarm, now);
            match schedule.next(&key, state, held, now) {
                Next::Call((request, timing)) => {
                    let call = Arc::clone(self).make_warm_call(key.clone(), request.clone(), timing);
                    calls.start(key, request, call);
                }
                Next::Wait(at) => until = Some(until.map_or(at, |until| until.min(at))),
                Next::WaitForChange => {}
            }
        }
        until
    }

    /// What memory has for a request.
    fn stored_state(&self, request: &CacheRequest, now: Instant) -> StoredState {
        let Lookup { caller_scope, key, .. } = &*request.lookup;
        let cache_key = self.memory.store.cache_key(key, caller_scope.caller);
        let entry = self.memory.store.get(&cache_key).map(|entry| {
            let info = entry.freshness_info();
            Validity { begin: info.sent, length: info.fresh_for() }
        });
        let grant = self.memory.grants.lifetime(caller_scope, now).map(|(begin, length)| Validity { begin, length });
        let is_backing_off = self.memory.backoffs.is_active_for(&cache_key, caller_scope, now);
        StoredState { entry, grant, purged: self.memory.store.purged(), is_backing_off }
    }

    /// Makes a call when no other call needs the slot.
    async fn make_warm_call(
        self: Arc<Self>,
        key: WarmKey,
        WarmRequest(request): WarmRequest,
        timing: Timing,
    ) -> CallResult {
        let request = &request;
        let service = request.lookup.key.operation().service;
        // A call that waits would hold back the others of its key. A limit may have been reached since it was due.
        let entered = self.fetcher.gate.enter(service, request.gate_call(Class::KeepWarm));
        let Ok(permit) = tokio::time::timeout(LONGEST_WAIT, entered).await else {
            return CallResult::NotSent;
        };
        let now = self.clock.now();
        let is_needed = Arc::ptr_eq(&request.active, &self.active())
            && self.mode() == Mode::Cache
            && timing.is_due(self.stored_state(request, now), now);
        let key_permit = self.fetcher.key_breaker.enter_without_trial(&key.key, service).filter(|_| is_needed);
        let Lookup { caller_scope, key: request_key, .. } = &*request.lookup;
        let cache_key = self.memory.store.cache_key(request_key, caller_scope.caller).of(caller_scope.caller);
        let catalogue = &request.active.catalogue;
        let key_turn = match key_permit {
            Some(key_permit) => {
                let turn = self.fetcher.try_for_all(&key.key, key_permit, service, (catalogue, &self.observer)).await;
                // Another gateway may have told a refusal.
                turn.ok().filter(|_| self.fetcher.key_breaker.for_keep_warm(&key.key, service, false).1)
            }
            None => None,
        };
        let begun =
            key_turn.and_then(|key_turn| Some((key_turn, prove::begin_alone(&self.fetcher, request, &cache_key)?)));
        let Some((key_turn, LoneCall { mut waiter, leader, proof })) = begun else {
            return CallResult::NotSent;
        };
        let fetch =
            NewFetch { leader, cache_key, purpose: FetchPurpose::KeepWarm, proof: Some(proof), throttled: None };
        self.start_own_fetch(fetch, request, (Some(key_turn), permit));
        let outcome = waiter.final_result().await;
        self.warm_result(&key, request, outcome.map(|outcome| outcome.result))
    }

    /// Counts the result of a call, and records an event if it was a refusal.
    fn warm_result(&self, key: &WarmKey, request: &CacheRequest, result: Option<FetchResult>) -> CallResult {
        let response = match result {
            Some(FetchResult::Sent { response, .. }) => response,
            Some(FetchResult::NotSent { .. } | FetchResult::InSecondTier | FetchResult::Suspended { .. }) => {
                return CallResult::NotSent;
            }
            Some(FetchResult::Refused { .. }) | None => return CallResult::Failed { retry_after: None },
        };
        let refused = || CallResult::Refused { calls: self.fetcher.key_breaker.issued(&key.key, key.service) };
        let (counted, result, status) = match response {
            Ok(fetched) => {
                let FetchedResponse { response, verdict, proof, not_stored, .. } = &*fetched;
                let retry_after = backoffs::retry_after(response.headers(), self.clock.date());
                let (counted, result) = match verdict {
                    Verdict::Proof(_) if *proof == Some(Proof::Late) => {
                        (KeepWarmResult::Failed, CallResult::Failed { retry_after: None })
                    }
                    Verdict::Proof(_) => {
                        let sent = fetched.freshness_info.sent;
                        (KeepWarmResult::Proved, CallResult::Proved { sent, not_stored: *not_stored })
                    }
                    Verdict::Denial => (KeepWarmResult::Refused, refused()),
                    Verdict::Throttled | Verdict::Failure => {
                        (KeepWarmResult::Failed, CallResult::Failed { retry_after })
                    }
                    Verdict::InvalidBody(_) | Verdict::Personal | Verdict::Negative => {
                        (KeepWarmResult::Failed, CallResult::Answered)
                    }
                };
                (counted, result, Some(response.status()))
            }
            Err(UpstreamError::RefusalIncomplete(status)) => (KeepWarmResult::Refused, refused(), Some(status)),
            Err(_) => (KeepWarmResult::Failed, CallResult::Failed { retry_after: None }, None),
        };
        self.observer.metrics.kept_warm(counted);
        if let (CallResult::Refused { .. }, Some(status)) = (result, status) {
            self.record_stop(key, Some(request.lookup.key.scope()), &format!("upstream refused a call ({status})"));
        }
        result
    }
}

/// The average spacing of the calls for each of `requests` in a scope, so that together they are as many as `check`
/// prints: each is sent as often as its response needs it, or all in turn as often as the grant needs it.
fn interval_of(active: &ActiveConfig, operation: &Operation, requests: u32) -> Duration {
    let ttl = operation.adaptive_ttl.map_or(operation.ttl, |limits| limits.min);
    let settings = active.settings();
    let for_grant = settings.grants.grant_ttl.0.mul_f64(RESEND_AFTER);
    interval(ttl, settings.cache.ttl_jitter).min(for_grant.saturating_mul(requests))
}
