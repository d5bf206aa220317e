//! Both upstream services over real sockets, with a vocabulary to make them misbehave. It serves
//! `demo`, the tests and the benches; this file is that vocabulary.
//!
//! The catalogue it shows is generated and always the same. What it says of tokens, filters, paging
//! and errors follows the services' documentation. Anything the services offer besides the product
//! lists, availability zones and disks is not modelled: with a valid credential it echoes the request's
//! body. A request without a token is judged by its signature, over what has arrived here; of the schemes
//! to sign with, the SDKs' usual one is modelled.
//!
//! ```text
//! server      listeners, and the path of one request
//! behaviour   what it has been told to do         tokens    who may ask
//! log         what it has been asked              keys      who may ask, by signature
//! products    the generated catalogue             errors    every way to say no
//! others      availability zones and disks        list      filters, paging, the JSON body
//! ```

mod behaviour;
mod errors;
mod keys;
mod list;
mod log;
mod others;
mod products;
mod server;
#[cfg(test)]
mod tests;
mod tokens;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use crate::catalogue::{Catalogue, Origin, Service};
use crate::clock::Clock;
use crate::random::Random;
use crate::request::id::RequestIds;
use crate::sync::{Mutex, MutexGuard};
use behaviour::{Barrier, Behaviour};
pub use keys::IssuedKey;
use keys::Keys;
use log::RequestLog;
pub(crate) use log::Seen;
use server::SimulatorState;
use tokens::{TokenState, Tokens};

/// A running pair of upstream services. Clones are handles to the same pair, which stops when the
/// last one is dropped.
///
/// What it is told holds for both services, from the next request that gets to that step: a request
/// waiting at the barrier meets what is said before [`release`](Self::release).
#[derive(Clone)]
pub struct Simulator {
    shared: Arc<SimulatorInner>,
}

struct SimulatorInner {
    state: Arc<SimulatorState>,
    listeners: Mutex<Vec<JoinHandle<()>>>,
    /// The addresses of those that were shut down, kept from anybody else.
    vacant: Mutex<Vec<(Service, TcpSocket)>>,
}

impl Drop for SimulatorInner {
    fn drop(&mut self) {
        self.listeners.lock().iter().for_each(JoinHandle::abort);
    }
}

impl Simulator {
    /// Starts both services on free ports of 127.0.0.1.
    ///
    /// # Errors
    /// When there is no port to be had, or no randomness for tokens.
    pub async fn start() -> io::Result<Self> {
        let workspace = TcpListener::bind(("127.0.0.1", 0)).await?;
        let appstream = TcpListener::bind(("127.0.0.1", 0)).await?;
        let mut catalogue = Catalogue::new(origin(&workspace)?, origin(&appstream)?, Vec::new());
        others::add_to(&mut catalogue)?;
        let state = Arc::new(SimulatorState {
            catalogue,
            behaviour: Mutex::default(),
            tokens: Mutex::new(Tokens::new(Random::System.key("tokens")?)),
            keys: Mutex::new(Keys::new(Random::System.key("access keys")?)),
            date: Mutex::new(Arc::new(|| Clock::System.date())),
            log: RequestLog::default(),
            ids: RequestIds::new(Random::System.key("request ids")?),
        });
        let shared = Arc::new(SimulatorInner { state, listeners: Mutex::default(), vacant: Mutex::default() });
        let simulator = Self { shared };
        simulator.listen(Service::Workspace, workspace);
        simulator.listen(Service::AppStream, appstream);
        Ok(simulator)
    }

    /// Closes the listeners and their connections. Once this returns, connecting is refused.
    pub async fn shut_down(&self) {
        let listeners = std::mem::take(&mut *self.shared.listeners.lock());
        for listener in listeners {
            listener.abort();
            // Cancelled is how it is meant to end.
            let _ = listener.await;
        }
        // Without a place to come back to, coming back will say so.
        self.shared.vacant.lock().extend(Service::ALL.into_iter().filter_map(|service| {
            let socket = self.keep_vacant(service).ok()?;
            Some((service, socket))
        }));
    }

    /// Listens again where it did before it was shut down.
    ///
    /// # Errors
    /// When an address could not be kept.
    pub fn come_back(&self) -> io::Result<()> {
        let vacant = std::mem::take(&mut *self.shared.vacant.lock());
        if vacant.len() < Service::ALL.len() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        for (service, socket) in vacant {
            self.listen(service, socket.listen(BACKLOG)?);
        }
        Ok(())
    }

    fn listen(&self, service: Service, listener: TcpListener) {
        let listening = tokio::spawn(server::listen(Arc::clone(&self.shared.state), service, listener));
        self.shared.listeners.lock().push(listening);
    }

    /// Takes a service's address without listening: connecting is refused, and nobody else can have it.
    fn keep_vacant(&self, service: Service) -> io::Result<TcpSocket> {
        let authority = self.shared.state.catalogue.origin(service).authority();
        let address: SocketAddr = authority.as_str().parse().map_err(io::Error::other)?;
        let socket = TcpSocket::new_v4()?;
        // Connections that were open a moment ago still have it.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    }

    /// Where a service listens: `http://127.0.0.1:PORT`.
    pub fn url(&self, service: Service) -> String {
        self.shared.state.catalogue.origin(service).to_string()
    }

    /// Serves one stream accepted elsewhere, for example under TLS, until it closes.
    pub async fn serve_stream<IO>(&self, service: Service, stream: IO)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        server::serve(Arc::clone(&self.shared.state), service, stream).await;
    }

    // Credentials.

    /// Issues a valid token for a project, as long as real ones are. No two are equal.
    pub fn token(&self, project_id: &str) -> String {
        self.token_of_length(project_id, tokens::USUAL_LENGTH)
    }

    /// Issues a valid token of a given length. Below some 16 characters two may turn out equal.
    pub fn token_of_length(&self, project_id: &str, length: usize) -> String {
        self.shared.state.tokens.lock().issue(project_id, length)
    }

    /// Creates an access key for a project, one that doesn't expire. No two are equal.
    pub fn access_key(&self, project_id: &str) -> IssuedKey {
        self.keys().create(project_id, false)
    }

    /// Creates temporary credentials for a project: a key with a security token.
    pub fn temporary_access_key(&self, project_id: &str) -> IssuedKey {
        self.keys().create(project_id, true)
    }

    /// Makes an access key known that was created elsewhere.
    pub fn add_access_key(&self, project_id: &str, key: &IssuedKey) {
        self.keys().add(project_id, key);
    }

    // Here and below a credential is a token or the id of an access key.

    /// From now on this credential has expired: 401.
    pub fn expire(&self, credential: &str) {
        self.judge(credential, TokenState::Expired);
    }

    /// From now on this credential is revoked: 401, for a token with another code.
    pub fn revoke(&self, credential: &str) {
        self.judge(credential, TokenState::Revoked);
    }

    /// From now on this credential's user lacks the permission: 403.
    pub fn deny(&self, credential: &str) {
        self.judge(credential, TokenState::Denied);
    }

    /// Makes the credential valid again.
    pub fn restore(&self, credential: &str) {
        self.judge(credential, TokenState::Valid);
    }

    /// From now on who presents this is shown a smaller catalogue: every product list lacks its first match.
    pub fn views_differ(&self, credential: &str) {
        self.shared.state.tokens.lock().narrow_view(credential);
        self.keys().narrow_view(credential);
    }

    fn judge(&self, credential: &str, standing: TokenState) {
        self.shared.state.tokens.lock().judge(credential, standing);
        self.keys().judge(credential, standing);
    }

    /// Has the date, which signatures are held against, told by this instead of the machine's clock.
    pub fn take_date_from(&self, date: impl Fn() -> SystemTime + Send + Sync + 'static) {
        *self.shared.state.date.lock() = Arc::new(date);
    }

    /// How many signatures were not taken since the start: wrong ones, and all of a locked key.
    pub fn signature_failures(&self) -> usize {
        self.keys().failures()
    }

    /// How many signatures with this access key failed since one was good. The sixth locks it.
    pub fn failures_in_a_row(&self, id: &str) -> u32 {
        self.keys().failures_in_a_row(id)
    }

    /// Whether this access key is locked.
    pub fn is_locked(&self, id: &str) -> bool {
        let now = self.shared.state.date();
        self.keys().is_locked(id, now)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.shared.state.keys.lock()
    }

    // Behaviour, until told otherwise.

    /// Waits this long before the head of every answer.
    pub fn delay(&self, latency: Duration) {
        self.behaviour().delay = latency;
    }

    /// Answers every request with this status, and the documented error body if it is an error.
    pub fn fail_with(&self, status: Option<StatusCode>) {
        self.behaviour().fail_with = status;
    }

    /// Lets this many more requests through and answers 429 to those after them; `None`: never.
    pub fn throttle(&self, after: Option<u32>) {
        self.behaviour().requests_left = after;
    }

    /// Answers those who present this credential with this status, and nobody else.
    pub fn fail_token(&self, token: &str, status: Option<StatusCode>) {
        self.behaviour().fail_token(token, status);
    }

    /// Throttles those who present this token, and nobody else: 429.
    pub fn throttle_token(&self, token: &str, on: bool) {
        self.fail_token(token, on.then_some(StatusCode::TOO_MANY_REQUESTS));
    }

    /// Answers longer tokens with this status, unseen, as a gateway does whose heads are limited.
    pub fn longest_token(&self, limit: Option<(usize, StatusCode)>) {
        self.behaviour().longest_token = limit;
    }

    /// Raises a barrier: requests that arrive are recorded and then wait for [`release`](Self::release).
    pub fn hold(&self) {
        self.behaviour().hold(Barrier::Everyone);
    }

    /// Lets all who wait there go on, and later ones pass.
    pub fn release(&self) {
        self.behaviour().release(&Barrier::Everyone);
    }

    /// Raises a barrier for those alone who present this credential.
    pub fn hold_token(&self, token: &str) {
        self.behaviour().hold(Barrier::Token(token.to_owned()));
    }

    /// Lets them go on.
    pub fn release_token(&self, token: &str) {
        self.behaviour().release(&Barrier::Token(token.to_owned()));
    }

    /// Raises a barrier for those alone who ask for this path and query.
    pub fn hold_target(&self, target: &str) {
        self.behaviour().hold(Barrier::Target(target.to_owned()));
    }

    /// Lets them go on.
    pub fn release_target(&self, target: &str) {
        self.behaviour().release(&Barrier::Target(target.to_owned()));
    }

    /// Publishes a new version of the catalogue: every list that has products changes.
    pub fn change_catalogue(&self) {
        self.behaviour().version += 1;
    }

    /// Has every list name the project that it is shown to, so that no two projects have the same.
    pub fn name_projects(&self, on: bool) {
        self.behaviour().names_projects = on;
    }

    /// What whoever presents this credential, once it is good, is shown at a path and query with these headers
    /// by a version of the catalogue, the first being 0. None if that is no product list.
    pub fn product_list(&self, token: &str, target: &str, headers: &HeaderMap, version: u32) -> Option<Bytes> {
        let bearer = self.shared.state.tokens.lock().known(token).or_else(|| self.keys().known(token))?;
        server::product_list(&self.shared.state, target, headers, &bearer, version)
    }

    /// Gives every list an `ETag`, and a 304 to whoever has it.
    pub fn tag_lists(&self, on: bool) {
        self.behaviour().tags_lists = on;
    }

    /// Adds a header to every 200 from now on. It takes the place of what would be there by default;
    /// added twice, it is there twice.
    pub fn add_header(&self, name: HeaderName, value: HeaderValue) {
        self.behaviour().headers.append(name, value);
    }

    /// Adds none of them any more.
    pub fn remove_headers(&self) {
        self.behaviour().headers.clear();
    }

    /// Gives every product list this body instead of its own.
    pub fn answer_with(&self, body: Option<Bytes>) {
        self.behaviour().body = body;
    }

    /// Closes connections instead of answering.
    pub fn reset_connection(&self, on: bool) {
        self.behaviour().reset_connection = on;
    }

    /// Declares the whole length of a product list and closes half way through its body.
    pub fn truncate(&self, on: bool) {
        self.behaviour().truncate = on;
    }

    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.shared.state.behaviour.lock()
    }

    // What it was asked.

    /// Resolves once at least `n` requests have arrived, since the start or since they were last forgotten.
    pub async fn arrived(&self, n: usize) {
        self.shared.state.log.arrived(n).await;
    }

    /// How many requests have arrived since the start or since they were last forgotten.
    pub fn request_count(&self) -> usize {
        self.shared.state.log.count()
    }

    /// The requests that have arrived, in order of arrival (the last 10,000 of them).
    pub fn requests_seen(&self) -> Vec<Seen> {
        self.shared.state.log.seen()
    }

    /// Forgets them; [`arrived`](Self::arrived) counts from here.
    pub fn forget_requests(&self) {
        self.shared.state.log.clear();
    }
}

fn origin(listener: &TcpListener) -> io::Result<Origin> {
    let authority = Authority::try_from(listener.local_addr()?.to_string()).map_err(io::Error::other)?;
    Ok(Origin::new(Scheme::HTTP, authority))
}

/// How many connections may wait to be accepted: as many as tokio's own listeners let.
const BACKLOG: u32 = 1024;
