//! The HTTP client: builds requests to upstream, and reads answers whole or as a stream.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRAILER, TRANSFER_ENCODING,
    USER_AGENT, VIA,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::connect::OriginConnector;
use super::connections::Connections;
use super::error::{is_broken, is_unsent};
use super::idle::{self, IdleLimited, WatchedBody};
use super::trust::Authorities;
use super::upload::MinRate;
use super::{
    AGENT, CallerRefusal, MAX_PEEK, PEEK_TIMEOUT, PendingResponse, Upstream, UpstreamError, UpstreamResponse,
    is_refusal,
};
use crate::budget::{Account, Collected, Purpose};
use crate::catalogue::{Origin, Service};
use crate::clock::Clock;
use crate::proxy_config::ProxyConfig;
use crate::request::X_REQUEST_ID;
use crate::request::caller::{Credential, X_AUTH_TOKEN};
use crate::request::condition::Validator;
use crate::request::hop::{self, Via};
use crate::request::key::RequestKey;
use crate::request::trace::TRACEPARENT;
use crate::request::trailers::Trimmed;
use crate::signing::{Payload, X_PROJECT_ID};
use crate::stream::{BoxError, StreamBody, nothing};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// How long and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// For DNS, TCP, a proxy's tunnel and TLS together.
    pub connect: Duration,
    /// From asking for a product list to the head of the answer.
    pub first_byte: Duration,
    /// For a whole answer.
    pub answer: Duration,
    /// For a stream on which nothing moves.
    pub idle: Duration,
    /// For a connection, after which it takes no more requests.
    pub age: Duration,
    /// The largest answer that is read whole.
    pub max_body: usize,
}

/// What goes upstream with a question and is not part of it.
pub struct FetchContext {
    /// The caller's credential.
    pub credential: Credential,
    /// When it is presented, for what is signed.
    pub date: SystemTime,
    /// The id of the request that is answered.
    pub request_id: String,
    /// The gateways it has come through, this one included.
    pub via: HeaderValue,
    /// What upstream has said of the answer that is kept for this very question. If that still holds,
    /// it says so with a 304.
    pub validator: Option<Validator>,
    /// The trace that it is a part of, in words of ours.
    pub trace: Option<HeaderValue>,
    /// What the operation sends of the client's besides.
    pub forwarded: HeaderMap,
}

/// Told of every request that is sent again.
type OnRetry = Box<dyn Fn(Service) + Send + Sync>;

/// Both upstream services, over HTTP.
pub struct HttpClient {
    connections: Connections,
    limits: CallLimits,
    via: Via,
    on_retry: OnRetry,
}

impl HttpClient {
    /// A client that trusts the system's authorities and those that are named, and goes the ways that are set.
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// If the file that is named has no usable certificates.
    pub fn new(
        named: Option<Authorities<'_>>,
        proxy_config: ProxyConfig,
        limits: CallLimits,
        via: Via,
        clock: Clock,
        on_retry: impl Fn(Service) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let connections = Connections::new(
            OriginConnector::new(named, (limits.connect, limits.idle), proxy_config)?,
            limits.age,
            clock,
        );
        Ok(Self { connections, limits, via, on_retry: Box::new(on_retry) })
    }

    /// Sends a request, and sends it once more if the connection breaks before there is a head of an
    /// answer, provided that this can't do anything twice: it is safe (RFC 9110 §9.2.1), or nothing of
    /// it was written. What has a body is gone by then. (While nothing was written, hyper-util by
    /// itself looks for another connection, body or not, when the one from its pool turns out dead.)
    async fn send(&self, service: Service, request: Request<StreamBody>) -> Result<Response<Incoming>, legacy::Error> {
        let again = request.body().is_end_stream().then(|| without_body(&request));
        let answer = match (self.connections.send(service, request).await, again) {
            (Err(error), Some(again)) if is_broken(&error) && (again.method().is_safe() || is_unsent(&error)) => {
                tracing::debug!(service = service.as_str(), %error, "the connection broke, asking again");
                (self.on_retry)(service);
                // The others in the pool may be as dead.
                self.connections.send_apart(again).await
            }
            (answer, _) => answer,
        };
        if let Ok(answer) = &answer {
            self.connections.heed(service, answer.headers());
        }
        answer
    }

    async fn ask(
        &self,
        key: &RequestKey,
        context: FetchContext,
        account: &Account,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let request = product_list_request(key, context).map_err(|error| UpstreamError::unsendable(&error))?;
        let max_body = self.limits.max_body;
        let answering = async {
            let asking = self.send(key.operation().service, request);
            let response = timeout(self.limits.first_byte, asking).await.map_err(|_| UpstreamError::FirstByte)?;
            let response = response.map_err(|error| UpstreamError::of_client(&error, key.origin()))?;
            let (mut head, body) = self.take_over(response)?.into_parts();
            // It is read whole, and given without its trailer section.
            head.headers.remove(TRAILER);
            if is_refusal(head.status) {
                return Ok(UpstreamResponse::Refused(CallerRefusal { head, body: Box::pin(refusal(body)) }));
            }
            // Declared too large: no need to read it to find out.
            if body.size_hint().lower() > max_body as u64 {
                return Err(UpstreamError::TooLarge(head.status));
            }
            let body = self.collect(body, head.status, account).await?;
            Ok(UpstreamResponse::Whole(Response::from_parts(head, body)))
        };
        timeout(self.limits.answer, answering).await.unwrap_or(Err(UpstreamError::Timeout))
    }

    /// Reads a body whole, as far as its client may have so much of the memory budget.
    async fn collect(&self, body: Incoming, status: StatusCode, account: &Account) -> Result<Bytes, UpstreamError> {
        let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        let no_room = || UpstreamError::NoMemory(status);
        let mut whole = Collected::with_capacity(account, Purpose::Responses, declared, self.limits.max_body)
            .ok_or_else(no_room)?;
        let mut body = Limited::new(body, self.limits.max_body);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| UpstreamError::of_body(&error, status))?;
            let Ok(data) = frame.into_data() else { continue };
            if !whole.push(&data) {
                return Err(no_room());
            }
        }
        Ok(whole.finish())
    }

    async fn relay(
        &self,
        service: Service,
        origin: &Origin,
        head: &Parts,
        body: StreamBody,
    ) -> Result<Response<StreamBody>, UpstreamError> {
        let moved = Arc::new(Notify::new());
        // The upload has a limit of its own: it may go on when the answer has begun, or ended.
        let body = IdleLimited::new(MinRate::new(Trimmed(body)), self.limits.idle);
        let body = WatchedBody::new(body, Arc::clone(&moved)).boxed_unsync();
        let request = relayed(origin, head, body, &self.via).map_err(|error| UpstreamError::unsendable(&error))?;
        let answer = idle::while_it_moves(self.send(service, request), &moved, self.limits.idle).await;
        let response = answer.ok_or(UpstreamError::Idle)?.map_err(|error| UpstreamError::of_client(&error, origin))?;
        let response = self.take_over(response)?;
        Ok(response.map(|body| IdleLimited::new(Trimmed(body), self.limits.idle).boxed_unsync()))
    }

    /// Ends the hop that an answer came by.
    fn take_over(&self, mut response: Response<Incoming>) -> Result<Response<Incoming>, UpstreamError> {
        // `Upgrade` never leaves the gateway, so nobody can have asked for it.
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(UpstreamError::Broken("it switches protocols unasked".to_owned()));
        }
        // Two ways to tell a body's length: the chunks were believed, so the other goes (RFC 9112 §6.3),
        // or the client would take the rest of the body for its next answer.
        if response.headers().contains_key(TRANSFER_ENCODING) {
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        set_one_length(response.headers_mut())?;
        hop::strip(response.headers_mut());
        let received = std::mem::replace(response.version_mut(), Version::HTTP_11);
        self.via.add_to(response.headers_mut(), received);
        Ok(response)
    }
}

impl Upstream for HttpClient {
    fn ask<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        account: &'a Account,
    ) -> PendingResponse<'a, UpstreamResponse> {
        Box::pin(self.ask(key, context, account))
    }

    fn relay<'a>(
        &'a self,
        service: Service,
        origin: &'a Origin,
        head: &'a Parts,
        body: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        Box::pin(self.relay(service, origin, head, body))
    }
}

/// Has a length that is told several times be told once (RFC 9110 §8.6).
///
/// # Errors
/// If several are told.
fn set_one_length(headers: &mut HeaderMap) -> Result<(), UpstreamError> {
    let fields = headers.get_all(CONTENT_LENGTH).iter();
    let lengths = fields.flat_map(|field| field.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii));
    let mut lengths = lengths.filter(|length| !length.is_empty());
    let Some(length) = lengths.next() else { return Ok(()) };
    if lengths.any(|other| other != length) {
        return Err(UpstreamError::Broken("it tells several lengths of its response".to_owned()));
    }
    let length = HeaderValue::from_bytes(length).map_err(|error| UpstreamError::Broken(error.to_string()))?;
    headers.insert(CONTENT_LENGTH, length);
    Ok(())
}

/// The body of a refusal, if it ends in time and is no larger than is read. The time begins now.
fn refusal<B>(body: B) -> impl Future<Output = Option<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    // Declared too large: no need to wait for it.
    let is_too_large = body.size_hint().lower() > MAX_PEEK as u64;
    let reading = timeout(PEEK_TIMEOUT, Limited::new(body, MAX_PEEK).collect());
    async move { if is_too_large { None } else { Some(reading.await.ok()?.ok()?.to_bytes()) } }
}

/// The request for a product list: made of the key, the credential and constants, and nothing else but
/// what the operation is configured to send along.
///
/// # Errors
/// None for a key that was read from a request.
pub(crate) fn product_list_request(key: &RequestKey, context: FetchContext) -> Result<Request<StreamBody>, BoxError> {
    let FetchContext { credential, date, request_id, via, validator, trace, forwarded } = context;
    let mut request = Request::new(nothing());
    *request.uri_mut() = key.uri()?;
    // First, so that what is said below can't be gainsaid.
    *request.headers_mut() = forwarded;
    let headers = request.headers_mut();
    headers.insert(HOST, authority_value(key.origin()));
    headers.insert(ACCEPT, JSON);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(USER_AGENT, AGENT);
    headers.insert(VIA, via);
    headers.insert(X_REQUEST_ID, HeaderValue::try_from(request_id)?);
    if let Some(trace) = trace {
        headers.insert(TRACEPARENT, trace);
    }
    if let Some(validator) = validator {
        let (name, value) = validator.header();
        headers.insert(name, value.clone());
    }
    for (name, value) in key.headers() {
        headers.insert(name, value.clone());
    }
    match credential {
        Credential::Token(mut token) => {
            token.set_sensitive(true);
            headers.insert(X_AUTH_TOKEN, token);
        }
        Credential::Signed(signed) => {
            let project_id = key.scope().project_id();
            if !project_id.is_empty() {
                headers.insert(X_PROJECT_ID, HeaderValue::from_str(project_id)?);
            }
            let covered = [CONTENT_TYPE, X_PROJECT_ID].into_iter().filter(|name| headers.contains_key(name));
            let covered: Vec<HeaderName> = covered.collect();
            let uri = key.uri()?;
            let names = covered.iter().map(HeaderName::as_str);
            signed.key.sign(&Method::GET, (&uri).into(), headers, names, &Payload::of(b""), date)?;
        }
    }
    Ok(request)
}

/// Whether every question has the same value for this header.
pub(crate) fn is_constant(name: &HeaderName) -> bool {
    [HOST, ACCEPT, CONTENT_TYPE, ACCEPT_ENCODING, USER_AGENT].contains(name)
}

/// The request as it came, to another host.
fn relayed(origin: &Origin, head: &Parts, body: StreamBody, via: &Via) -> Result<Request<StreamBody>, http::Error> {
    let has_body = !body.is_end_stream();
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = origin.uri(head.uri.path_and_query().map_or("/", PathAndQuery::as_str))?;
    *request.headers_mut() = head.headers.clone();
    let headers = request.headers_mut();
    headers.insert(HOST, authority_value(origin));
    // Said here, for hyper takes a GET or HEAD of no known length for one without a body, and drops that.
    if has_body && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if headers.contains_key(TE) {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    via.add_to(headers, head.version);
    Ok(request)
}

/// The same request once more, if it has no body.
fn without_body(request: &Request<StreamBody>) -> Request<StreamBody> {
    let mut again = Request::new(nothing());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    again
}

fn authority_value(origin: &Origin) -> HeaderValue {
    // An authority is made of characters that a header value allows.
    HeaderValue::from_str(origin.authority().as_str()).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    fn context(credential: Credential, forwarded: HeaderMap) -> FetchContext {
        let (date, via) = (SystemTime::UNIX_EPOCH, HeaderValue::from_static("v"));
        FetchContext { credential, date, request_id: "id".to_owned(), via, validator: None, trace: None, forwarded }
    }

    #[test]
    fn a_token_does_not_print() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, place) = catalogue.operation("/v2/p/products").unwrap();
        let key = RequestKey::read(&catalogue, operation, place, None, &HeaderMap::new(), false).unwrap();
        let token = HeaderValue::from_static("secret");
        let context = context(Credential::Token(token), HeaderMap::new());
        let request = product_list_request(&key, context).unwrap();
        assert_eq!(request.headers()[X_AUTH_TOKEN], "secret");
        assert!(!format!("{:?}", request.headers()).contains("secret"));
    }

    #[test]
    fn what_is_sent_along_replaces_nothing() {
        let name = HeaderName::from_static("x-language");
        let catalogue = Catalogue::for_tests(vec![name.clone()]);
        let (operation, place) = catalogue.operation("/v2/p/products").unwrap();
        let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("en-us"))]);
        let key = RequestKey::read(&catalogue, operation, place, None, &headers, false).unwrap();
        let mut forwarded = HeaderMap::from_iter([(HeaderName::from_static("x-a"), HeaderValue::from_static("1"))]);
        let ours = [HOST, X_AUTH_TOKEN, ACCEPT, CONTENT_TYPE, ACCEPT_ENCODING, USER_AGENT, VIA, X_REQUEST_ID, name];
        for name in &ours {
            forwarded.append(name, HeaderValue::from_static("theirs"));
            forwarded.append(name, HeaderValue::from_static("theirs"));
        }
        let token = HeaderValue::from_static("secret");
        let context = context(Credential::Token(token), forwarded);
        let request = product_list_request(&key, context).unwrap();
        assert!(request.headers().values().all(|value| value != "theirs"), "{:?}", request.headers());
        assert_eq!((request.headers().len(), &request.headers()["x-a"]), (ours.len() + 1, &"1".parse().unwrap()));
    }
}
