//! THE PATH: the only file that knows the order of the steps.
//!
//! ```text
//! accept → route → caller → key → look up → coalesce → fetch → store → compose → record
//! ```
//!
//! The steps live in their own modules and never call each other; this file calls them, one after
//! the other. A request enters and its answer leaves by [`Gateway::handle`].

mod forward;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, DATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Body;

use crate::cache::admission;
use crate::cache::entry::Entry;
use crate::cache::flights::{Flights, Pilot};
use crate::cache::freshness::{Freshness, Life};
use crate::cache::store::{Epoch, Selection, Slot, Store};
use crate::catalogue::{Catalogue, Operation};
use crate::clock::Clock;
use crate::config::{Config, Mode};
use crate::reply::body::{Content, ReplyBody};
use crate::reply::compose::{self, CacheStatus, Forward};
use crate::reply::error::{Blame, Problem};
use crate::request::caller::{self, Callers, LastCredential};
use crate::request::hop::{self, Via};
use crate::request::id::RequestIds;
use crate::request::key::Key;
use crate::request::route::{self, Route};
use crate::request::{BypassReason, X_REQUEST_ID, target};
use crate::stream::{BoxError, stream};
use crate::telemetry::metrics::{Metrics, Usage};
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::Record;
use crate::upstream::client::{self, Errand, HttpClient, Limits};
use crate::upstream::{Upstream, UpstreamError};

/// One gateway: what it knows, what it remembers, and whom it asks.
pub struct Gateway {
    catalogue: Catalogue,
    callers: Callers,
    request_ids: RequestIds,
    via: Via,
    max_head: usize,
    bypassing: AtomicBool,
    store: Arc<Store>,
    flights: Arc<Flights<Slot, Landing>>,
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

/// How a flight ended, for everyone aboard.
#[derive(Clone)]
enum Landing {
    /// It was not flown: the one before had brought what was wanted.
    Found {
        entry: Arc<Entry>,
        /// When it was found, and how long it was fresh then.
        at: Instant,
        left: Duration,
    },
    /// Upstream answered.
    Answered(Arc<Answer>),
    /// Upstream gave no whole answer.
    Failed(UpstreamError),
}

/// A whole answer, and whether it was kept.
struct Answer {
    response: Response<Bytes>,
    life: Life,
    /// Whether upstream has told the answer's age in a way that can be read.
    age_is_known: bool,
    not_kept: Option<&'static str>,
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
        let flights = Arc::new(Flights::default());
        let longest_ttl = config.catalogue.operations().iter().map(|operation| operation.ttl).max();
        // Twice as long: that an entry has expired is worth telling from that there was none.
        let longest_life = 2 * longest_ttl.unwrap_or_default();
        let store = Arc::new(Store::new(settings.cache.max_size.0, longest_life, metrics.eviction_counter()));
        // Weak, for the store counts its evictions in these very metrics.
        let (remembered, aloft) = (Arc::downgrade(&store), Arc::downgrade(&flights));
        metrics
            .watch(move || Usage {
                entries: remembered.upgrade().map_or((0, 0), |store| store.usage()),
                waiting: aloft.upgrade().map_or(0, |flights| flights.waiting()),
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
            store,
            flights,
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
    /// before is stored or given to anyone who asks from now on.
    pub fn purge(&self, selection: &Selection) -> usize {
        let purged = self.store.purge(selection);
        self.flights.close_all();
        purged
    }

    /// Answers a request that came in by a connection.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>, connection: &Connection) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
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
                let service = operation.service;
                match self.read(&head, operation, project_id, has_body, &connection.credential) {
                    Ok((slot, token)) => match self.look_up_or_fetch(slot, token, &head.headers, record).await? {
                        Some(response) => Ok(response),
                        None => self.bypass(BypassReason::TooLarge, service, head, body, record).await,
                    },
                    Err(reason) => self.bypass(reason, service, head, body, record).await,
                }
            }
            Route::PassThrough(service) => {
                record.passes_to(service);
                record.answered(Outcome::PassThrough, "");
                self.forward(service, head, body, record).await
            }
            Route::Unknown => Err(Problem::NoSuchApi),
        }
    }

    /// Reads who asks and for what, and the credential to ask upstream with.
    fn read(
        &self,
        head: &Parts,
        operation: &Arc<Operation>,
        project_id: &str,
        has_body: bool,
        last: &LastCredential,
    ) -> Result<(Slot, HeaderValue), BypassReason> {
        if self.mode() == Mode::Bypass {
            return Err(BypassReason::Mode);
        }
        let token = caller::credential(&head.headers)?;
        let key = Key::read(&self.catalogue, operation, project_id, head.uri.query(), &head.headers, has_body)?;
        Ok((Slot { caller: self.callers.recognise(token, last), key }, token.clone()))
    }

    /// Answers from memory, or from a flight. `None` if the answer is too large to hold.
    async fn look_up_or_fetch(
        self: &Arc<Self>,
        slot: Slot,
        token: HeaderValue,
        headers: &HeaderMap,
        record: &mut Record,
    ) -> Result<Option<Response<Content>>, Problem> {
        let found = self.store.get(&slot);
        let now = self.clock.now();
        if let Some(entry) = &found
            && let Freshness::Fresh { left } = entry.life().freshness(now)
        {
            return Ok(Some(hit(entry, now, left, record)));
        }
        let why = if found.is_some() { Forward::Stale } else { Forward::Miss };

        let (passenger, pilot) = self.flights.board(&slot);
        let collapsed = pilot.is_none();
        record.answered(
            match (collapsed, why) {
                (true, _) => Outcome::Coalesced,
                (false, Forward::Stale) => Outcome::Expired,
                (false, _) => Outcome::Miss,
            },
            "",
        );
        if let Some(pilot) = pilot {
            let errand = Errand { token, request_id: record.request_id().to_owned(), via: self.via.trail(headers) };
            // In a task of its own: a client that hangs up neither cancels nor poisons it.
            tokio::spawn(Arc::clone(self).fly(pilot, errand));
        }

        match passenger.arrive().await.ok_or(Problem::Internal)? {
            Landing::Found { entry, at, left } => Ok(Some(hit(&entry, at, left, record))),
            Landing::Answered(answer) => Ok(Some(self.fetched(&answer, why, collapsed, record))),
            Landing::Failed(UpstreamError::TooLarge) => Ok(None),
            Landing::Failed(error) => Ok(Some(failed(error, why, collapsed, record))),
        }
    }

    /// An answer that a flight has brought.
    fn fetched(&self, answer: &Answer, why: Forward, collapsed: bool, record: &mut Record) -> Response<Content> {
        record.because(answer.not_kept.unwrap_or_default());
        let age = answer.age_is_known.then(|| answer.life.age(self.clock.now()));
        let mut response = compose::from_answer(&answer.response, age, collapsed);
        let status = CacheStatus::Forwarded {
            why,
            status: Some(response.status()),
            stored: answer.not_kept.is_none(),
            collapsed,
            detail: answer.not_kept,
        };
        status.add_to(response.headers_mut());
        response
    }

    /// Asks upstream, keeps the answer if it may be kept, and lets everyone aboard have it.
    async fn fly(self: Arc<Self>, pilot: Pilot<Slot, Landing>, errand: Errand) {
        let slot = pilot.key().clone();
        let sent = self.clock.now();
        // The flight before may have landed between the look-up and the boarding.
        if let Some(entry) = self.store.get(&slot)
            && let Freshness::Fresh { left } = entry.life().freshness(sent)
        {
            return pilot.land(Landing::Found { entry, at: sent, left });
        }
        let epoch = self.store.epoch();
        let service = slot.key.operation().service;
        let call = self.metrics.upstream_call(service);
        let request_id = errand.request_id.clone();
        let answer = self.upstream.ask(&slot.key, errand).await;
        let status = answer.as_ref().map(Response::status).map_err(UpstreamError::as_str);
        call.ended(status, self.clock.now().saturating_duration_since(sent));
        pilot.land(match answer {
            Ok(response) => Landing::Answered(Arc::new(self.keep(slot, response, sent, epoch))),
            Err(error) => {
                if error != UpstreamError::TooLarge {
                    tracing::warn!(request_id, service = service.as_str(), %error, "upstream gave no whole answer");
                }
                Landing::Failed(error)
            }
        });
    }

    /// Keeps an answer if it may be kept.
    fn keep(&self, slot: Slot, mut response: Response<Bytes>, sent: Instant, epoch: Epoch) -> Answer {
        // RFC 9110 §6.6.1: without one, an answer is dated when it comes, and not each time it is given.
        if let header::Entry::Vacant(date) = response.headers_mut().entry(DATE)
            && let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(self.clock.date()))
        {
            date.insert(now);
        }
        let is_fixed = |name: &_| client::is_constant(name) || self.catalogue.keyed_headers().contains(name);
        let admitted = admission::admit(&response, is_fixed);
        let age = admission::age(response.headers());
        let life = Life { sent, initial_age: age.unwrap_or_default(), ttl: slot.key.operation().ttl };
        let not_kept = match admitted {
            Ok(()) => {
                let entry = Entry::new(response.headers(), response.body(), life);
                let kept = self.store.insert(slot, Arc::new(entry), epoch);
                (!kept).then_some("purged")
            }
            Err(reason) => {
                self.metrics.unstored(reason);
                Some(reason.as_str())
            }
        };
        Answer { response, life, age_is_known: age.is_some(), not_kept }
    }
}

/// An answer from memory.
fn hit(entry: &Entry, now: Instant, left: Duration, record: &mut Record) -> Response<Content> {
    record.answered(Outcome::Hit, "");
    let mut response = compose::from_entry(entry, now);
    CacheStatus::Hit { left }.add_to(response.headers_mut());
    response
}

/// The answer to those aboard a flight that failed.
fn failed(error: UpstreamError, why: Forward, collapsed: bool, record: &mut Record) -> Response<Content> {
    let detail = error.as_str();
    record.because(detail);
    let mut response = Problem::Upstream(error).response(record.request_id());
    let status = CacheStatus::Forwarded { why, status: None, stored: false, collapsed, detail: Some(detail) };
    status.add_to(response.headers_mut());
    response
}

/// Bytes of a request's line and headers, framing included.
fn head_size(head: &Parts) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    head.method.as_str().len() + target + fields
}
