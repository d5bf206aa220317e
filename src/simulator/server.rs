//! The listeners, and the path of a request from its arrival to the response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, DATE, ETAG, Entry, IF_NONE_MATCH, RETRY_AFTER, SERVER, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Collected, Full, Limited};
use httpdate::fmt_http_date;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::behaviour::{Behaviour, Forced};
use super::changes::History;
use super::enforce::{self, Enforcement};
use super::errors::{self, ErrorReply};
use super::keys::{Keys, SignedRequest};
use super::list::{self, ListContext};
use super::log::{EndedRequest, RecordedRequest, RequestLog};
use super::more_lists;
use super::tokens::{Bearer, Tokens};
use crate::catalogue::{Catalogue, Operation, Service};
use crate::clock::Clock;
use crate::net::Listener;
use crate::request::X_REQUEST_ID;
use crate::request::caller::has_token;
use crate::request::id::RequestIds;
use crate::request::query;
use crate::request::route::{self, Route};
use crate::signing::has_signature;
use crate::sync::Mutex;

/// Bytes. The longest documented token has 102,400 characters.
const MAX_HEAD: usize = 512 * 1024;

const JSON: HeaderValue = HeaderValue::from_static("application/json;charset=utf8");

/// The API gateway's limit of a body, in bytes.
const MAX_BODY: usize = 12 * 1024 * 1024;

type AnyBody = UnsyncBoxBody<Bytes, io::Error>;

/// What all connections of a simulator share.
pub(super) struct SimulatorState {
    pub(super) catalogue: Catalogue,
    pub(super) behaviour: Mutex<Behaviour>,
    pub(super) tokens: Mutex<Tokens>,
    pub(super) keys: Mutex<Keys>,
    pub(super) clock: Mutex<Clock>,
    pub(super) history: Mutex<History>,
    pub(super) enforcement: Mutex<Enforcement>,
    pub(super) log: RequestLog<RecordedRequest>,
    pub(super) ended: RequestLog<EndedRequest>,
    pub(super) ids: RequestIds,
}

impl SimulatorState {
    pub(super) fn date(&self) -> SystemTime {
        self.clock.lock().date()
    }

    /// The moment for the catalogue's changes and for quotas.
    pub(super) fn now(&self) -> Instant {
        self.clock.lock().now()
    }
}

/// Accepts connections until dropped, which closes them all.
pub(super) async fn listen(state: Arc<SimulatorState>, service: Option<Service>, listener: Listener) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it, small responses wait for the peer's delayed acknowledgement. If it fails, the first read
                // fails, too.
                let _ = stream.set_nodelay();
                connections.spawn(serve(Arc::clone(&state), service, stream));
            }
            // Probably no file descriptor is free: wait until a connection has ended.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one connection until it closes.
pub(super) async fn serve<IO>(state: Arc<SimulatorState>, service: Option<Service>, stream: IO)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handler = service_fn(|request| handle(&state, service, request));
    let connection = http1::Builder::new().max_buf_size(MAX_HEAD).serve_connection(TokioIo::new(stream), handler);
    // Errors are expected: clients disconnect, and failures are injected below.
    let _ = connection.await;
}

/// A request in progress. When it is dropped, the request has ended.
struct RequestInProgress<'s> {
    state: &'s SimulatorState,
    method: Method,
    target: String,
    status: Option<StatusCode>,
    arrived: Instant,
}

impl Drop for RequestInProgress<'_> {
    fn drop(&mut self) {
        let (method, target) = (self.method.clone(), std::mem::take(&mut self.target));
        let duration = self.state.now().saturating_duration_since(self.arrived);
        self.state.ended.record(EndedRequest { method, target, status: self.status, duration });
    }
}

/// The path of a request. An error closes the connection without a response.
async fn handle(
    state: &SimulatorState,
    service: Option<Service>,
    request: Request<Incoming>,
) -> io::Result<Response<AnyBody>> {
    let (head, body) = request.into_parts();
    let service = service.unwrap_or_else(|| service_of(state, &head));
    // Looked up before the request is recorded: a barrier that a test raises when it sees this request is for the next
    // one.
    let recorded = recorded(service, &head, &body);
    let (method, target) = (recorded.method.clone(), recorded.target.clone());
    let mut progress = RequestInProgress { state, method, target, status: None, arrived: state.now() };
    let barriers = state.behaviour.lock().barriers(&recorded.target, &recorded.headers);
    state.log.record(recorded);
    for mut barrier in barriers {
        // Nothing is sent. The barrier opens when its sender is dropped.
        let _ = barrier.changed().await;
    }
    let delay = state.behaviour.lock().delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }

    let forced = state.behaviour.lock().forced(&head.headers);
    let mut limits = HeaderMap::new();
    let result = match forced {
        Some(Forced::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
        Some(Forced::Refuse(refusal)) => {
            let retry_after = state.behaviour.lock().retry_after;
            limits.extend(retry_after.map(|seconds| (RETRY_AFTER, HeaderValue::from(seconds))));
            Err(refusal)
        }
        None => respond(state, service, &head, body, &mut limits).await,
    };
    let request_id = state.ids.next();
    let mut response = result.unwrap_or_else(|refusal| refuse(&refusal, request_id.as_str()));
    response.headers_mut().extend(limits);
    let date = HeaderValue::try_from(fmt_http_date(state.date())).map_err(io::Error::other)?;
    response.headers_mut().insert(DATE, date);
    add_headers(state, &mut response, request_id.as_str());
    progress.status = Some(response.status());
    Ok(response)
}

/// The service of a request's path. A path of neither service gets its 404 from Workspace.
fn service_of(state: &SimulatorState, head: &Parts) -> Service {
    match route::find(&state.catalogue, &head.method, head.uri.path()) {
        Route::Operation(operation, _) => operation.service,
        Route::PassThrough(service) => service,
        Route::Unknown => Service::Workspace,
    }
}

fn recorded(service: Service, head: &Parts, body: &Incoming) -> RecordedRequest {
    let target = head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string);
    RecordedRequest {
        service,
        method: head.method.clone(),
        target,
        headers: head.headers.clone(),
        has_body: !body.is_end_stream(),
    }
}

/// The service's own response to a request. `limits` gets what it says of quotas.
async fn respond(
    state: &SimulatorState,
    service: Service,
    head: &Parts,
    body: Incoming,
    limits: &mut HeaderMap,
) -> Result<Response<AnyBody>, ErrorReply> {
    let route = route::find(&state.catalogue, &head.method, head.uri.path());
    let is_served_here = match &route {
        Route::Operation(operation, _) => operation.service == service,
        Route::PassThrough(home) => *home == service,
        Route::Unknown => false,
    };
    if !is_served_here {
        return Err(errors::NO_SUCH_API);
    }
    let checked = check_credential(state, head, body).await;
    let verdict = {
        let mut enforcement = state.enforcement.lock();
        enforcement.call(service, &route, head, checked.is_ok(), state.now())
    };
    *limits = verdict.headers(enforce::asks_for_limits(head));
    let (bearer, body) = checked?;
    if let Some(refusal) = verdict.refusal() {
        return Err(refusal);
    }
    match route {
        Route::Operation(operation, _) => list_products(state, operation, &bearer, head),
        _ => Ok(echo(head, body)),
    }
}

/// The owner of a request's credential, and the body of the request.
async fn check_credential(
    state: &SimulatorState,
    head: &Parts,
    body: Incoming,
) -> Result<(Bearer, AnyBody), ErrorReply> {
    if has_token(&head.headers) || !has_signature(&head.headers) {
        let bearer = state.tokens.lock().check(&head.headers)?;
        return Ok((bearer, body.map_err(io::Error::other).boxed_unsync()));
    }
    let body = collect_body(body).await?;
    let signed =
        SignedRequest { method: &head.method, target: (&head.uri).into(), headers: &head.headers, body: &body };
    let now = state.date();
    let bearer = state.keys.lock().check(signed, now)?;
    Ok((bearer, full_body(body)))
}

/// Collects a body, because the signature covers its hash.
async fn collect_body(body: Incoming) -> Result<Bytes, ErrorReply> {
    let collected = Limited::new(body, MAX_BODY).collect().await;
    // If the body breaks off, the connection is gone and nobody reads this response.
    collected.map(Collected::to_bytes).map_err(|_| errors::of_status(StatusCode::PAYLOAD_TOO_LARGE))
}

fn list_products(
    state: &SimulatorState,
    operation: &Arc<Operation>,
    bearer: &Bearer,
    head: &Parts,
) -> Result<Response<AnyBody>, ErrorReply> {
    if bearer.project_id != operation.template.project_id(head.uri.path()) {
        return Err(errors::OTHER_PROJECT);
    }
    let (replacement, truncate) = {
        let behaviour = state.behaviour.lock();
        (behaviour.body.clone(), behaviour.truncate)
    };
    let own = list_at(state, operation, head.uri.path(), head.uri.query(), &head.headers, bearer, state.now())?;
    let body = replacement.unwrap_or_else(|| with_project(state, own, bearer));
    let tag = etag(state, &body);
    if tag.is_some() && head.headers.get(IF_NONE_MATCH) == tag.as_ref() {
        let mut response = Response::new(full_body(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().extend(tag.map(|tag| (ETAG, tag)));
        return Ok(response);
    }
    let mut response = Response::new(if truncate { Truncated::of(body).boxed_unsync() } else { full_body(body) });
    response.headers_mut().extend(tag.map(|tag| (ETAG, tag)));
    Ok(response)
}

/// The list for a caller at a moment, without what is injected.
fn list_at(
    state: &SimulatorState,
    operation: &Arc<Operation>,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    bearer: &Bearer,
    at: Instant,
) -> Result<Bytes, ErrorReply> {
    let version = state.history.lock().version_at(&operation.name, &list_name(operation, path, query), at);
    let view = ListContext { version, restricted: bearer.is_restricted(at), language: list::language(headers) };
    let query = query.unwrap_or_default();
    more_lists::body(operation, query, view).map_or_else(|| list::body(operation, query, view), Ok)
}

/// What identifies a list in the history. Equivalent queries have the same list.
fn list_name(operation: &Operation, path: &str, query: Option<&str>) -> String {
    let canonical = query::canonical(query, &operation.parameters);
    format!("{path}?{}", canonical.as_deref().unwrap_or(query.unwrap_or_default()))
}

/// The operation, path and query of a list.
fn read_target<'a>(
    state: &'a SimulatorState,
    target: &'a str,
) -> Option<(&'a Arc<Operation>, &'a str, Option<&'a str>)> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    match route::find(&state.catalogue, &Method::GET, path) {
        Route::Operation(operation, _) => Some((operation, path, query)),
        _ => None,
    }
}

/// The list for a caller at a path and query, at a moment.
pub(super) fn product_list_at(
    state: &SimulatorState,
    target: &str,
    headers: &HeaderMap,
    bearer: &Bearer,
    at: Instant,
) -> Option<Bytes> {
    let (operation, path, query) = read_target(state, target)?;
    let list = list_at(state, operation, path, query, headers, bearer, at).ok()?;
    Some(with_project(state, list, bearer))
}

/// The first change of the list at a path and query after a moment.
pub(super) fn next_change(state: &SimulatorState, target: &str, after: Instant) -> Option<Instant> {
    let (operation, path, query) = read_target(state, target)?;
    state.history.lock().next_change(&operation.name, &list_name(operation, path, query), after)
}

/// Adds the project id to a list, if that is switched on.
fn with_project(state: &SimulatorState, list: Bytes, bearer: &Bearer) -> Bytes {
    if !state.behaviour.lock().include_project {
        return list;
    }
    let name = format!(r#"{{"project_id":"{}","#, bearer.project_id);
    [name.as_bytes(), &list[1..]].concat().into()
}

/// The `ETag` of a list, if that is switched on.
fn etag(state: &SimulatorState, list: &Bytes) -> Option<HeaderValue> {
    let is_on = state.behaviour.lock().send_etags;
    is_on.then(|| HeaderValue::try_from(format!("\"{}\"", blake3::hash(list).to_hex())).ok())?
}

/// Streams the body of the request back, for paths that are not simulated.
fn echo(head: &Parts, body: AnyBody) -> Response<AnyBody> {
    let mut response = Response::new(body);
    if let Some(content_type) = head.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    response
}

fn refuse(refusal: &ErrorReply, request_id: &str) -> Response<AnyBody> {
    let mut response = Response::new(full_body(refusal.body(request_id)));
    *response.status_mut() = refusal.status;
    if refusal.status == StatusCode::UNAUTHORIZED {
        // The real API gateway does the same.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    response
}

/// Adds the default headers and the injected ones.
fn add_headers(state: &SimulatorState, response: &mut Response<AnyBody>, request_id: &str) {
    let headers = response.headers_mut();
    if let Entry::Vacant(content_type) = headers.entry(CONTENT_TYPE) {
        content_type.insert(JSON);
    }
    headers.insert(SERVER, HeaderValue::from_static("api-gateway"));
    if let Ok(request_id) = HeaderValue::from_str(request_id) {
        headers.insert(X_REQUEST_ID, request_id);
    }
    headers.extend(state.behaviour.lock().headers.clone());
}

fn full_body(body: Bytes) -> AnyBody {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

/// A body that announces its full length and fails in the middle.
struct Truncated {
    length: u64,
    half: Option<Bytes>,
    flushed: bool,
}

impl Truncated {
    fn of(body: Bytes) -> Self {
        let half = body.slice(..body.len() / 2);
        Self { length: body.len() as u64, half: Some(half), flushed: false }
    }
}

impl Body for Truncated {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if let Some(half) = this.half.take() {
            return Poll::Ready(Some(Ok(Frame::data(half))));
        }
        if !this.flushed {
            // hyper writes its buffer when a body is pending, and drops the buffer when a body fails.
            this.flushed = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}
