//! An upstream that the driver controls.
//!
//! Each call is in flight until the driver completes it, so calls overlap and complete in any order. Nothing is decided
//! here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, RETRY_AFTER, SET_COOKIE, VARY, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::{Notify, oneshot};
use workspace_gateway::testing::budget::Charge;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::gateway::REQUEST_IDS;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::request::caller::X_AUTH_TOKEN;
use workspace_gateway::testing::request::id::RequestIds;
use workspace_gateway::testing::request::key::RequestKey;
use workspace_gateway::testing::request::precondition::Validator;
use workspace_gateway::testing::stream::{StreamBody, stream};
use workspace_gateway::testing::upstream::client::FetchContext;
use workspace_gateway::testing::upstream::{CallerRefusal, PendingResponse, Upstream, UpstreamError, UpstreamResponse};

use super::domain::{
    CALLERS, CallerId, ExtraHeader, Failure, KEYS, KeyId, RequestId, SECOND, UpstreamResult, Version, token,
};

/// Identifies the request of a client. It is relayed with the request.
pub const X_REQUEST_NUMBER: &str = "x-number";

/// Upstream's own responses have it.
const X_REQUEST_ID: &str = "x-request-id";

/// Far more requests than a sequence has.
const MAX_REQUESTS: RequestId = 4_096;

/// A call or a relayed request that has reached upstream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpstreamRequest {
    pub id: RequestId,
    pub caller: CallerId,
    pub key: KeyId,
    /// Whether the request came directly from a client, not through another gateway.
    pub is_direct: bool,
    pub is_unsafe: bool,
    /// The list named in `If-None-Match`.
    pub validator: Option<Version>,
}

pub struct ScriptedUpstream {
    inner: Mutex<Inner>,
    /// Notified when a request arrives.
    activity: Arc<Notify>,
}

/// How a call ends, or the head of a refusal, whose body comes later.
struct CallResult {
    result: UpstreamResult,
    body: Option<oneshot::Receiver<UpstreamResult>>,
}

/// What a call in flight waits for.
enum Awaited {
    Result(oneshot::Sender<CallResult>),
    Body(oneshot::Sender<UpstreamResult>),
}

impl Awaited {
    /// Whether the gateway has cancelled the call.
    fn is_closed(&self) -> bool {
        match self {
            Self::Result(sender) => sender.is_closed(),
            Self::Body(sender) => sender.is_closed(),
        }
    }
}

#[derive(Default)]
struct Inner {
    in_flight: Vec<(RequestId, Awaited)>,
    started: Vec<UpstreamRequest>,
    relayed: Vec<UpstreamRequest>,
}

impl ScriptedUpstream {
    pub fn new(activity: Arc<Notify>) -> Self {
        Self { inner: Mutex::default(), activity }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The calls that started since the last look, in order, and the relayed requests.
    pub fn take_started(&self) -> (Vec<UpstreamRequest>, Vec<UpstreamRequest>) {
        let mut inner = self.inner();
        (std::mem::take(&mut inner.started), std::mem::take(&mut inner.relayed))
    }

    /// The calls and relayed requests in flight, in the order in which they started.
    pub fn in_flight(&self) -> Vec<RequestId> {
        self.inner().in_flight.iter().map(|(id, _)| *id).collect()
    }

    /// Completes a call. Returns whether the gateway still waits for it.
    pub fn complete(&self, id: RequestId, result: UpstreamResult) -> bool {
        let mut inner = self.inner();
        let Some(index) = inner.in_flight.iter().position(|(call, _)| *call == id) else { return false };
        match inner.in_flight.remove(index).1 {
            Awaited::Result(sender) => sender.send(CallResult { result, body: None }).is_ok(),
            Awaited::Body(sender) => sender.send(result).is_ok(),
        }
    }

    /// Sends the head of a refusal. The body completes the call. Returns whether the gateway still waits for it.
    pub fn deliver_head(&self, id: RequestId, result: UpstreamResult) -> bool {
        let mut inner = self.inner();
        let Some((_, awaited)) = inner.in_flight.iter_mut().find(|(call, _)| *call == id) else { return false };
        let (sender, body) = oneshot::channel();
        match std::mem::replace(awaited, Awaited::Body(sender)) {
            Awaited::Result(sender) => sender.send(CallResult { result, body: Some(body) }).is_ok(),
            Awaited::Body(_) => panic!("the head was sent before"),
        }
    }

    /// Forgets the calls that the gateway has cancelled.
    pub fn forget(&self) {
        self.inner().in_flight.retain(|(_, awaited)| !awaited.is_closed());
    }
}

impl Upstream for ScriptedUpstream {
    fn fetch_list<'a>(
        &'a self,
        key: &'a RequestKey,
        context: FetchContext,
        _: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        let target = key.uri().unwrap().path_and_query().unwrap().to_string();
        let id = number_of(&context.request_id);
        // `Via` names this gateway last. An earlier entry is another gateway.
        let is_direct = !context.via.to_str().unwrap().contains(',');
        let validator = context.validator.map(|validator| version(&validator));
        let (caller, key, is_unsafe) = (caller(context.credential.token().unwrap()), key_id(&target), false);
        let request = UpstreamRequest { id, caller, key, is_direct, is_unsafe, validator };
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.inner();
        inner.started.push(request);
        inner.in_flight.push((id, Awaited::Result(sender)));
        drop(inner);
        self.activity.notify_one();
        Box::pin(async move {
            let CallResult { result, body } = receiver.await.expect("every call is completed");
            match (result, body) {
                (result, Some(body)) => Ok(UpstreamResponse::Refused(in_two_parts(id, result, body))),
                (UpstreamResult::Failed(Failure::Refused(status)), None) => {
                    Ok(UpstreamResponse::Refused(endless(status)))
                }
                (result, None) => response(id, result).map(UpstreamResponse::read),
            }
        })
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        head: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        let id = head.headers[X_REQUEST_NUMBER].to_str().unwrap().parse().unwrap();
        let target = head.uri.path_and_query().unwrap().to_string();
        let is_direct = !head.headers.contains_key(VIA);
        let caller = caller(&head.headers[X_AUTH_TOKEN]);
        let is_unsafe = !head.method.is_safe();
        let request = UpstreamRequest { id, caller, key: key_id(&target), is_direct, is_unsafe, validator: None };
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.inner();
        inner.relayed.push(request);
        inner.in_flight.push((id, Awaited::Result(sender)));
        drop(inner);
        self.activity.notify_one();
        Box::pin(async move {
            let complete = response(id, receiver.await.expect("every call is completed").result)?;
            Ok(complete.map(|body| stream(Full::new(body))))
        })
    }
}

fn response(id: RequestId, result: UpstreamResult) -> Result<Response<Bytes>, UpstreamError> {
    let (status, body, etag, extra_header) = match result {
        UpstreamResult::Complete { status, body, etag, extra_header } => (status, body, etag, extra_header),
        UpstreamResult::NotModified(etag) => (304, String::new(), etag, ExtraHeader::None),
        UpstreamResult::Failed(Failure::Connect) => return Err(UpstreamError::Connect("upstream".to_owned())),
        UpstreamResult::Failed(Failure::Unreachable) => return Err(UpstreamError::Unreachable("upstream".to_owned())),
        UpstreamResult::Failed(Failure::Local) => return Err(UpstreamError::Local("no descriptor".to_owned())),
        UpstreamResult::Failed(Failure::Timeout) => return Err(UpstreamError::Timeout),
        UpstreamResult::Failed(Failure::Refused(_)) => unreachable!("a relayed response is streamed"),
        UpstreamResult::Failed(Failure::TooLarge(status)) => {
            return Err(UpstreamError::TooLarge(StatusCode::from_u16(status).unwrap()));
        }
    };
    let mut response = Response::builder().status(status).header(SET_COOKIE, format!("leader={id}"));
    if let Some(etag) = etag {
        response = response.header(ETAG, etag.to_tag());
    }
    if matches!(status, 401 | 403) && extra_header != ExtraHeader::Intermediary {
        response = response.header(X_REQUEST_ID, "upstream");
    }
    response = match extra_header {
        ExtraHeader::None | ExtraHeader::Intermediary => response,
        ExtraHeader::NoStore => response.header(CACHE_CONTROL, "no-store"),
        ExtraHeader::Vary => response.header(VARY, "accept, X-Auth-Token"),
        ExtraHeader::RetryAfter(Some(ms)) => response.header(RETRY_AFTER, ms / SECOND),
        ExtraHeader::RetryAfter(None) => response.header(RETRY_AFTER, "soon"),
    };
    Ok(response.body(Bytes::from(body)).unwrap())
}

/// A refusal with an incomplete body.
fn endless(status: u16) -> CallerRefusal {
    let (head, ()) = Response::builder().status(status).header(X_REQUEST_ID, "upstream").body(()).unwrap().into_parts();
    CallerRefusal { head, body: Box::pin(std::future::ready(None)) }
}

/// A refusal whose body comes later, and may be incomplete.
fn in_two_parts(id: RequestId, result: UpstreamResult, body: oneshot::Receiver<UpstreamResult>) -> CallerRefusal {
    let head = match result {
        UpstreamResult::Failed(Failure::Refused(status)) => endless(status).head,
        result => response(id, result).expect("a refusal has a head").into_parts().0,
    };
    let body = async move {
        match body.await.expect("every call is completed") {
            UpstreamResult::Complete { body, .. } => Some(Bytes::from(body)),
            UpstreamResult::NotModified(_) | UpstreamResult::Failed(_) => None,
        }
    };
    CallerRefusal { head, body: Box::pin(body) }
}

/// The `Via` header of a request that came through another gateway.
pub fn via_header(is_direct: bool) -> HeaderMap {
    let via = HeaderValue::from_static("1.1 workspace-gateway-0000002a");
    if is_direct { HeaderMap::new() } else { HeaderMap::from_iter([(VIA, via)]) }
}

/// A seeded generator: the order of request ids is known here.
pub fn random() -> Random {
    Random::seeded([0x5e; 32])
}

pub fn request_ids() -> RequestIds {
    RequestIds::new(random().key(REQUEST_IDS).unwrap())
}

/// The gateway numbers its requests in order of arrival, and so do the clients. So the request id of a call tells which
/// request leads it.
fn number_of(request_id: &str) -> RequestId {
    static NUMBERS: OnceLock<HashMap<String, RequestId>> = OnceLock::new();
    let numbers = NUMBERS.get_or_init(|| {
        let ids = request_ids();
        (0..MAX_REQUESTS).map(|number| (ids.next().as_str().to_owned(), number)).collect()
    });
    numbers[request_id]
}

fn version(validator: &Validator) -> Version {
    let Validator::EntityTag(etag) = validator else { panic!("no list has a Last-Modified") };
    Version::from_tag(etag.to_str().unwrap()).expect("the tag of a list")
}

/// Blanks around a token are not part of it.
fn caller(credential: &HeaderValue) -> CallerId {
    let credential = credential.to_str().unwrap().trim();
    (0..CALLERS).find(|&caller| credential == token(caller)).expect("the token of a caller")
}

fn key_id(target: &str) -> KeyId {
    KEYS.iter().position(|(_, known)| *known == target).expect("the target of a key")
}
