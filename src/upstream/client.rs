//! The HTTP client: builds requests to upstream and reads responses, completely or as a stream. A request for a product
//! list must not contain anything but its key, the credential, constants and configured fields (invariant 1).

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
use crate::budget::{Charge, Collected};
use crate::catalogue::{Origin, Service};
use crate::machine::Machine;
use crate::proxy_config::ProxyConfig;
use crate::request::X_REQUEST_ID;
use crate::request::caller::{Credential, X_AUTH_TOKEN};
use crate::request::hop::{self, Via};
use crate::request::key::RequestKey;
use crate::request::precondition::Validator;
use crate::request::trace::TRACEPARENT;
use crate::request::trailers::Trimmed;
use crate::signing::{Payload, X_PROJECT_ID};
use crate::stream::{BoxError, StreamBody, nothing};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The limits of calls and of connections to upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// For DNS, TCP, the CONNECT request to a proxy and the TLS handshake together.
    pub connect: Duration,
    /// From the start of a call for a product list to the end of the response head.
    pub first_byte: Duration,
    /// From the start of a call for a product list to the end of the response.
    pub answer: Duration,
    /// For a relayed stream without data in either direction.
    pub idle: Duration,
    /// The age from which a connection gets no further request.
    pub age: Duration,
    /// The maximum size of a product list, in bytes. A larger one is not buffered.
    pub max_body: usize,
}

/// What a call for a product list needs besides the request key.
#[derive(Clone)]
pub struct FetchContext {
    pub credential: Credential,
    /// The time of the signature, if the gateway signs the request.
    pub date: SystemTime,
    pub request_id: String,
    /// The `Via` field, with this gateway as the last member.
    pub via: HeaderValue,
    /// The validator of the response that is stored for this key, for a conditional request (RFC 9110 §13).
    pub validator: Option<Validator>,
    /// The `traceparent` field. The gateway has parsed and rewritten it.
    pub trace: Option<HeaderValue>,
    /// The fields of the client that the operation forwards (`forward_headers`).
    pub forwarded: HeaderMap,
}

/// Called for each retry.
type OnRetry = Box<dyn Fn(Service) + Send + Sync>;

pub struct HttpClient {
    connections: Connections,
    limits: CallLimits,
    via: Via,
    on_retry: OnRetry,
}

impl HttpClient {
    /// The client trusts the system's certificate authorities and those in `upstream.ca_file`. It does not connect yet.
    ///
    /// # Errors
    /// If `upstream.ca_file` contains no usable certificates.
    pub fn new(
        named: Option<Authorities<'_>>,
        proxy_config: ProxyConfig,
        limits: CallLimits,
        via: Via,
        machine: &Machine,
        on_retry: impl Fn(Service) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let connector = OriginConnector::new(named, (limits.connect, limits.idle), proxy_config, &machine.network)?;
        let connections = Connections::new(connector, limits.age, machine.clock.clone());
        Ok(Self { connections, limits, via, on_retry: Box::new(on_retry) })
    }

    /// Sends a request. If the connection breaks before a response head arrives, the client retries once, on a new
    /// connection. It retries only if nothing can happen twice: the method is safe (RFC 9110 §9.2.1), or no byte was
    /// written. A request with a body is not retried, because its body has been consumed. (Before any byte is written,
    /// hyper-util itself replaces a pooled connection that is dead, also for a request with a body.)
    async fn send(&self, service: Service, request: Request<StreamBody>) -> Result<Response<Incoming>, legacy::Error> {
        let retry = request.body().is_end_stream().then(|| without_body(&request));
        let response = match (self.connections.send(service, request).await, retry) {
            (Err(error), Some(retry)) if is_broken(&error) && (retry.method().is_safe() || is_unsent(&error)) => {
                tracing::debug!(service = service.as_str(), %error, "connection to upstream broke, retrying once");
                (self.on_retry)(service);
                // The other connections in the pool may be dead, too.
                self.connections.send_unpooled(retry).await
            }
            (response, _) => response,
        };
        if let Ok(response) = &response {
            self.connections.apply_keep_alive(service, response.headers());
        }
        response
    }

    async fn fetch_list(
        &self,
        key: &RequestKey,
        context: FetchContext,
        memory: Charge,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let request = product_list_request(key, context).map_err(|error| UpstreamError::unsendable(&error))?;
        let max_body = self.limits.max_body;
        let exchange = async {
            let sending = self.send(key.operation().service, request);
            let response = timeout(self.limits.first_byte, sending).await.map_err(|_| UpstreamError::FirstByte)?;
            let response = response.map_err(|error| UpstreamError::of_client(&error, key.origin()))?;
            let (mut head, body) = self.end_hop(response)?.into_parts();
            // The body is collected without its trailer section.
            head.headers.remove(TRAILER);
            if is_refusal(head.status) {
                return Ok(UpstreamResponse::Refused(CallerRefusal { head, body: Box::pin(read_refusal(body)) }));
            }
            if body.size_hint().lower() > max_body as u64 {
                return Err(UpstreamError::TooLarge(head.status));
            }
            let body = self.collect(body, head.status, memory).await?;
            Ok(UpstreamResponse::Complete(Response::from_parts(head, body)))
        };
        timeout(self.limits.answer, exchange).await.unwrap_or(Err(UpstreamError::Timeout))
    }

    /// Reads a complete body, if it fits in `memory`, or the client's share of the memory budget has room for the rest.
    async fn collect(&self, body: Incoming, status: StatusCode, memory: Charge) -> Result<Bytes, UpstreamError> {
        let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        let no_room = || UpstreamError::NoMemory(status);
        let mut collected = Collected::with_charge(memory, declared, self.limits.max_body).ok_or_else(no_room)?;
        let mut body = Limited::new(body, self.limits.max_body);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| UpstreamError::of_body(&error, status))?;
            let Ok(data) = frame.into_data() else { continue };
            if !collected.push(&data) {
                return Err(no_room());
            }
        }
        Ok(collected.finish())
    }

    async fn relay(
        &self,
        service: Service,
        origin: &Origin,
        head: &Parts,
        body: StreamBody,
    ) -> Result<Response<StreamBody>, UpstreamError> {
        let progress = Arc::new(Notify::new());
        // The upload has its own limit, because it may continue after the response has started, or even ended.
        let body = IdleLimited::new(MinRate::new(Trimmed(body)), self.limits.idle);
        let body = WatchedBody::new(body, Arc::clone(&progress)).boxed_unsync();
        let request = relayed(origin, head, body, &self.via).map_err(|error| UpstreamError::unsendable(&error))?;
        let response = idle::with_idle_limit(self.send(service, request), &progress, self.limits.idle).await;
        let response =
            response.ok_or(UpstreamError::Idle)?.map_err(|error| UpstreamError::of_client(&error, origin))?;
        let response = self.end_hop(response)?;
        Ok(response.map(|body| IdleLimited::new(Trimmed(body), self.limits.idle).boxed_unsync()))
    }

    /// Removes from a response what concerns only the connection to upstream, and adds `Via`.
    ///
    /// # Errors
    /// If the response switches protocols or has contradictory lengths.
    fn end_hop(&self, mut response: Response<Incoming>) -> Result<Response<Incoming>, UpstreamError> {
        // The gateway never forwards `Upgrade`, so no client has requested a switch.
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(UpstreamError::Broken("upstream switches protocols (101), which was not requested".to_owned()));
        }
        // If both are present, the chunked coding determined the length. `Content-Length` must be removed (RFC 9112
        // §6.3), or the client could take the rest of the body for the next response.
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
    fn fetch_list<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        memory: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        Box::pin(self.fetch_list(key, context, memory))
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

/// Replaces a repeated `Content-Length` value by a single one (RFC 9110 §8.6).
///
/// # Errors
/// If the values differ.
fn set_one_length(headers: &mut HeaderMap) -> Result<(), UpstreamError> {
    let fields = headers.get_all(CONTENT_LENGTH).iter();
    let lengths = fields.flat_map(|field| field.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii));
    let mut lengths = lengths.filter(|length| !length.is_empty());
    let Some(length) = lengths.next() else { return Ok(()) };
    if lengths.any(|other| other != length) {
        return Err(UpstreamError::Broken("the response has different Content-Length values".to_owned()));
    }
    let length = HeaderValue::from_bytes(length).map_err(|error| UpstreamError::Broken(error.to_string()))?;
    headers.insert(CONTENT_LENGTH, length);
    Ok(())
}

/// Reads the body of a refusal, if it ends within [`PEEK_TIMEOUT`] and [`MAX_PEEK`]. The timeout starts with this call,
/// not with the first poll.
fn read_refusal<B>(body: B) -> impl Future<Output = Option<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let is_too_large = body.size_hint().lower() > MAX_PEEK as u64;
    let reading = timeout(PEEK_TIMEOUT, Limited::new(body, MAX_PEEK).collect());
    async move { if is_too_large { None } else { Some(reading.await.ok()?.ok()?.to_bytes()) } }
}

/// Builds the request for a product list from the key, the credential and constants. The only other parts are the
/// fields that the operation is configured to forward.
///
/// # Errors
/// None for a key that was read from a request.
pub(crate) fn product_list_request(key: &RequestKey, context: FetchContext) -> Result<Request<StreamBody>, BoxError> {
    let FetchContext { credential, date, request_id, via, validator, trace, forwarded } = context;
    let mut request = Request::new(nothing());
    *request.uri_mut() = key.uri()?;
    // The forwarded fields come first, so that the fields below replace them.
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

/// Whether this field has the same value in all requests to a service.
pub(crate) fn is_constant(name: &HeaderName) -> bool {
    [HOST, ACCEPT, CONTENT_TYPE, ACCEPT_ENCODING, USER_AGENT].contains(name)
}

/// Builds the request to relay: the client's request, with upstream as its host.
fn relayed(origin: &Origin, head: &Parts, body: StreamBody, via: &Via) -> Result<Request<StreamBody>, http::Error> {
    let has_body = !body.is_end_stream();
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = origin.uri(head.uri.path_and_query().map_or("/", PathAndQuery::as_str))?;
    *request.headers_mut() = head.headers.clone();
    let headers = request.headers_mut();
    headers.insert(HOST, authority_value(origin));
    // Set here, because hyper drops the body of a GET or HEAD whose length is unknown.
    if has_body && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if headers.contains_key(TE) {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    via.add_to(headers, head.version);
    Ok(request)
}

/// A copy of a request that has no body.
fn without_body(request: &Request<StreamBody>) -> Request<StreamBody> {
    let mut copy = Request::new(nothing());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn authority_value(origin: &Origin) -> HeaderValue {
    // All characters of an authority are allowed in a field value.
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
    fn debug_output_does_not_contain_the_token() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, path_match) = catalogue.operation("/v2/p/products").unwrap();
        let key = RequestKey::read(&catalogue, operation, path_match, None, &HeaderMap::new(), false).unwrap();
        let token = HeaderValue::from_static("secret");
        let context = context(Credential::Token(token), HeaderMap::new());
        let request = product_list_request(&key, context).unwrap();
        assert_eq!(request.headers()[X_AUTH_TOKEN], "secret");
        assert!(!format!("{:?}", request.headers()).contains("secret"));
    }

    #[test]
    fn forwarded_fields_do_not_replace_the_gateways_own() {
        let name = HeaderName::from_static("x-language");
        let catalogue = Catalogue::for_tests(vec![name.clone()]);
        let (operation, path_match) = catalogue.operation("/v2/p/products").unwrap();
        let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("en-us"))]);
        let key = RequestKey::read(&catalogue, operation, path_match, None, &headers, false).unwrap();
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
