//! THE PATH: the only file that knows the order of the steps.
//!
//! ```text
//! accept → route → caller → key → look up → coalesce → fetch → store → release → compose → record
//! ```
//!
//! The steps live in their own modules and never call each other; this file calls them, one after
//! the other. A request enters and its answer leaves by [`Gateway::handle`].

mod assemble;
mod fetch;
mod forward;
mod identify;
mod live;
mod look_up;
mod notable;
mod outward;
mod release;
mod reload;
mod repeat;
mod settle;
#[cfg(test)]
mod tests;
mod wait;

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use http_body::Body;
use tokio::sync::Semaphore;

use crate::cache::acquaintances::Acquaintances;
use crate::cache::admission::Unstorable;
use crate::cache::flights::Flights;
use crate::cache::freshness::Freshness;
use crate::cache::grants::{Grantee, Grants, Standing};
use crate::cache::heads::Heads;
use crate::cache::pauses::Pauses;
use crate::cache::store::{Slot, Store};
use crate::catalogue::{Operation, Place};
use crate::clock::Clock;
use crate::config::Mode;
use crate::reply::body::{Content, ReplyBody};
use crate::reply::compose;
use crate::reply::error::{Blame, Problem};
use crate::request::caller::{Callers, Credential, LastCredential};
use crate::request::forwarded;
use crate::request::head::{Fingerprint, Fingerprints};
use crate::request::hop::{self, Via};
use crate::request::id::RequestIds;
use crate::request::key::Key;
use crate::request::route::{self, Route};
use crate::request::wish::Wish;
use crate::request::{BypassReason, X_REQUEST_ID, target};
use crate::signing::Changes;
use crate::stream::{BoxError, nothing, stream};
use crate::telemetry::events::Events;
use crate::telemetry::fetches::Fetches;
use crate::telemetry::health::Healths;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::outcome::Outcome;
use crate::telemetry::record::Record;
use crate::telemetry::reloads::Reloads;
use crate::telemetry::repeats::Repeats;
use crate::upstream::client::Errand;
use crate::upstream::gate::Gate;
use crate::upstream::probation::Probation;
use fetch::{Flight, Landing};
use identify::{Asker, Typed};
pub use live::Live;
use look_up::{LookUp, Memory};
use release::{Release, Seat};
use repeat::{Hearing, Known};
use wait::{Timers, Waited};

/// How often a request waits for another leader after the one before was refused. Then it asks alone.
const MAX_ELECTIONS: u32 = 3;

/// One gateway: what it knows, what it remembers, and whom it asks.
pub struct Gateway {
    live: RwLock<Arc<Live>>,
    /// Held while another takes its place.
    reloading: Mutex<()>,
    callers: Callers,
    fingerprints: Fingerprints,
    heads: Heads<Arc<Known>>,
    request_ids: RequestIds,
    via: Via,
    bypassing: Arc<AtomicBool>,
    grants: Arc<Grants>,
    store: Arc<Store>,
    pauses: Pauses,
    shared_flights: Arc<Flights<Slot, Landing>>,
    /// Of callers for themselves. Bounded apart, so that those without a grant can't take the room of
    /// those with one.
    lone_flights: Arc<Flights<Slot, Landing>>,
    gate: Arc<Gate>,
    /// For what is relayed. Apart, for streams may take as long as they like.
    relay_gate: Arc<Gate>,
    probation: Arc<Probation>,
    /// Room for bodies that are read to verify their signatures, in bytes.
    signed_bodies: Arc<Semaphore>,
    acquaintances: Acquaintances,
    metrics: Arc<Metrics>,
    reloads: Reloads,
    fetches: Fetches,
    events: Events,
    healths: Healths,
    started: Instant,
    repeats: Repeats,
    clock: Clock,
}

/// What the gateway knows of a client's connection.
pub struct Connection {
    local: SocketAddr,
    credential: LastCredential,
    hearing: Hearing,
}

impl Connection {
    /// One that came in by the address `local`.
    pub fn new(local: SocketAddr) -> Self {
        Self { local, credential: LastCredential::default(), hearing: Hearing::default() }
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
    /// Whether the caller's access key is not used at present, for upstream has refused it.
    pub is_held: bool,
    /// Whether upstream is not asked at present, if there is something stale to give.
    pub is_paused: bool,
    /// Why answers can't be kept, if that is so.
    pub uncacheable: Option<Unstorable>,
}

/// Who asks for what, and with what wishes.
#[derive(Clone)]
struct Question {
    /// What was in force when it was asked.
    live: Arc<Live>,
    credential: Credential,
    asked: Arc<Asked>,
}

/// What is asked by whom, without the credential.
struct Asked {
    grantee: Grantee,
    key: Arc<Key>,
    wish: Wish,
}

impl Gateway {
    /// Answers a request that came in by a connection.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>, connection: &Connection) -> Response<ReplyBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut head, body) = request.into_parts();
        target::translate(&mut head);
        let heard = connection.asks(&head, !body.is_end_stream()).filter(|head| self.heads.have_seen(head));
        let method = head.method.clone();
        let mut record = Record::begin(Arc::clone(&self.metrics), self.clock.clone(), self.request_ids.next(), &head);

        let answer = self.answer(head, body, (connection, heard), &mut record).await;
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
        (connection, heard): (&Connection, Option<Fingerprint>),
        record: &mut Record,
    ) -> Result<Response<Content>, Problem>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let live = self.live();
        if head_size(&head) > live.max_head {
            return Err(Problem::HeadTooLarge { limit: live.max_head });
        }
        target::check(&head, connection.local, &live.catalogue).map_err(Problem::Misdirected)?;
        if self.via.is_in(&head.headers) {
            return Err(Problem::Loop);
        }
        let typed = head.uri.clone();
        target::rebase(&mut head, &live.path_prefixes, &live.catalogue);
        let has_body = !body.is_end_stream();
        let removed = hop::strip(&mut head.headers);
        let typed = Typed { changes: Changes { path: typed.path() != head.uri.path(), removed }, uri: typed };
        let body = if has_body { stream(body) } else { nothing() };

        match route::find(&live.catalogue, &head.method, head.uri.path()) {
            Route::Operation(operation, place) => {
                record.is_for(operation);
                let service = operation.service;
                let (asker, body) = self.identify(&live, &head, typed, body, service, connection).await?;
                let (reason, grantee) = match self.read(&asker, &head, operation, place, has_body) {
                    Ok(question) => match self.product_list(&question, &head.headers, record).await? {
                        Some(response) => {
                            if let (Some(heard), Outcome::Hit) = (heard, record.outcome()) {
                                self.learn(heard, &question, record, connection);
                            }
                            return Ok(response);
                        }
                        None => (BypassReason::TooLarge, Some(question.asked.grantee.clone())),
                    },
                    Err(reason) => (reason, asker.grantee(operation, place)),
                };
                self.bypass(&asker, reason, service, grantee, Request::from_parts(head, body), record).await
            }
            Route::PassThrough(service) => {
                record.passes_to(service);
                let (asker, body) = self.identify(&live, &head, typed, body, service, connection).await?;
                record.answered(Outcome::PassThrough, "");
                self.forward(&asker, service, None, Request::from_parts(head, body), record).await
            }
            Route::Unknown => Err(Problem::NoSuchApi),
        }
    }

    /// Reads who asks for what.
    fn read(
        &self,
        asker: &Asker,
        head: &Parts,
        operation: &Arc<Operation>,
        place: Place<'_>,
        has_body: bool,
    ) -> Result<Question, BypassReason> {
        if self.mode() == Mode::Bypass {
            return Err(BypassReason::Mode);
        }
        let Asker { live, identity, .. } = asker;
        let (credential, caller) = identity.clone()?;
        let key = Key::read(&live.catalogue, operation, place, head.uri.query(), &head.headers, has_body)?;
        let wish = Wish::read(&head.headers)?;
        let grantee = Grantee { caller, scope: key.scope().clone() };
        let asked = Arc::new(Asked { grantee, key: Arc::new(key), wish });
        Ok(Question { live: Arc::clone(live), credential, asked })
    }

    /// Answers from memory, or from a flight. `None` if the answer is too large to hold.
    async fn product_list(
        self: &Arc<Self>,
        question: &Question,
        headers: &HeaderMap,
        record: &mut Record,
    ) -> Result<Option<Response<Content>>, Problem> {
        let current = |response| Ok(Some(compose::unless_current(response, headers)));
        let mut timers = None;
        let (mut flown, mut refused) = (0, false);
        loop {
            let now = self.clock.now();
            let (slot, why, is_patient) = match self.look_up(question, now) {
                LookUp::Given(entry, memory) => return current(self.remembered(&entry, memory, now, record)),
                LookUp::Refresh(entry, slot) => {
                    if !question.asked.wish.only_if_cached {
                        self.refresh(question, slot, headers, record);
                    }
                    return current(self.remembered(&entry, Memory::Revalidating, now, record));
                }
                LookUp::Ask { .. } if question.asked.wish.only_if_cached => return Err(Problem::NotCached),
                LookUp::Ask { slot, why, is_patient, .. } => (slot, why, is_patient),
            };
            let solo = match self.store.uncacheable(&slot, now) {
                Some(Unstorable::TooLarge) => return Ok(None),
                // An answer that nobody else may be given is not worth waiting for, and neither is
                // yet another leader; who wants none from before now joins no flight from before.
                uncacheable => uncacheable.is_some() || flown > MAX_ELECTIONS || question.asked.wish.no_cache,
            };
            let flights = self.flights(&slot);
            let (mut passenger, pilot) = if solo { flights.solo() } else { flights.board(&slot) };
            let elected = refused && pilot.is_some() && slot.owner.is_none();
            let seat = Seat { leads: pilot.is_some(), elected, is_last: flown >= MAX_ELECTIONS, slot, why };
            record.answered(seat.outcome(), "");
            if let Some(pilot) = pilot {
                self.metrics.elections.inc_by(u64::from(elected));
                let flight = self.flight(question, seat.slot.clone(), headers, record);
                // In a task of its own: a client that hangs up neither cancels nor poisons it.
                tokio::spawn(Arc::clone(self).fly(pilot, flight));
            }
            // Each waits until its own deadline, however often it goes again.
            let live = &question.live;
            let timers = timers.get_or_insert_with(|| Timers::begin(live.answer_timeout, live.patience));
            let landing = loop {
                match timers.wait_for(&mut passenger, is_patient).await {
                    Waited::Landed(landing) => break landing.ok_or(Problem::Internal)?,
                    Waited::OutOfPatience => {
                        if let Some(response) = self.out_of_patience(question, &seat, record) {
                            return current(response);
                        }
                    }
                    Waited::OutOfTime => {
                        let was_asked = passenger.has_departed();
                        return current(self.out_of_time(question, &seat, was_asked, record));
                    }
                }
            };
            match self.release(question, &seat, &landing, record) {
                Release::Answer(response) => return current(response),
                Release::AsItIs(response) => return Ok(Some(response)),
                Release::Stream => return Ok(None),
                Release::Refuse(problem) => return Err(problem),
                Release::Elect => refused = true,
                Release::GoAgain => {}
            }
            flown += 1;
        }
    }

    /// Has what is in a slot asked for again, on behalf of one who doesn't wait for it.
    fn refresh(self: &Arc<Self>, question: &Question, slot: Slot, headers: &HeaderMap, record: &mut Record) {
        if let Some(pilot) = self.flights(&slot).begin(&slot) {
            let flight = self.flight(question, slot, headers, record);
            self.metrics.refreshes.inc();
            tokio::spawn(Arc::clone(self).fly(pilot, flight));
        }
    }

    fn flights(&self, slot: &Slot) -> &Flights<Slot, Landing> {
        if slot.owner.is_none() { &self.shared_flights } else { &self.lone_flights }
    }

    fn flight(&self, question: &Question, slot: Slot, headers: &HeaderMap, record: &mut Record) -> Flight {
        let errand = Errand {
            credential: question.credential.kept(),
            date: self.clock.date(),
            request_id: record.request_id().to_owned(),
            via: self.via.trail(headers),
            validator: None,
            trace: record.traced(headers),
            forwarded: forwarded::select(question.asked.key.operation(), headers),
        };
        Flight { question: question.clone(), slot, errand }
    }
}

/// Bytes of a request's line and headers, framing included.
fn head_size(head: &Parts) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    head.method.as_str().len() + target + fields
}
