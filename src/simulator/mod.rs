//! Simulates both upstream services over real sockets, for `simulate`, `demo`, the tests and the benches. The gateway
//! must not use it.
//!
//! This file is the interface: it starts the services, issues credentials, injects failures and reads the request log.
//!
//! The product catalogue is generated and the same in every run. It changes when a test says so, or at a given rate.
//! Checks of tokens, filters, paging and errors follow the services' documentation. The simulator has the product
//! lists, availability zones and disks. On any other path of a service, with a valid credential, it echoes the body of
//! the request. It verifies the signature of a request without a token, in the SDKs' usual scheme.
//!
//! ```text
//! listeners   start, shut down and restart         server    connections, and the path of a request
//! behaviour   injected delays, failures, barriers  tokens    issued tokens and their states
//! log         the received and the ended requests     keys      access keys and their signatures
//! products    the generated catalogue              errors    error responses
//! more_lists  availability zones and disks         list      filters, paging, the JSON body
//! changes     when the catalogue changes           quotas   the limits, and what responses say of them
//! enforce     what the quotas count
//! ```

mod behaviour;
mod changes;
mod enforce;
mod errors;
mod keys;
mod list;
mod listeners;
mod log;
mod more_lists;
mod products;
mod quotas;
mod server;
#[cfg(test)]
mod tests;
mod tokens;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::catalogue::{Catalogue, Origin, Service};
use crate::clock::Clock;
use crate::machine::Machine;
use crate::request::id::RequestIds;
use crate::sync::{Mutex, MutexGuard};
use behaviour::{Barrier, Behaviour};
pub use changes::{ChangeUnit, Changes, History};
pub use keys::IssuedKey;
use keys::Keys;
use listeners::{Listeners, Place};
use log::RequestLog;
pub(crate) use log::{EndedRequest, RecordedRequest};
pub use quotas::{
    DebugHeaders, EnforcedQuota, QuotaAnswers, QuotaCall, QuotaRecord, QuotaResult, QuotaState, QuotaVerdict,
    QuotaWindow, Quotas, RecordedCall, RefusalText,
};
use server::SimulatorState;
use tokens::{CredentialState, Tokens};

/// Both upstream services, running. Clones are handles of the same services, which stop when the last handle is
/// dropped.
///
/// A change of the behaviour applies to both services, and to each request that reaches that step afterwards. A request
/// that waits at a barrier gets the behaviour that is set before [`release`](Self::release).
#[derive(Clone)]
pub struct Simulator {
    shared: Arc<SimulatorInner>,
}

struct SimulatorInner {
    state: Arc<SimulatorState>,
    listeners: Listeners,
}

impl Simulator {
    /// Starts both services on free ports of 127.0.0.1.
    ///
    /// # Errors
    /// When no port is free, or there is no randomness for tokens.
    pub async fn start() -> io::Result<Self> {
        Self::start_at([SocketAddr::from(([127, 0, 0, 1], 0)); 2], &Clock::System.into())
    }

    /// Starts both services on this address.
    ///
    /// # Errors
    /// When the address is in use or not of this machine, or there is no randomness for tokens.
    pub async fn start_on(address: SocketAddr) -> io::Result<Self> {
        let machine = Machine::from(Clock::System);
        let place = Place::new(address, &machine.network)?;
        let simulator = Self::new(origin(&place)?, origin(&place)?, &machine)?;
        simulator.shared.listeners.listen(&simulator.shared.state, None, place)?;
        Ok(simulator)
    }

    /// Starts both services on this machine, each at its address.
    ///
    /// # Errors
    /// When an address is in use or not of this machine, or there is no randomness for tokens.
    pub fn start_at(addresses: [SocketAddr; 2], machine: &Machine) -> io::Result<Self> {
        let [workspace, appstream] = addresses.map(|address| Place::new(address, &machine.network));
        let places = [workspace?, appstream?];
        let simulator = Self::new(origin(&places[0])?, origin(&places[1])?, machine)?;
        for (service, place) in [Service::Workspace, Service::AppStream].into_iter().zip(places) {
            simulator.shared.listeners.listen(&simulator.shared.state, Some(service), place)?;
        }
        Ok(simulator)
    }

    fn new(workspace: Origin, appstream: Origin, machine: &Machine) -> io::Result<Self> {
        let random = &machine.random;
        let mut catalogue = Catalogue::new(workspace, appstream, Vec::new());
        more_lists::add_to(&mut catalogue)?;
        let state = Arc::new(SimulatorState {
            catalogue,
            behaviour: Mutex::default(),
            tokens: Mutex::new(Tokens::new(random.key("tokens")?)),
            keys: Mutex::new(Keys::new(random.key("access keys")?)),
            clock: Mutex::new(machine.clock.clone()),
            history: Mutex::default(),
            enforcement: Mutex::default(),
            log: RequestLog::default(),
            ended: RequestLog::default(),
            ids: RequestIds::new(random.key("request ids")?),
        });
        Ok(Self { shared: Arc::new(SimulatorInner { state, listeners: Listeners::default() }) })
    }

    /// Closes the connections. Later ones are refused, and no other socket gets the addresses.
    pub async fn shut_down(&self) {
        self.shared.listeners.shut_down().await;
    }

    /// Listens on the same addresses again after [`shut_down`](Self::shut_down).
    ///
    /// # Errors
    /// When the services are running or, on systems other than Linux, when an address is in use.
    pub fn restart(&self) -> io::Result<()> {
        self.shared.listeners.restart(&self.shared.state)
    }

    /// The URL of a service: `http://127.0.0.1:PORT`.
    pub fn url(&self, service: Service) -> String {
        self.shared.state.catalogue.origin(service).to_string()
    }

    /// Serves a stream that another listener accepted, for example under TLS, until it closes.
    pub async fn serve_stream<IO>(&self, service: Service, stream: IO)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        server::serve(Arc::clone(&self.shared.state), Some(service), stream).await;
    }

    // Credentials.

    /// Issues a valid and unique token for a project. It is about as long as a real one.
    pub fn token(&self, project_id: &str) -> String {
        self.token_of_length(project_id, tokens::USUAL_LENGTH)
    }

    /// Issues a valid token of this length, in characters. Tokens shorter than about 16 characters may not be unique.
    pub fn token_of_length(&self, project_id: &str, length: usize) -> String {
        self.shared.state.tokens.lock().issue(project_id, length)
    }

    /// Adds a valid token that was created elsewhere.
    pub fn add_token(&self, project_id: &str, token: &str) {
        self.shared.state.tokens.lock().add(project_id, token);
    }

    /// Creates a permanent and unique access key for a project.
    pub fn access_key(&self, project_id: &str) -> IssuedKey {
        self.keys().create(project_id, false)
    }

    /// Creates a temporary access key for a project: it has a security token.
    pub fn temporary_access_key(&self, project_id: &str) -> IssuedKey {
        self.keys().create(project_id, true)
    }

    /// Adds an access key that was created elsewhere.
    pub fn add_access_key(&self, project_id: &str, key: &IssuedKey) {
        self.keys().add(project_id, key);
    }

    // In what follows, a credential is a token or the id of an access key.

    /// The next requests with this credential get 401 (expired).
    pub fn expire(&self, credential: &str) {
        self.set_state(credential, CredentialState::Expired);
    }

    /// The next requests with this credential get 401 (revoked). The error code of a token differs from an expired
    /// one's.
    pub fn revoke(&self, credential: &str) {
        self.set_state(credential, CredentialState::Revoked);
    }

    /// The next requests with this credential get 403 (no permission).
    pub fn deny(&self, credential: &str) {
        self.set_state(credential, CredentialState::Denied);
    }

    /// The next requests with this credential are accepted again.
    pub fn restore(&self, credential: &str) {
        self.set_state(credential, CredentialState::Valid);
    }

    /// The next lists for this credential lack their first match, so that they differ from other callers' lists.
    pub fn restrict_view(&self, credential: &str) {
        let now = self.shared.state.now();
        self.shared.state.tokens.lock().restrict_view(credential, now);
        self.keys().restrict_view(credential, now);
    }

    fn set_state(&self, credential: &str, state: CredentialState) {
        self.shared.state.tokens.lock().set_state(credential, state);
        self.keys().set_state(credential, state);
    }

    /// The clock of the catalogue's changes, of quotas and of the dates of signatures, instead of the system's. Set it
    /// before anything changes.
    pub fn set_clock(&self, clock: Clock) {
        *self.shared.state.clock.lock() = clock;
    }

    /// The number of rejected signatures since the start: wrong ones, and all of a locked key.
    pub fn signature_failures(&self) -> usize {
        self.keys().failures()
    }

    /// The number of failures of this access key since its last valid signature. The sixth failure locks it.
    pub fn failures_in_a_row(&self, id: &str) -> u32 {
        self.keys().failures_in_a_row(id)
    }

    pub fn is_locked(&self, id: &str) -> bool {
        let now = self.shared.state.date();
        self.keys().is_locked(id, now)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.shared.state.keys.lock()
    }

    // Behaviour. It stays until it is changed.

    /// The next responses are sent after this time.
    pub fn delay(&self, latency: Duration) {
        self.behaviour().delay = latency;
    }

    /// The next requests get this status, and the documented error body if it is an error. `None`: no longer.
    pub fn fail_with(&self, status: Option<StatusCode>) {
        self.behaviour().fail_with = status;
    }

    /// Only this part of the requests fails by [`fail_with`](Self::fail_with) and
    /// [`reset_connections`](Self::reset_connections), in percent and spread evenly. `None`: all.
    pub fn fail_share(&self, percent: Option<u8>) {
        self.behaviour().failing_percent = percent;
    }

    /// The next requests that fail by [`fail_with`](Self::fail_with) have this `Retry-After`, in seconds.
    pub fn retry_after(&self, seconds: Option<u32>) {
        self.behaviour().retry_after = seconds;
    }

    /// The next `after` requests are accepted, and those after them get 429. `None`: no longer.
    pub fn throttle(&self, after: Option<u32>) {
        self.behaviour().requests_left = after;
    }

    /// The next requests with this credential get this status. Other callers are not affected. `None`: no longer.
    pub fn fail_token(&self, token: &str, status: Option<StatusCode>) {
        self.behaviour().fail_token(token, status);
    }

    /// The next requests with this token get 429. Other callers are not affected.
    pub fn throttle_token(&self, token: &str, on: bool) {
        self.fail_token(token, on.then_some(StatusCode::TOO_MANY_REQUESTS));
    }

    /// The next requests with a longer token get this status, before the token is checked. A proxy with a limit of the
    /// head does the same.
    pub fn limit_token_length(&self, limit: Option<(usize, StatusCode)>) {
        self.behaviour().token_length_limit = limit;
    }

    /// The next requests are recorded and then wait at a barrier until [`release`](Self::release).
    pub fn hold(&self) {
        self.behaviour().hold(Barrier::Everyone);
    }

    /// Removes the barrier: waiting requests continue.
    pub fn release(&self) {
        self.behaviour().release(&Barrier::Everyone);
    }

    /// The same, only for requests with this credential.
    pub fn hold_token(&self, token: &str) {
        self.behaviour().hold(Barrier::Token(token.to_owned()));
    }

    pub fn release_token(&self, token: &str) {
        self.behaviour().release(&Barrier::Token(token.to_owned()));
    }

    /// The same, only for requests for this path and query.
    pub fn hold_target(&self, target: &str) {
        self.behaviour().hold(Barrier::Target(target.to_owned()));
    }

    pub fn release_target(&self, target: &str) {
        self.behaviour().release(&Barrier::Target(target.to_owned()));
    }

    /// The next lists contain the caller's project id, so that lists of different projects differ.
    pub fn include_project_in_lists(&self, on: bool) {
        self.behaviour().include_project = on;
    }

    /// The next lists have an `ETag`. Conditional requests that match it get 304.
    pub fn send_etags(&self, on: bool) {
        self.behaviour().send_etags = on;
    }

    /// The next responses have this header. It replaces a default header of the same name. Added twice, it is sent
    /// twice.
    pub fn add_header(&self, name: HeaderName, value: HeaderValue) {
        self.behaviour().headers.append(name, value);
    }

    /// The next responses have none of the added headers.
    pub fn remove_headers(&self) {
        self.behaviour().headers.clear();
    }

    /// The next lists have this body instead of their own. `None`: no longer.
    pub fn set_list_body(&self, body: Option<Bytes>) {
        self.behaviour().body = body;
    }

    /// The next requests get no response: their connections are closed.
    pub fn reset_connections(&self, on: bool) {
        self.behaviour().reset_connections = on;
    }

    /// The next lists declare their full `Content-Length`, and are cut off in the middle of the body.
    pub fn truncate(&self, on: bool) {
        self.behaviour().truncate = on;
    }

    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.shared.state.behaviour.lock()
    }

    // The catalogue and its history.

    /// The next lists are of a new version of the catalogue: each list with products changes. Returns the moment of the
    /// change.
    pub fn change_catalogue(&self) -> Instant {
        let mut history = self.shared.state.history.lock();
        let now = self.shared.state.now();
        history.change(now);
        now
    }

    /// From now on, these lists change at random moments with this mean interval, in addition to all other changes. The
    /// seed fixes the moments. `None`: no longer. An earlier rate of the same unit ends.
    ///
    /// # Panics
    /// If the mean interval is zero.
    pub fn change_catalogue_every(&self, unit: &ChangeUnit, mean: Option<Duration>, seed: u64) {
        let mut history = self.shared.state.history.lock();
        history.change_every(unit, mean, seed, self.shared.state.now());
    }

    /// When the list at this path and query changes for the first time after a moment. `None` if no change is planned,
    /// or there is no such list.
    pub fn next_change(&self, target: &str, after: Instant) -> Option<Instant> {
        server::next_change(&self.shared.state, target, after)
    }

    /// The list that a request with this credential gets at this moment, past or future: with the changes and the
    /// limited views of that moment. If several things happened while the clock stood still, it is the list after all
    /// of them.
    ///
    /// It ignores injected behaviour and the state of the credential. Whether the list contains the project id
    /// ([`include_project_in_lists`](Self::include_project_in_lists)) is as it is now. `None` if the path and query are
    /// not those of a list.
    pub fn product_list_at(&self, credential: &str, target: &str, headers: &HeaderMap, at: Instant) -> Option<Bytes> {
        let bearer = self.shared.state.tokens.lock().known(credential).or_else(|| self.keys().known(credential))?;
        server::product_list_at(&self.shared.state, target, headers, &bearer, at)
    }

    // The request log.

    /// Waits until at least `n` requests have been received since the start or the last
    /// [`forget_requests`](Self::forget_requests).
    pub async fn wait_for_requests(&self, n: usize) {
        self.shared.state.log.wait_for_requests(n).await;
    }

    /// The number of requests since the start or the last [`forget_requests`](Self::forget_requests).
    pub fn request_count(&self) -> usize {
        self.shared.state.log.count()
    }

    /// The last 10,000 requests in order of arrival.
    pub fn requests_seen(&self) -> Vec<RecordedRequest> {
        self.shared.state.log.requests()
    }

    /// Clears the log and the count of requests.
    pub fn forget_requests(&self) {
        drop(self.shared.state.log.take());
    }

    /// Waits until a request has ended. Returns those that have ended since the last time, at most 10,000.
    pub async fn ended_requests(&self) -> Vec<EndedRequest> {
        self.shared.state.ended.wait_for_requests(1).await;
        self.shared.state.ended.take()
    }
}

fn origin(place: &Place) -> io::Result<Origin> {
    let authority = Authority::try_from(place.address()?.to_string()).map_err(io::Error::other)?;
    Ok(Origin::new(Scheme::HTTP, authority))
}
