//! THE PATH: the only file that knows the order of the steps.
//!
//! ```text
//! accept → route → caller → key → look up → coalesce → fetch → store → release → compose → record
//! ```
//!
//! The steps live in their own modules and never call each other; this file calls them, one after
//! the other. A request enters and its answer leaves by [`Gateway::handle`].

mod fetch;
mod forward;
mod release;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Body;

use crate::cache::admission::Unstorable;
use crate::cache::entry::Entry;
use crate::cache::flights::{Bounds, Flights};
use crate::cache::freshness::Freshness;
use crate::cache::grants::{Grantee, Grants, Standing, Terms};
use crate::cache::store::{Selection, Slot, Store};
use crate::catalogue::{Catalogue, Operation};
use crate::clock::Clock;
use crate::config::{Config, Mode, OnOutage};
use crate::reply::body::{Content, ReplyBody};
use crate::reply::compose::{self, CacheStatus, Forward};
use crate::reply::error::{Blame, Problem};
use crate::request::caller::{self, Callers, LastCredential};
use crate::request::hop::{self, Via};
use crate::request::id::RequestIds;
use crate::request::key::{Key, Scope};
use crate::request::route::{self, Route};
use crate::request::{BypassReason, X_REQUEST_ID, copied, target};
use crate::stream::{BoxError, stream};
use crate::telemetry::metrics::{InUse, Metrics};
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::Record;
use crate::upstream::Upstream;
use crate::upstream::client::{Errand, HttpClient, Limits};
use fetch::Landing;
use release::{Release, Seat};

/// How often a request waits for another leader after the one before was refused. Then it asks alone.
const MAX_ELECTIONS: u32 = 3;

/// One gateway: what it knows, what it remembers, and whom it asks.
pub struct Gateway {
    catalogue: Catalogue,
    callers: Callers,
    request_ids: RequestIds,
    via: Via,
    max_head: usize,
    bypassing: AtomicBool,
    answer_timeout: Duration,
    grants: Arc<Grants>,
    store: Arc<Store>,
    shared_flights: Arc<Flights<Slot, Landing>>,
    /// Of callers for themselves. Bounded apart, so that those without a grant can't take the room of
    /// those with one.
    lone_flights: Arc<Flights<Slot, Landing>>,
    upstream: Arc<dyn Upstream>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// What the gateway knows of a client's connection.
pub struct Connection {
    local: SocketAddr,
    credential: LastCredential,
}

impl Connection {
    /// One that came in by the address `local`.
    pub fn new(local: SocketAddr) -> Self {
        Self { local, credential: LastCredential::default() }
    }
}

/// What is known of a question at a moment.
pub struct Inspection {
    /// How the caller stands in the scope.
    pub standing: Standing,
    /// Whether callers share answers there.
    pub is_shared: bool,
    /// Whether there is an answer, and how fresh it is.
    pub entry: Option<Freshness>,
    /// Why answers can't be kept, if that is so.
    pub uncacheable: Option<Unstorable>,
}

/// Who asks for what.
#[derive(Clone)]
struct Question {
    grantee: Grantee,
    key: Arc<Key>,
}

/// What memory has for a question.
enum LookUp {
    /// An answer for one who holds a grant, fresh for so long.
    Hit(Arc<Entry>, Duration),
    /// A refusal from just now, which is said again for so long.
    Denied(Arc<Entry>, Duration),
    /// Nothing to be given without asking. Where the answer is going to be kept, and whether there
    /// is an old one, as far as this caller may know.
    Ask(Slot, Forward),
}

impl Gateway {
    /// A gateway with an empty cache. Connects to nothing yet.
    ///
    /// # Errors
    /// If `upstream.ca_file` is unusable or the system has no randomness.
    pub fn new(config: &Config, clock: Clock) -> io::Result<Arc<Self>> {
        let settings = &config.settings;
        let via = Via::new(getrandom::u32()?);
        let limits = Limits {
            connect: settings.upstream.connect_timeout.0,
            answer: settings.upstream.answer_timeout.0,
            idle: settings.upstream.idle_timeout.0,
            max_body: settings.cache.max_body_size.bytes(),
        };
        let upstream = HttpClient::new(settings.upstream.ca_file.as_deref(), limits, via.clone())?;
        Self::assemble(config, clock, via, Arc::new(upstream))
    }

    /// The same before an upstream that is not asked over HTTP, for tests.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn before(upstream: Arc<dyn Upstream>, config: &Config, clock: Clock) -> io::Result<Arc<Self>> {
        Self::assemble(config, clock, Via::new(getrandom::u32()?), upstream)
    }

    fn assemble(config: &Config, clock: Clock, via: Via, upstream: Arc<dyn Upstream>) -> io::Result<Arc<Self>> {
        let settings = &config.settings;
        let mut caller_key = [0; 32];
        getrandom::fill(&mut caller_key)?;
        let metrics = Metrics::new().map_err(io::Error::other)?;
        let grants = Arc::new(Grants::new(Terms {
            grant_ttl: settings.grants.grant_ttl.0,
            denial_ttl: settings.grants.denial_ttl.0,
            outage_grace: (settings.grants.on_outage == OnOutage::Serve).then_some(settings.grants.outage_grace.0),
            max_grants: settings.grants.max_grants.0,
        }));
        let bounds = Bounds { flights: settings.limits.max_flights.0, waiting: settings.limits.max_waiters.0 };
        let [shared_flights, lone_flights] = [bounds; 2].map(|bounds| Arc::new(Flights::new(bounds)));
        let lives = config.catalogue.operations().iter().map(|operation| operation.ttl + operation.stale_if_error);
        let longest_life = lives.max().unwrap_or_default();
        let store = Arc::new(Store::new(settings.cache.max_size.0, longest_life, metrics.eviction_counter()));
        // Weak, for the store counts its evictions in these very metrics.
        let remembered = Arc::downgrade(&store);
        let aloft = [&shared_flights, &lone_flights].map(Arc::downgrade);
        let (granted, time) = (Arc::downgrade(&grants), clock.clone());
        metrics
            .watch(move || InUse {
                store: remembered.upgrade().map(|store| store.usage()).unwrap_or_default(),
                waiting: aloft.iter().filter_map(Weak::upgrade).map(|flights| flights.waiting()).sum(),
                grants: granted.upgrade().map_or(0, |grants| grants.live(time.now())),
            })
            .map_err(io::Error::other)?;
        Ok(Arc::new(Self {
            catalogue: config.catalogue.clone(),
            callers: Callers::new(caller_key),
            request_ids: RequestIds::new(getrandom::u64()?),
            upstream,
            via,
            max_head: settings.limits.max_head_size.bytes(),
            bypassing: AtomicBool::new(settings.mode == Mode::Bypass),
            answer_timeout: settings.upstream.answer_timeout.0,
            grants,
            store,
            shared_flights,
            lone_flights,
            metrics,
            clock,
        }))
    }

    /// What operations there are and where they are asked.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The metrics of this gateway.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Whether the cache is in use.
    pub fn mode(&self) -> Mode {
        if self.bypassing.load(Ordering::Relaxed) { Mode::Bypass } else { Mode::Cache }
    }

    /// Switches the cache on or off. Entries stay, and age.
    pub fn set_mode(&self, mode: Mode) {
        self.bypassing.store(mode == Mode::Bypass, Ordering::Relaxed);
    }

    /// Removes the selected entries and says how many there were. Nothing that was asked of upstream
    /// before is stored, or given to anyone but the one whose request it answers. Grants stay.
    pub fn purge(&self, selection: &Selection) -> usize {
        let purged = self.store.purge(selection);
        self.shared_flights.close_all();
        self.lone_flights.close_all();
        purged
    }

    /// What is known of a question at present, for a person who asks why.
    pub fn inspect(&self, key: Key, token: &HeaderValue) -> Inspection {
        let (now, caller) = (self.clock.now(), self.callers.of_token(token));
        let slot = self.store.slot(&Arc::new(key), caller);
        let grantee = Grantee { caller, scope: slot.key.scope().clone() };
        Inspection {
            standing: self.grants.standing(&grantee, now),
            is_shared: slot.owner.is_none(),
            entry: self.store.get(&slot).map(|entry| entry.life().freshness(now)),
            uncacheable: self.store.uncacheable(&slot, now),
        }
    }

    /// Answers a request that came in by a connection.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>, connection: &Connection) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut head, body) = request.into_parts();
        target::translate(&mut head);
        let method = head.method.clone();
        let mut record = Record::begin(Arc::clone(&self.metrics), self.clock.clone(), self.request_ids.next(), &head);

        let answer = self.answer(head, body, connection, &mut record).await;
        let mut response = answer.unwrap_or_else(|problem| {
            match problem.blame() {
                Blame::Client => record.answered(Outcome::Refused, problem.as_str()),
                Blame::Upstream | Blame::Gateway => record.because(problem.as_str()),
            }
            problem.response(record.request_id())
        });

        record.upstream_id(response.headers().get(X_REQUEST_ID));
        compose::identify(response.headers_mut(), record.request_id());
        if method == Method::HEAD {
            response = compose::without_body(response);
        }
        record.head(response.status());
        response.map(|content| ReplyBody::new(content, record))
    }

    /// Takes a request along its route.
    async fn answer<B>(
        self: &Arc<Self>,
        mut head: Parts,
        body: B,
        connection: &Connection,
        record: &mut Record,
    ) -> Result<Response<Content>, Problem>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if head_size(&head) > self.max_head {
            return Err(Problem::HeadTooLarge { limit: self.max_head });
        }
        target::check(&head, connection.local, &self.catalogue).map_err(Problem::Misdirected)?;
        if self.via.is_in(&head.headers) {
            return Err(Problem::Loop);
        }
        let has_body = !body.is_end_stream();
        let body = stream(body);
        hop::strip(&mut head.headers);

        match route::find(&self.catalogue, &head.method, head.uri.path()) {
            Route::Operation(operation, project_id) => {
                record.is_for(operation);
                let last = &connection.credential;
                let (reason, grantee) = match self.read(&head, operation, project_id, has_body, last) {
                    Ok(question) => match self.product_list(&question, &head.headers, record).await? {
                        Some(response) => return Ok(response),
                        None => (BypassReason::TooLarge, Some(question.grantee)),
                    },
                    Err(reason) => (reason, self.grantee(&head.headers, operation, project_id, last)),
                };
                let service = operation.service;
                self.bypass(reason, service, grantee, head, body, record).await
            }
            Route::PassThrough(service) => {
                record.passes_to(service);
                record.answered(Outcome::PassThrough, "");
                self.forward(service, None, head, body, record).await
            }
            Route::Unknown => Err(Problem::NoSuchApi),
        }
    }

    /// Reads who asks for what.
    fn read(
        &self,
        head: &Parts,
        operation: &Arc<Operation>,
        project_id: &str,
        has_body: bool,
        last: &LastCredential,
    ) -> Result<Question, BypassReason> {
        if self.mode() == Mode::Bypass {
            return Err(BypassReason::Mode);
        }
        let token = caller::credential(&head.headers)?;
        let key = Key::read(&self.catalogue, operation, project_id, head.uri.query(), &head.headers, has_body)?;
        let grantee = Grantee { caller: self.callers.recognise(token, last), scope: key.scope().clone() };
        Ok(Question { grantee, key: Arc::new(key) })
    }

    /// Reads who asks where, of a request that can't be answered from memory: it may be denied.
    fn grantee(
        &self,
        headers: &HeaderMap,
        operation: &Arc<Operation>,
        project_id: &str,
        last: &LastCredential,
    ) -> Option<Grantee> {
        let token = caller::credential(headers).ok()?;
        let scope = Scope::read(&self.catalogue, operation, project_id).ok()?;
        Some(Grantee { caller: self.callers.recognise(token, last), scope })
    }

    /// Answers from memory, or from a flight. `None` if the answer is too large to hold.
    async fn product_list(
        self: &Arc<Self>,
        question: &Question,
        headers: &HeaderMap,
        record: &mut Record,
    ) -> Result<Option<Response<Content>>, Problem> {
        let mut deadline = None;
        let (mut flown, mut refused) = (0, false);
        loop {
            let now = self.clock.now();
            let (slot, why) = match self.look_up(question, now) {
                LookUp::Hit(entry, left) => return Ok(Some(hit(&entry, now, left, record))),
                LookUp::Denied(refusal, left) => return Ok(Some(self.denied(&refusal, now, left, record))),
                LookUp::Ask(slot, why) => (slot, why),
            };
            let solo = match self.store.uncacheable(&slot, now) {
                Some(Unstorable::TooLarge) => return Ok(None),
                // An answer that nobody else may be given is not worth waiting for, and neither is
                // yet another leader.
                uncacheable => uncacheable.is_some() || flown > MAX_ELECTIONS,
            };
            let flights = if slot.owner.is_none() { &self.shared_flights } else { &self.lone_flights };
            let (passenger, pilot) = if solo { flights.solo() } else { flights.board(&slot) };
            let elected = refused && pilot.is_some() && slot.owner.is_none();
            let seat = Seat { leads: pilot.is_some(), elected, is_last: flown >= MAX_ELECTIONS, slot, why };
            record.answered(seat.outcome(), "");
            if let Some(pilot) = pilot {
                self.metrics.elections.inc_by(u64::from(elected));
                let errand = Errand {
                    token: copied(caller::credential(headers).map_err(|_| Problem::Internal)?),
                    request_id: record.request_id().to_owned(),
                    via: self.via.trail(headers),
                };
                // In a task of its own: a client that hangs up neither cancels nor poisons it.
                tokio::spawn(Arc::clone(self).fly(pilot, question.clone(), seat.slot.clone(), errand));
            }
            // Each waits until its own deadline, however often it goes again.
            let deadline = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.answer_timeout)));
            let landing = tokio::select! {
                biased;
                landing = passenger.arrive() => landing.ok_or(Problem::Internal)?,
                () = deadline => return Ok(Some(self.timed_out(question, &seat, record))),
            };
            match self.release(question, &seat, &landing, record) {
                Release::Answer(response) => return Ok(Some(response)),
                Release::Stream => return Ok(None),
                Release::Elect => refused = true,
                Release::GoAgain => {}
            }
            flown += 1;
        }
    }

    /// Looks up what may be given to this caller without asking upstream.
    fn look_up(&self, question: &Question, now: Instant) -> LookUp {
        let caller = question.grantee.caller;
        match self.grants.standing(&question.grantee, now) {
            Standing::Denied { refusal, left } => LookUp::Denied(refusal, left),
            Standing::Granted => {
                let slot = self.store.slot(&question.key, caller);
                match self.store.get(&slot).map(|entry| (entry.life().freshness(now), entry)) {
                    Some((Freshness::Fresh { left }, entry)) => LookUp::Hit(entry, left),
                    Some(_) => LookUp::Ask(slot, Forward::Stale),
                    None => LookUp::Ask(slot, Forward::Miss),
                }
            }
            // Alone, and without a word on what there is: upstream has to speak first.
            Standing::Lapsed | Standing::Unproved => {
                LookUp::Ask(Slot { owner: Some(caller), key: Arc::clone(&question.key) }, Forward::Miss)
            }
        }
    }

    /// Upstream's refusal from just now, once more.
    fn denied(&self, refusal: &Entry, now: Instant, left: Duration, record: &mut Record) -> Response<Content> {
        self.metrics.denial("memory");
        record.answered(Outcome::Denied, "");
        let mut response = compose::from_entry(refusal, now);
        CacheStatus::Hit { left, detail: Some("denied") }.add_to(response.headers_mut());
        response
    }
}

/// An answer from memory.
fn hit(entry: &Entry, now: Instant, left: Duration, record: &mut Record) -> Response<Content> {
    record.answered(Outcome::Hit, "");
    let mut response = compose::from_entry(entry, now);
    CacheStatus::Hit { left, detail: None }.add_to(response.headers_mut());
    response
}

/// Bytes of a request's line and headers, framing included.
fn head_size(head: &Parts) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    head.method.as_str().len() + target + fields
}
