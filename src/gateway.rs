//! The sequence of a request. It enters and its answer leaves by [`Gateway::handle`]; `fetch.rs` has the sequence of a call to
//! upstream.
//!
//! ```text
//! request:  normalize → charge → decide → identify → look up → join a flight → wait → release → compose
//!                                             └─ or relay as it is ──────────────────────────────┘
//! fetch:    second tier → wait for a turn → look up again → ask → settle → tell all who wait
//! ```
//!
//! The steps are functions of the parts that they are given: [`Memory`] (grants, entries, backoff), [`Fetcher`] (flights, queue,
//! key breaker), [`Observer`] (metrics, events, health) and [`ActiveConfig`] (settings in force). They hand on values:
//! `connection.rs`, `question.rs`, `seat.rs`, `fetch_result.rs`. This file, `fetch.rs` and `forward.rs` (the sequence of a relayed
//! request) call the steps; no step calls another one. `tests/fences.rs` sees to that.

mod active_config;
mod assemble;
mod cache_request;
mod caller_class;
mod charge;
mod coalesce;
mod connection;
mod fetch;
mod fetch_result;
mod fetcher;
mod forward;
mod identify;
mod invalidate;
mod look_up;
mod memory;
mod observer;
pub(crate) mod probe;
mod release;
mod reload;
mod remembered;
mod role;
mod second_tier;
mod settle;
#[cfg(test)]
mod tests;
mod upstream_setup;
mod wait;

use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use http_body::Body;

use crate::budget::{Account, Budget};
use crate::cache::flights::{FlightOutcome, Waiter};
use crate::cache::freshness::Freshness;
use crate::cache::grants::GrantState;
use crate::cache::store::CacheKey;
use crate::cache::unstorable::Unstorable;
use crate::clock::Clock;
use crate::fast_path::FastPath;
use crate::random::Random;
use crate::reply::body::{Content, ReplyBody};
use crate::reply::compose;
use crate::reply::error::{Blame, Problem};
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
pub(crate) use active_config::ActiveConfig;
pub use assemble::REQUEST_IDS;
use cache_request::{CacheRequest, Lookup};
use coalesce::{Attempts, MAX_ELECTIONS};
pub use connection::Connection;
use fetch_result::{Additional, FetchResult};
use fetcher::Fetcher;
use forward::Forwarding;
use identify::Identifying;
use look_up::{HitKind, LookupResult, remembered};
use memory::Memory;
pub(crate) use observer::Observer;
use release::{Release, Releasing};
pub(crate) use remembered::RememberedLookup;
use role::Role;
use wait::{AnotherCall, DEADLINE_MARGIN, Timers, WaitOutcome};

/// One gateway: what it knows, what it remembers, and whom it asks.
pub struct Gateway {
    active: RwLock<Arc<ActiveConfig>>,
    /// Held while another takes its place.
    reloading: Mutex<()>,
    callers: Callers,
    fingerprints: Fingerprints,
    fast_path: FastPath<RememberedLookup>,
    request_ids: RequestIds,
    via: Via,
    bypassing: Arc<AtomicBool>,
    memory: Arc<Memory>,
    fetcher: Arc<Fetcher>,
    observer: Arc<Observer>,
    /// For all that is held for clients, the cache apart.
    budget: Arc<Budget>,
    clock: Clock,
    random: Random,
}

/// What is known of a question at a moment.
pub struct Inspection {
    /// How the caller stands in the scope.
    pub grant_state: GrantState,
    /// Whether callers share answers there.
    pub is_shared: bool,
    /// Whether there is an answer, and how fresh it is.
    pub entry: Option<Freshness>,
    /// Whether there is one that may be given only after upstream has confirmed it.
    pub needs_confirmation: bool,
    /// Whether the caller's access key is not used at present, for upstream has refused it.
    pub is_suspended: bool,
    /// Whether upstream is not asked at present, if there is something stale to give.
    pub is_backing_off: bool,
    /// Why answers can't be kept, if that is so.
    pub uncacheable: Option<Unstorable>,
}

impl Gateway {
    /// A connection that came in by the address `local` from the address `peer`.
    pub fn connection(&self, local: SocketAddr, peer: IpAddr) -> Connection {
        Connection::open(local, peer, Account::open(&self.budget, self.active().peer(peer)))
    }

    /// Answers a request that came in by a connection.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>, connection: &Connection) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut head, body) = request.into_parts();
        let form = validate::normalize(&mut head);
        let known_head = self.fast_path.begin_request(&connection.tracker, &head, !body.is_end_stream());
        let method = head.method.clone();
        let (metrics, clock, id) = (Arc::clone(&self.observer.metrics), self.clock.clone(), self.request_ids.next());
        let mut record = RequestRecord::begin(metrics, clock, id, &head, connection.peer);

        let recognise = |credential: &Credential| self.identifying().recognise(credential, connection);
        charge::classify_head(&head, connection, recognise, (&self.memory, &self.clock));
        let charge =
            charge::of_request(&head, !body.is_end_stream(), connection, || self.active().answer_timeout).await;
        let answer = match (form, &charge) {
            (Ok(()), Some(_)) => self.answer(head, body, (connection, known_head), &mut record).await,
            (Ok(()), None) => Err(Problem::NoMemory),
            (Err(invalid), _) => Err(Problem::Rejected(invalid.into())),
        };
        let charge = charge.unwrap_or_else(|| charge::of_refusal(connection));
        let mut response = answer.unwrap_or_else(|problem| {
            match problem.blame() {
                Blame::Client => record.answered(Outcome::Refused, problem.as_str()),
                Blame::Upstream | Blame::Gateway => record.failed(problem.as_str()),
            }
            problem.response(record.request_id())
        });

        record.upstream_id(response.headers().get(X_REQUEST_ID));
        compose::identify(response.headers_mut(), record.request_id());
        if method == Method::HEAD {
            response = compose::without_body(response);
        }
        record.head(response.status());
        response.map(|content| ReplyBody::new(content, record, charge))
    }

    /// Takes a request along its route.
    async fn answer<B>(
        self: &Arc<Self>,
        mut head: Parts,
        body: B,
        (connection, known_head): (&Connection, Option<Fingerprint>),
        record: &mut RequestRecord,
    ) -> Result<Response<Content>, Problem>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let active = self.active();
        let facts = Facts { local: connection.local, has_body: !body.is_end_stream() };
        let Plan { service, presentation, action } = match decide(&mut head, facts, self.rules(&active)) {
            Ok(Decision::Proceed(plan)) => plan,
            Ok(Decision::AnswerOptions) => {
                record.answered(Outcome::Refused, "options");
                return Ok(compose::allowed_methods());
            }
            Err(rejection) => return Err(Problem::Rejected(rejection)),
        };
        match action.operation() {
            Some(operation) => record.is_for(operation),
            None => record.passes_to(service),
        }
        let body = if facts.has_body { stream(body) } else { nothing() };
        let (client_identity, body) =
            self.identifying().identify(&active, &head, body, (service, presentation), connection).await?;
        let (reason, scope) = match action {
            Action::LookupResult { key, directives } => {
                let scope = key.scope().clone();
                // Only a request with a credential is looked up.
                let request = client_identity.request(key, directives).ok_or(Problem::Internal)?;
                match self.product_list(&request, &head.headers, record).await? {
                    Some(response) => {
                        charge::classify_client(
                            connection,
                            &client_identity,
                            Some(&request.lookup.caller_scope),
                            (&self.memory, &self.clock),
                        );
                        if let (Some(known_head), Outcome::Hit) = (known_head, record.outcome()) {
                            self.remember(known_head, &request, record, connection);
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
        let answer = match reason {
            Some(reason) => {
                self.forwarding().bypass(&client_identity, reason, service, caller_scope, request, record).await
            }
            None => {
                record.answered(Outcome::PassThrough, "");
                self.forwarding().forward(&client_identity, service, caller_scope, request, record).await
            }
        };
        charge::classify_client(connection, &client_identity, None, (&self.memory, &self.clock));
        answer
    }

    /// What decisions about requests go by now.
    pub fn rules<'a>(&'a self, active: &'a ActiveConfig) -> Rules<'a> {
        active.rules(&self.via, self.mode())
    }

    fn identifying(&self) -> Identifying<'_> {
        let Self { callers, fingerprints, fetcher, observer, clock, .. } = self;
        Identifying { callers, fingerprints, fetcher, observer, clock }
    }

    fn forwarding(&self) -> Forwarding {
        let (memory, fetcher) = (Arc::clone(&self.memory), Arc::clone(&self.fetcher));
        Forwarding { memory, fetcher, observer: Arc::clone(&self.observer), clock: self.clock.clone() }
    }

    /// A request that waited in a seat, as things stand now.
    fn releasing<'g>(&'g self, request: &'g CacheRequest, role: &'g Role) -> Releasing<'g> {
        Releasing { memory: &self.memory, observer: &self.observer, request, role, now: self.clock.now() }
    }

    /// Answers from memory, or from a flight. `None` if the answer is too large to hold.
    async fn product_list(
        self: &Arc<Self>,
        request: &CacheRequest,
        headers: &HeaderMap,
        record: &mut RequestRecord,
    ) -> Result<Option<Response<Content>>, Problem> {
        let current = |response| Ok(Some(compose::unless_current(response, headers)));
        record.asked_by(|| self.observer.digests.of_caller(request.lookup.caller_scope.caller));
        let mut timers = None;
        let mut rounds = Attempts::default();
        loop {
            let now = self.clock.now();
            let (cache_key, why, has_stale) = match self.memory.look_up(request, now) {
                LookupResult::FlightOutcome(entry, memory) => {
                    return current(remembered(&self.observer, request, &entry, memory, now, record));
                }
                LookupResult::Refresh(entry, cache_key) => {
                    if !request.lookup.directives.only_if_cached {
                        self.refresh(request, cache_key, headers, record);
                    }
                    return current(remembered(&self.observer, request, &entry, HitKind::Revalidating, now, record));
                }
                LookupResult::Ask { cache_key, why, has_stale, .. } => {
                    record.missed(why, || self.observer.digests.of_key(&request.lookup.key));
                    if request.lookup.directives.only_if_cached {
                        return Err(Problem::NotCached);
                    }
                    (cache_key, why, has_stale)
                }
            };
            let uncacheable = self.memory.store.uncacheable(&cache_key, request.lookup.caller_scope.caller, now);
            if uncacheable == Some(Unstorable::TooLarge) {
                return Ok(None);
            }
            // An answer that nobody else may be given is not worth waiting for, and neither is
            // yet another leader; who wants none from before now joins no flight from before.
            let solo = uncacheable.is_some() || rounds.number > MAX_ELECTIONS || request.lookup.directives.no_cache;
            let (waiter, role, leader) = coalesce::join(&self.fetcher, request, (cache_key, why, solo), &rounds);
            record.answered(role.outcome(), "");
            if let Some(leader) = leader {
                self.observer.metrics.elections.inc_by(u64::from(role.elected));
                self.begin_fetch(leader, request, role.cache_key.clone(), headers, rounds.additional.take(), record);
            }
            // Each waits until its own deadline, however often it goes again.
            let timers = timers.get_or_insert_with(|| {
                Timers::begin(request.active.answer_timeout + DEADLINE_MARGIN, request.active.stale_if_slow)
            });
            let outcome = match self.wait(request, (waiter, &role, has_stale), headers, timers, record).await {
                ControlFlow::Continue(outcome) => outcome.ok_or(Problem::Internal)?,
                ControlFlow::Break(response) => return current(response),
            };
            let role = Role { leads: outcome.is_own, ..role };
            record.answered(role.outcome(), "");
            match self.releasing(request, &role).release(&outcome.result, record) {
                Release::Answer(response) => return current(response),
                Release::AsItIs(response) => return Ok(Some(response)),
                Release::Stream => return Ok(None),
                Release::Refuse(problem) => return Err(problem),
                Release::Elect => rounds.refused = true,
                Release::Repeat => (rounds.has_repeated, rounds.additional) = (true, Some(Additional::Failed)),
                Release::GoAgain => {}
            }
            rounds.number += 1;
        }
    }

    /// Waits for the result of a flight, and makes another call for it if that is due. `None` if the flight was lost; a
    /// break if the request is answered without it.
    async fn wait(
        self: &Arc<Self>,
        request: &CacheRequest,
        (mut waiter, role, has_stale): (Waiter<CacheKey, FetchResult>, &Role, bool),
        headers: &HeaderMap,
        timers: &mut Timers,
        record: &mut RequestRecord,
    ) -> ControlFlow<Response<Content>, Option<FlightOutcome<FetchResult>>> {
        let (caller, service) = (request.lookup.caller_scope.caller, request.lookup.key.operation().service);
        // A caller whose grant has ended must not lead others, and an answer may have come by another way.
        let may_lead = || {
            let found = self.memory.look_up(request, self.clock.now());
            let has_to_wait = request.half_close.is_closed() || self.fetcher.has_to_wait(request);
            matches!(found, LookupResult::Ask { cache_key, .. } if cache_key == role.cache_key) && !has_to_wait
        };
        let mut is_refused = false;
        loop {
            let another = AnotherCall { caller, service, successes: &self.fetcher.successes, may_lead: &may_lead };
            let waited = match is_refused {
                false => timers.wait_for(&mut waiter, has_stale, another).await,
                true => timers.wait_for_whole(&mut waiter).await,
            };
            match waited {
                WaitOutcome::Ended(Some(outcome)) if outcome.result.is_refusal_of(caller) => is_refused = true,
                WaitOutcome::Ended(outcome) => return ControlFlow::Continue(outcome),
                WaitOutcome::StaleIfSlow => {
                    if let Some(response) = self.releasing(request, role).stale_if_slow_answer(record) {
                        return ControlFlow::Break(response);
                    }
                }
                WaitOutcome::MayLead => {
                    if let Some(leader) = waiter.lead_another(caller) {
                        let why = Some(Additional::Slow);
                        self.begin_fetch(leader, request, role.cache_key.clone(), headers, why, record);
                    }
                }
                WaitOutcome::OutOfTime => {
                    let was_asked = waiter.is_sent();
                    return ControlFlow::Break(self.releasing(request, role).out_of_time(was_asked, record));
                }
            }
        }
    }

    /// Has what is in a slot asked for again, on behalf of one who doesn't wait for it.
    fn refresh(
        self: &Arc<Self>,
        request: &CacheRequest,
        cache_key: CacheKey,
        headers: &HeaderMap,
        record: &mut RequestRecord,
    ) {
        if let Some(leader) = self.fetcher.flights(&cache_key).begin(&cache_key, request.lookup.caller_scope.caller) {
            self.observer.metrics.refreshes.inc();
            self.begin_fetch(leader, request, cache_key, headers, None, record);
        }
    }
}
